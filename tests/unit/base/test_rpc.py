"""RpcServer, RpcClient and RpcChannel over real sockets."""

from __future__ import annotations

import os
import pickle
import socket as tcp
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from zmq.utils import z85

from hpc_marl.base.rpc import RpcChannel, RpcClient, RpcServer, poll_channels, wait_for
from hpc_marl.base.rpc_messages import Reply, Request, RequestIds, decode_reply, decode_request, result_of
from hpc_marl.base.security import Keyring
from hpc_marl.base.serialization import encode
from hpc_marl.base.sockets import SocketFactory
from hpc_marl.errors import (
    BadRequestError,
    MessageTooLargeError,
    ProtocolError,
    RemoteError,
    RpcError,
    RpcTimeoutError,
    SecurityError,
    UnknownCommandError,
)
from tests.unit.base.tcp_proxy import TcpProxy

SHORT_S = 0.2


@pytest.fixture
def server(keyring: Keyring) -> Iterator[RpcServer]:
    with RpcServer(host="127.0.0.1", keyring=keyring) as made:
        made.register_handler("echo", lambda **kwargs: kwargs)
        yield made


@contextmanager
def serving(server: RpcServer) -> Iterator[None]:
    """Handle requests in a thread."""
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            server.handle_requests(timeout=0.02)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def channel_to(sockets: SocketFactory, server: RpcServer, port: int | None = None) -> RpcChannel:
    key = sockets.keyring.server_public
    return RpcChannel(sockets, ["127.0.0.1"], port or server.port, key, request_ids=RequestIds())


def test_values_and_arrays_travel(server: RpcServer, keyring: Keyring) -> None:
    with serving(server), RpcClient("localhost", server.port, keyring=keyring) as client:
        sent = {"x": 42, "y": "str", "z": {"list": [1.5, None, True], "bytes": b"\0\xff"}}
        assert client.request("echo", **sent) == sent
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_array_equal(client.request("echo", array=array)["array"], array)


def test_argument_names_are_free(server: RpcServer, keyring: Keyring) -> None:
    with serving(server), RpcClient("localhost", server.port, keyring=keyring) as client:
        sent = {"command": 1, "timeout": 2, "self": 3, "kwargs": 4}
        assert client.request("echo", **sent) == sent


def test_every_failure_has_its_type_and_the_server_lives_on(server: RpcServer, keyring: Keyring) -> None:
    def fail() -> None:
        raise ZeroDivisionError("by zero")

    server.register_handler("fail", fail)
    server.register_handler("big", lambda: b"x" * (1 << 20))
    with serving(server), RpcClient("localhost", server.port, keyring=keyring) as client:
        with pytest.raises(UnknownCommandError, match="known: big, echo, fail"):
            client.request("fly")
        with pytest.raises(BadRequestError):
            client.request("fail", x=1)
        with pytest.raises(RemoteError, match="ZeroDivisionError: by zero") as caught:
            client.request("fail")
        assert "in fail" in caught.value.remote_traceback
        with pytest.raises(BadRequestError, match="arguments of 'echo'"):
            client.request("echo", x=object())
        with pytest.raises(MessageTooLargeError, match="the request 'echo' has"):
            client.request("echo", x=b"x" * (1 << 20))
        with pytest.raises(MessageTooLargeError, match="the reply to 'big' has"):
            client.request("big")
        assert client.request("echo", x=1) == {"x": 1}


def test_localhost_and_the_host_name_work(keyring: Keyring) -> None:
    with RpcServer(keyring=keyring) as server:
        server.register_handler("pid", os.getpid)
        with serving(server):
            for host in ("localhost", "127.0.0.1", tcp.gethostname(), *server.hosts):
                with RpcClient(host, server.port, keyring=keyring) as client:
                    assert client.request("pid") == os.getpid()


def test_a_given_host_narrows(keyring: Keyring) -> None:
    with RpcServer(host="localhost", keyring=keyring) as server:
        assert server.hosts == ("127.0.0.1",)
    for host in ("0.0.0.0", "198.51.100.1"):
        with pytest.raises((SecurityError, OSError)):
            RpcServer(host=host, keyring=keyring)


def test_a_taken_port_is_an_os_error(server: RpcServer, keyring: Keyring) -> None:
    with pytest.raises(OSError, match=str(server.port)):
        RpcServer(server.port, host="127.0.0.1", keyring=keyring)


