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
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import zmq

from hpc_marl.base.rpc_messages import Request, decode_kwargs, decode_request, error_reply, value_reply
from hpc_marl.base.serialization import Buffer
from hpc_marl.base.sockets import CONTROL_MAX_MESSAGE_BYTES
from hpc_marl.errors import ProtocolError

_MAX_REQUESTS_PER_TURN = 1000
# As plain integers: libzmq's constants are enums, with which every operation takes a microsecond.
_EVENTS, _POLLIN, _RCVTIMEO, _RCVMORE = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.RCVTIMEO), int(zmq.RCVMORE)
# Whoever has time to wait does so a moment after an answer too: one call often follows another. A shorter moment costs
# more, because the kernel then sets a timer for every wait.
_LINGER_MS = 5
_ASK_AGAIN_S = 0.01  # how well it must be known since when requests may be queued


class ReplyCache:
    """The last replies of every client, bounded per client, in clients and in bytes.

    Args:
        max_per_client: replies kept per client.
        max_clients: clients kept; the one heard from least recently goes first.
        max_bytes: of all replies together.
    """

    def __init__(self, max_per_client: int = 256, max_clients: int = 256, max_bytes: int = 32 << 20) -> None:
        self._max_per_client = max_per_client
        self._max_clients = max_clients
        self._max_bytes = max_bytes
        self._clients: OrderedDict[str, OrderedDict[int, bytes]] = OrderedDict()
        self._highest_dropped: dict[str, int] = {}
        self.num_bytes = 0

    def get(self, client: str, counter: int) -> bytes | None:
        """Return the reply to a request answered before, None if there is none here."""
        replies = self._clients.get(client)
        return None if replies is None else replies.get(counter)

    def is_forgotten(self, client: str, counter: int) -> bool:
        """Return whether a request without a reply here may have been answered before."""
        return counter <= self._highest_dropped.get(client, -1)

    def put(self, client: str, counter: int, reply: bytes) -> None:
        """Keep (or replace) the reply to one request."""
        replies = self._clients.get(client)
        if replies is None:
            replies = self._clients[client] = OrderedDict()
        self._clients.move_to_end(client)
        self.num_bytes += len(reply) - len(replies.get(counter, b""))
        replies[counter] = reply
        if len(replies) > self._max_per_client:
            self._drop_oldest(client)
        while len(self._clients) > self._max_clients:
            oldest_client, dropped = self._clients.popitem(last=False)
            self._highest_dropped.pop(oldest_client, None)
            self.num_bytes -= sum(map(len, dropped.values()))
        while self.num_bytes > self._max_bytes and self._drop_oldest(next(iter(self._clients))):
            pass

    def _drop_oldest(self, client: str) -> bool:
        replies = self._clients[client]
        if not replies:
            # Emptied by the byte limit: look at the next least recent client, as long as there is one.
            client = next((name for name, kept in self._clients.items() if kept), "")
            if not client:
                return False
            replies = self._clients[client]
        counter, reply = replies.popitem(last=False)
        self.num_bytes -= len(reply)
        self._highest_dropped[client] = max(counter, self._highest_dropped.get(client, -1))
        return True


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
        reply, executed = self.answer(payload, waited_s)
        if executed is not None:
            self.remember(executed, reply)
        return reply

    def answer(self, payload: Buffer, waited_s: float) -> tuple[bytes, Request | None]:
        """Do as `handle`, but leave it to the caller to `remember` the reply, if a request is returned with it."""
        try:
            request = decode_request(payload)
        except ProtocolError as error:
            return error_reply(None, "protocol", f"request refused: {error}"), None
        if request.incarnation and request.incarnation != self.incarnation:
            message = (
                f"incarnation {request.incarnation} is no more, this is {self.incarnation}; look it up again"
            )
            return error_reply(request, "stale_peer", message), None
        known = self._replies.get(request.client, request.counter)
        if known is not None:
            return known, None
        if self._replies.is_forgotten(request.client, request.counter):
            message = f"the reply to this {request.command!r} is not kept any more; not run again"
            return error_reply(request, "forgotten", message), None
        if request.deadline_ms_left <= 1000 * waited_s:
            message = f"{request.command!r} waited {waited_s:.3g} s; not run"
            return error_reply(request, "ask_again", message), None
        return self._execute(request)

    def remember(self, request: Request, reply: bytes) -> None:
        """Keep the reply to a request that was executed: a retry gets it, and runs nothing."""
        self._replies.put(request.client, request.counter, reply)

    def _execute(self, request: Request) -> tuple[bytes, Request | None]:
        handler = self._handlers.get(request.command)
        if handler is None:
            known = ", ".join(self.commands) or "none"
            return error_reply(
                request, "unknown_command", f"unknown command {request.command!r}; known: {known}"
            ), None
        try:
            kwargs = decode_kwargs(request)
            handler.check(kwargs)
        except (ProtocolError, TypeError) as error:
            return error_reply(request, "bad_request", f"{request.command}{handler.text}: {error}"), None
        reply = b""
        try:
            reply = self._run(request, handler.run, kwargs)
        finally:
            if not reply:  # interrupted: the call is answered, and a retry must not run it again
                interrupted = f"{request.command!r} was interrupted"
                self.remember(request, error_reply(request, "remote_error", interrupted, "Interrupted"))
        return reply, request

    def _run(self, request: Request, function: Callable[..., Any], kwargs: dict[str, Any]) -> bytes:
        try:
            result = function(**kwargs)
        except Exception as error:  # noqa: BLE001  The server outlives every handler; the caller sees the error.
            text = "".join(traceback.format_exception(error))
            return error_reply(request, "remote_error", str(error), type(error).__name__, text)
        try:
            reply = value_reply(request, result)
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
        self._known = frozenset(parameter.name for parameter in named)
        self._required = frozenset(p.name for p in named if p.default is p.empty)

    @property
    def text(self) -> str:
        """How it is called."""
        return str(self._signature or "(...)")

    def check(self, kwargs: Mapping[str, Any]) -> None:
        """Raise TypeError where the function does not take these arguments."""
        # `bind` takes longer than all else that is done for a call, so what is seen to fit is not asked about.
        if self._signature is not None and not self._required <= kwargs.keys() <= self._known:
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
    for num_answered in range(limit):
        # Waiting inside `recv` saves what `poll` costs between a request's arrival and its answer.
        payload = _receive(socket)
        now = time.monotonic()
        if payload is None:
            handler.queue_was_empty_at = now
            return num_answered
        _answer(socket, handler, payload, now - handler.queue_was_empty_at)
        if num_answered == 0:
            socket.set(_RCVTIMEO, min(wait_ms, _LINGER_MS))
        is_unsure = not wait_ms or now - handler.queue_was_empty_at > _ASK_AGAIN_S
        if is_unsure and not int(socket.get(_EVENTS)) & _POLLIN:
            handler.queue_was_empty_at = time.monotonic()
            if not wait_ms:
                return num_answered + 1
    return limit


def _answer(socket: zmq.Socket[bytes], handler: RequestHandler, payload: bytes, waited_s: float) -> None:
    reply = executed = None
    try:
        reply, executed = handler.answer(payload, waited_s)
    finally:
        # A REP socket that was left unanswered would be stuck, so an interrupt is answered too.
        try:
            socket.send(handler.handle(payload) if reply is None else reply)
        finally:
            if executed is not None and reply is not None:  # while the answer is on its way
                handler.remember(executed, reply)


def _receive(socket: zmq.Socket[bytes]) -> bytes | None:
    """Return the next request, b"" for one of several frames; None where none comes in time."""
    try:
        payload = socket.recv()
    except zmq.Again:
        return None
    if not socket.get(_RCVMORE):
        return payload
    while socket.get(_RCVMORE):
        socket.recv()
    return b""
