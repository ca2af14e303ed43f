"""Who is let in, who is not, and what the limits are."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket as tcp
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from hpc_marl.base.security import Keyring
from hpc_marl.base.socket_monitor import ConnectionMonitor
from hpc_marl.base.sockets import BoundSocket, SocketFactory
from hpc_marl.base.zap import ZapAuthenticator
from hpc_marl.errors import SecurityError

ANSWER_MS = 5000
SILENCE_MS = 150
GREETING = b"\xff" + b"\0" * 8 + b"\x7f" + b"\3\0"


@pytest.fixture
def bound(sockets: SocketFactory) -> BoundSocket:
    return sockets.bind(zmq.REP, ["127.0.0.1"])


@contextmanager
def plain_context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        yield context
    finally:
        context.destroy(linger=0)


def greeting(mechanism: bytes) -> bytes:
    return GREETING + mechanism.ljust(20, b"\0") + b"\0" * 32


def send_and_expect_echo(client: zmq.Socket[bytes], server: BoundSocket) -> None:
    client.send_multipart([b"", b"hello"])
    assert server.socket.poll(ANSWER_MS), "the message did not arrive"
    server.socket.send(server.socket.recv())
    assert client.poll(ANSWER_MS)
    assert client.recv_multipart() == [b"", b"hello"]


def expect_good_client_served(sockets: SocketFactory, server: BoundSocket) -> None:
    client = sockets.connect(zmq.DEALER, server.hosts, server.port, server.public_key)
    send_and_expect_echo(client, server)
    client.close()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wait_until_seen(monitor: ConnectionMonitor, seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ANSWER_MS / 1000
    while not seen():
        monitor.socket.poll(50)
        monitor.observe()
        assert time.monotonic() < deadline, f"last seen: {monitor.state}"


def test_the_right_key_is_let_in(sockets: SocketFactory, bound: BoundSocket) -> None:
    client, monitor = sockets.connect_monitored(zmq.DEALER, bound.hosts, bound.port, bound.public_key)
    send_and_expect_echo(client, bound)
    wait_until_seen(monitor, lambda: monitor.ready)
    assert monitor.refusal is None


def test_a_wrong_client_key_is_not_let_in(
    sockets: SocketFactory, other_sockets: SocketFactory, bound: BoundSocket
) -> None:
    client, monitor = other_sockets.connect_monitored(zmq.DEALER, bound.hosts, bound.port, bound.public_key)
    wait_until_seen(monitor, lambda: monitor.refusal is not None)
    assert "does not know this client's key" in str(monitor.refusal)
    assert not client.poll(0, zmq.POLLOUT)
    expect_good_client_served(sockets, bound)
    assert not bound.socket.poll(0)


def test_a_wrong_server_key_is_noticed(
    sockets: SocketFactory, bound: BoundSocket, other_keyring: Keyring
) -> None:
    key = other_keyring.server_public
    client, monitor = sockets.connect_monitored(zmq.DEALER, bound.hosts, bound.port, key)
    wait_until_seen(monitor, lambda: monitor.refusal is not None)
    assert "expected server key" in str(monitor.refusal)
    assert not client.poll(0, zmq.POLLOUT)


def test_a_foreign_process_at_the_port_is_noticed(sockets: SocketFactory, keyring: Keyring) -> None:
    with tcp.create_server(("127.0.0.1", 0)) as web_server:

        def answer_once() -> None:
            connection, _ = web_server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" * 2)

        thread = threading.Thread(target=answer_once)
        thread.start()
        port = web_server.getsockname()[1]
        _, monitor = sockets.connect_monitored(zmq.DEALER, ["127.0.0.1"], port, keyring.server_public)
        wait_until_seen(monitor, lambda: monitor.refusal is not None)
        assert "foreign process" in str(monitor.refusal)
        thread.join()


def test_a_zeromq_server_without_encryption_is_noticed(sockets: SocketFactory, keyring: Keyring) -> None:
    with plain_context() as context:
        server = context.socket(zmq.REP)
        port = server.bind_to_random_port("tcp://127.0.0.1")
        _, monitor = sockets.connect_monitored(zmq.DEALER, ["127.0.0.1"], port, keyring.server_public)
        wait_until_seen(monitor, lambda: monitor.refusal is not None)
        assert "foreign process" in str(monitor.refusal)


@pytest.mark.parametrize("mechanism", ["NULL", "PLAIN", "CURVE with any key"])
def test_foreign_mechanisms_are_not_let_in(
    mechanism: str, sockets: SocketFactory, bound: BoundSocket
) -> None:
    with plain_context() as context:
        client = context.socket(zmq.DEALER)
        if mechanism == "PLAIN":
            client.plain_username, client.plain_password = b"admin", b"admin"
        elif mechanism.startswith("CURVE"):
            client.curve_serverkey = bound.public_key
            client.curve_publickey, client.curve_secretkey = zmq.curve_keypair()
        client.connect(f"tcp://127.0.0.1:{bound.port}")
        client.send_multipart([b"", pickle.dumps("hello")])
        assert not bound.socket.poll(SILENCE_MS)
        expect_good_client_served(sockets, bound)
        assert not bound.socket.poll(0)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 4096,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        os.urandom(4096),
        greeting(b"NULL") + b"\4\x19\5READY\x0bSocket-Type\0\0\0\6DEALER",
        greeting(b"CURVE") + b"\4\xff" + os.urandom(300),
        greeting(b"CURVE") + b"\6" + struct.pack(">Q", 2**63) + b"x" * 100,
        greeting(b"CURVE") + b"\4\xc8\5HELLO" + b"\1\0" + b"\0" * 192,
    ],
)
def test_raw_garbage_changes_nothing(garbage: bytes, sockets: SocketFactory, bound: BoundSocket) -> None:
    with tcp.create_connection(("127.0.0.1", bound.port)) as connection:
        connection.sendall(garbage)
        expect_good_client_served(sockets, bound)
        assert not bound.socket.poll(0)


def test_a_stream_before_authentication_fills_no_memory(sockets: SocketFactory, bound: BoundSocket) -> None:
    expect_good_client_served(sockets, bound)
    before = resident_bytes()
    chunk = b"x" * (1 << 20)
    with tcp.create_connection(("127.0.0.1", bound.port)) as connection:
        connection.sendall(greeting(b"CURVE") + b"\6" + struct.pack(">Q", 1 << 30))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(256):
                connection.sendall(chunk)
    assert resident_bytes() - before < 32 << 20
    expect_good_client_served(sockets, bound)


def test_a_message_above_the_limit_is_not_delivered(keyring: Keyring, sockets: SocketFactory) -> None:
    bound = sockets.bind(zmq.REP, ["127.0.0.1"], max_message_bytes=100_000)
    client, monitor = sockets.connect_monitored(zmq.DEALER, bound.hosts, bound.port, bound.public_key)
    client.send_multipart([b"", b"x" * 100_000])
    assert bound.socket.poll(ANSWER_MS)
    assert len(bound.socket.recv()) == 100_000
    bound.socket.send(b"")
    wait_until_seen(monitor, lambda: monitor.ready)
    client.send_multipart([b"", b"x" * 200_000])
    wait_until_seen(monitor, lambda: not monitor.ready)
    assert not bound.socket.poll(0)
    expect_good_client_served(sockets, bound)


def test_nobody_is_let_in_once_authentication_has_stopped(
    keyring: Keyring, sockets: SocketFactory, bound: BoundSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    authenticator = sockets._authenticator
    assert authenticator is not None

    def fail(self: ZapAuthenticator, request: list[bytes]) -> list[bytes]:
        raise zmq.ZMQError(zmq.EFAULT)

    monkeypatch.setattr(ZapAuthenticator, "answer", fail)
    with SocketFactory(keyring) as clients:
        # The thread has looked up its old answer already and gives it once more.
        expect_good_client_served(clients, bound)
        clients.connect(zmq.DEALER, bound.hosts, bound.port, bound.public_key)
        authenticator.join(ANSWER_MS / 1000)
        assert not authenticator.alive
        late = clients.connect(zmq.DEALER, bound.hosts, bound.port, bound.public_key)
        assert not late.poll(SILENCE_MS, zmq.POLLOUT)
    with pytest.raises(SecurityError, match="nobody is let in"):
        sockets.bind(zmq.REP, ["127.0.0.1"])


@pytest.mark.parametrize(
    "request_frames",
    [
        [],
        [b"1.0"],
        [b"1.0", b"1", b"hpc_marl", b"127.0.0.1", b"", b"NULL"],
        [b"1.0", b"1", b"hpc_marl", b"127.0.0.1", b"", b"PLAIN", b"admin", b"admin"],
        [b"1.0", b"1", b"hpc_marl", b"127.0.0.1", b"", b"CURVE"],
        [b"1.0", b"1", b"hpc_marl", b"127.0.0.1", b"", b"CURVE", b""],
        [b"1.0", b"1", b"hpc_marl", b"127.0.0.1", b"", b"CURVE", b"\0" * 32],
        [b"1.0", b"1", b"other", b"127.0.0.1", b"", b"CURVE", "KEY"],
        [b"2.0", b"1", b"hpc_marl", b"127.0.0.1", b"", b"CURVE", "KEY"],
        [b"1.0", b"1", b"hpc_marl", b"127.0.0.1", b"", b"GSSAPI", "KEY"],
        [b"1.0", b"1", b"hpc_marl", b"127.0.0.1", b"", b"CURVE", "KEY", b""],
        [b"\xff", b"\xff", b"\xff", b"\xff", b"\xff", b"\xff", b"\xff"],
    ],
)
def test_every_strange_question_is_denied(
    request_frames: list[bytes | str], sockets: SocketFactory, bound: BoundSocket, keyring: Keyring
) -> None:
    key = zmq.utils.z85.decode(keyring.client_public)
    authenticator = sockets._authenticator
    assert authenticator is not None
    good = [b"1.0", b"7", b"hpc_marl", b"127.0.0.1", b"", b"CURVE", key]
    assert authenticator.answer(good)[1:3] == [b"7", b"200"]
    question = [key if frame == "KEY" else frame for frame in request_frames]
    assert authenticator.answer(question)[2] == b"400"  # type: ignore[arg-type]


def test_every_bind_has_its_own_key(sockets: SocketFactory) -> None:
    first, second = (sockets.bind(zmq.PULL, ["127.0.0.1"]) for _ in range(2))
    assert first.public_key != second.public_key
    assert first.port != second.port


def test_several_addresses_share_a_port(sockets: SocketFactory) -> None:
    bound = sockets.bind(zmq.REP, ["127.0.0.1", "127.0.0.2"])
    for host in bound.hosts:
        client = sockets.connect(zmq.DEALER, [host], bound.port, bound.public_key)
        send_and_expect_echo(client, bound)


def test_of_several_addresses_one_that_answers_is_taken(sockets: SocketFactory, bound: BoundSocket) -> None:
    addresses = ["127.0.0.9", "127.0.0.1", "127.0.0.8"]
    client = sockets.connect(zmq.DEALER, addresses, bound.port, bound.public_key)
    send_and_expect_echo(client, bound)


def test_a_taken_port_is_an_os_error(sockets: SocketFactory, bound: BoundSocket) -> None:
    with pytest.raises(OSError, match=rf"127\.0\.0\.1 port {bound.port}"):
        sockets.bind(zmq.REP, ["127.0.0.1"], bound.port)
    with pytest.raises(OSError, match=r"198\.51\.100\.1"):
        sockets.bind(zmq.REP, ["198.51.100.1"])


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "", "::", "localhost", "eth0"])
def test_wildcards_and_names_are_refused(sockets: SocketFactory, bound: BoundSocket, host: str) -> None:
    with pytest.raises(SecurityError):
        sockets.bind(zmq.REP, [host])
    with pytest.raises(SecurityError):
        sockets.connect(zmq.DEALER, [host], bound.port, bound.public_key)


def test_security_options_cannot_be_tuned_away(sockets: SocketFactory) -> None:
    for option in (zmq.MAXMSGSIZE, zmq.CURVE_SERVER, zmq.ZAP_ENFORCE_DOMAIN, zmq.HANDSHAKE_IVL):
        with pytest.raises(SecurityError, match=str(int(option))):
            sockets.bind(zmq.REP, ["127.0.0.1"], options={option: 0})
    bound = sockets.bind(zmq.PULL, ["127.0.0.1"], options={zmq.RCVHWM: 7})
    assert bound.socket.rcvhwm == 7


def test_only_the_right_kinds_bind_or_connect(sockets: SocketFactory, bound: BoundSocket) -> None:
    for kind in (zmq.REQ, zmq.DEALER, zmq.PUSH, zmq.PAIR):
        with pytest.raises(ValueError, match="REP"):
            sockets.bind(kind, ["127.0.0.1"])
    for kind in (zmq.REQ, zmq.REP, zmq.ROUTER):
        with pytest.raises(ValueError, match="DEALER"):
            sockets.connect(kind, bound.hosts, bound.port, bound.public_key)


@pytest.mark.parametrize("kind", [zmq.REP, zmq.ROUTER, zmq.XPUB, zmq.PUB, zmq.PULL])
def test_every_bound_socket_has_the_limits(sockets: SocketFactory, kind: int) -> None:
    socket = sockets.bind(kind, ["127.0.0.1"]).socket
    assert socket.get(zmq.CURVE_SERVER) == 1
    assert socket.get(zmq.ZAP_ENFORCE_DOMAIN) == 1
    assert 0 < int(socket.get(zmq.MAXMSGSIZE)) <= (1 << 20) + 64
    assert socket.get(zmq.HANDSHAKE_IVL) == 10_000
    assert (socket.get(zmq.HEARTBEAT_IVL), socket.get(zmq.HEARTBEAT_TIMEOUT)) == (5_000, 15_000)
    assert 0 <= int(socket.get(zmq.LINGER)) <= 1000
    assert int(socket.get(zmq.SNDTIMEO)) > 0
    assert socket.get(zmq.IPV6) == 0


def test_an_old_libzmq_is_refused(keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 4))
    with pytest.raises(SecurityError, match=r"expected >= 4\.3\.5 with CURVE.*pip install"):
        SocketFactory(keyring)


def test_close_leaves_nothing_and_can_be_repeated(keyring: Keyring) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    factory = SocketFactory(keyring)
    bound = factory.bind(zmq.REP, ["127.0.0.1"])
    factory.connect_monitored(zmq.DEALER, bound.hosts, bound.port, bound.public_key)
    names = {thread.name for thread in threading.enumerate()}
    assert "hpc_marl-zap" in names
    factory.close()
    factory.close()
    assert "hpc_marl-zap" not in {thread.name for thread in threading.enumerate()}
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    with pytest.raises(SecurityError, match="closed"):
        factory.bind(zmq.REP, ["127.0.0.1"])


def test_close_delivers_what_was_sent_just_before(keyring: Keyring, sockets: SocketFactory) -> None:
    server = SocketFactory(keyring)
    bound = server.bind(zmq.REP, ["127.0.0.1"])
    options = {zmq.IMMEDIATE: 0}
    client = sockets.connect(zmq.DEALER, bound.hosts, bound.port, bound.public_key, options=options)
    client.send_multipart([b"", b"last"])
    assert bound.socket.poll(ANSWER_MS)
    bound.socket.send(bound.socket.recv())
    server.close()
    assert client.poll(ANSWER_MS)
    assert client.recv_multipart() == [b"", b"last"]


def test_an_interrupted_close_is_completed_by_the_next(keyring: Keyring) -> None:
    factory = SocketFactory(keyring)
    bound = factory.bind(zmq.REP, ["127.0.0.1"])
    with tcp.create_server(("127.0.0.1", 0)) as silent:
        # A message that cannot leave makes close() wait for as long as it lingers.
        options = {zmq.IMMEDIATE: 0, zmq.LINGER: 300}
        port = silent.getsockname()[1]
        factory.connect(zmq.DEALER, ["127.0.0.1"], port, bound.public_key, options=options).send(b"stays")

        def interrupt(number: int, frame: object) -> None:
            raise KeyboardInterrupt

        previous = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt):
                factory.close()
        finally:
            signal.signal(signal.SIGALRM, previous)
        factory.close()
    assert "hpc_marl-zap" not in {thread.name for thread in threading.enumerate()}


def test_a_dropped_factory_closes_itself(keyring: Keyring) -> None:
    factory = SocketFactory(keyring)
    factory.bind(zmq.REP, ["127.0.0.1"])
    authenticator = factory._authenticator
    assert authenticator is not None
    del factory
    authenticator.join(ANSWER_MS / 1000)
    assert not authenticator.alive


def test_a_forked_child_cannot_use_it(sockets: SocketFactory, bound: BoundSocket) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            sockets.close()
            sockets.bind(zmq.REP, ["127.0.0.1"])
            os.write(writer, b"bound")
        except SecurityError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        assert b"make a new one after fork" in pipe.read()
    expect_good_client_served(sockets, bound)


def free_range(count: int) -> tuple[int, int]:
    """Return the first and last of some ports in a row that nobody listens at."""
    for first in range(42000, 60000, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(tcp.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        return first, first + count - 1
    raise AssertionError("no free ports in a row")


def test_ports_are_taken_from_the_range_and_no_other(keyring: Keyring) -> None:
    first, last = free_range(4)
    with SocketFactory(keyring, port_range=(first, last)) as factory:
        taken = [factory.bind(zmq.REP, ["127.0.0.1"]).port for _ in range(4)]
        assert sorted(taken) == list(range(first, last + 1))
        with pytest.raises(
            OSError, match=rf"cannot bind 127\.0\.0\.1 port {first}-{last}: Address already in use"
        ):
            factory.bind(zmq.REP, ["127.0.0.1"])


def test_a_port_that_is_named_need_not_be_in_the_range(keyring: Keyring) -> None:
    (outside, _), (first, last) = free_range(1), free_range(2)
    with SocketFactory(keyring, port_range=(first, last)) as factory:
        assert factory.bind(zmq.REP, ["127.0.0.1"], outside).port == outside
