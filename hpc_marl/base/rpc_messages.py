"""The RPC wire: one request frame, one reply frame, and how errors travel.

A message is decoded in one pass. Where its kwargs or its result cannot be, the envelope around them still says whose
call that is, so that this call fails and no other. Exceptions travel as kind, message, type name and traceback text;
no class named by the other side is ever looked up.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import msgspec

from hpc_marl.base.serialization import Buffer, decode, decoder, encode
from hpc_marl.errors import (
    BadRequestError,
    HpcMarlError,
    MessageTooLargeError,
    ProtocolError,
    RemoteError,
    RpcError,
    RpcTimeoutError,
    StalePeerError,
    UnknownCommandError,
)

_Identity = Annotated[str, msgspec.Meta(max_length=64)]
_MAX_ERROR_TEXT_CHARS = 4_000
_MAX_TRACEBACK_CHARS = 8_000


class _RequestEnvelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    client: _Identity
    counter: Annotated[int, msgspec.Meta(ge=0)]
    command: Annotated[str, msgspec.Meta(max_length=256)]
    deadline_ms_left: int
    incarnation: _Identity


class Request(_RequestEnvelope, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One call.

    Attributes:
        client: the caller's incarnation; with `counter` the id of the request, the same in every retry.
        counter: grows with every call of this client.
        command: which handler to run.
        deadline_ms_left: how long the caller still waits, counted from when this copy was sent.
        incarnation: the life of the server that is meant, "" for whichever is there.
        kwargs: the handler's keyword arguments.
    """

    kwargs: dict[str, Any]


class SealedRequest(_RequestEnvelope, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The same bytes as a `Request`, with kwargs that stay encoded."""

    kwargs: msgspec.Raw


class ReplyError(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Why a call failed; `kind` is a key of `ERROR_KINDS`."""

    kind: str
    message: str
    remote_type: str = ""
    remote_traceback: str = ""


class _ReplyEnvelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    client: _Identity
    counter: int
    error: ReplyError | None


class Reply(_ReplyEnvelope, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One answer; echoes the request's id. `value` is the result, meaningless beside an error."""

    value: Any


class SealedReply(_ReplyEnvelope, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The same bytes as a `Reply`, with a result that stays encoded."""

    value: msgspec.Raw


AnyRequest: TypeAlias = Request | SealedRequest
AnyReply: TypeAlias = Reply | SealedReply

ERROR_KINDS: dict[str, type[HpcMarlError]] = {
    "protocol": ProtocolError,
    "unknown_command": UnknownCommandError,
    "bad_request": BadRequestError,
    "remote_error": RemoteError,
    "stale_peer": StalePeerError,
    "too_large": MessageTooLargeError,
    "ask_again": RpcTimeoutError,
    "forgotten": RpcError,
}

_Kwargs = dict[str, Any]
_as_request, _as_reply = decoder(Request), decoder(Reply)


class RequestIds:
    """Hands out request ids of one client incarnation; share one among the channels of a process.

    Attributes:
        client: the incarnation.
        next: returns the next counter.
    """

    def __init__(self) -> None:
        self.client = uuid.uuid4().hex
        self.next: Callable[[], int] = itertools.count(1).__next__


def decode_request(payload: Buffer) -> AnyRequest:
    """Return the call in `payload`, sealed where its kwargs are not decodable. Raises ProtocolError."""
    try:
        return _as_request(payload)
    except ProtocolError:
        return decode(payload, SealedRequest)


def decode_reply(payload: Buffer) -> AnyReply:
    """Return the answer in `payload`, sealed where its result is not decodable. Raises ProtocolError."""
    try:
        return _as_reply(payload)
    except ProtocolError:
        return decode(payload, SealedReply)


def decode_kwargs(request: AnyRequest) -> dict[str, Any]:
    """Return the keyword arguments of a request. Raises ProtocolError."""
    return request.kwargs if isinstance(request, Request) else decode(memoryview(request.kwargs), _Kwargs)


def with_time_left(payload: Buffer, deadline_ms_left: int) -> bytes:
    """Return the same request for another try, with the time that is left now. Raises ProtocolError."""
    return encode(msgspec.structs.replace(decode(payload, SealedRequest), deadline_ms_left=deadline_ms_left))


def error_reply(
    request: AnyRequest | None, kind: str, message: str, remote_type: str = "", remote_traceback: str = ""
) -> bytes:
    """Return the encoded reply with an error; long texts are cut so that it fits any channel."""
    error = ReplyError(
        kind,
        message[:_MAX_ERROR_TEXT_CHARS],
        remote_type[:200],
        remote_traceback[-_MAX_TRACEBACK_CHARS:],  # The innermost frames, which are last, say most.
    )
    client, counter = (request.client, request.counter) if request else ("", 0)
    return encode(Reply(client, counter, error, None))


def result_of(reply: AnyReply) -> Any:
    """Return the result in a reply, or raise its error.

    Raises:
        HpcMarlError: the class that `ERROR_KINDS` gives for the error's kind.
        ProtocolError: the result does not decode.
    """
    if reply.error is None:
        return reply.value if isinstance(reply, Reply) else decode(memoryview(reply.value), Any)
    error = reply.error
    if error.kind == "remote_error":
        raise RemoteError(error.message, error.remote_type, error.remote_traceback)
    raise ERROR_KINDS.get(error.kind, RpcError)(error.message)
