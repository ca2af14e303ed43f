"""SampleLane: what one end writes the other reads, whole; and each receiver has a lane of its own."""

from __future__ import annotations

import pytest

from hpc_marl.data import EnvSpec, SampleLayout
from hpc_marl.errors import ProtocolError, StreamError
from hpc_marl.streams.ledger import Tally
from hpc_marl.streams.sample_credits import Grant
from hpc_marl.streams.sample_lane import Record, SampleLane
from hpc_marl.streams.samples import SampleMetadata, SampleReceiver, SampleSender
from tests.unit.streams.conftest import until
from tests.unit.streams.stream_process import KEY, METADATA, fill_and_commit
from tests.unit.streams.stream_process import LAYOUT as LARGE

LAYOUT = SampleLayout(EnvSpec(observation_size=1, num_actions=2), num_steps=3, num_envs=2)
NUM_SLOTS = 3


@pytest.fixture
def ends():
    sender = SampleLane.create(LAYOUT, NUM_SLOTS, 5, "test")
    receiver = SampleLane.attach(LAYOUT, NUM_SLOTS, sender.handle)
    yield sender, receiver
    sender.close()
    receiver.close()


def commit(sender, seq, **changes):
    metadata = SampleMetadata(env_steps=6, agent_steps=6, **changes)
    sender.commit(seq % NUM_SLOTS, Tally(seq, 6 * seq, 7 * seq), sender.check_fits(metadata))
    return Record(seq, seq % NUM_SLOTS, Tally(seq, 6 * seq, 7 * seq), metadata)


def test_records_arrive_in_order_and_places_are_used_again(ends):
    sender, receiver = ends
    first = 5
    for count in (1, 3, 2, 3):
        written = [
            commit(sender, first + i, group=i, episodes=[(float(first), 7)] * (i + 1)) for i in range(count)
        ]
        assert receiver.sender_state()[0] == first + count
        assert list(receiver.records(first, first + count)) == written
        first += count


def test_what_changes_is_seen(ends):
    sender, receiver = ends
    assert receiver.sender_state() == (5, 0) and sender.news == 0
    sender.tell(heard=2**30, limit=2**16)
    assert receiver.told() == (2**30, 2**16) and receiver.sender_state()[1] != 0
    receiver.give(Grant(2**30, 2**16))
    receiver.release(1, 0)
    assert sender.news == 0
    assert not receiver.publish_news()
    assert sender.news == 1 and sender.grant() == Grant(2**30, 2**16)
    assert list(sender.stamps) == [0, 1, 0]


def test_the_bell_is_asked_for(ends):
    sender, receiver = ends
    assert not sender.receiver_waits()
    receiver.set_receiver_waits(True)
    assert sender.receiver_waits()
    sender.set_sender_waits(True)
    assert receiver.publish_news()
    sender.set_sender_waits(False)
    assert not receiver.publish_news()


def test_the_bell_is_asked_for_once_for_every_time_of_waiting(ends):
    sender, receiver = ends
    for _ in range(2):
        receiver.set_receiver_waits(True)
        assert sender.receiver_waits() and not sender.receiver_waits()
        receiver.set_receiver_waits(False)
        assert not sender.receiver_waits()
        sender.set_sender_waits(True)
        assert receiver.publish_news() and not receiver.publish_news()
        sender.set_sender_waits(False)


def test_another_receiver_at_the_same_lane_is_woken_too(ends):
    sender, receiver = ends
    receiver.set_receiver_waits(True)
    assert sender.receiver_waits()
    successor = SampleLane.attach(LAYOUT, NUM_SLOTS, sender.handle)
    successor.set_receiver_waits(True)
    assert sender.receiver_waits()
    successor.close()


def test_more_episodes_than_steps_are_refused(ends):
    sender, _ = ends
    commit(sender, 5, episodes=[(1e300, 2**48)] * 6)
    with pytest.raises(StreamError, match="40 episodes"):
        commit(sender, 6, episodes=[(1e300, 2**48)] * 40)


def test_a_lane_of_another_layout_is_refused(ends):
    sender, _ = ends
    with pytest.raises(StreamError, match="are needed"):
        SampleLane.attach(LAYOUT, NUM_SLOTS + 1, sender.handle)


@pytest.mark.parametrize("committed", [4, 9, 2**63])
def test_impossible_counts_are_refused(ends, committed):
    _, receiver = ends
    with pytest.raises(ProtocolError, match="batches committed"):
        list(receiver.records(5, committed))


