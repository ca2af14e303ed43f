"""The socket factory: the only place that makes ZeroMQ contexts and sockets, so that none is made unsafely.

    binding side                                     connecting side
    CURVE server, key pair of this incarnation  <--  CURVE client, the keyring's client key
    ZAP thread admits that client key only           knows the server's public key beforehand
    (fails closed when the thread is gone)           (a foreign process at the port cannot answer)

Lifecycle: make one factory per process, pass it on, `close()` it last, after every thread that uses one of
its sockets has ended. A factory does not survive fork: the child makes its own.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import random
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import zmq

from hpc_marl.base.network import first_answering
from hpc_marl.base.security import Keyring
from hpc_marl.base.socket_monitor import ConnectionMonitor
from hpc_marl.base.zap import ZAP_DOMAIN, ZAP_ENDPOINT, ZapAuthenticator
from hpc_marl.errors import SecurityError

CONTROL_MAX_MESSAGE_BYTES = 1 << 20
_MIN_LIBZMQ = (4, 3, 5)  # Older ones have a stack overflow that CURVE exposes, and heap overflows.
_CURVE_OVERHEAD_BYTES = 64  # What encryption adds to a frame (33) rounded up.
_MAX_SOCKETS = 16384
_LINGER_MS = 1000
_SEND_TIMEOUT_MS = 10_000
_NUM_PORT_TRIALS = 32
_JOIN_TIMEOUT_S = 5.0

_BIND_KINDS = frozenset({zmq.REP, zmq.ROUTER, zmq.XPUB, zmq.PUB, zmq.PULL})
_CONNECT_KINDS = frozenset({zmq.DEALER, zmq.SUB, zmq.PUSH})
_TUNABLE_OPTIONS = frozenset(
    {zmq.SNDHWM, zmq.RCVHWM, zmq.SNDBUF, zmq.RCVBUF, zmq.SNDTIMEO, zmq.RCVTIMEO, zmq.CONFLATE}
    | {zmq.XPUB_VERBOSE, zmq.XPUB_NODROP, zmq.IMMEDIATE, zmq.LINGER}
)


@dataclass(frozen=True)
class BoundSocket:
    """A bound socket and what a client must know to reach it.

    Attributes:
        socket: the socket; use it from one thread only.
        hosts: the IPv4 addresses it is bound to.
        port: the same on each of them.
        public_key: the server's public key in Z85.
    """

    socket: zmq.Socket[bytes]
    hosts: tuple[str, ...]
    port: int
    public_key: bytes


class SocketFactory:
    """Makes encrypted, mutually authenticated, bounded sockets of one context.

    Args:
        keyring: whose client key is used to connect, and is the only one let in.
        max_message_bytes: largest message that sockets take unless said otherwise; a larger one ends its
            connection before any of it is stored.
        num_io_threads: libzmq threads, which also encrypt; one carries about 0.5 GB/s.
        port_range: first and last port to bind where the caller names none; empty: any.

    Raises:
        SecurityError: libzmq is too old or lacks CURVE.
    """

    def __init__(
        self,
        keyring: Keyring,
        max_message_bytes: int = CONTROL_MAX_MESSAGE_BYTES,
        num_io_threads: int = 1,
        port_range: Sequence[int] = (),
    ) -> None:
        if zmq.zmq_version_info() < _MIN_LIBZMQ or not zmq.has("curve"):
            raise SecurityError(
                f"libzmq {zmq.zmq_version()} {'with' if zmq.has('curve') else 'without'} CURVE, expected >= "
                f"{'.'.join(map(str, _MIN_LIBZMQ))} with CURVE; run: pip install --only-binary pyzmq -U pyzmq"
            )
        self.keyring = keyring
        self.max_message_bytes = max_message_bytes
        self._port_range = tuple(port_range)
        self._pid = os.getpid()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(num_io_threads)
        self._context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
        self._sockets: set[zmq.Socket[bytes]] = set()
        self._num_sockets_to_sweep = 64
        self._authenticator: ZapAuthenticator | None = None
        self._lock = threading.Lock()
        # A factory that is dropped without close() leaves neither sockets nor the thread behind.
        finalizer = weakref.finalize(self, _close, self._pid, self._context, self._sockets, self._lock)
        finalizer.atexit = False  # At exit other threads may be inside a socket; the process ends anyway.

    def bind(
        self,
        kind: int,
        hosts: Sequence[str],
        port: int = 0,
        server_keys: tuple[bytes, bytes] | None = None,
        *,
        max_message_bytes: int | None = None,
        options: Mapping[zmq.SocketOption, int] | None = None,
    ) -> BoundSocket:
        """Return a socket bound to the same port of every address in `hosts`.

        Args:
            kind: zmq.REP, ROUTER, XPUB, PUB or PULL.
            hosts: IPv4 addresses of this machine, at least one; never a wildcard.
            port: 0 picks a free one, of the factory's range where it has one.
            server_keys: (public, secret) in Z85; None makes a fresh pair, as every incarnation should.
            max_message_bytes: largest frame accepted; None takes the factory's.
            options: further socket options such as zmq.RCVHWM; those that security rests on are refused.

        Raises:
            SecurityError: a wildcard address, a protected option, or authentication has stopped.
            OSError: the port is taken, an address is not this machine's, or there are too many open files.
        """
        self._require_usable()
        _check_kind(kind, _BIND_KINDS)
        _check_addresses(hosts)
        public, secret = server_keys or zmq.curve_keypair()
        self._start_authenticator()
        ports = iter([port] if port else self._free_choices())
        candidate = next(ports)
        while True:
            socket = self._new_socket(kind, max_message_bytes, options)
            socket.curve_secretkey = secret
            socket.curve_server = True
            socket.zap_domain = ZAP_DOMAIN
            socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
            try:
                return BoundSocket(socket, tuple(hosts), _bind_all(socket, hosts, candidate), public)
            except zmq.ZMQError as error:
                socket.close(linger=0)
                following = next(ports, None)
                # A port that was free at the first address may be taken at the second: try another one.
                if error.errno != errno.EADDRINUSE or following is None:
                    choice = "-".join(map(str, self._port_range)) or "any"
                    place = f"{', '.join(hosts)} port {port or choice}"
                    raise OSError(error.errno, f"cannot bind {place}: {error.strerror}") from error
                candidate = following

    def _free_choices(self) -> list[int]:
        """Return the ports to try: 0, the system's choice, several times; or those of the range in random order."""
        if not self._port_range:
            return [0] * _NUM_PORT_TRIALS
        first, last = self._port_range
        return random.sample(range(first, last + 1), last + 1 - first)

    def connect(
        self,
        kind: int,
        addresses: Sequence[str],
        port: int,
        server_public_key: bytes,
        *,
        max_message_bytes: int | None = None,
        options: Mapping[zmq.SocketOption, int] | None = None,
    ) -> zmq.Socket[bytes]:
        """Return a socket that connects (and reconnects by itself) to one server.

        Args:
            kind: zmq.DEALER, SUB or PUSH.
            addresses: IPv4 addresses of the server; of several, the first that answers is taken.
            port: the server's port.
            server_public_key: in Z85; no other server is talked to.
            max_message_bytes: largest frame accepted; None takes the factory's.
            options: as for `bind`.

        Raises:
            SecurityError: a wildcard address or a protected option.
            OSError: too many open files.
        """
        endpoint = _endpoint(addresses, port)
        socket = self._new_client(kind, server_public_key, max_message_bytes, options)
        socket.connect(endpoint)
        return socket

    def connect_also(
        self, socket: zmq.Socket[bytes], addresses: Sequence[str], port: int, server_public_key: bytes
    ) -> str:
        """Connect a socket that `connect` made to one more server.

        Args:
            socket: the socket; its limits and options hold for the new connection too.
            addresses: IPv4 addresses of the server; of several, the first that answers is taken.
            port: the server's port.
            server_public_key: in Z85; no other server is talked to at that address.

        Returns:
            the endpoint, for `socket.disconnect(endpoint)`.

        Raises:
            SecurityError: a wildcard address.
        """
        self._require_usable()
        endpoint = _endpoint(addresses, port)
        socket.curve_serverkey = server_public_key  # Each connection keeps the key it was made with.
        socket.connect(endpoint)
        return endpoint

    def connect_monitored(
        self,
        kind: int,
        addresses: Sequence[str],
        port: int,
        server_public_key: bytes,
        *,
        max_message_bytes: int | None = None,
        options: Mapping[zmq.SocketOption, int] | None = None,
    ) -> tuple[zmq.Socket[bytes], ConnectionMonitor]:
        """Connect like `connect` and return also a monitor that misses no event of the new connection."""
        endpoint = _endpoint(addresses, port)
        socket = self._new_client(kind, server_public_key, max_message_bytes, options)
        monitor = ConnectionMonitor(socket)
        self._remember(monitor.socket)
        socket.connect(endpoint)
        return socket, monitor

    def close(self) -> None:
        """Close all sockets, giving unsent messages one second, and end the thread.

        Can be repeated: a call that was interrupted is completed by the next.
        """
        _close(self._pid, self._context, self._sockets, self._lock)
        if self._authenticator is not None and os.getpid() == self._pid:
            self._authenticator.join(_JOIN_TIMEOUT_S)

    def __enter__(self) -> SocketFactory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_client(
        self,
        kind: int,
        server_public_key: bytes,
        max_message_bytes: int | None,
        options: Mapping[zmq.SocketOption, int] | None,
    ) -> zmq.Socket[bytes]:
        self._require_usable()
        _check_kind(kind, _CONNECT_KINDS)
        socket = self._new_socket(kind, max_message_bytes, options)
        socket.curve_secretkey = self.keyring.client_secret
        socket.curve_publickey = self.keyring.client_public
        socket.curve_serverkey = server_public_key
        return socket

    def _new_socket(
        self, kind: int, max_message_bytes: int | None, options: Mapping[zmq.SocketOption, int] | None
    ) -> zmq.Socket[bytes]:
        protected = set(options or ()) - _TUNABLE_OPTIONS
        if protected:
            raise SecurityError(
                f"socket options {sorted(protected)} are set by the factory; expected tunable ones only"
            )
        try:
            socket = self._context.socket(kind)
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"cannot make a socket: {error.strerror}; see ulimit -n") from error
        self._remember(socket)
        for option, value in self._standard_options(kind, max_message_bytes).items():
            socket.set(option, value)
        for option, value in (options or {}).items():
            socket.set(option, value)
        return socket

    def _remember(self, socket: zmq.Socket[bytes]) -> None:
        with self._lock:
            self._sockets.add(socket)
            if len(self._sockets) >= self._num_sockets_to_sweep:
                self._sockets.difference_update([known for known in self._sockets if known.closed])
                self._num_sockets_to_sweep = 64 + 2 * len(self._sockets)

    def _standard_options(self, kind: int, max_message_bytes: int | None) -> dict[int, int]:
        limit = self.max_message_bytes if max_message_bytes is None else max_message_bytes
        standard: dict[int, int] = {
            zmq.IPV6: 0,
            zmq.MAXMSGSIZE: limit + _CURVE_OVERHEAD_BYTES,
            zmq.HANDSHAKE_IVL: 10_000,
            zmq.HEARTBEAT_IVL: 5_000,
            zmq.HEARTBEAT_TIMEOUT: 15_000,
            zmq.HEARTBEAT_TTL: 15_000,
            zmq.TCP_KEEPALIVE: 1,
            zmq.TCP_KEEPALIVE_IDLE: 30,
            zmq.TCP_KEEPALIVE_INTVL: 10,
            zmq.TCP_KEEPALIVE_CNT: 3,
            zmq.LINGER: _LINGER_MS,
            zmq.SNDTIMEO: _SEND_TIMEOUT_MS,
            zmq.BACKLOG: 4096,
            zmq.RECONNECT_IVL: 100,
            zmq.RECONNECT_IVL_MAX: 5_000,
        }
        if kind == zmq.ROUTER:
            standard[zmq.ROUTER_MANDATORY] = 1
        if kind in (zmq.DEALER, zmq.PUSH):
            # Queue on live connections only: what waits for a server that is gone is not sent to its successor.
            standard[zmq.IMMEDIATE] = 1
        return standard

    def _start_authenticator(self) -> None:
        with self._lock:
            if self._authenticator is None:
                socket = self._context.socket(zmq.REP)
                socket.bind(ZAP_ENDPOINT)
                self._authenticator = ZapAuthenticator(socket, self.keyring.client_public)

    def _require_usable(self) -> None:
        if os.getpid() != self._pid:
            raise SecurityError(
                "this socket factory belongs to the parent process; make a new one after fork"
            )
        if self._context.closed:
            raise SecurityError("this socket factory is closed; make a new one")
        if self._authenticator is not None and not self._authenticator.alive:
            raise SecurityError(
                "the authentication thread has ended, nobody is let in any more; restart the process"
            )


