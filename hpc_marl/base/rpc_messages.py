"""The RPC wire: one request frame, one reply frame, and how errors travel.

Kwargs and results stay encoded inside the envelope until its ids have been judged. Exceptions travel as kind,
message, type name and traceback text; no class named by the other side is ever looked up.
"""

from __future__ import annotations

import itertools
import uuid
from typing import Annotated, Any

import msgspec

from hpc_marl.base.serialization import Buffer, decode, encode
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


class Request(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One call.

    Attributes:
        client: the caller's incarnation; with `counter` the id of the request, the same in every retry.
        counter: grows with every call of this client.
        command: which handler to run.
        deadline_ms_left: how long the caller still waits, counted from when this copy was sent.
        incarnation: the life of the server that is meant, "" for whichever is there.
        kwargs: the handler's keyword arguments, encoded.
    """

    client: _Identity
    counter: Annotated[int, msgspec.Meta(ge=0)]
    command: Annotated[str, msgspec.Meta(max_length=256)]
    deadline_ms_left: int
    incarnation: _Identity
    kwargs: msgspec.Raw


class ReplyError(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Why a call failed; `kind` is a key of `ERROR_KINDS`."""

    kind: str
    message: str
    remote_type: str = ""
    remote_traceback: str = ""


class Reply(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One answer; echoes the request's id. `value` is the encoded result, meaningless beside an error."""

    client: _Identity
    counter: int
    error: ReplyError | None
    value: msgspec.Raw


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

_NO_VALUE = encode(None)
_Kwargs = dict[str, Any]


class RequestIds:
    """Hands out request ids of one client incarnation; share one among the channels of a process."""

    def __init__(self) -> None:
        self.client = uuid.uuid4().hex
        self._counter = itertools.count(1)

    def next(self) -> int:
        """Return the next counter."""
        return next(self._counter)


def encode_value(value: Any) -> msgspec.Raw:
    """Return kwargs or a result, ready to be put into an envelope.

    Raises:
        ProtocolError: it holds something that may not travel.
    """
    return msgspec.Raw(encode(value))


def decode_request(payload: Buffer) -> Request:
    """Return the envelope in `payload`. Raises ProtocolError."""
    return decode(payload, Request)


def decode_reply(payload: Buffer) -> Reply:
    """Return the envelope in `payload`. Raises ProtocolError."""
    return decode(payload, Reply)


def decode_kwargs(request: Request) -> dict[str, Any]:
    """Return the keyword arguments of a request. Raises ProtocolError."""
    return decode(memoryview(request.kwargs), _Kwargs)


def value_reply(request: Request, value: Any) -> bytes:
    """Return the encoded reply with a result. Raises ProtocolError where it may not travel."""
    return encode(Reply(request.client, request.counter, None, encode_value(value)))


def error_reply(
    request: Request | None, kind: str, message: str, remote_type: str = "", remote_traceback: str = ""
) -> bytes:
    """Return the encoded reply with an error; long texts are cut so that it fits any channel."""
    error = ReplyError(
        kind,
        message[:_MAX_ERROR_TEXT_CHARS],
        remote_type[:200],
        remote_traceback[-_MAX_TRACEBACK_CHARS:],  # The innermost frames, which are last, say most.
    )
    client, counter = (request.client, request.counter) if request else ("", 0)
    return encode(Reply(client, counter, error, msgspec.Raw(_NO_VALUE)))


def result_of(reply: Reply) -> Any:
    """Return the result in a reply, or raise its error.

    Raises:
        HpcMarlError: the class that `ERROR_KINDS` gives for the error's kind.
        ProtocolError: the result does not decode.
    """
    if reply.error is None:
        return decode(memoryview(reply.value), Any)
    error = reply.error
    if error.kind == "remote_error":
        raise RemoteError(error.message, error.remote_type, error.remote_traceback)
    raise ERROR_KINDS.get(error.kind, RpcError)(error.message)
