"""Heartbeats say what the worker's loop cannot: that the process lives, and that the loop stands still."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import zmq

from hpc_marl.base.security import default_keyring
from hpc_marl.base.sockets import BoundSocket, SocketFactory
from hpc_marl.control.heartbeat import HeartbeatPublisher, HeartbeatReader
from hpc_marl.control.interfaces import Heartbeat, WorkerReport
from hpc_marl.control.worker_state import WorkerStatus
from tests.unit.control.control_fakes import eventually

INTERVAL_S = 0.02


@pytest.fixture
def sockets() -> Iterator[SocketFactory]:
    with SocketFactory(default_keyring()) as factory:
        yield factory


@pytest.fixture
def reader(sockets: SocketFactory) -> Iterator[HeartbeatReader]:
    reader = HeartbeatReader(sockets)
    yield reader
    reader.close()


def listen(
    reader: HeartbeatReader, bound: BoundSocket, name: str = "actor/0", incarnation: str = "a"
) -> None:
    reader.add(name, incarnation, bound.hosts, bound.port, bound.public_key)


def test_heartbeats_carry_the_report_and_the_status(sockets: SocketFactory, reader: HeartbeatReader) -> None:
    report = WorkerReport(
        phase="poll", progress=7, metrics={"rate": 0.5, "env_steps": 3, "note": "x"}, error=""
    )
    bound = sockets.bind(zmq.XPUB, ["127.0.0.1"], options={zmq.XPUB_VERBOSE: 1})
    publisher = HeartbeatPublisher(bound, "actor/0", "a", report, INTERVAL_S)
    listen(reader, bound)
    first = reader.read()["actor/0"]
    assert (first.status, first.progress) == (WorkerStatus.READY, -1), "nothing was heard yet"
    publisher.set_status(WorkerStatus.RUNNING)
    beat = eventually(lambda: reader.read()["actor/0"], lambda beat: beat.status is WorkerStatus.RUNNING)
    assert (beat.worker_name, beat.incarnation, beat.phase, beat.progress) == ("actor/0", "a", "poll", 7)
    assert beat.metrics == {"rate": 0.5, "env_steps": 3, "note": "x"}
    publisher.close()


def test_a_status_is_said_at_once_and_the_last_one_before_the_end(
    sockets: SocketFactory, reader: HeartbeatReader
) -> None:
    report = WorkerReport()
    bound = sockets.bind(zmq.XPUB, ["127.0.0.1"], options={zmq.XPUB_VERBOSE: 1})
    # Only the change of status can send anything within the test's time.
    publisher = HeartbeatPublisher(bound, "actor/0", "a", report, interval_s=3600.0)
    listen(reader, bound)
    status = WorkerStatus.PAUSED

    def say_again() -> Heartbeat:
        publisher.set_status(status)  # The first ones may be gone before the subscription is through.
        return reader.read()["actor/0"]

    eventually(say_again, lambda beat: beat.status is WorkerStatus.PAUSED)
    report.error = "Traceback ..."
    report.progress = 99
    publisher.set_status(WorkerStatus.ERROR)
    publisher.close()
    beat = eventually(lambda: reader.read()["actor/0"], lambda beat: beat.progress == 99)
    assert (beat.status, beat.error) == (WorkerStatus.ERROR, "Traceback ...")


def test_ages_tell_a_stuck_loop_from_a_silent_process(
    sockets: SocketFactory, reader: HeartbeatReader
) -> None:
    report = WorkerReport(phase="poll")
    bound = sockets.bind(zmq.XPUB, ["127.0.0.1"], options={zmq.XPUB_VERBOSE: 1})
    publisher = HeartbeatPublisher(bound, "actor/0", "a", report, INTERVAL_S)
    listen(reader, bound)

    def turn() -> Heartbeat:
        report.progress += 1
        return reader.read()["actor/0"]

    eventually(turn, lambda beat: beat.progress > 3)
    stuck = eventually(
        lambda: reader.read()["actor/0"],
        lambda beat: beat.progress_age_s > 10 * INTERVAL_S and beat.age_s < beat.progress_age_s / 2,
    )
    assert stuck.progress == report.progress
    publisher.close()
    eventually(lambda: reader.read()["actor/0"], lambda beat: beat.age_s > 10 * INTERVAL_S)


def test_a_change_of_phase_is_progress_too(sockets: SocketFactory, reader: HeartbeatReader) -> None:
    report = WorkerReport(phase="configure", progress=1)
    bound = sockets.bind(zmq.XPUB, ["127.0.0.1"], options={zmq.XPUB_VERBOSE: 1})
    publisher = HeartbeatPublisher(bound, "actor/0", "a", report, INTERVAL_S)
    listen(reader, bound)
    eventually(lambda: reader.read()["actor/0"], lambda beat: beat.progress_age_s > 5 * INTERVAL_S)
    report.phase = "poll"
    beat = eventually(lambda: reader.read()["actor/0"], lambda beat: beat.phase == "poll")
    assert beat.progress_age_s == beat.age_s
    publisher.close()


def test_only_the_expected_incarnation_is_heard(sockets: SocketFactory, reader: HeartbeatReader) -> None:
    bound = sockets.bind(zmq.XPUB, ["127.0.0.1"], options={zmq.XPUB_VERBOSE: 1})
    publisher = HeartbeatPublisher(bound, "actor/0", "old", WorkerReport(progress=5), INTERVAL_S)
    other = sockets.bind(zmq.XPUB, ["127.0.0.1"], options={zmq.XPUB_VERBOSE: 1})
    other_publisher = HeartbeatPublisher(other, "actor/1", "x", WorkerReport(progress=6), INTERVAL_S)
    listen(reader, bound, incarnation="new")
    listen(reader, other, "actor/1", "x")
    eventually(lambda: reader.read()["actor/1"], lambda beat: beat.progress == 6)
    time.sleep(3 * INTERVAL_S)
    assert reader.read()["actor/0"].progress == -1
    reader.remove("actor/1")
    reader.remove("actor/7")
    assert set(reader.read()) == {"actor/0"}
    publisher.close()
    other_publisher.close()


def test_bytes_that_are_no_heartbeat_are_ignored(
    sockets: SocketFactory, reader: HeartbeatReader, caplog: pytest.LogCaptureFixture
) -> None:
    bound = sockets.bind(zmq.XPUB, ["127.0.0.1"], options={zmq.XPUB_VERBOSE: 1})
    listen(reader, bound)

    def send_garbage() -> dict[str, Heartbeat]:
        bound.socket.send(b"\xc1 no msgpack")
        return reader.read()

    eventually(send_garbage, lambda beats: "ignored a heartbeat" in caplog.text)
    publisher = HeartbeatPublisher(bound, "actor/0", "a", WorkerReport(progress=8), INTERVAL_S)
    eventually(lambda: reader.read()["actor/0"], lambda beat: beat.progress == 8)
    publisher.close()
    publisher.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "hpc_marl-heartbeat"]
