"""Heartbeats through a host: the same as without, in one connection; their age is counted from when they were said."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from hpc_marl.base.security import create_keyring
from hpc_marl.base.sockets import SocketFactory
from hpc_marl.control.heartbeat import HeartbeatPublisher, HeartbeatReader
from hpc_marl.control.heartbeat_relay import HeartbeatMessage, HeartbeatRelay, HostHeartbeats
from hpc_marl.control.interfaces import Heartbeat, WorkerReport
from hpc_marl.control.worker_state import WorkerStatus

PATIENCE_S = 30.0
_NEVER_S = 3600.0


class Host:
    """A host with a relay, and a controller that listens to it."""

    def __init__(self, directory: Path) -> None:
        self.sockets = SocketFactory(create_keyring(directory))
        self.relay = HeartbeatRelay()
        self.bound = self.sockets.bind(zmq.XPUB, ["127.0.0.1"], options={zmq.XPUB_VERBOSE: 1})
        self.publisher = HeartbeatPublisher(
            self.bound, "host/0", "h", WorkerReport(), _NEVER_S, relay=self.relay
        )
        self.reader = HeartbeatReader(self.sockets)
        self.listen("host/0", "h")

    @property
    def way(self) -> HostHeartbeats:
        """What a worker of it finds in its environment."""
        found = HostHeartbeats.of_this_process(self.relay.environment(self.bound))
        assert found is not None
        return found

    def listen(self, worker: str, incarnation: str) -> None:
        self.reader.add(worker, incarnation, self.bound.hosts, self.bound.port, self.bound.public_key)

    def heard(self, worker: str, status: WorkerStatus) -> Heartbeat:
        """Return a worker's heartbeat once it has this status."""
        deadline = time.monotonic() + PATIENCE_S
        while (beat := self.reader.read()[worker]).status is not status or beat.progress < 0:
            assert time.monotonic() < deadline, beat
            time.sleep(0.005)
        return beat

    def close(self) -> None:
        self.reader.close()
        self.publisher.close()
        self.relay.close()
        self.sockets.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def test_a_host_passes_on_what_its_workers_say(host: Host) -> None:
    report = WorkerReport(phase="poll", progress=7, metrics={"env_steps": 5})
    for name in ("actor/0", "actor/1"):
        host.listen(name, name)
    workers = [HeartbeatPublisher(host.way, name, name, report, _NEVER_S) for name in ("actor/0", "actor/1")]
    workers[1].set_status(WorkerStatus.RUNNING)
    first, second = host.heard("actor/0", WorkerStatus.READY), host.heard("actor/1", WorkerStatus.RUNNING)
    assert (first.incarnation, first.phase, first.progress, first.metrics) == (
        "actor/0",
        "poll",
        7,
        {"env_steps": 5},
    )
    assert second.status is WorkerStatus.RUNNING
    report.error = "it broke"
    workers[0].set_status(WorkerStatus.ERROR)
    assert host.heard("actor/0", WorkerStatus.ERROR).error == "it broke"
    for worker in workers:
        worker.close()
    assert len(host.reader._sources) == 1, "one connection for all"


def test_a_silent_worker_grows_old_although_its_host_speaks(host: Host) -> None:
    host.listen("actor/0", "a")
    worker = HeartbeatPublisher(host.way, "actor/0", "a", WorkerReport(), _NEVER_S)
    worker.set_status(WorkerStatus.RUNNING)
    host.heard("actor/0", WorkerStatus.RUNNING)
    worker.close()
    said_s = time.monotonic()
    deadline = said_s + PATIENCE_S
    while host.reader.read()["actor/0"].age_s < 0.3:
        assert time.monotonic() < deadline
        host.publisher.set_status(WorkerStatus.RUNNING)
        time.sleep(0.02)
    assert host.reader.read()["host/0"].age_s < 0.3


def test_a_worker_that_is_given_up_is_not_heard_and_the_host_goes_on(host: Host) -> None:
    host.listen("actor/0", "a")
    worker = HeartbeatPublisher(host.way, "actor/0", "a", WorkerReport(), _NEVER_S)
    host.heard("actor/0", WorkerStatus.READY)
    host.reader.remove("actor/0")
    host.publisher.set_status(WorkerStatus.PAUSED)
    host.heard("host/0", WorkerStatus.PAUSED)
    host.listen("actor/0", "another life")
    assert host.reader.read()["actor/0"].progress < 0, "what another life says is not its own"
    worker.close()
    host.reader.remove("host/0")
    host.reader.remove("actor/0")
    assert host.reader._sources == {}


def test_many_tracebacks_fit_into_one_message(host: Host) -> None:
    way = host.way
    for index in range(100):
        host.listen(f"actor/{index}", "a")
        message = HeartbeatMessage(
            f"actor/{index}", "a", WorkerStatus.ERROR, "poll", 1, {}, f"{'x' * 8000} error {index}"
        )
        os.set_blocking(way.descriptor, True)
        way.say(message)
    for index in range(100):
        assert host.heard(f"actor/{index}", WorkerStatus.ERROR).error.endswith(f"error {index}")


def test_without_a_host_there_is_no_way_through_it() -> None:
    for environment in ({}, {"HPC_MARL_HEARTBEATS": "x"}, {"HPC_MARL_HEARTBEATS": "999 1 key"}):
        assert HostHeartbeats.of_this_process(environment) is None
