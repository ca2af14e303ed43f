"""The contract of the sample stream, over shared memory and over ZMQ."""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import pytest

from hpc_marl.base.run_context import RunContext
from hpc_marl.data import EnvSpec, SampleLayout
from hpc_marl.errors import NameResolveError, StreamError
from hpc_marl.streams import frames, sample_answers, sample_link, sample_messages, sample_peer, sample_talk
from hpc_marl.streams.ledger import LOST, Ledger
from hpc_marl.streams.sample_lane import SampleLane
from hpc_marl.streams.sample_messages import Commit
from hpc_marl.streams.samples import SampleMetadata, SampleReceiver, SampleSender
from tests.unit.streams.conftest import until

KEY = "exp/trial/sample_stream/trainer/0"
SPEC = EnvSpec(agent_names=("a", "b"), observation_size=3, num_actions=4, has_action_mask=True, state_size=2)
LAYOUT = SampleLayout(SPEC, num_steps=5, num_envs=4)
METADATA = SampleMetadata(env_steps=20, agent_steps=40, episodes=[(1.5, 7)], policy_epoch=2)
TRANSPORTS = {"shared_memory": "auto", "zmq": "zmq"}


@pytest.fixture(params=[*TRANSPORTS, "zmq, large batches"])
def transport(request, monkeypatch):
    """Large batches are sent without a copy in frames of their own, small ones in one frame with their message."""
    if request.param.endswith("large batches"):
        monkeypatch.setattr(frames, "FRAME_BYTES", 256)
        monkeypatch.setattr(sample_link, "COPIED_BYTES", 0)
    return request.param.split(",")[0]


only_zmq = pytest.mark.parametrize("transport", ["zmq", "zmq, large batches"], indirect=True)


@pytest.fixture
def new_receiver(new_context, transport):
    opened = []

    def make(**kwargs):
        kwargs.setdefault("max_bytes", 2**20)
        receiver = SampleReceiver(new_context(), KEY, transport=TRANSPORTS[transport], **kwargs)
        opened.append(receiver)
        return receiver

    yield make
    for receiver in opened:
        receiver.ledger.check()
        receiver.close()


@pytest.fixture
def new_sender(new_context, transport):
    opened = []

    def make(name="actor/0", layout=LAYOUT, num_slots=4, **kwargs):
        sender = SampleSender(
            new_context(), KEY, name, layout, num_slots, transport=TRANSPORTS[transport], **kwargs
        )
        opened.append(sender)
        return sender

    yield make
    for sender in opened:
        sender.close(drain_timeout_s=0)


def connect(sender, receiver, granted=None):
    """Wait for the first grant and the raises of it that follow, until it is for all slots, or as many as said."""
    granted = len(sender._slots) if granted is None else granted
    until(lambda: sender.statistics().granted >= granted, sender.poll, receiver.poll)


def send(sender, group=0, **changes):
    batch = sender.acquire(group)
    assert batch is not None
    return sender.commit(batch, SampleMetadata(**{**METADATA_FIELDS, "group": group, **changes}))


METADATA_FIELDS = {name: getattr(METADATA, name) for name in METADATA.__struct_fields__}


def receive(receiver, sender, count):
    taken = []
    until(lambda: len(taken) >= count, sender.poll, receiver.poll, lambda: taken.extend(receiver.take()))
    return taken


