"""The server's half of RPC without a socket: request bytes in, reply bytes out.

    bytes -> Request -> right incarnation? -> answered before? -> known command? -> arguments fit? -> run

`RpcServer` and `ZmqServer` put a REP socket before it with `serve_requests`. A retry (same id) gets the reply of
the first execution; a handler never runs twice for one id.
"""

from __future__ import annotations

import inspect
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import zmq

from hpc_marl.base.rpc_messages import AnyRequest, Reply, decode_kwargs, decode_request, error_reply
from hpc_marl.base.rpc_replies import ReplyCache
from hpc_marl.base.serialization import Buffer, encode
from hpc_marl.base.socket_shortcuts import Send, send_of
from hpc_marl.base.sockets import CONTROL_MAX_MESSAGE_BYTES
from hpc_marl.errors import ProtocolError

_MAX_REQUESTS_PER_TURN = 1000
# As plain integers: libzmq's constants are enums, with which every operation takes a microsecond.
_EVENTS, _POLLIN, _RCVTIMEO, _RCVMORE = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.RCVTIMEO), int(zmq.RCVMORE)
# Whoever has time to wait does so a moment after an answer too: one call often follows another. A shorter moment costs
# more, because the kernel then sets a timer for every wait.
_LINGER_MS = 5
_ASK_AGAIN_S = 0.01  # how well it must be known since when requests may be queued


class RequestHandler:
    """A table of commands and what surrounds their execution.

    Args:
        incarnation: this life of the server; a request meant for another one is refused.
        max_message_bytes: larger replies are refused with a typed error.

    Attributes:
        queue_was_empty_at: since when requests may have been waiting (time.monotonic()); see `serve_requests`.
    """

    def __init__(self, incarnation: str = "", max_message_bytes: int = CONTROL_MAX_MESSAGE_BYTES) -> None:
        self.incarnation = incarnation or uuid.uuid4().hex
        self._max_message_bytes = max_message_bytes
        self._handlers: dict[str, _Handler] = {}
        self._replies = ReplyCache()
        self.queue_was_empty_at = time.monotonic()

    @property
    def commands(self) -> list[str]:
        """The commands that have a handler, sorted."""
        return sorted(self._handlers)

    def register(self, command: str, function: Callable[..., Any]) -> None:
        """Run `function(**kwargs)` for `command`; its result (or exception) is the reply.

        Raises:
            ValueError: the command has a handler already.
        """
        if command in self._handlers:
            raise ValueError(f"command {command!r} has a handler already: {self._handlers[command].run!r}")
        self._handlers[command] = _Handler(function)

    def handle(self, payload: Buffer, waited_s: float = 0.0) -> bytes:
        """Return the encoded reply to one encoded request; only what is no `Exception` gets out.

        Args:
            payload: the request.
            waited_s: how long it may have waited here, at most. A call that may have ended meanwhile is not
                run; if it has not ended, its client sends it again at once.
        """
        try:
            request = decode_request(payload)
        except ProtocolError as error:
            return error_reply(None, "protocol", f"request refused: {error}")
        if request.incarnation and request.incarnation != self.incarnation:
            message = (
                f"incarnation {request.incarnation} is no more, this is {self.incarnation}; look it up again"
            )
            return error_reply(request, "stale_peer", message)
        if not self._replies.is_new(request.client, request.counter):
            known = self._replies.get(request.client, request.counter)
            if known is not None:
                return known
            if self._replies.is_forgotten(request.client, request.counter):
                message = f"the reply to this {request.command!r} is not kept any more; not run again"
                return error_reply(request, "forgotten", message)
        if request.deadline_ms_left <= 1000 * waited_s:
            message = f"{request.command!r} waited {waited_s:.3g} s; not run"
            return error_reply(request, "ask_again", message)
        return self._execute(request)

    def _execute(self, request: AnyRequest) -> bytes:
        handler = self._handlers.get(request.command)
        if handler is None:
            known = ", ".join(self.commands) or "none"
            return error_reply(
                request, "unknown_command", f"unknown command {request.command!r}; known: {known}"
            )
        try:
            kwargs = decode_kwargs(request)
            if not handler.required <= kwargs.keys() <= handler.known:
                handler.check(kwargs)
        except (ProtocolError, TypeError) as error:
            return error_reply(request, "bad_request", f"{request.command}{handler.text}: {error}")
        reply = b""
        try:
            reply = self._run(request, handler.run, kwargs)
        finally:
            if not reply:  # interrupted: the call is answered, and a retry must not run it again
                interrupted = f"{request.command!r} was interrupted"
                reply = error_reply(request, "remote_error", interrupted, "Interrupted")
            self._replies.put(request.client, request.counter, reply)
        return reply

    def _run(self, request: AnyRequest, function: Callable[..., Any], kwargs: dict[str, Any]) -> bytes:
        try:
            result = function(**kwargs)
        except Exception as error:  # noqa: BLE001  The server outlives every handler; the caller sees the error.
            text = "".join(traceback.format_exception(error))
            return error_reply(request, "remote_error", str(error), type(error).__name__, text)
        try:
            reply = encode(Reply(request.client, request.counter, None, result))
        except ProtocolError as error:
            message = f"{request.command!r} returned a {type(result).__name__} that cannot be sent: {error}"
            return error_reply(request, "remote_error", message, type(error).__name__)
        if len(reply) > self._max_message_bytes:
            size = f"{len(reply)} bytes; expected at most {self._max_message_bytes}"
            return error_reply(request, "too_large", f"the reply to {request.command!r} has {size}")
        return reply


