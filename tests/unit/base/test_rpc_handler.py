"""The server's half without sockets: request bytes in, reply bytes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hpc_marl.base.rpc_handler import RequestHandler
from hpc_marl.base.rpc_messages import Request, RequestIds, decode_reply, result_of
from hpc_marl.base.rpc_replies import ReplyCache
from hpc_marl.base.serialization import encode
from hpc_marl.errors import (
    BadRequestError,
    MessageTooLargeError,
    ProtocolError,
    RemoteError,
    RpcError,
    StalePeerError,
    UnknownCommandError,
)


class Caller:
    """Speaks to one handler as one client."""

    def __init__(self, handler: RequestHandler) -> None:
        self.handler = handler
        self.ids = RequestIds()

    def payload(
        self, command: str, counter: int | None = None, incarnation: str = "", **kwargs: Any
    ) -> bytes:
        number = self.ids.next() if counter is None else counter
        return encode(Request(self.ids.client, number, command, 1000, incarnation, kwargs))

    def call(self, command: str, **kwargs: Any) -> Any:
        return result_of(decode_reply(self.handler.handle(self.payload(command, **kwargs))))


@pytest.fixture
def handler() -> RequestHandler:
    return RequestHandler(max_message_bytes=100_000)


@pytest.fixture
def caller(handler: RequestHandler) -> Caller:
    return Caller(handler)


@pytest.fixture
def calls(handler: RequestHandler) -> list[int]:
    """Every argument that the command `note` was run with."""
    noted: list[int] = []

    def note(x: int) -> int:
        noted.append(x)
        return len(noted)

    handler.register("note", note)
    return noted


def test_results_come_back(handler: RequestHandler, caller: Caller) -> None:
    handler.register("echo", lambda **kwargs: kwargs)
    handler.register("nothing", lambda: None)
    assert caller.call("echo", x=42, y="str", z=[None, b"\0"]) == {"x": 42, "y": "str", "z": [None, b"\0"]}
    assert caller.call("nothing") is None


def test_an_unknown_command_lists_those_there_are(handler: RequestHandler, caller: Caller) -> None:
    with pytest.raises(UnknownCommandError, match="'fly'; known: none"):
        caller.call("fly")
    for command in ("stop", "start"):
        handler.register(command, lambda: None)
    with pytest.raises(UnknownCommandError, match="'fly'; known: start, stop"):
        caller.call("fly")


def test_a_second_handler_of_a_command_is_refused(handler: RequestHandler) -> None:
    handler.register("start", lambda: None)
    with pytest.raises(ValueError, match="'start' has a handler already"):
        handler.register("start", lambda: None)


@pytest.mark.parametrize("kwargs", [{}, {"x": 1, "y": 2}, {"y": 1}])
def test_arguments_that_do_not_fit_are_a_bad_request(
    caller: Caller, calls: list[int], kwargs: dict[str, int]
) -> None:
    with pytest.raises(BadRequestError, match=r"note\(x: 'int'\).*argument"):
        caller.call("note", **kwargs)
    assert calls == []


def test_a_type_error_inside_is_the_handlers_own(handler: RequestHandler, caller: Caller) -> None:
    def add(x: Any) -> Any:
        return x + "1"

    handler.register("add", add)
    with pytest.raises(RemoteError) as caught:
        caller.call("add", x=1)
    assert caught.value.remote_type == "TypeError"
    assert 'return x + "1"' in caught.value.remote_traceback


def test_functions_without_a_signature_can_be_called(handler: RequestHandler, caller: Caller) -> None:
    handler.register("dict", dict)
    assert caller.call("dict", a=1) == {"a": 1}


def test_long_errors_are_cut(handler: RequestHandler, caller: Caller) -> None:
    def fail() -> None:
        raise ValueError("x" * 10_000_000)

    handler.register("fail", fail)
    assert len(handler.handle(caller.payload("fail"))) < 20_000
    with pytest.raises(RemoteError, match=r"^ValueError: xxx"):
        caller.call("fail")


@pytest.mark.parametrize("result", [object(), lambda: None, 2**80])
def test_a_result_that_may_not_travel_is_named(handler: RequestHandler, caller: Caller, result: Any) -> None:
    handler.register("give", lambda: result)
    with pytest.raises(RemoteError, match=r"'give' returned a .* that cannot be sent"):
        caller.call("give")


def test_a_reply_that_is_too_large_is_refused_with_size_and_limit(
    handler: RequestHandler, caller: Caller
) -> None:
    handler.register("give", lambda: b"x" * 100_000)
    with pytest.raises(MessageTooLargeError, match=r"'give' has 100\d\d\d bytes; expected at most 100000"):
        caller.call("give")


def test_a_retry_gets_the_first_reply(handler: RequestHandler, caller: Caller, calls: list[int]) -> None:
    payload = caller.payload("note", x=7)
    replies = {handler.handle(payload) for _ in range(3)}
    assert calls == [7]
    assert [result_of(decode_reply(reply)) for reply in replies] == [1]


def test_clients_do_not_share_ids(handler: RequestHandler, calls: list[int]) -> None:
    for _ in range(2):
        handler.handle(Caller(handler).payload("note", counter=1, x=7))
    assert calls == [7, 7]


def test_a_failure_is_not_repeated_either(handler: RequestHandler, caller: Caller) -> None:
    runs = []

    def fail() -> None:
        runs.append(1)
        raise OSError("disk")

    handler.register("fail", fail)
    payload = caller.payload("fail")
    for _ in range(2):
        with pytest.raises(RemoteError, match="OSError: disk"):
            result_of(decode_reply(handler.handle(payload)))
    assert runs == [1]


def test_an_interrupted_handler_is_not_run_again(handler: RequestHandler, caller: Caller) -> None:
    runs = []

    def interrupt() -> None:
        runs.append(1)
        raise KeyboardInterrupt

    handler.register("interrupt", interrupt)
    payload = caller.payload("interrupt")
    with pytest.raises(KeyboardInterrupt):
        handler.handle(payload)
    with pytest.raises(RemoteError, match="was interrupted"):
        result_of(decode_reply(handler.handle(payload)))
    assert runs == [1]


def test_a_retry_of_what_is_forgotten_is_not_run(
    handler: RequestHandler, caller: Caller, calls: list[int]
) -> None:
    first = caller.payload("note", x=0)
    handler.handle(first)
    for number in range(1, 300):
        caller.call("note", x=number)
    with pytest.raises(RpcError, match="not kept any more; not run again"):
        result_of(decode_reply(handler.handle(first)))
    assert calls == list(range(300))


def test_another_incarnation_is_stale(handler: RequestHandler, caller: Caller, calls: list[int]) -> None:
    assert caller.call("note", incarnation=handler.incarnation, x=1) == 1
    with pytest.raises(StalePeerError, match="incarnation abc is no more"):
        caller.call("note", incarnation="abc", x=2)
    assert calls == [1]


def test_a_call_that_may_have_ended_is_asked_for_again(
    handler: RequestHandler, caller: Caller, calls: list[int]
) -> None:
    payload = caller.payload("note", x=5)
    reply = decode_reply(handler.handle(payload, waited_s=1.5))
    assert reply.error is not None and reply.error.kind == "ask_again"
    assert calls == []
    assert result_of(decode_reply(handler.handle(payload, waited_s=0.5))) == 1
    assert result_of(decode_reply(handler.handle(payload, waited_s=9.5))) == 1
    assert calls == [5]


@pytest.mark.parametrize(
    "garble",
    [
        lambda payload: b"",
        lambda payload: b"garbage",
        lambda payload: payload[:-3],
        lambda payload: payload + b"\0",
        lambda payload: b"\x91" * 100_000,
        lambda payload: encode([1, 2, 3]),
        lambda payload: encode(["client", -1, "note", 1000, "", {"x": 1}]),
        lambda payload: encode(["c" * 65, 1, "note", 1000, "", {"x": 1}]),
        lambda payload: encode(["client", 1, "note", 1000, ""]),
    ],
)
def test_garbage_is_answered_as_such(
    handler: RequestHandler, caller: Caller, calls: list[int], garble: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(ProtocolError, match="request refused"):
        result_of(decode_reply(handler.handle(garble(caller.payload("note", x=1)))))
    assert calls == []
    assert caller.call("note", x=1) == 1


@pytest.mark.parametrize("kwargs", [[1], 3, None, {1: 2}])
def test_kwargs_that_are_none_are_a_bad_request(
    handler: RequestHandler, calls: list[int], kwargs: Any
) -> None:
    with pytest.raises(BadRequestError):
        result_of(decode_reply(handler.handle(encode(["client", 1, "note", 1000, "", kwargs]))))
    assert calls == []


def test_the_cache_is_bounded_in_every_way() -> None:
    cache = ReplyCache(max_per_client=4, max_clients=3, max_bytes=1000)
    for client in "abcde":
        for counter in range(6):
            cache.put(client, counter, b"x" * 10)
    assert [cache.get("e", counter) for counter in (1, 2)] == [None, b"x" * 10]
    assert cache.is_forgotten("e", 1) and not cache.is_forgotten("e", 6)
    assert cache.get("a", 5) is None and not cache.is_forgotten("a", 5)
    assert cache.num_bytes == 3 * 4 * 10
    cache.put("f", 0, b"y" * 900)
    assert cache.num_bytes <= 1000
    assert cache.get("f", 0) == b"y" * 900
    cache.put("f", 0, b"z")
    assert cache.get("f", 0) == b"z" and cache.num_bytes <= 101
    cache.put("g", 0, b"y" * 2000)
    assert cache.num_bytes == 0 and cache.is_forgotten("g", 0)


def test_replies_out_of_order_are_kept_and_replaced() -> None:
    cache = ReplyCache(max_per_client=3)
    for counter in (5, 2, 7):
        cache.put("a", counter, b"x" * counter)
    assert [cache.get("a", counter) for counter in (2, 5, 6, 7)] == [b"xx", b"x" * 5, None, b"x" * 7]
    assert [cache.is_new("a", counter) for counter in (2, 6, 7, 8)] == [False, False, False, True]
    assert cache.is_new("b", 0) and not cache.is_forgotten("a", 1)
    cache.put("a", 2, b"other")
    assert cache.get("a", 2) == b"other" and cache.num_bytes == 5 + 5 + 7
    cache.put("a", 8, b"")  # 5 is the oldest
    assert cache.get("a", 5) is None and cache.is_forgotten("a", 5) and cache.get("a", 2) == b"other"
    assert cache.num_bytes == 5 + 7
