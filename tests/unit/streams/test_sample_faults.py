"""The sample stream between processes that are killed, and against bytes that are not its own."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from contextlib import contextmanager

import msgspec
import pytest
import zmq

from hpc_marl.base.doorbell import DoorbellHandle
from hpc_marl.base.network import host_identity
from hpc_marl.base.shared_memory import SharedMemoryHandle
from hpc_marl.base.sockets import BoundSocket
from hpc_marl.streams.ledger import LOST, Ledger, Tally
from hpc_marl.streams.links import connect as connect_socket
from hpc_marl.streams.sample_messages import (
    PROTOCOL_VERSION,
    Commit,
    CommitEncoder,
    Goodbye,
    Hello,
    Ping,
    SampleMetadata,
    SharedParts,
)
from hpc_marl.streams.samples import SampleReceiver, SampleSender
from tests.unit.streams import stream_process
from tests.unit.streams.conftest import until
from tests.unit.streams.cutting_proxy import CuttingProxy
from tests.unit.streams.stream_process import KEY, LAYOUT, METADATA, fill_and_commit


@contextmanager
def process(role, directory, *arguments):
    command = [sys.executable, stream_process.__file__, role, str(directory), *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.send_signal(signal.SIGKILL)
            _, errors = running.communicate()
            assert not errors


@pytest.fixture(params=["auto", "zmq"])
def transport(request):
    return request.param


def test_kill_9_of_the_actor_leaves_a_balanced_ledger(tmp_path, new_context, transport):
    receiver = SampleReceiver(new_context(), KEY, max_bytes=2**20, transport=transport)
    kept = []

    def consume():
        receiver.poll(0.01)
        for received in receiver.take():
            assert (received.batch.observation == received.seq).all(), "a torn batch"
            kept.append(received)
        while len(kept) > 2:
            receiver.consume([kept.pop(0)])

    for life in range(2):
        with process("actor", tmp_path, transport):
            goal = 60 * (life + 1)
            until(lambda goal=goal: receiver.statistics().received >= goal, consume)
            incarnation = kept[0].incarnation
        receiver.forget(incarnation)
        receiver.ledger.check()
    consume()
    for received in kept:  # the memory of a dead process
        assert (received.batch.reward == received.seq).all()
    receiver.consume(kept)
    receiver.ledger.check()
    totals = receiver.ledger.balance()
    assert totals.in_flight == 0 and totals.consumed == receiver.statistics().received >= 120
    assert totals.produced == totals.consumed + totals.dropped_total
    assert totals.consumed_env_steps == 128 * totals.consumed
    assert set(totals.dropped) <= {LOST} and totals.dropped_total <= 8
    assert receiver.statistics().reserved_bytes == 0
    receiver.close()


def test_kill_9_of_the_trainer_is_survived_and_accounted_for(tmp_path, new_context, transport):
    sender = SampleSender(new_context(), KEY, "actor/0", LAYOUT, 4, transport=transport)

    def produce():
        sender.poll(0.01)
        fill_and_commit(sender)

    for epoch in range(2):
        with process("trainer", tmp_path, transport, str(epoch)):
            goal = sender.statistics().released + 50
            until(lambda goal=goal: sender.statistics().released >= goal, produce)
    checkpoint = json.loads((tmp_path / "ledger.json").read_text())
    receiver = SampleReceiver(
        new_context(), KEY, max_bytes=2**20, transport=transport, epoch=2, ledger=Ledger.from_dict(checkpoint)
    )
    until(lambda: sender.statistics().receivers == 3, produce, receiver.poll)
    until(lambda: receiver.statistics().received >= 3, produce, receiver.poll)
    receiver.consume(receiver.take())
    sender.close(drain_timeout_s=0.1)
    until(lambda: receiver.statistics().senders == 0, receiver.poll)
    receiver.consume(receiver.take())
    receiver.ledger.check()
    totals = receiver.ledger.balance()
    assert totals.produced == sender.statistics().produced
    assert totals.produced_env_steps == 128 * totals.produced
    assert totals.produced == totals.consumed + totals.dropped_total and totals.in_flight == 0
    assert totals.consumed >= 80 and totals.dropped[LOST] >= 1
    receiver.close()


@pytest.fixture
def proxied(new_context):
    """A receiver context, and a function that puts a proxy between what it has published and those who look it up."""
    context, proxies = new_context(), []

    def put_between(receiver):
        direct = context.lookup(KEY)
        proxies.append(CuttingProxy(direct.port))
        detour = BoundSocket(receiver._socket, direct.hosts, proxies[-1].port, direct.public_key)
        context.publish(KEY, detour, extra=direct.extra)
        return proxies[-1]

    yield context, put_between
    for proxy in proxies:
        proxy.close()


def test_broken_connections_cost_neither_batches_nor_slots(new_context, proxied, transport):
    """What is lost on the way is sent again; the stream goes on, and no slot is overwritten too early."""
    receiver_context, put_between = proxied
    receiver = SampleReceiver(receiver_context, KEY, max_bytes=2**20, transport=transport)
    proxy = put_between(receiver)
    sender = SampleSender(new_context(), KEY, "actor/0", LAYOUT, 4, transport=transport)
    held = []

    def flow():
        sender.poll()
        fill_and_commit(sender)
        receiver.poll()
        held.extend(receiver.take())
        if held:
            received = held.pop(0)
            assert (received.batch.observation == received.seq).all(), "a slot was overwritten"
            receiver.consume([received])

    for cut in range(4):
        goal = receiver.statistics().received + 30
        until(lambda goal=goal: receiver.statistics().received >= goal, flow)
        if cut % 2:  # with batches in the receiver's hands, and others on their way
            until(
                lambda: len(held) >= 2,
                sender.poll,
                receiver.poll,
                lambda: held.extend(receiver.take()),
                lambda: fill_and_commit(sender),
            )
        until(proxy.cut, flow)  # where memory is shared the flow goes on before the connection is there again
    goal = receiver.statistics().received + 30
    until(lambda: receiver.statistics().received >= goal, flow)
    until(
        lambda: not sender.statistics().under_way and not held,
        sender.poll,
        receiver.poll,
        lambda: receiver.consume(receiver.take() + held),
        held.clear,
    )
    sender.poll()
    totals = receiver.ledger.balance()
    assert totals.produced == sender.statistics().produced and totals.in_flight == 0
    assert totals.produced == totals.consumed and totals.dropped_total == 0
    assert sender.statistics().receivers == 1
    sender.close(drain_timeout_s=0)
    receiver.close()


def hello(**changes):
    fields = {
        "stream": "s",
        "serial": 1,
        "heard": 0,
        "limit": 0,
        "produced": Tally(),
        "protocol": PROTOCOL_VERSION,
        "worker_name": "actor/9",
        "incarnation": "i",
        "epoch": 0,
        "host_identity": "elsewhere",
        "layout": LAYOUT,
        "num_slots": 2,
        "num_groups": 1,
        "shared": None,
    }
    return Hello(**{**fields, **changes})


def after_hello(kind, **changes):
    fields = {"stream": "s", "serial": 2, "heard": 0, "limit": 0, "produced": Tally()}
    return kind(**{**fields, **changes})


def commit(**changes):
    return after_hello(Commit, **{"slot": 0, "metadata": METADATA, **changes})


@pytest.fixture
def stranger(new_context):
    """A receiver, and a socket with the right keys that may say anything to it."""
    context = new_context()
    receiver = SampleReceiver(new_context(), KEY, max_bytes=2**20)
    socket = connect_socket(context, context.lookup(KEY))
    until(lambda: socket.poll(0, zmq.POLLOUT))
    yield receiver, lambda *frames: socket.send_multipart([*frames])
    receiver.ledger.check()
    receiver.close()


def in_one_frame(message, content):
    return bytes(CommitEncoder().encode(message, content))


def packed(message):
    return msgspec.msgpack.encode(message)


@pytest.mark.parametrize(
    "said",
    [
        [commit(slot=5)],
        [commit(slot=2**40)],
        [commit(produced=Tally(3, -1, 0))],
        [commit(produced=Tally(-1, 0, 0))],
        [
            commit(metadata=SampleMetadata(env_steps=1, agent_steps=1)),
            commit(serial=3, produced=Tally(1, 0, 0)),
        ],
        [after_hello(Ping, produced=Tally(5, 0, -5))],
        [after_hello(Goodbye, produced=Tally(-5, 0, 0))],
    ],
    ids=str,
)
def test_contradictions_are_ignored(stranger, said):
    receiver, send = stranger
    send(packed(hello()))
    for message in said:
        payload = [bytes(LAYOUT.nbytes)] if isinstance(message, Commit) else []
        send(packed(message), *payload)
    until(lambda: receiver.statistics().ignored.get("malformed"), receiver.poll)
    receiver.drop(receiver.take(), "test")


@pytest.mark.parametrize("payload", [[], [b"short"], [bytes(LAYOUT.nbytes), b"more"]], ids=len)
def test_a_batch_must_have_exactly_its_bytes(stranger, payload):
    receiver, send = stranger
    send(packed(hello()))
    send(packed(commit()), *payload)
    send(in_one_frame(commit(serial=3), memoryview(b"short")))
    send(in_one_frame(commit(serial=4), memoryview(bytes(LAYOUT.nbytes))), b"more")
    until(lambda: receiver.statistics().ignored.get("malformed") == 3, receiver.poll)
    assert receiver.statistics().held == 0 and receiver.take() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": PROTOCOL_VERSION + 1},
        {"layout": msgspec.structs.replace},
        {"layout": LAYOUT.__class__(LAYOUT.spec, -4, 8)},
        {"layout": LAYOUT.__class__(LAYOUT.spec, 16, 0)},
        {"layout": LAYOUT.__class__(LAYOUT.spec, 16, 8, memory_size=-1)},
        {"layout": LAYOUT.__class__(LAYOUT.spec, 2**31, 2**31)},
        {"layout": LAYOUT.__class__(LAYOUT.spec, 16, 8, memory_size=4, chunk_length=0)},
        {"num_slots": 0},
        {"num_groups": 0},
        {"worker_name": ""},
        {"produced": Tally(-3, 0, 0)},
    ],
    ids=str,
)
def test_impossible_hellos_are_refused(stranger, changes):
    receiver, send = stranger
    if callable(changes.get("layout")):
        changes = {"layout": {"spec": {"num_actions": 2, "action_size": 2}, "num_steps": 1, "num_envs": 1}}
        send(packed({"type": "Hello", **msgspec.to_builtins(hello()), **changes}))
    else:
        send(packed(hello(**changes)))
    until(lambda: receiver.statistics().ignored, receiver.poll)
    assert receiver.statistics().senders == 0


def test_a_handle_that_leads_nowhere_means_zmq(stranger):
    receiver, send = stranger
    nowhere = SharedMemoryHandle(pid=1, fd=0, size=2 * LAYOUT.nbytes, start_ticks=0, token=bytes(16))
    bell = DoorbellHandle(pid=1, fd=0, inode=1, start_ticks=0)
    shared = SharedParts(slots=nowhere, lane=nowhere, bell=bell)
    send(packed(hello(host_identity=host_identity(), shared=shared)))
    until(lambda: receiver.statistics().senders, receiver.poll)
    assert receiver.statistics().senders_by_transport == {"zmq": 1}


def test_garbage_is_ignored_and_a_good_sender_served(stranger, new_context):
    receiver, send = stranger
    generator = random.Random(5)
    valid = [
        packed(hello()),
        packed(commit()),
        in_one_frame(commit(), b"content"),
        packed(after_hello(Ping)),
    ]
    garbage = [
        [b""],
        [b"", b""],
        [b"\x80\x04\x95."],
        [b"\xdd\xff\xff\xff\xff"],
        [b"\x91" * 2000],
        [b"\0"],
        [b"\0\0\xff\xff"],
    ]
    for _ in range(500):
        message = bytearray(generator.choice(valid))
        for _ in range(generator.randint(1, 4)):
            message[generator.randrange(len(message))] = generator.randrange(256)
        garbage.append([bytes(message[: generator.randint(0, len(message))])])
    for frames in garbage:
        send(*frames)
    sender = SampleSender(new_context(), KEY, "actor/0", LAYOUT, 2)
    until(lambda: sender.statistics().granted, sender.poll, receiver.poll)
    assert fill_and_commit(sender)
    taken = []
    until(lambda: taken, sender.poll, receiver.poll, lambda: taken.extend(receiver.take()))
    receiver.consume(taken)
    assert receiver.statistics().ignored["malformed"] > 300
    sender.close(drain_timeout_s=0)