def test_batches_arrive_whole_through_slots_used_again_and_again(new_receiver, new_sender, transport):
    receiver, sender = new_receiver(), new_sender(num_slots=2)
    connect(sender, receiver)
    random = np.random.default_rng(0)
    for seq in range(7):
        until(lambda: sender.statistics().under_way < 2, sender.poll)
        batch = sender.acquire()
        written = {}
        for name, array in batch.arrays().items():
            array[...] = random.integers(0, 2, array.shape)
            written[name] = array.copy()
        assert sender.commit(batch, METADATA) == seq
        (received,) = receive(receiver, sender, 1)
        assert (received.seq, received.worker_name, received.transport) == (seq, "actor/0", transport)
        assert received.metadata == METADATA and received.nbytes == LAYOUT.nbytes
        assert received.batch.arrays().keys() == written.keys()
        for name, array in received.batch.arrays().items():
            assert array.dtype == written[name].dtype and np.array_equal(array, written[name])
        receiver.consume([received])
    totals = receiver.ledger.balance()
    assert (totals.produced, totals.consumed, totals.dropped_total, totals.in_flight) == (7, 7, 0, 0)
    assert (totals.consumed_env_steps, totals.consumed_agent_steps) == (140, 280)
    assert sender.statistics().transport == transport
    assert receiver.statistics().senders_by_transport == {transport: 1}


def test_nothing_is_acquired_without_credit(new_receiver, new_sender):
    sender = new_sender(num_slots=2)
    sender.poll()
    assert sender.acquire() is None
    receiver = new_receiver()
    connect(sender, receiver, granted=2)
    send(sender)
    send(sender)
    assert sender.acquire() is None
    first, second = receive(receiver, sender, 2)
    sender.poll()
    assert sender.acquire() is None
    receiver.drop([first], "stale")
    until(lambda: sender.statistics().released == 1, sender.poll)
    assert sender.acquire() is not None and sender.acquire() is None
    receiver.consume([second])
    assert receiver.ledger.balance().dropped == {"stale": 1}
    assert sender.statistics().refused_acquires == 4


@only_zmq
def test_who_waits_gets_half_at_a_time(new_receiver, new_sender):
    """The rest is on its way while that is worked with; who does not wait gets all that is there."""
    receiver, sender = new_receiver(), new_sender(num_slots=8)
    connect(sender, receiver, granted=8)
    for _ in range(8):
        send(sender)
    until(lambda: receiver.statistics().received > 0, lambda: receiver.poll(0.01))
    assert receiver.statistics().received <= 4
    until(lambda: receiver.statistics().received == 8, receiver.poll)
    receiver.consume(receiver.take())


@only_zmq
def test_releases_go_together_but_none_waits_for_long(new_receiver, new_sender, monkeypatch):
    monkeypatch.setattr(sample_answers, "PATIENCE_S", 1e9)
    receiver, sender = new_receiver(), new_sender(num_slots=8)
    connect(sender, receiver, granted=8)
    for _ in range(4):
        send(sender)
    batches = receive(receiver, sender, 4)
    sent = []
    monkeypatch.setattr(receiver._answers, "send", lambda _, message: sent.append(message.released))
    receiver.consume(batches[:1])
    receiver.poll()
    assert sent == []
    receiver.consume(batches[1:2])  # a quarter of what was granted
    assert sent == [[0, 1]]
    receiver.consume(batches[2:3])
    receiver.poll(0.001)  # nobody is kept waiting by a receiver that has nothing to do
    assert sent == [[0, 1], [2]]
    monkeypatch.setattr(sample_answers, "PATIENCE_S", 0.0)
    receiver.consume(batches[3:])
    receiver.poll()
    assert sent == [[0, 1], [2], [3]]


def test_abandoned_batches_were_never_produced(new_receiver, new_sender):
    receiver, sender = new_receiver(), new_sender()
    connect(sender, receiver)
    batch = sender.acquire()
    sender.abandon(batch)
    for misuse in (lambda: sender.abandon(batch), lambda: sender.commit(batch, METADATA)):
        with pytest.raises(StreamError, match="not acquired"):
            misuse()
    assert send(sender) == 0
    assert sender.statistics().abandoned == 1


def test_every_group_gets_its_turn(new_receiver, new_sender):
    receiver = new_receiver(max_bytes=3 * LAYOUT.nbytes)
    sender = new_sender(num_slots=8, num_groups=2)
    connect(sender, receiver, granted=3)
    assert sender.acquire(0) is not None and sender.acquire(0) is not None
    assert sender.acquire(0) is None  # the third is kept for group 1
    batch = sender.acquire(1)
    assert batch is not None and sender.acquire(1) is None
    with pytest.raises(StreamError, match="group 1 was committed for group 0"):
        sender.commit(batch, METADATA)
    with pytest.raises(StreamError, match="no group 2"):
        sender.acquire(2)


