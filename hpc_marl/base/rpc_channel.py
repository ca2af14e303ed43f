"""The client's half of RPC: one connection to one server, several calls under way at once.

    submit() -> PendingReply        never blocks
    pollables(), next_wakeup()      what to wait for
    process()                       send, receive, reconnect, expire; resolves PendingReplies
    poll_channels([...])            waits once for any of them and processes those

A call ends by its deadline in every case. If the connection is lost before, the call is repeated with the same
id over a new one, and executed at most once. Nothing is sent for a call that has ended. A channel belongs to
one thread, and costs four file descriptors, unless it is at `rest`.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
import zmq

from hpc_marl.base.rpc_messages import Reply, Request, RequestIds, decode_reply, encode_value, result_of
from hpc_marl.base.serialization import encode
from hpc_marl.base.socket_monitor import ConnectionMonitor
from hpc_marl.base.sockets import SocketFactory
from hpc_marl.errors import (
    BadRequestError,
    HpcMarlError,
    MessageTooLargeError,
    ProtocolError,
    RpcError,
    RpcTimeoutError,
    SecurityError,
)

_logger = logging.getLogger(__name__)
_FIRST_RECONNECT_S = 0.1
_MAX_RECONNECT_S = 5.0
_SOON_MS = 20
# As plain integers: libzmq's constants are enums, with which every operation takes a microsecond.
_NOBLOCK, _SNDMORE, _RCVMORE = int(zmq.NOBLOCK), int(zmq.SNDMORE | zmq.NOBLOCK), int(zmq.RCVMORE)
_HEARD_LATELY_S = (
    1.0  # for so long after a reply the connection is taken for alive; `process` finds out if it is not
)


class PendingReply:
    """One call under way.

    Attributes:
        counter: its id within the client.
        command: what was called.
        kwargs: its arguments, encoded.
        timeout_s: how long it may take, in seconds.
        deadline: when it ends at the latest (time.monotonic()).
        done: whether `result()` can be had.
        sent: whether it is on its way over the present connection.
    """

    def __init__(self, counter: int, command: str, kwargs: msgspec.Raw, timeout_s: float) -> None:
        self.counter = counter
        self.command = command
        self.kwargs = kwargs
        self.timeout_s = timeout_s
        self.deadline = time.monotonic() + timeout_s
        self.done = False
        self.sent = False
        self._value: Any = None
        self._error: HpcMarlError | None = None

    def result(self) -> Any:
        """Return what the handler returned, or raise what the call ended with.

        Raises:
            HpcMarlError: see `RpcClient.request`.
            RuntimeError: the call is still under way.
        """
        if not self.done:
            raise RuntimeError(f"the call of {self.command!r} is still under way; poll its channel first")
        if self._error is not None:
            raise self._error
        return self._value

    def resolve(self, reply: Reply) -> None:
        """End the call with a reply."""
        try:
            self._value = result_of(reply)
        except HpcMarlError as error:
            self._error = error
        self.done = True

    def fail(self, error: HpcMarlError) -> None:
        """End the call without a reply."""
        self._error = error
        self.done = True


class RpcChannel:
    """A connection to one server.

    Args:
        sockets: makes the socket; its message limit holds for requests and replies.
        hosts: the server's IPv4 addresses; the first that answers is used.
        port: the server's port.
        server_public_key: in Z85; nothing else at that address is talked to.
        request_ids: shared by the channels of one process.
        peer: how messages name the server, such as `worker actor/3`.
        incarnation: the life of the server that is meant, "" for whichever is there.
    """

    def __init__(
        self,
        sockets: SocketFactory,
        hosts: Sequence[str],
        port: int,
        server_public_key: bytes,
        *,
        request_ids: RequestIds,
        peer: str = "server",
        incarnation: str = "",
    ) -> None:
        self.peer = f"{peer} at {', '.join(hosts)} port {port}"
        self._sockets = sockets
        self._hosts = list(hosts)
        self._port = port
        self._server_public_key = server_public_key
        self._request_ids = request_ids
        self._incarnation = incarnation
        self._pending: dict[int, PendingReply] = {}
        self._closed = self._is_resting = False
        self._reconnect_interval_s = _FIRST_RECONNECT_S
        self._reconnect_at = time.monotonic()
        self._heard_s = -float("inf")
        self._last_call_s = time.monotonic()
        self._socket, self._monitor = self._connect()

    def _connect(self) -> tuple[zmq.Socket[bytes], ConnectionMonitor]:
        # IMMEDIATE would throw away replies not yet read when a server answers and ends, as to `exit`. What it
        # is for, that nothing waits here for a later server, is served by sending on live connections only.
        return self._sockets.connect_monitored(
            zmq.DEALER,
            self._hosts,
            self._port,
            self._server_public_key,
            options={zmq.IMMEDIATE: 0, zmq.RCVTIMEO: _SOON_MS},
        )

    @property
    def num_pending(self) -> int:
        """How many calls are under way."""
        return len(self._pending)

    @property
    def idle_s(self) -> float:
        """How long ago the last call was begun [s]; 0 while one is under way."""
        return 0.0 if self._pending else time.monotonic() - self._last_call_s

    def rest(self) -> None:
        """Give up the connection until the next call, which then takes some milliseconds longer."""
        if not self._pending and not self._closed and not self._is_resting:
            self._disconnect()
            self._is_resting = True

    def submit(self, command: str, kwargs: Mapping[str, Any], timeout_s: float) -> PendingReply:
        """Start a call; it ends within `timeout_s` if the channel is polled.

        Raises:
            BadRequestError: the arguments hold something that may not travel.
            MessageTooLargeError: the request is larger than the channel allows.
            RpcError: the channel is closed.
        """
        if self._closed:
            raise RpcError(f"the connection to {self.peer} is closed; make a new one")
        try:
            encoded = encode_value(kwargs)
        except ProtocolError as error:
            raise BadRequestError(f"arguments of {command!r}: {error}") from error
        pending = PendingReply(self._request_ids.next(), command, encoded, timeout_s)
        payload = self._encode(pending)
        limit = self._sockets.max_message_bytes
        if len(payload) > limit:
            raise MessageTooLargeError(
                f"the request {command!r} has {len(payload)} bytes; expected at most {limit}"
            )
        self._last_call_s = time.monotonic()
        if self._is_resting:
            self._is_resting = False
            self._reconnect()
        elif self._last_call_s > self._heard_s + _HEARD_LATELY_S:
            self._monitor.observe()
        if self._monitor.refusal is not None:
            self._reconnect()  # The cause may be gone, and libzmq would not find out.
        self._pending[pending.counter] = pending
        self._send(pending, payload)
        return pending

    def receive_soon(self, pending: PendingReply) -> None:
        """Wait a moment for the reply to a call: most come so soon that to wait for anything else costs more.

        Whatever else may happen to the call (its connection is lost, its time is over) is left to `process`.
        """
        left_ms = int(1000 * (pending.deadline - time.monotonic()))
        if not pending.sent or self._monitor.lost or left_ms < _SOON_MS or len(self._pending) > 1:
            return
        try:
            frames = [self._socket.recv(), self._socket.recv()]  # those of one message come at once
        except zmq.Again:
            return
        self._take_frames(frames)

    def pollables(self) -> list[tuple[zmq.Socket[bytes], int]]:
        """Return the sockets to wait for, with zmq.POLLIN/POLLOUT flags."""
        return [(self._socket, zmq.POLLIN), (self._monitor.socket, zmq.POLLIN)]

    def next_wakeup(self) -> float | None:
        """Return when `process()` is due even if no socket is ready (time.monotonic()), None if never."""
        if not self._pending:
            return None
        deadlines = [pending.deadline for pending in self._pending.values()]
        return min([self._reconnect_at, *deadlines] if self._monitor.lost else deadlines)

    def process(self) -> None:
        """Do everything that can be done now, without waiting."""
        if self._closed or self._is_resting:
            return
        now = time.monotonic()
        self._receive()
        self._watch_connection(now)
        expired = [pending for pending in self._pending.values() if now >= pending.deadline]
        for pending in expired:
            self._fail(pending, RpcTimeoutError(self._timeout_message(pending)))
        if expired:
            self._reconnect()  # Drops what may still wait in the socket to be sent.
        for pending in self._pending.values():
            if not pending.sent:
                self._send(pending, self._encode(pending))

    def close(self) -> None:
        """End the connection; calls under way fail. Can be repeated."""
        self._closed = True
        for pending in list(self._pending.values()):
            self._fail(
                pending, RpcError(f"the connection to {self.peer} was closed during {pending.command!r}")
            )
        self._disconnect()

    def _receive(self) -> None:
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take_frames(frames)

    def _take_frames(self, frames: list[bytes]) -> None:
        try:
            if len(frames) != 2 or frames[0]:
                raise ProtocolError(f"{len(frames)} frames; expected an empty one and a reply")
            reply = decode_reply(frames[1])
        except ProtocolError as error:
            _logger.warning("ignored a message from %s: %s", self.peer, error)
        else:
            self._take(reply)

    def _take(self, reply: Reply) -> None:
        # The reply to a call that has ended, or the second reply to a repeated one, has no taker.
        if reply.client != self._request_ids.client or reply.counter not in self._pending:
            return
        self._reconnect_interval_s = _FIRST_RECONNECT_S
        self._heard_s = time.monotonic()
        pending = self._pending[reply.counter]
        if reply.error is not None and reply.error.kind == "ask_again":
            pending.sent = False
            return
        del self._pending[reply.counter]
        pending.resolve(reply)

    def _watch_connection(self, now: float) -> None:
        self._monitor.observe()
        if self._monitor.refusal is not None:
            message = (
                f"cannot talk to {self.peer}: {self._monitor.refusal}. "
                f"This client uses the keys in {self._sockets.keyring.directory}"
            )
            for pending in list(self._pending.values()):
                self._fail(pending, SecurityError(message))
        elif self._monitor.lost and now >= self._reconnect_at:
            self._reconnect()

    def _send(self, pending: PendingReply, payload: bytes) -> None:
        if not self._monitor.ready or self._monitor.lost:
            return
        try:
            self._socket.send(b"", _SNDMORE)
            self._socket.send(payload, _NOBLOCK)
        except zmq.Again:
            return  # The queue is full; tried again when a reply has come.
        pending.sent = True

    def _encode(self, pending: PendingReply) -> bytes:
        deadline_ms_left = max(1, int(1000 * (pending.deadline - time.monotonic())))
        return encode(
            Request(
                self._request_ids.client,
                pending.counter,
                pending.command,
                deadline_ms_left,
                self._incarnation,
                pending.kwargs,
            )
        )

    def _reconnect(self) -> None:
        self._heard_s = -float("inf")
        self._disconnect()
        self._socket, self._monitor = self._connect()
        # A server that drops every connection must not be asked in a tight loop.
        self._reconnect_at = time.monotonic() + self._reconnect_interval_s * random.uniform(0.8, 1.2)
        self._reconnect_interval_s = min(2 * self._reconnect_interval_s, _MAX_RECONNECT_S)
        for pending in self._pending.values():
            pending.sent = False

    def _disconnect(self) -> None:
        self._monitor.close()
        self._socket.close(linger=0)

    def _fail(self, pending: PendingReply, error: HpcMarlError) -> None:
        self._pending.pop(pending.counter, None)
        pending.fail(error)

    def _timeout_message(self, pending: PendingReply) -> str:
        busy = ", so the server is busy or stuck" if self._monitor.ready else ""
        return (
            f"no reply from {self.peer} to {pending.command!r} within {pending.timeout_s:g} s: "
            f"{self._monitor.state}{busy}"
        )


def poll_channels(channels: Collection[RpcChannel], timeout_s: float | None = None) -> None:
    """Wait until something happens to a call under way (or `timeout_s` is over), then process what is due.

    Returns at once if no call is under way and no timeout is given.
    """
    active = [channel for channel in channels if channel.num_pending]
    wakeups = [wakeup for channel in active if (wakeup := channel.next_wakeup()) is not None]
    limits = [max(0.0, min(wakeups) - time.monotonic())] if wakeups else []
    if timeout_s is not None:
        limits.append(timeout_s)
    poller = zmq.Poller()
    owners: dict[zmq.Socket[bytes], RpcChannel] = {}
    for channel in active:
        for socket, flags in channel.pollables():
            poller.register(socket, flags)
            owners[socket] = channel
    # Rounded up: waking a fraction of a millisecond early would spin until the time has come.
    ready = poller.poll(int(1000 * min(limits)) + 1) if limits else []
    now = time.monotonic()
    due = {id(owners[socket]): owners[socket] for socket, _ in ready}
    due.update({id(c): c for c in active if (wakeup := c.next_wakeup()) is not None and wakeup <= now})
    for channel in due.values():
        channel.process()


def wait_for(channels: Collection[RpcChannel], finished: Callable[[], bool]) -> None:
    """Poll `channels` until `finished()`; where that asks for replies to be done, their deadlines end it."""
    while not finished():
        poll_channels(channels)
