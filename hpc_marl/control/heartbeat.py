"""Heartbeats: what every worker says of itself twice a second, whether anybody asks or not.

    worker thread --WorkerReport, status--> HeartbeatPublisher (own thread, own XPUB socket)
                                               | every interval, and at once when the status changes or somebody
                                               | begins to listen
                                            HeartbeatReader (one SUB socket, in the controller's thread)

    a worker that a host has started gives them to its host instead, which sends all together (`heartbeat_relay`)

The publisher touches nothing but its own socket, so heartbeats go on while the worker's loop is busy or
stuck; that the loop turns is told by `progress` alone. A heartbeat replaces all earlier ones, so losing some
is harmless and the reader keeps only the newest.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import zmq
from msgspec import structs

from hpc_marl.base.serialization import decode, encode
from hpc_marl.base.socket_shortcuts import can_receive
from hpc_marl.base.sockets import CONTROL_MAX_MESSAGE_BYTES, BoundSocket, SocketFactory
from hpc_marl.control.heartbeat_relay import (
    RELAY_INTERVAL_S,
    HeartbeatMessage,
    HeartbeatRelay,
    HostHeartbeats,
)
from hpc_marl.control.interfaces import Heartbeat, WorkerReport
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.errors import ProtocolError

_logger = logging.getLogger(__name__)
_Messages = list[HeartbeatMessage]
_MAX_BYTES = CONTROL_MAX_MESSAGE_BYTES // 2


class HeartbeatPublisher:
    """Sends heartbeats from a thread of its own until closed.

    Args:
        way: the XPUB socket, which belongs to the thread from here on; or the host that passes them on.
        worker_name: whose heartbeats.
        incarnation: this life of the worker.
        report: what the worker says of itself; read, never written.
        interval_s: time between two heartbeats.
        relay: whose heartbeats are passed on together with the own.
    """

    def __init__(
        self,
        way: BoundSocket | HostHeartbeats,
        worker_name: str,
        incarnation: str,
        report: WorkerReport,
        interval_s: float,
        *,
        relay: HeartbeatRelay | None = None,
    ) -> None:
        self._socket = way.socket if isinstance(way, BoundSocket) else None
        self._host = way if isinstance(way, HostHeartbeats) else None
        self._worker_name = worker_name
        self._incarnation = incarnation
        self._report = report
        self._interval_s = interval_s if self._host is None else min(interval_s, RELAY_INTERVAL_S)
        self._relay = relay
        self._status = WorkerStatus.READY
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="hpc_marl-heartbeat", daemon=True)
        self._thread.start()

    def set_status(self, status: WorkerStatus) -> None:
        """Say `status` from now on, and at once."""
        self._status = status
        if not self._closing:
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Send a last heartbeat and end the thread. Can be repeated."""
        if self._closing:
            return
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    def _run(self) -> None:
        poller = zmq.Poller()
        for source in (self._socket, self._wake, self._relay and self._relay.descriptor):
            if source is not None:
                poller.register(source, zmq.POLLIN)
        try:
            while not self._closing:
                self._send()
                self._wait(poller)
            self._send(is_last=True)
        except zmq.ZMQError as error:
            _logger.error("heartbeats stopped: %s; controllers will take this worker for lost", error)
        finally:
            if self._socket is not None:
                self._socket.close()

    def _wait(self, poller: zmq.Poller) -> None:
        """Wait until the next heartbeat is due."""
        due = time.monotonic() + self._interval_s
        while (left_s := due - time.monotonic()) > 0:
            ready = dict(poller.poll(int(1000 * left_s) + 1))
            is_due = not ready
            if self._wake in ready:
                os.eventfd_read(self._wake)
                is_due = True
            if self._socket in ready:
                is_due = True  # somebody has begun to listen, or ceased to
                while self._socket is not None and can_receive(self._socket):
                    self._socket.recv()
            if self._relay is not None and self._relay.descriptor in ready:
                is_due |= self._relay.take()
            if is_due:
                return

    def _send(self, is_last: bool = False) -> None:
        report = self._report
        own = HeartbeatMessage(
            self._worker_name,
            self._incarnation,
            self._status,
            report.phase,
            report.progress,
            dict(report.metrics),
            report.error,
            fails_for_good=report.fails_for_good,
        )
        if self._host is not None:
            self._host.say(own, is_last)
        elif self._socket is not None:
            others = [] if self._relay is None else self._relay.messages()
            content = encode([own, *others])
            if len(content) > _MAX_BYTES:  # many tracebacks at once; the workers' logs have them
                content = encode([own, *(structs.replace(one, error=one.error[-500:]) for one in others)])
            self._socket.send(content)