class _Handler:
    """A function, and what it takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.run = function
        try:
            self._signature: inspect.Signature | None = inspect.signature(function)
        except ValueError:
            self._signature = None  # Some functions written in C do not tell what they take.
        parameters = list(self._signature.parameters.values()) if self._signature else []
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        # `check` takes longer than all else that is done for a call, so what is seen to fit is not asked about.
        self.known = frozenset(parameter.name for parameter in named)
        self.required = frozenset(p.name for p in named if p.default is p.empty)

    @property
    def text(self) -> str:
        """How it is called."""
        return str(self._signature or "(...)")

    def check(self, kwargs: Mapping[str, Any]) -> None:
        """Raise TypeError where the function does not take these arguments."""
        if self._signature is not None:
            self._signature.bind(**kwargs)


def serve_requests(
    socket: zmq.Socket[bytes], handler: RequestHandler, max_count: int | None = None, timeout_s: float = 0.0
) -> int:
    """Answer what is queued at a REP socket; return how many requests that were.

    Args:
        socket: bound, answered by this handler only.
        handler: answers the requests.
        max_count: at most so many; None means all, bounded so that a flood cannot keep the caller here.
        timeout_s: how long to wait for the first one if nothing is queued.
    """
    limit = _MAX_REQUESTS_PER_TURN if max_count is None else max_count
    wait_ms = max(int(timeout_s * 1000), 0)
    if not int(socket.get(_EVENTS)) & _POLLIN:
        handler.queue_was_empty_at = time.monotonic()
        if not wait_ms:
            return 0
    socket.set(_RCVTIMEO, wait_ms)
    receive, send = socket.recv, send_of(socket)
    for num_answered in range(limit):
        try:
            # Waiting inside `recv` saves what `poll` costs between a request's arrival and its answer.
            payload = receive()
        except zmq.Again:
            handler.queue_was_empty_at = time.monotonic()
            return num_answered
        now = time.monotonic()
        _answer(socket, send, handler, payload, now - handler.queue_was_empty_at)
        if num_answered == 0:
            socket.set(_RCVTIMEO, min(wait_ms, _LINGER_MS))
        is_unsure = not wait_ms or now - handler.queue_was_empty_at > _ASK_AGAIN_S
        if is_unsure and not int(socket.get(_EVENTS)) & _POLLIN:
            handler.queue_was_empty_at = time.monotonic()
            if not wait_ms:
                return num_answered + 1
    return limit


def _answer(
    socket: zmq.Socket[bytes], send: Send, handler: RequestHandler, payload: bytes, waited_s: float
) -> None:
    reply = b""
    try:
        reply = handler.handle(payload, waited_s)
    finally:
        # A REP socket that was left unanswered would be stuck, so an interrupt is answered too.
        reply = reply or handler.handle(payload)
        try:
            send(reply)
        except zmq.ZMQError as error:
            if error.errno != zmq.EFSM:
                raise
            _read_rest(socket)
            send(reply)


def _read_rest(socket: zmq.Socket[bytes]) -> None:
    """Read the rest of a request of several frames, which none of ours is: it counts by its first one.

    libzmq takes no answer before. To ask whether there are more frames would cost as much as a small handler.
    """
    while socket.get(_RCVMORE):
        socket.recv()