def test_requests_are_counted_and_limited(server: RpcServer, sockets: SocketFactory) -> None:
    assert server.handle_requests(timeout=0.0) == 0
    assert server.handle_requests(timeout=0.01) == 0
    channel = channel_to(sockets, server)
    pending = [channel.submit("echo", {"x": number}, 10.0) for number in range(5)]
    handled = []
    while not all(one.done for one in pending):
        poll_channels([channel], timeout_s=0.01)
        handled.append(server.handle_requests(max_count=2, timeout=0.0))
    assert sum(handled) == 5 and max(handled) <= 2
    assert [one.result() for one in pending] == [{"x": number} for number in range(5)]
    channel.close()


def test_many_calls_to_many_servers_are_matched(keyring: Keyring, sockets: SocketFactory) -> None:
    servers = [RpcServer(host="127.0.0.1", keyring=keyring) for _ in range(3)]
    ids = RequestIds()
    channels = []
    for number, server in enumerate(servers):
        server.register_handler("who", lambda x, number=number: [number, x])
        key = keyring.server_public
        channels.append(RpcChannel(sockets, ["127.0.0.1"], server.port, key, request_ids=ids))
    calls = {
        (number, x): channel.submit("who", {"x": x}, 10.0)
        for x in range(20)
        for number, channel in enumerate(channels)
    }
    with serving(servers[0]), serving(servers[1]), serving(servers[2]):
        wait_for(channels, lambda: all(call.done for call in calls.values()))
    assert all(call.result() == list(key) for key, call in calls.items())
    for channel in channels:
        channel.close()
    for server in servers:
        server.close()


@pytest.mark.parametrize("losses", [["reply"], ["request"], ["request", "reply", "reply"]])
def test_lost_bytes_do_not_run_a_handler_twice(
    server: RpcServer, sockets: SocketFactory, losses: list[str]
) -> None:
    runs: list[int] = []

    def count() -> int:
        runs.append(1)
        return len(runs)

    server.register_handler("count", count)
    with serving(server), TcpProxy(server.port) as proxy:
        channel = channel_to(sockets, server, proxy.port)
        warm_up = channel.submit("echo", {}, 10.0)
        wait_for([channel], lambda: warm_up.done)
        proxy.lose(*losses)
        call = channel.submit("count", {}, 10.0)
        wait_for([channel], lambda: call.done)
        assert call.result() == 1
        assert proxy.num_lost == len(losses)
        channel.close()
    assert runs == [1]


def test_a_restarted_server_is_found_again(keyring: Keyring) -> None:
    first = RpcServer(host="127.0.0.1", keyring=keyring)
    with RpcClient("127.0.0.1", first.port, keyring=keyring, timeout=10.0) as client:
        first.register_handler("life", lambda: 1)
        with serving(first):
            assert client.request("life") == 1
        first.close()
        with RpcServer(first.port, host="127.0.0.1", keyring=keyring) as second:
            second.register_handler("life", lambda: 2)
            with serving(second):
                assert client.request("life") == 2


def test_the_last_reply_of_a_server_that_ends_arrives(server: RpcServer, keyring: Keyring) -> None:
    server.register_handler("exit", lambda: "bye")
    replies: list[str] = []
    with RpcClient("127.0.0.1", server.port, keyring=keyring, timeout=10.0) as client:
        thread = threading.Thread(target=lambda: replies.append(client.request("exit")))
        thread.start()
        assert server.handle_requests(timeout=10.0) == 1
        server.close()
        thread.join()
    assert replies == ["bye"]


def test_a_call_that_has_ended_is_not_run_later(server: RpcServer, sockets: SocketFactory) -> None:
    runs: list[int] = []
    server.register_handler("run", lambda x: runs.append(x))
    channel = channel_to(sockets, server)
    late = channel.submit("run", {"x": 1}, SHORT_S)
    wait_for([channel], lambda: late.done)
    with pytest.raises(RpcTimeoutError, match="the connection is up, so the server is busy or stuck"):
        late.result()
    current = channel.submit("run", {"x": 2}, 10.0)
    with serving(server):
        wait_for([channel], lambda: current.done)
    assert runs == [2]
    channel.close()


def test_a_call_that_still_waits_is_run_by_a_server_long_absent(server: RpcServer, keyring: Keyring) -> None:
    server._handler.queue_was_empty_at -= 1000.0
    runs: list[int] = []
    server.register_handler("run", lambda: runs.append(1))
    results: list[Any] = []
    with RpcClient("127.0.0.1", server.port, keyring=keyring, timeout=20.0) as client:
        thread = threading.Thread(target=lambda: results.append(client.request("run")))
        thread.start()
        while not results:
            server.handle_requests(timeout=0.0)
        thread.join()
    assert (results, runs) == ([None], [1])