@dataclass
class _Source:
    """A connection, and how many workers are heard through it."""

    endpoint: str
    num_heard: int = 0


class _Watch:
    """What was heard of one incarnation, and when, by this process's monotonic clock."""

    def __init__(self, worker_name: str, incarnation: str, source: _Source) -> None:
        self.source = source
        self.heard_s = self.progressed_s = time.monotonic()
        self.message = HeartbeatMessage(worker_name, incarnation, WorkerStatus.READY, "", -1, {}, "")

    def hear(self, message: HeartbeatMessage) -> None:
        """Take in a heartbeat."""
        self.heard_s = max(self.heard_s, time.monotonic() - message.age_s)
        if (message.progress, message.phase) != (self.message.progress, self.message.phase):
            self.progressed_s = self.heard_s
        self.message = message

    def heartbeat(self, now: float) -> Heartbeat:
        """Return the newest with its ages."""
        message = self.message
        return Heartbeat(
            worker_name=message.worker_name,
            incarnation=message.incarnation,
            status=message.status,
            phase=message.phase,
            progress=message.progress,
            metrics=message.metrics,
            error=message.error,
            age_s=now - self.heard_s,
            progress_age_s=now - self.progressed_s,
            fails_for_good=message.fails_for_good,
        )


class HeartbeatReader:
    """Listens to many workers through one socket; never waits."""

    def __init__(self, sockets: SocketFactory) -> None:
        self._sockets = sockets
        self._socket: zmq.Socket[bytes] | None = None
        self._watches: dict[str, _Watch] = {}
        self._sources: dict[tuple[int, bytes], _Source] = {}

    def add(
        self, worker_name: str, incarnation: str, hosts: Sequence[str], port: int, public_key: bytes
    ) -> None:
        """Listen to one incarnation of a worker, instead of any other of that name."""
        self.remove(worker_name)
        # Workers of one host are heard through one connection.
        source = self._sources.get((port, public_key))
        if source is None:
            source = self._sources[port, public_key] = _Source(self._connect(hosts, port, public_key))
        source.num_heard += 1
        self._watches[worker_name] = _Watch(worker_name, incarnation, source)

    def _connect(self, hosts: Sequence[str], port: int, public_key: bytes) -> str:
        if self._socket is not None:
            return self._sockets.connect_also(self._socket, hosts, port, public_key)
        # Of every connection one message is kept: an older one says nothing that the newest does not.
        self._socket = self._sockets.connect(zmq.SUB, hosts, port, public_key, options={zmq.CONFLATE: 1})
        self._socket.subscribe(b"")
        return self._socket.get_string(zmq.LAST_ENDPOINT)

    def remove(self, worker_name: str) -> None:
        """Listen to a worker no longer; nothing happens if nobody did."""
        watch = self._watches.pop(worker_name, None)
        if watch is None:
            return
        watch.source.num_heard -= 1
        if watch.source.num_heard == 0 and self._socket is not None:
            self._socket.disconnect(watch.source.endpoint)
            self._sources = {key: one for key, one in self._sources.items() if one is not watch.source}

    def read(self) -> dict[str, Heartbeat]:
        """Return the newest heartbeat of every worker by name."""
        for message in self._receive():
            watch = self._watches.get(message.worker_name)
            if watch is not None and watch.message.incarnation == message.incarnation:
                watch.hear(message)
        now = time.monotonic()
        return {name: watch.heartbeat(now) for name, watch in self._watches.items()}

    def close(self) -> None:
        """Listen to nobody."""
        self._watches.clear()
        if self._socket is not None:
            self._socket.close(linger=0)

    def _receive(self) -> Iterator[HeartbeatMessage]:
        """Yield what has arrived."""
        while self._socket is not None and can_receive(self._socket):
            try:
                yield from decode(self._socket.recv(zmq.NOBLOCK), _Messages)
            except ProtocolError as error:
                _logger.warning("ignored a heartbeat: %s", error)
