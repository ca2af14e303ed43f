"""The client's half of RPC: one connection to one server, several calls under way at once.

    submit() -> PendingReply        never blocks
    pollables(), next_wakeup()      what to wait for
    process()                       send, receive, reconnect, expire; resolves PendingReplies
    receive_soon()                  waits for the one reply that is expected, which costs less

A call ends by its deadline in every case. If the connection is lost before, the call is repeated with the same
id over a new one, and executed at most once. Nothing is sent for a call that has ended. A channel belongs to
one thread, and costs four file descriptors, unless it is at `rest`.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import zmq

from hpc_marl.base.eager_poll import EagerLook
from hpc_marl.base.rpc_messages import Request, RequestIds, decode_reply, with_time_left
from hpc_marl.base.rpc_pending import PendingReply
from hpc_marl.base.serialization import encode
from hpc_marl.base.socket_shortcuts import can_receive, send_of
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
_SOON_S = 0.02
_AWAKE_S = 0.0002  # two calls' time on one machine
# As plain integers: libzmq's constants are enums, with which every operation takes a microsecond.
_NOBLOCK, _SNDMORE = int(zmq.NOBLOCK), int(zmq.SNDMORE | zmq.NOBLOCK)
# For so long after a reply the connection is taken for alive; `process` finds out if it is not.
_HEARD_LATELY_S = 1.0


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
        self._connect()

    def _connect(self) -> None:
        # IMMEDIATE would throw away replies not yet read when a server answers and ends, as to `exit`. What it
        # is for, that nothing waits here for a later server, is served by sending on live connections only.
        self._socket, self._monitor = self._sockets.connect_monitored(
            zmq.DEALER,
            self._hosts,
            self._port,
            self._server_public_key,
            options={zmq.IMMEDIATE: 0, zmq.RCVTIMEO: int(1000 * _SOON_S)},
        )
        self._send_frame, self._receive_frame = send_of(self._socket), self._socket.recv
        self._eager = EagerLook(partial(can_receive, self._socket), awake_s=_AWAKE_S)

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
        number = self._request_ids.next()
        call = Request(
            self._request_ids.client,
            number,
            command,
            max(1, int(1000 * timeout_s)),
            self._incarnation,
            cast("dict[str, Any]", kwargs),
        )
        try:
            payload = encode(call)
        except ProtocolError as error:
            raise BadRequestError(f"arguments of {command!r}: {error.__cause__ or error}") from error
        if len(payload) > self._sockets.max_message_bytes:
            raise MessageTooLargeError(
                f"the request {command!r} has {len(payload)} bytes; "
                f"expected at most {self._sockets.max_message_bytes}"
            )
        now = self._last_call_s = time.monotonic()
        pending = self._pending[number] = PendingReply(number, command, payload, timeout_s, now + timeout_s)
        if self._is_resting:
            self._is_resting = False
            self._reconnect()
        elif now > self._heard_s + _HEARD_LATELY_S:
            self._monitor.observe()
        if self._monitor.refusal is not None:
            self._reconnect()  # The cause may be gone, and libzmq would not find out.
        if self._monitor.ready and not self._monitor.lost:
            self._send(pending)
        return pending

    def receive_soon(self, pending: PendingReply) -> None:
        """Wait a moment for the reply to a call: most come so soon that to wait for anything else costs more.

        Whatever else may happen to the call (its connection is lost, its time is over) is left to `process`.
        """
        if not pending.sent or self._monitor.lost or pending.timeout_s < _SOON_S or len(self._pending) > 1:
            return
        self._eager.look()
        try:
            delimiter = self._receive_frame()
            frame = self._receive_frame()  # the frames of one message come at once
        except zmq.Again:
            return
        self._take_frame(delimiter, frame)

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
        if self._monitor.ready and not self._monitor.lost:
            for pending in self._pending.values():
                if not pending.sent:
                    left_ms = max(1, int(1000 * (pending.deadline - now)))
                    pending.payload = with_time_left(pending.payload, left_ms)
                    self._send(pending)

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
            if len(frames) == 2:
                self._take_frame(*frames)
            else:
                self._ignore(f"{len(frames)} frames; expected an empty one and a reply")

    def _take_frame(self, delimiter: bytes, frame: bytes) -> None:
        if delimiter:
            self._ignore(f"it begins with {len(delimiter)} bytes; expected an empty frame")
            return
        try:
            reply = decode_reply(frame)
        except ProtocolError as error:
            self._ignore(str(error))
            return
        pending = self._pending.get(reply.counter)
        # The reply to a call that has ended, or the second reply to a repeated one, has no taker.
        if pending is None or reply.client != self._request_ids.client:
            return
        self._reconnect_interval_s = _FIRST_RECONNECT_S
        self._heard_s = time.monotonic()
        if reply.error is not None and reply.error.kind == "ask_again":
            pending.sent = False
            return
        del self._pending[reply.counter]
        pending.resolve(reply)

    def _ignore(self, reason: str) -> None:
        _logger.warning("ignored a message from %s: %s", self.peer, reason)

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

    def _send(self, pending: PendingReply) -> None:
        try:
            self._send_frame(b"", _SNDMORE)
            self._send_frame(pending.payload, _NOBLOCK)
        except zmq.Again:
            return  # The queue is full; tried again when a reply has come.
        pending.sent = True

    def _reconnect(self) -> None:
        self._heard_s = -float("inf")
        self._disconnect()
        self._connect()
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