def test_bytes_under_way_stay_within_the_budget(new_receiver, new_sender):
    budget = 7
    receiver = new_receiver(max_bytes=budget * LAYOUT.nbytes)
    senders = []
    held = []
    for index in range(4):
        senders.append(new_sender(f"actor/{index}"))
        connect(senders[-1], receiver, granted=1)
        for _ in range(20):
            for sender in senders:
                sender.poll()
                while (batch := sender.acquire()) is not None:
                    sender.commit(batch, METADATA)
            receiver.poll(0.001)
            held += receiver.take()
        statistics = receiver.statistics()
        assert statistics.held == len(held) >= min(4 * (index + 1), budget - 2)
        receiver.consume([held.pop(0) for _ in range(3)])
    assert receiver.statistics().peak_held_bytes <= (budget + 1) * LAYOUT.nbytes
    assert receiver.statistics().reserved_bytes <= (budget + 1) * LAYOUT.nbytes
    receiver.drop(held, "shutdown")
    until(
        lambda: receiver.statistics().granted == budget, receiver.poll, *(sender.poll for sender in senders)
    )


@pytest.mark.parametrize(
    ("layout", "difference"),
    [
        (dataclasses.replace(LAYOUT, num_steps=6), "num_steps is 6 instead of 5"),
        (dataclasses.replace(LAYOUT, memory_size=8, chunk_length=5), "memory_size is 8 instead of 0"),
        (
            dataclasses.replace(LAYOUT, spec=dataclasses.replace(SPEC, num_actions=5)),
            "num_actions is 5 instead of 4",
        ),
        (
            dataclasses.replace(LAYOUT, num_steps=5, memory_size=8, chunk_length=2),
            "no multiple of chunk_length",
        ),
        (dataclasses.replace(LAYOUT, chunk_length=0), "chunk_length=0 is out of range"),
    ],
)
def test_other_batches_are_refused_with_the_difference(new_receiver, new_sender, layout, difference):
    receiver, first = new_receiver(), new_sender()
    connect(first, receiver)
    try:
        other = new_sender("actor/1", layout)
    except ZeroDivisionError:
        pytest.skip("this layout cannot even be allocated")
    with pytest.raises(StreamError, match=difference):
        until(lambda: False, other.poll, receiver.poll)
    assert receiver.statistics().senders == 1


def test_actors_may_have_different_numbers_of_environments(new_receiver, new_sender):
    receiver, few, many = (
        new_receiver(),
        new_sender("actor/0"),
        new_sender("actor/1", SampleLayout(SPEC, 5, 9)),
    )
    connect(few, receiver)
    connect(many, receiver)
    send(few)
    send(many)
    batches = receive(receiver, few, 2)
    assert sorted(batch.batch.num_envs for batch in batches) == [4, 9]
    receiver.consume(batches)


def test_a_batch_too_large_for_zmq_is_refused_before_it_is_sent(new_receiver, new_sender, transport):
    receiver, sender = new_receiver(max_message_bytes=LAYOUT.nbytes - 1), new_sender()
    if transport == "shared_memory":
        connect(sender, receiver)
    else:
        with pytest.raises(StreamError, match="max_message_bytes"):
            until(lambda: False, sender.poll, receiver.poll)