def test_nobody_listening_is_a_timeout_that_says_so(keyring: Keyring) -> None:
    with tcp.create_server(("127.0.0.1", 0)) as closed_later:
        port = closed_later.getsockname()[1]
    with RpcClient("127.0.0.1", port, keyring=keyring, timeout=SHORT_S) as client:
        with pytest.raises(
            RpcTimeoutError, match=rf"127\.0\.0\.1 port {port} .*no process answers there"
        ) as caught:
            client.request("echo")
        assert isinstance(caught.value, TimeoutError)


def test_a_silent_process_at_the_port_is_a_timeout_that_says_so(keyring: Keyring) -> None:
    with tcp.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with (
            RpcClient("127.0.0.1", port, keyring=keyring, timeout=SHORT_S) as client,
            pytest.raises(RpcTimeoutError, match="has not finished the handshake"),
        ):
            client.request("echo")


def test_another_key_directory_is_a_security_error_that_names_it(
    server: RpcServer, other_keyring: Keyring
) -> None:
    with RpcClient("localhost", server.port, keyring=other_keyring) as client:
        for _ in range(2):
            with pytest.raises(SecurityError) as caught:
                client.request("echo")
            for part in ("localhost", str(server.port), str(other_keyring.directory), "stale address"):
                assert part in str(caught.value)


def test_a_client_that_is_denied_gets_a_security_error(
    server: RpcServer, keyring: Keyring, other_sockets: SocketFactory
) -> None:
    channel = RpcChannel(
        other_sockets, ["127.0.0.1"], server.port, keyring.server_public, request_ids=RequestIds()
    )
    for _ in range(2):
        call = channel.submit("echo", {}, 10.0)
        wait_for([channel], lambda call=call: call.done)  # type: ignore[misc]
        with pytest.raises(SecurityError, match="does not know this client's key"):
            call.result()
    channel.close()


