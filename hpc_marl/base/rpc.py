"""Remote procedure calls between two processes that share a key file.

Server:

    server = RpcServer(port)
    server.register_handler("foo", foo)
    while True:
        server.handle_requests()

Client, on the same machine or another one:

    RpcClient(host, port).request("foo", x=42, y="str")      # runs foo(x=42, y="str") on the server

The key: both sides use `default_keyring()`: the file `run.key` in the directory `$HPC_MARL_KEY_DIR`, or else
in `~/.config/hpc_marl/rpc`. It is created, readable by this user only, on first use. Processes that share a
home directory need nothing else. For another machine, copy the directory before the first call:

    rsync -a ~/.config/hpc_marl/rpc/ other:.config/hpc_marl/rpc/

or give both sides `keyring=load_keyring(directory)`. Whoever has the key may call every registered handler.

Pieces for other servers and clients of the same wire: `RequestHandler` (bytes in, bytes out) and
`serve_requests` (a REP socket before it); `RpcChannel`, `PendingReply`, `RequestIds` and `poll_channels`
(several calls under way on several connections).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq

from hpc_marl.base.network import own_addresses, resolve_ipv4
from hpc_marl.base.rpc_channel import RpcChannel
from hpc_marl.base.rpc_handler import RequestHandler, serve_requests
from hpc_marl.base.rpc_messages import RequestIds
from hpc_marl.base.rpc_pending import PendingReply
from hpc_marl.base.rpc_polling import poll_channels, wait_for
from hpc_marl.base.rpc_replies import ReplyCache
from hpc_marl.base.security import Keyring, default_keyring
from hpc_marl.base.sockets import SocketFactory
from hpc_marl.errors import HpcMarlError

__all__ = [
    "PendingReply",
    "ReplyCache",
    "RequestHandler",
    "RequestIds",
    "RpcChannel",
    "RpcClient",
    "RpcServer",
    "poll_channels",
    "serve_requests",
    "wait_for",
]


class RpcServer:
    """Runs registered functions for clients that hold the same key.

    >>> import threading
    >>> def foo(x, y):
    ...     return f"{y}-{x}"
    >>> server = RpcServer()
    >>> server.register_handler("foo", foo)
    >>> thread = threading.Thread(target=lambda: server.handle_requests(max_count=1, timeout=10))
    >>> thread.start()
    >>> with RpcClient("localhost", server.port) as client:
    ...     client.request("foo", x=42, y="str")
    'str-42'
    >>> thread.join()
    >>> server.close()

    Args:
        port: where to listen; 0 picks a free port, see `port`.
        host: a name or IPv4 address of this machine to listen at; None listens at loopback and at the
            address(es) by which this machine's name is reached, so that `localhost` and the host name work.
        keyring: None uses `default_keyring()`: see the module's text.

    Attributes:
        port: the port in use.
        hosts: the IPv4 addresses in use.

    Raises:
        SecurityError: others could read the keys.
        OSError: the port is taken.
        ConfigError: `host` does not resolve.
    """

    def __init__(self, port: int = 0, *, host: str | None = None, keyring: Keyring | None = None) -> None:
        keyring = keyring or default_keyring()
        hosts = own_addresses() if host is None else resolve_ipv4(host)[:1]
        self._sockets = SocketFactory(keyring)
        try:
            bound = self._sockets.bind(zmq.REP, hosts, port, (keyring.server_public, keyring.server_secret))
        except OSError:
            self._sockets.close()
            raise
        self._socket = bound.socket
        self.port = bound.port
        self.hosts = bound.hosts
        self._handler = RequestHandler(max_message_bytes=self._sockets.max_message_bytes)

    def register_handler(self, command: str, fn: Callable[..., Any]) -> None:
        """Run `fn(**kwargs)` when a client requests `command`.

        It may return plain values, bytes and numpy arrays; what it raises reaches the caller as RemoteError.

        Raises:
            ValueError: the command has a handler already.
        """
        self._handler.register(command, fn)

    def handle_requests(self, max_count: int | None = None, timeout: float = 0.1) -> int:
        """Answer the requests that are queued, after waiting up to `timeout` seconds for the first one.

        Args:
            max_count: answer at most so many; None means all that are queued (at most 1000 in one call).
            timeout: seconds to wait if nothing is queued.

        Returns:
            The number of requests answered.
        """
        return serve_requests(self._socket, self._handler, max_count, timeout)

    def close(self) -> None:
        """Stop listening. Can be repeated."""
        self._sockets.close()

    def __enter__(self) -> RpcServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RpcClient:
    """Calls functions on an `RpcServer`. Use it from one thread at a time.

    Args:
        host: the server's host name or IPv4 address.
        port: the server's port.
        keyring: None uses `default_keyring()`: see the module's text.
        timeout: seconds after which a call without an answer ends.

    Raises:
        SecurityError: others could read the keys.
        ConfigError: `host` does not resolve.
    """

    def __init__(
        self, host: str, port: int, *, keyring: Keyring | None = None, timeout: float = 30.0
    ) -> None:
        keyring = keyring or default_keyring()
        addresses = resolve_ipv4(host)
        self._timeout_s = timeout
        self._sockets = SocketFactory(keyring)
        try:
            self._channel = RpcChannel(
                self._sockets,
                addresses,
                port,
                keyring.server_public,
                request_ids=RequestIds(),
                peer=f"server {host}",
            )
        except HpcMarlError:
            self._sockets.close()
            raise

    def request(self, command: str, /, **kwargs: Any) -> Any:
        """Run the server's handler of `command` with these arguments and return its result.

        The call is repeated over lost connections until its deadline, and is executed at most once.

        Raises:
            RpcTimeoutError: no answer in time; the message says how far the connection got.
            SecurityError: the server has other keys, or is no server of ours.
            UnknownCommandError: the server has no such handler; the message lists those it has.
            BadRequestError: the handler does not take these arguments, or they may not travel.
            RemoteError: the handler raised; carries the remote traceback.
            MessageTooLargeError: request or reply is larger than allowed (1 MiB).
        """
        pending = self._channel.submit(command, kwargs, self._timeout_s)
        self._channel.receive_soon(pending)
        if not pending.done:
            wait_for([self._channel], lambda: pending.done)
        return pending.result()

    def close(self) -> None:
        """End the connection. Can be repeated."""
        self._channel.close()
        self._sockets.close()

    def __enter__(self) -> RpcClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
