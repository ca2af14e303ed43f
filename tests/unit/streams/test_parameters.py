"""The contract of the parameter stream, over shared memory and over ZMQ."""

from __future__ import annotations

import signal
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import zmq

from hpc_marl.errors import ProtocolError, StreamError
from hpc_marl.streams import parameter_reader
from hpc_marl.streams.links import connect
from hpc_marl.streams.parameter_messages import Want
from hpc_marl.streams.parameters import ParameterPublisher, ParameterReader
from tests.unit.streams import parameter_follower
from tests.unit.streams.conftest import until

KEY = "exp/trial/parameter_stream/trainer/0"
SHAPES = {"w": (300, 100), "b": (5,), "scale": ()}
TRANSPORTS = {"shared_memory": "auto", "zmq": "zmq"}
TIMEOUT_S = 20.0


def weights(value: float, shapes=None) -> dict[str, np.ndarray]:
    return {name: np.full(shape, value, np.float32) for name, shape in (shapes or SHAPES).items()}


@pytest.fixture(params=TRANSPORTS)
def transport(request):
    return request.param


@pytest.fixture
def new_publisher(new_context, transport):
    opened = []

    def make(shapes=SHAPES, **kwargs):
        opened.append(
            ParameterPublisher(new_context(), KEY, shapes, transport=TRANSPORTS[transport], **kwargs)
        )
        return opened[-1]

    yield make
    for publisher in opened:
        publisher.close()


@pytest.fixture
def new_reader(new_context, transport):
    opened = []

    def make():
        opened.append(ParameterReader(new_context(), KEY, transport=TRANSPORTS[transport]))
        return opened[-1]

    yield make
    for reader in opened:
        reader.close()


def test_a_reader_gets_the_newest_whole_version_and_each_once(new_publisher, new_reader, transport):
    reader = new_reader()
    assert reader.poll() is None and reader.metadata == {}
    publisher = new_publisher(metadata={"policy": {"layers": [64, 64]}}, epoch=4)
    assert reader.wait(0, 0.05) is None
    for version in range(1, 6):
        publisher.publish(version, weights(version))
    found = reader.wait(5, TIMEOUT_S)
    assert (found.policy_version, found.epoch) == (5, 4)
    assert {name: array.shape for name, array in found.weights.items()} == SHAPES
    assert all((array == 5).all() and array.dtype == np.float32 for array in found.weights.values())
    assert reader.metadata == {"policy": {"layers": [64, 64]}}
    assert reader.poll() is None
    assert reader.wait(5, 0.0) is found
    publisher.publish(6, weights(6))
    until(lambda: reader.poll() is not None)
    assert reader.statistics().transport == transport
    assert (found.weights["w"] == 5).all()


def test_publishing_does_not_wait_for_readers_and_slow_ones_skip_versions(new_publisher, new_reader):
    publisher, slow = new_publisher(), new_reader()
    publisher.publish(0, weights(0))
    assert slow.wait(0, TIMEOUT_S).policy_version == 0
    for version in range(1, 101):
        publisher.publish(version, weights(version))
    versions = []
    while not versions or versions[-1] < 100:
        versions.append(slow.wait((versions or [0])[-1] + 1, TIMEOUT_S).policy_version)
    assert versions == sorted(set(versions)) and len(versions) <= 3
    assert publisher.statistics().published == 101
    assert publisher.statistics().waiting_readers <= 1