def scribble(lane, seq, slot=0, size=1, metadata=b"\x01"):
    start = seq % lane._num_slots * lane._record_bytes
    lane._records[start : start + 8] = slot.to_bytes(8, "little")
    lane._records[start + 24 : start + 32] = size.to_bytes(8, "little")
    lane._records[start + 32 : start + 32 + len(metadata)] = metadata


@pytest.mark.parametrize(
    "change", [{"slot": 3}, {"size": 10**6}, {"size": 0}, {"metadata": b"\xc1"}], ids=str
)
def test_a_scribbled_record_is_refused(ends, change):
    sender, receiver = ends
    commit(sender, 5)
    scribble(sender, 5, **change)
    with pytest.raises(ProtocolError):
        list(receiver.records(5, 6))


@pytest.fixture
def stream(new_context):
    receiver = SampleReceiver(new_context(), KEY, max_bytes=2**20, epoch=1)
    sender = SampleSender(new_context(), KEY, "actor/0", LARGE, 4)
    until(lambda: sender.statistics().granted == 4, sender.poll, receiver.poll)
    yield receiver, sender
    sender.close(drain_timeout_s=0)
    receiver.ledger.check()
    receiver.close()


def test_a_sender_that_scribbles_is_put_out(stream):
    receiver, sender = stream
    assert fill_and_commit(sender)
    scribble(sender._talk.link.lane, 0, slot=99)
    receiver.poll()
    assert receiver.statistics().senders == 0 and receiver.statistics().ignored == {"malformed": 1}
    with pytest.raises(StreamError, match="its lane is broken"):
        until(lambda: False, sender.poll, receiver.poll)


def test_no_message_is_sent_for_a_batch(stream, monkeypatch):
    receiver, sender = stream
    with monkeypatch.context() as patch:
        patch.setattr(sender._talk.link, "send", None)
        patch.setattr(receiver._answers, "send", None)
        patch.setattr(sender, "_next_look_s", float("inf"))
        for _ in range(20):
            assert fill_and_commit(sender)
            receiver.poll()
            receiver.consume(receiver.take())
            sender.poll()
    assert receiver.ledger.balance().consumed == 20


def test_each_end_wakes_the_other(stream, monkeypatch):
    """Nobody is woken who is awake; who sleeps is woken by what it waits for."""
    receiver, sender = stream
    rung = []
    monkeypatch.setattr(sender._talk.link.button, "ring", lambda: rung.append("receiver"))
    monkeypatch.setattr(
        receiver._peers[sender._talk.stream].shared.button, "ring", lambda: rung.append("sender")
    )
    wait = sender._bell.wait
    assert fill_and_commit(sender)
    receiver.poll()
    assert rung == []

    def consumed_while_asleep(timeout_s):
        receiver.consume(receiver.take())
        return wait(0.0)

    monkeypatch.setattr(sender._bell, "wait", consumed_while_asleep)
    sender.poll(1.0)
    assert rung == ["sender"] and sender.statistics().released == 1

    class CommitsWhileItPolls:
        def poll(self, timeout_ms):
            assert fill_and_commit(sender)
            return []

    monkeypatch.setattr(receiver._sleep, "_poll", CommitsWhileItPolls())
    until(lambda: receiver.statistics().received == 2, lambda: receiver.poll(1.0))
    assert rung == ["sender", "receiver"]
    receiver.consume(receiver.take())
    assert rung == ["sender", "receiver"]


def test_a_receiver_that_was_replaced_neither_sees_nor_releases(stream, new_context):
    """A stopped trainer wakes up: what it holds stays readable, what it does reaches nobody."""
    old, sender = stream
    assert fill_and_commit(sender)
    old.poll()
    (stale,) = old.take()
    new = SampleReceiver(new_context(), KEY, max_bytes=2**20, epoch=2)
    until(lambda: sender.statistics().receivers == 2, sender.poll, new.poll)
    assert sender.statistics().lost == 1
    while fill_and_commit(sender):
        pass
    old.poll()
    old.consume([stale])
    sender.poll()
    assert old.take() == [] and sender.statistics().under_way > 0
    taken = []
    until(lambda: len(taken) == sender.statistics().under_way, new.poll, lambda: taken.extend(new.take()))
    for received in taken:
        assert (received.batch.observation == received.seq).all()
    new.consume(taken)
    sender.poll()
    assert sender.statistics().under_way == 0
    assert taken[0].metadata == METADATA
    new.ledger.check()
    new.close()