def test_a_restarted_trainer_books_what_was_under_way_as_lost(new_receiver, new_sender):
    receiver, sender = new_receiver(epoch=1), new_sender()
    connect(sender, receiver)
    send(sender)
    receiver.consume(receive(receiver, sender, 1))
    until(lambda: sender.statistics().released == 1, sender.poll, receiver.poll)
    checkpoint = receiver.ledger.to_dict()
    send(sender)
    receive(receiver, sender, 1)  # in the trainer's hands when it dies
    send(sender)  # under way when it dies
    writing = sender.acquire()
    writing.reward[...] = 7.0
    receiver.close()

    successor = new_receiver(epoch=2, ledger=Ledger.from_dict(checkpoint))
    until(lambda: sender.statistics().receivers == 2, sender.poll, successor.poll)
    assert sender.statistics().lost == 2
    assert sender.commit(writing, METADATA) == 3  # what was being written goes on
    (received,) = receive(successor, sender, 1)
    assert received.seq == 3 and (received.batch.reward == 7.0).all()
    successor.consume([received])
    totals = successor.ledger.balance()
    assert (totals.produced, totals.consumed, totals.dropped) == (4, 2, {LOST: 2})
    assert totals.dropped_env_steps == 40


def test_an_entry_of_a_lower_epoch_is_not_followed(new_receiver, new_sender, monkeypatch):
    receiver, sender = new_receiver(epoch=5), new_sender()
    connect(sender, receiver)
    new_receiver(epoch=4)  # a zombie writes its entry again
    looks = []
    look = RunContext.lookup
    monkeypatch.setattr(RunContext, "lookup", lambda self, key: looks.append(key) or look(self, key))
    send(sender)
    until(lambda: len(looks) >= 2, sender.poll)  # the receiver is silent: is there another?
    assert sender.statistics().receivers == 1 and sender.statistics().lost == 0
    receiver.consume(receive(receiver, sender, 1))


@only_zmq
def test_a_batch_that_could_not_leave_yet_is_not_given_up(new_receiver, new_sender, monkeypatch):
    receiver, sender = new_receiver(), new_sender()
    connect(sender, receiver)
    messages = []
    send_now = sender._talk.link.send

    def send_all_but_commits(message, payload=None):
        messages.append(type(message))
        return type(message) is not Commit and send_now(message, payload)

    with monkeypatch.context() as patch:
        patch.setattr(sender._talk.link, "send", send_all_but_commits)
        send(sender)
        until(lambda: messages.count(Commit) >= 100, sender.poll, receiver.poll)
    receiver.consume(receive(receiver, sender, 1))
    assert receiver.ledger.balance().dropped_total == 0


def test_a_new_life_of_an_actor_takes_the_place_of_the_old_one(
    new_receiver, new_sender, transport, monkeypatch
):
    """Of what the old one was still sending, all that is in shared memory arrives."""
    receiver, old = new_receiver(), new_sender(epoch=3)
    connect(old, receiver)
    send(old)
    (received,) = receive(receiver, old, 1)
    received.batch.reward[...] = 5.0
    with monkeypatch.context() as patch:  # as if the process was stopped in mid-commit
        patch.setattr(old._talk, "flush", lambda: None)
        send(old)
    new = new_sender(epoch=3)
    connect(new, receiver)
    assert receiver.statistics().senders == 1
    with pytest.raises(StreamError, match="fenced"):
        until(lambda: False, old.poll, receiver.poll)
    gc.collect()
    assert (received.batch.reward == 5.0).all()
    receiver.consume([received, *receiver.take()])
    assert receiver.ledger.balance().dropped == {}
    assert receiver.ledger.balance().consumed == (2 if transport == "shared_memory" else 1)


def test_a_zombie_with_a_lower_epoch_is_refused(new_receiver, new_sender):
    receiver, new = new_receiver(), new_sender(epoch=2)
    connect(new, receiver)
    zombie = new_sender(epoch=1)
    with pytest.raises(StreamError, match="fenced"):
        until(lambda: False, zombie.poll, receiver.poll)
    send(new)
    receiver.consume(receive(receiver, new, 1))


def test_a_forgotten_process_is_fenced_and_its_credit_is_free(new_receiver, new_sender):
    receiver = new_receiver(max_bytes=4 * LAYOUT.nbytes)
    dead, living = new_sender("actor/0"), new_sender("actor/1")
    connect(dead, receiver, granted=1)
    connect(living, receiver, granted=1)
    receiver.forget(dead._context.incarnation)
    until(lambda: living.statistics().granted == 4, living.poll, receiver.poll)
    assert receiver.statistics().senders == 1
    with pytest.raises(StreamError, match="fenced"):
        send(dead)
        until(lambda: False, dead.poll, receiver.poll)
    assert receiver.ledger.balance().produced == 0