def test_a_stopped_reader_of_another_node_keeps_nobody_waiting(new_context, tmp_path):
    """Not the trainer, which publishes, nor the other readers; and once it goes on it gets the newest version."""
    shapes = {"w": (2**20,)}
    publisher = ParameterPublisher(new_context(), KEY, shapes, transport="zmq")
    publisher.publish(0, weights(0, shapes))
    with subprocess.Popen(
        [sys.executable, parameter_follower.__file__, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as follower:
        assert follower.stdout.readline() == "0\n"
        until(lambda: publisher.statistics().waiting_readers)
        follower.send_signal(signal.SIGSTOP)
        reader = ParameterReader(new_context(), KEY, transport="zmq")
        for version in range(1, 11):
            publisher.publish(version, weights(version, shapes))
            assert (reader.wait(version, TIMEOUT_S).weights["w"] == version).all()
        follower.send_signal(signal.SIGCONT)
        versions = [int(follower.stdout.readline())]
        while versions[-1] < 10:
            versions.append(int(follower.stdout.readline()))
        assert len(versions) <= 3
        follower.kill()
    reader.close()
    publisher.close()


def test_a_question_asked_again_is_not_answered_twice(new_context):
    """An answer may take longer than its reader has patience, where many share a network."""
    publisher, context = ParameterPublisher(new_context(), KEY, SHAPES, transport="zmq"), new_context()
    socket = connect(context, context.lookup(KEY))
    until(lambda: socket.poll(0, zmq.POLLOUT))
    publisher.publish(1, weights(1))
    for newer_than in (0, 0):
        socket.send(msgspec.msgpack.encode(Want(newer_than)))
        until(lambda: publisher.statistics().answered == 1)
    socket.send(msgspec.msgpack.encode(Want(1)))  # messages of one connection keep their order
    until(lambda: publisher.statistics().waiting_readers)
    assert publisher.statistics().answered == 1
    publisher.publish(2, weights(2))
    until(lambda: publisher.statistics().answered == 2)
    versions = [msgspec.msgpack.decode(socket.recv_multipart()[0])["policy_version"] for _ in range(2)]
    assert versions == [1, 2] and not socket.poll(0)
    publisher.close()


def test_large_weights_come_in_frames_and_are_whole(new_context):
    shapes = {"w": (600_001,)}
    publisher = ParameterPublisher(new_context(), KEY, shapes, transport="zmq")
    reader = ParameterReader(new_context(), KEY, transport="zmq")
    numbers = np.arange(600_001, dtype=np.float32)
    publisher.publish(1, {"w": numbers})
    assert np.array_equal(reader.wait(1, TIMEOUT_S).weights["w"], numbers)
    reader.close()
    publisher.close()


def test_every_reader_is_served(new_publisher, new_reader):
    publisher, readers = new_publisher(), [new_reader() for _ in range(3)]
    for version in range(4):
        publisher.publish(version, weights(version))
        for reader in readers:
            assert (reader.wait(version, TIMEOUT_S).weights["b"] == version).all()
    assert all(reader.statistics().publishers == 1 for reader in readers)


def test_a_publisher_restarted_at_a_lower_version_is_followed(new_publisher, new_reader):
    first, reader = new_publisher(epoch=1, metadata={"n": 1}), new_reader()
    first.publish(500, weights(500))
    assert reader.wait(500, TIMEOUT_S).epoch == 1
    first.close()
    second = new_publisher(epoch=2, metadata={"n": 2})
    second.publish(400, weights(400))
    found = []
    until(lambda: found, lambda: found.extend([newer] if (newer := reader.poll()) else []))
    assert (found[0].epoch, found[0].policy_version) == (2, 400)
    assert (found[0].weights["w"] == 400).all() and reader.metadata == {"n": 2}
    zombie = new_publisher(epoch=1)
    zombie.publish(999, weights(999))
    second.publish(401, weights(401))
    until(
        lambda: found[-1].policy_version == 401,
        lambda: found.extend([newer] if (newer := reader.poll()) else []),
    )
    assert reader.wait(999, 0.3) is None
    assert reader.statistics().publishers == 2


def test_a_successor_may_have_other_shapes(new_publisher, new_reader):
    first, reader = new_publisher(), new_reader()
    first.publish(1, weights(1))
    reader.wait(1, TIMEOUT_S)
    first.close()
    shapes = {"other": (3,)}
    second = new_publisher(shapes)
    second.publish(2, weights(2, shapes))
    assert reader.wait(2, TIMEOUT_S).weights.keys() == {"other"}


def test_other_weights_than_announced_are_refused(new_publisher):
    publisher = new_publisher()
    with pytest.raises(StreamError, match="other"):
        publisher.publish(1, weights(1, {**SHAPES, "other": (1,)}))
    publisher.close()
    with pytest.raises(StreamError, match="closed"):
        publisher.publish(1, weights(1))


def test_garbage_does_not_disturb_the_publisher(new_publisher, new_reader, new_context):
    publisher, context = new_publisher(), new_context()
    socket = connect(context, context.lookup(KEY))
    until(lambda: socket.poll(0, zmq.POLLOUT))
    garbage = [b"", b"\x80\x04\x95.", msgspec.msgpack.encode({"type": "want"}), b"\xdd\xff\xff\xff\xff"]
    for frame in garbage:
        socket.send(frame)
    socket.send_multipart([b"a", b"b"])
    until(lambda: publisher.statistics().malformed == len(garbage) + 1)
    publisher.publish(1, weights(1))
    assert new_reader().wait(1, TIMEOUT_S).policy_version == 1


def test_an_entry_of_another_kind_is_named(new_context, new_reader):
    context = new_context()
    context.publish(KEY, context.sockets.bind(zmq.ROUTER, context.bind_hosts), extra={"epoch": 1})
    with pytest.raises(ProtocolError, match="entry of the parameter stream"):
        new_reader().poll()


def test_waiting_readers_of_other_nodes_are_told_at_once(new_context, monkeypatch):
    monkeypatch.setattr(parameter_reader, "_ASK_AGAIN_S", 1e9)
    publisher = ParameterPublisher(new_context(), KEY, SHAPES, transport="zmq")
    reader = ParameterReader(new_context(), KEY, transport="zmq")
    for version in range(3):
        until(lambda: publisher.statistics().waiting_readers, reader.poll)
        publisher.publish(version, weights(version))
        assert reader.wait(version, TIMEOUT_S).policy_version == version
    reader.close()
    publisher.close()


def test_an_unanswered_question_is_asked_again(new_context):
    publisher = ParameterPublisher(new_context(), KEY, SHAPES, transport="zmq")
    reader = ParameterReader(new_context(), KEY, transport="zmq")
    until(lambda: publisher.statistics().waiting_readers, reader.poll)
    publisher._answering.waiting.clear()  # as if the question, or its answer, was lost on the way
    publisher.publish(3, weights(3))
    assert reader.wait(3, TIMEOUT_S).policy_version == 3
    reader.close()
    publisher.close()