def test_a_client_is_let_in_once_its_key_is_known(
    server: RpcServer, keyring: Keyring, other_sockets: SocketFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = RpcChannel(
        other_sockets, ["127.0.0.1"], server.port, keyring.server_public, request_ids=RequestIds()
    )
    denied = channel.submit("echo", {}, 10.0)
    wait_for([channel], lambda: denied.done)
    key = z85.decode(other_sockets.keyring.client_public)
    monkeypatch.setattr(server._sockets._authenticator, "_admitted_key", key)
    call = channel.submit("echo", {"x": 1}, 10.0)
    with serving(server):
        wait_for([channel], lambda: call.done)
    assert call.result() == {"x": 1}
    channel.close()


def test_replies_that_answer_nothing_are_ignored(sockets: SocketFactory) -> None:
    bound = sockets.bind(zmq.ROUTER, ["127.0.0.1"])
    ids = RequestIds()
    channel = RpcChannel(sockets, bound.hosts, bound.port, bound.public_key, request_ids=ids)
    call = channel.submit("echo", {}, 10.0)
    while not bound.socket.poll(0):
        poll_channels([channel], timeout_s=0.01)
    routing_id, _, payload = bound.socket.recv_multipart()
    counter = decode_request(payload).counter
    wrong = "wrong"
    for frames in (
        [b""],
        [b"", b"garbage"],
        [b"x", encode(Reply(ids.client, counter, None, wrong))],
        [b"", encode(Reply(ids.client, counter, None, wrong)), b""],
        [b"", encode(Reply(ids.client, counter + 1, None, wrong))],
        [b"", encode(Reply("another client", counter, None, wrong))],
        [b"", encode(Reply(ids.client, counter, None, "right"))],
        [b"", encode(Reply(ids.client, counter, None, wrong))],
    ):
        bound.socket.send_multipart([routing_id, *frames])
    wait_for([channel], lambda: call.done)
    assert call.result() == "right"
    channel.close()


def test_a_channel_at_rest_has_no_connection_and_connects_for_the_next_call(
    server: RpcServer, sockets: SocketFactory
) -> None:
    channel = channel_to(sockets, server)
    for number in range(2):
        with serving(server):
            pending = channel.submit("echo", {"x": number}, 30.0)
            channel.rest()  # not while a call is under way
            wait_for([channel], lambda: pending.done)  # noqa: B023
        assert pending.result() == {"x": number}
        channel.rest()
        channel.rest()
        assert channel._socket.closed and channel._monitor.socket.closed
        channel.process()
    channel.close()
    with pytest.raises(RpcError, match="closed"):
        channel.submit("echo", {}, 1.0)


def test_closing_ends_calls(server: RpcServer, sockets: SocketFactory) -> None:
    channel = channel_to(sockets, server)
    call = channel.submit("echo", {}, 10.0)
    with pytest.raises(RuntimeError, match="still under way"):
        call.result()
    channel.close()
    channel.close()
    with pytest.raises(RpcError, match="closed during 'echo'"):
        call.result()
    with pytest.raises(RpcError, match="closed; make a new one"):
        channel.submit("echo", {}, 10.0)


def test_garbage_from_a_friend_changes_nothing(server: RpcServer, sockets: SocketFactory) -> None:
    keyring = sockets.keyring
    friend = sockets.connect(zmq.DEALER, server.hosts, server.port, keyring.server_public)
    messages = [[b"", b""], [b"", b"garbage"], [b"", b"a", b"b"], [b"no delimiter"], [b"", b"\x91" * 100_000]]
    for message in messages * 3:
        friend.send_multipart(message)
    with serving(server), RpcClient("localhost", server.port, keyring=keyring) as client:
        assert client.request("echo", x=1) == {"x": 1}


def test_a_request_of_several_frames_counts_by_its_first(server: RpcServer, sockets: SocketFactory) -> None:
    runs: list[int] = []
    server.register_handler("run", lambda x: runs.append(x))
    friend = sockets.connect(zmq.DEALER, server.hosts, server.port, sockets.keyring.server_public)
    ids = RequestIds()
    with serving(server):
        for number in range(3):
            request = encode(Request(ids.client, ids.next(), "run", 10_000, "", {"x": number}))
            friend.send_multipart([b"", request, b"more", request])
            assert friend.poll(5000)
            _, reply = friend.recv_multipart()
            assert result_of(decode_reply(reply)) is None
    assert runs == [0, 1, 2]


def test_a_result_that_cannot_be_decoded_ends_its_call_and_no_other(sockets: SocketFactory) -> None:
    bound = sockets.bind(zmq.ROUTER, ["127.0.0.1"])
    ids = RequestIds()
    channel = RpcChannel(sockets, bound.hosts, bound.port, bound.public_key, request_ids=ids)
    calls = [channel.submit("give", {}, 10.0) for _ in range(2)]
    while not bound.socket.poll(0):
        poll_channels([channel], timeout_s=0.01)
    for value in (msgspec.Raw(b"\xd4\x07\x00"), "right"):  # an extension that nobody knows
        routing_id, _, payload = bound.socket.recv_multipart()
        reply = Reply(ids.client, decode_request(payload).counter, None, value)
        bound.socket.send_multipart([routing_id, b"", encode(reply)])
    wait_for([channel], lambda: all(call.done for call in calls))
    with pytest.raises(ProtocolError, match="extension type 7"):
        calls[0].result()
    assert calls[1].result() == "right"
    channel.close()


class CreatesFile:
    """Its pickle, when loaded, creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def test_a_hostile_pickle_runs_nothing(
    server: RpcServer, keyring: Keyring, other_keyring: Keyring, tmp_path: Path
) -> None:
    bait = tmp_path / "created-by-pickle"
    hostile = pickle.dumps(CreatesFile(bait))
    pickle.loads(hostile).close()
    assert bait.exists()
    bait.unlink()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    enemies = []
    try:
        with serving(server):
            for keys in (None, other_keyring, keyring):
                for kind in (zmq.REQ, zmq.DEALER, zmq.PUSH):
                    enemy = context.socket(kind)
                    enemies.append(enemy)
                    if keys is not None:
                        enemy.curve_secretkey, enemy.curve_publickey = keys.client_secret, keys.client_public
                        enemy.curve_serverkey = keyring.server_public
                    enemy.connect(f"tcp://127.0.0.1:{server.port}")
                    enemy.send_multipart([hostile] if kind == zmq.REQ else [b"", hostile])
            with tcp.create_connection(("127.0.0.1", server.port)) as raw:
                raw.sendall(hostile)
            friendly = context.socket(zmq.REQ)
            friendly.curve_secretkey, friendly.curve_publickey = keyring.client_secret, keyring.client_public
            friendly.curve_serverkey = keyring.server_public
            friendly.connect(f"tcp://127.0.0.1:{server.port}")
            friendly.send(hostile)
            assert friendly.poll(5000)
            assert b"request refused" in friendly.recv()
            with RpcClient("localhost", server.port, keyring=keyring) as client:
                assert client.request("echo", x=hostile) == {"x": hostile}
    finally:
        context.destroy(linger=0)
    assert not bait.exists()
