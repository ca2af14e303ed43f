"""Heartbeats: what every worker says of itself twice a second, whether anybody asks or not.

    worker thread --WorkerReport, status--> HeartbeatPublisher (own thread, own XPUB socket)
                                               | every interval, and at once when the status changes or somebody
                                               | begins to listen
                                            HeartbeatReader (one SUB socket, in the controller's thread)

The publisher touches nothing but its own socket, so heartbeats go on while the worker's loop is busy or
stuck; that the loop turns is told by `progress` alone. A heartbeat replaces all earlier ones, so losing some
is harmless and the reader keeps only the newest.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence

import msgspec
import zmq

from hpc_marl.base.serialization import decode, encode
from hpc_marl.base.sockets import BoundSocket, SocketFactory
from hpc_marl.control.interfaces import Heartbeat, WorkerReport
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.errors import ProtocolError

_logger = logging.getLogger(__name__)


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One heartbeat on the wire."""

    worker_name: str
    incarnation: str
    status: WorkerStatus
    phase: str
    progress: int
    metrics: dict[str, float | int | str]
    error: str


class HeartbeatPublisher:
    """Sends heartbeats from a thread of its own until closed.

    Args:
        bound: the XPUB socket; it belongs to the thread from here on.
        worker_name: whose heartbeats.
        incarnation: this life of the worker.
        report: what the worker says of itself; read, never written.
        interval_s: time between two heartbeats.
    """

    def __init__(
        self,
        bound: BoundSocket,
        worker_name: str,
        incarnation: str,
        report: WorkerReport,
        interval_s: float,
    ) -> None:
        self._socket = bound.socket
        self._worker_name = worker_name
        self._incarnation = incarnation
        self._report = report
        self._interval_s = interval_s
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
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        try:
            while not self._closing:
                self._socket.send(self._message())
                ready = dict(poller.poll(int(1000 * self._interval_s)))
                if self._wake in ready:
                    os.eventfd_read(self._wake)
                while self._socket in ready and int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
                    self._socket.recv()  # somebody has begun to listen, or ceased to
            self._socket.send(self._message())
        except zmq.ZMQError as error:
            _logger.error("heartbeats stopped: %s; controllers will take this worker for lost", error)
        finally:
            self._socket.close()

    def _message(self) -> bytes:
        report = self._report
        return encode(
            _Message(
                self._worker_name,
                self._incarnation,
                self._status,
                report.phase,
                report.progress,
                dict(report.metrics),
                report.error,
            )
        )


class _Watch:
    """What was heard of one incarnation, and when, by this process's monotonic clock."""

    def __init__(self, worker_name: str, incarnation: str, endpoint: str) -> None:
        self.endpoint = endpoint
        self.heard_s = self.progressed_s = time.monotonic()
        self.message = _Message(worker_name, incarnation, WorkerStatus.READY, "", -1, {}, "")

    def hear(self, message: _Message) -> None:
        """Take in a heartbeat."""
        self.heard_s = time.monotonic()
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
        )


class HeartbeatReader:
    """Listens to many workers through one socket; never waits."""

    def __init__(self, sockets: SocketFactory) -> None:
        self._sockets = sockets
        self._socket: zmq.Socket[bytes] | None = None
        self._watches: dict[str, _Watch] = {}

    def add(
        self, worker_name: str, incarnation: str, hosts: Sequence[str], port: int, public_key: bytes
    ) -> None:
        """Listen to one incarnation of a worker, instead of any other of that name."""
        self.remove(worker_name)
        if self._socket is None:
            # Of every worker one heartbeat is kept: an older one says nothing that the newest does not.
            self._socket = self._sockets.connect(zmq.SUB, hosts, port, public_key, options={zmq.CONFLATE: 1})
            self._socket.subscribe(b"")
            endpoint = self._socket.get_string(zmq.LAST_ENDPOINT)
        else:
            endpoint = self._sockets.connect_also(self._socket, hosts, port, public_key)
        self._watches[worker_name] = _Watch(worker_name, incarnation, endpoint)

    def remove(self, worker_name: str) -> None:
        """Listen to a worker no longer; nothing happens if nobody did."""
        watch = self._watches.pop(worker_name, None)
        if watch is not None and self._socket is not None:
            self._socket.disconnect(watch.endpoint)

    def read(self) -> dict[str, Heartbeat]:
        """Return the newest heartbeat of every worker by name."""
        while (message := self._receive()) is not None:
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

    def _receive(self) -> _Message | None:
        """Return the next readable heartbeat, None when there is none left."""
        while self._socket is not None:
            try:
                return decode(self._socket.recv(zmq.NOBLOCK), _Message)
            except zmq.Again:
                break
            except ProtocolError as error:
                _logger.warning("ignored a heartbeat: %s", error)
        return None