def test_closing_sends_what_is_under_way_first(new_receiver, new_sender):
    receiver, sender = new_receiver(), new_sender()
    connect(sender, receiver)
    for _ in range(3):
        send(sender)
    receiver.poll(1.0)
    sender.close(drain_timeout_s=0.2)
    until(lambda: receiver.statistics().senders == 0, receiver.poll)
    taken = receiver.take()
    assert [batch.seq for batch in taken] == [0, 1, 2]
    assert all(batch.batch.reward.shape == (5, 4, 2) for batch in taken)
    receiver.consume(taken)
    assert receiver.ledger.balance().consumed == 3
    assert receiver.statistics().reserved_bytes == 0
    with pytest.raises(StreamError, match="closed"):
        sender.poll()


def test_batches_are_settled_once(new_receiver, new_sender):
    receiver, sender = new_receiver(), new_sender()
    connect(sender, receiver)
    send(sender)
    batches = receive(receiver, sender, 1)
    receiver.consume(batches)
    for settle in (receiver.consume, lambda batch: receiver.drop(batch, "stale")):
        with pytest.raises(StreamError, match="not in flight"):
            settle(batches)
    assert receiver.statistics().held == 0


@pytest.mark.parametrize("never", ["_SILENCE_S", "_REPAIR_S"])
def test_a_lost_release_is_found_by_asking(new_receiver, new_sender, monkeypatch, never):
    receiver, sender = new_receiver(), new_sender()
    connect(sender, receiver)
    monkeypatch.setattr(sample_talk, never, 1e9)
    send(sender)
    batches = receive(receiver, sender, 1)
    with monkeypatch.context() as patch:
        patch.setattr(receiver._answers, "send", lambda routing_id, message: None)
        patch.setattr(sample_peer.Shared, "give", lambda shared, grant: None)
        patch.setattr(SampleLane, "release", lambda *args: None)
        receiver.consume(batches)
    until(lambda: sender.statistics().released == 1, sender.poll, receiver.poll)
    assert sender.statistics().under_way == 0


@only_zmq
@pytest.mark.parametrize("num_followers", [0, 2])
def test_swallowed_batches_are_sent_again_in_order(new_receiver, new_sender, monkeypatch, num_followers):
    """Also where others, which were sent after them over a new connection, come first."""
    receiver, sender = new_receiver(), new_sender(num_slots=4)
    connect(sender, receiver)
    with monkeypatch.context() as patch:
        patch.setattr(sender._talk.link, "send", lambda message, payload=None: True)
        for _ in range(2):
            send(sender)
    for _ in range(num_followers):
        send(sender)
    taken = receive(receiver, sender, 2 + num_followers)
    assert [batch.seq for batch in taken] == list(range(2 + num_followers))
    assert sender.statistics().resent >= 2 and bool(receiver.statistics().ignored) == bool(num_followers)
    receiver.consume(taken)
    until(lambda: sender.statistics().under_way == 0, sender.poll, receiver.poll)
    totals = receiver.ledger.balance()
    assert (totals.produced, totals.consumed, totals.dropped_total) == (
        2 + num_followers,
        2 + num_followers,
        0,
    )


def test_an_answer_overtaken_by_a_batch_sends_nothing_again(new_receiver, new_sender):
    receiver, sender = new_receiver(), new_sender()
    connect(sender, receiver)
    send(sender)
    early = sample_messages.Pong(
        stream=sender._talk.stream, answers=1, next_seq=0, held=[], grant=sender._talk.link.grant
    )
    sender._talk._take_pong(early)
    assert sender.statistics().resent == 0 and not sender._slots.unsent


