"""RequestPort: the policy worker's ROUTER, to which every client is connected."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator

import zmq

from hpc_marl.base.run_context import RunContext
from hpc_marl.base.serialization import Buffer
from hpc_marl.base.socket_shortcuts import can_receive, send_of

_MAX_MESSAGES_PER_TURN = 4096
# As plain integers: libzmq's constants are enums, with which every operation takes a microsecond.
_NOBLOCK, _SNDMORE, _RCVTIMEO = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE), int(zmq.RCVTIMEO)


class RequestPort:
    """Messages of one frame from and to clients. Not thread-safe.

    Args:
        context: of this process.
        key: name to publish under.
        max_message_bytes: largest message.

    Attributes:
        fd: readable when something has changed; see `must_look`.
        must_look: ZMQ's descriptor tells of changes only: after a use of the socket it may be silent although there is
            more.
        malformed: messages that were ignored, as they had not one frame.
    """

    def __init__(self, context: RunContext, key: str, max_message_bytes: int) -> None:
        bound = context.sockets.bind(zmq.ROUTER, context.bind_hosts, max_message_bytes=max_message_bytes)
        self._socket = bound.socket
        self._send_frame = send_of(bound.socket)
        self._wait_ms = -1
        self.fd = int(self._socket.getsockopt(zmq.FD))
        self.must_look = True
        self.malformed = 0
        context.publish(key, bound)

    def messages(self, wait_s: float = 0.0) -> Iterator[tuple[bytes, memoryview]]:
        """Yield routing id and content, read-only, of all messages that are there, at most 4096.

        Args:
            wait_s: for the first one. To sleep in the socket itself costs less than to sleep for its descriptor.
        """
        self.must_look = False
        if wait_s > 0:
            self._set_wait(math.ceil(1000 * wait_s))
            if (message := self._next(0)) is not None:
                yield message
        for _ in range(_MAX_MESSAGES_PER_TURN):
            if not can_receive(self._socket):
                return
            if (message := self._next(_NOBLOCK)) is not None:
                yield message
        self.must_look = True

    def send(self, routing_id: bytes, frame: Buffer) -> bool:
        """Send without waiting; return False where the client has gone."""
        self.must_look = True
        try:
            self._send_frame(routing_id, _SNDMORE)
            self._send_frame(frame, _NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        return True

    def close(self) -> None:
        """Stop listening; clients turn to another server."""
        self._socket.close()

    def _next(self, flags: int) -> tuple[bytes, memoryview] | None:
        """Return the next message; None where none comes, or it is not one."""
        try:
            routing_id = self._socket.recv(flags)
        except zmq.Again:
            return None
        frame = self._socket.recv(flags, copy=False)
        is_one = not frame.more
        if is_one:
            return routing_id, frame.buffer.toreadonly()
        while frame.more:
            frame = self._socket.recv(flags, copy=False)
        self.malformed += 1
        return None

    def _set_wait(self, wait_ms: int) -> None:
        if wait_ms != self._wait_ms:
            self._socket.set(_RCVTIMEO, wait_ms)
            self._wait_ms = wait_ms