def _close(
    pid: int,
    context: zmq.Context[zmq.Socket[bytes]],
    sockets: set[zmq.Socket[bytes]],
    lock: threading.Lock,
) -> None:
    if os.getpid() != pid:
        return  # A forked child has neither the threads nor the right to close the parent's connections.
    with lock:
        opened = list(sockets)
    for socket in opened:
        socket.close()
    # Ends the authentication thread too: its blocking receive returns with ContextTerminated.
    context.term()


def _check_kind(kind: int, allowed: frozenset[int]) -> None:
    if kind not in allowed:
        names = ", ".join(sorted(zmq.SocketType(k).name for k in allowed))
        raise ValueError(f"{zmq.SocketType(kind).name} is not for this side; expected one of {names}")


def _check_addresses(addresses: Sequence[str]) -> None:
    if not addresses or isinstance(addresses, str):
        raise ValueError(f"expected a sequence of at least one IPv4 address, not {addresses!r}")
    for address in addresses:
        try:
            parsed = ipaddress.IPv4Address(address)
        except ValueError:
            raise SecurityError(
                f"{address!r} is not an IPv4 address; a name or wildcard is not taken"
            ) from None
        if parsed.is_unspecified:
            raise SecurityError(f"{address} means every interface; name the address of one")


def _endpoint(addresses: Sequence[str], port: int) -> str:
    _check_addresses(addresses)
    return f"tcp://{addresses[0] if len(addresses) == 1 else first_answering(addresses, port)}:{port}"


def _bind_all(socket: zmq.Socket[bytes], hosts: Sequence[str], port: int) -> int:
    for host in dict.fromkeys(hosts):
        socket.bind(f"tcp://{host}:{port or '*'}")
        port = int(socket.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
    return port