@only_zmq
def test_a_message_that_was_overtaken_or_comes_twice_is_ignored(new_receiver, new_sender):
    receiver, sender = new_receiver(), new_sender()
    connect(sender, receiver)
    sent = []
    send_once = sender._talk.link.send
    sender._talk.link.send = lambda message, payload=None: (
        sent.append((message, payload)) or send_once(message, payload)
    )
    send(sender)
    send(sender)
    taken = receive(receiver, sender, 2)
    for message, payload in list(sent):
        send_once(message, payload)
    until(lambda: receiver.statistics().ignored.get("overtaken", 0) >= 2, receiver.poll)
    assert receiver.take() == []
    receiver.consume(taken)
    assert receiver.ledger.balance().consumed == 2


@pytest.mark.parametrize("part", ["SampleSlots", "SampleLane", "DoorbellButton"])
def test_memory_out_of_reach_falls_back_to_zmq(new_receiver, new_sender, monkeypatch, part):
    def out_of_reach(*args):
        raise StreamError("out of reach")

    if part == "DoorbellButton":
        monkeypatch.setattr(sample_peer, part, out_of_reach)
    else:
        monkeypatch.setattr(getattr(sample_peer, part), "attach", out_of_reach)
    receiver, sender = new_receiver(), new_sender()
    connect(sender, receiver)
    send(sender)
    (received,) = receive(receiver, sender, 1)
    assert received.transport == sender.statistics().transport == "zmq"
    receiver.consume([received])


def test_without_memory_for_a_lane_batches_go_by_zmq(new_receiver, new_sender, monkeypatch):
    def refused(*args):
        raise StreamError("no memory")

    monkeypatch.setattr(sample_talk.SampleLane, "create", refused)
    receiver, sender = new_receiver(), new_sender()
    connect(sender, receiver)
    send(sender)
    (received,) = receive(receiver, sender, 1)
    assert received.transport == sender.statistics().transport == "zmq"
    receiver.consume([received])


def test_a_receiver_that_forgot_everything_is_told_again(new_receiver, new_sender):
    receiver, sender = new_receiver(), new_sender()
    connect(sender, receiver)
    receiver._peers.clear()
    send(sender)
    until(lambda: sender.statistics().receivers == 2, sender.poll, receiver.poll)
    assert sender.statistics().lost == 1
    send(sender)
    receiver.consume(receive(receiver, sender, 1))
    assert receiver.ledger.balance().dropped == {LOST: 1}


def test_arrays_are_aligned_however_small_the_batch(new_receiver, new_sender):
    layout = SampleLayout(EnvSpec(observation_size=1, num_actions=2), num_steps=1, num_envs=1)
    receiver, sender = new_receiver(), new_sender(layout=layout, num_slots=8)
    connect(sender, receiver)
    for _ in range(8):
        send(sender)
    batches = receive(receiver, sender, 8)
    assert all(array.flags.aligned for received in batches for array in received.batch.arrays().values())
    receiver.consume(batches)


def test_a_receiver_knows_when_no_more_can_arrive(new_receiver, new_sender):
    receiver, sender = new_receiver(max_bytes=2 * LAYOUT.nbytes), new_sender()
    assert not receiver.is_full
    connect(sender, receiver, granted=2)
    send(sender)
    taken = receive(receiver, sender, 1)
    assert not receiver.is_full
    send(sender)
    taken += receive(receiver, sender, 1)
    assert receiver.is_full and sender.acquire() is None
    receiver.consume(taken)
    assert not receiver.is_full


def test_trouble_with_the_name_service_is_outlasted(new_receiver, new_sender, monkeypatch):
    receiver, sender = new_receiver(), new_sender()

    def stale(self, key):
        raise NameResolveError("stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(RunContext, "lookup", stale)
        sender.poll()
    connect(sender, receiver)
    assert sender.acquire() is not None


def test_slots_and_groups_must_fit(new_sender):
    with pytest.raises(StreamError, match="every group needs one"):
        new_sender(num_slots=2, num_groups=3)
