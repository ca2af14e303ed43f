"""The ZeroMQ implementations of the control channel, and the same wire without a worker.

ZmqServer          worker's end: a REP socket on a port of its own, found by name, and heartbeats
ZmqWorkerControl   controller's end, for all workers of one trial
RpcServer          the server alone: `RpcServer(port)`, no name, no heartbeats
RpcClient          its client: `RpcClient(host, port).request("foo", x=42)`
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import zmq

from hpc_marl.base import names
from hpc_marl.base.rpc import RequestHandler, RpcClient, RpcServer, serve_requests
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.sockets import BoundSocket
from hpc_marl.control.heartbeat import HeartbeatPublisher
from hpc_marl.control.heartbeat_relay import HeartbeatRelay, HostHeartbeats
from hpc_marl.control.interfaces import WorkerServer
from hpc_marl.control.panel import ZmqWorkerControl
from hpc_marl.control.standalone import context_of_trial
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.errors import HpcMarlError, NameEntryNotFoundError

__all__ = ["RpcClient", "RpcServer", "ZmqServer", "ZmqWorkerControl"]


class ZmqServer(WorkerServer):
    """A worker's REP socket, published as `host:port` under (experiment_name, trial_name, worker_name).

    Requests are answered in the thread that calls `handle_requests`, heartbeats go out from another.
    `ZmqWorkerControl` has an example.

    Args:
        experiment_name: whose worker.
        trial_name: whose worker.
        worker_name: how controllers call it, as in `actor/3`; an earlier incarnation of that name is replaced.
        context: names, keys and sockets of the run, which stay the caller's to close; None: the process-wide
            name service (`name_resolve.configure`) and this user's `default_keyring()`.
        heartbeat_interval_s: time between two heartbeats.
        host: passes the heartbeats on; None: they have a socket of their own.
        relay: whose heartbeats are passed on with the own.

    Attributes:
        heartbeat: where heartbeats are published; None where a host does it.

    Raises:
        OSError: no port could be bound.
        NameResolveError: the name could not be published.
    """

    def __init__(
        self,
        experiment_name: str,
        trial_name: str,
        worker_name: str,
        context: RunContext | None = None,
        *,
        heartbeat_interval_s: float = 0.5,
        host: HostHeartbeats | None = None,
        relay: HeartbeatRelay | None = None,
    ) -> None:
        super().__init__(worker_name)
        self._owns_sockets = context is None
        self._context = context_of_trial(experiment_name, trial_name, context)
        self._key = names.worker(experiment_name, trial_name, worker_name)
        sockets, hosts = self._context.sockets, self._context.bind_hosts
        self._handler = RequestHandler(self._context.incarnation, sockets.max_message_bytes)
        bound = sockets.bind(zmq.REP, hosts)
        way = host or sockets.bind(zmq.XPUB, hosts, options={zmq.XPUB_VERBOSE: 1})
        self.heartbeat = way if isinstance(way, BoundSocket) else None
        self._socket = bound.socket
        self._heartbeats = HeartbeatPublisher(
            way, worker_name, self._context.incarnation, self.report, heartbeat_interval_s, relay=relay
        )
        self.host, self.port = bound.hosts[0], bound.port
        try:
            self._context.publish(self._key, bound, heartbeat=way)
        except HpcMarlError:
            self._release()
            raise

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """To wait for requests (zmq.POLLIN) together with other things; everything else is this server's."""
        return self._socket

    def register_handler(self, command: str, handler: Callable[..., Any]) -> None:
        """Answer `command` with what `handler(**kwargs)` returns.

        Raises:
            ValueError: the command has a handler already.
        """
        self._handler.register(command, handler)

    def handle_requests(self, max_count: int | None = None, timeout: float = 0.0) -> int:
        """Answer the requests that are there; see `WorkerServer.handle_requests`."""
        return serve_requests(self._socket, self._handler, max_count, timeout)

    def set_status(self, status: WorkerStatus) -> None:
        """Say in a heartbeat, at once, where the worker stands now."""
        self._heartbeats.set_status(status)

    def close(self) -> None:
        """Say the last word in a heartbeat, take the name back and release the sockets. Can be repeated."""
        if self._socket.closed:
            return
        try:
            record = self._context.lookup(self._key)
            if record is not None and record.incarnation == self._context.incarnation:
                self._context.resolver.delete(self._key)
        except NameEntryNotFoundError:
            pass  # Somebody cleared the trial's names meanwhile.
        finally:
            self._release()

    def _release(self) -> None:
        self._heartbeats.close()
        self._socket.close()
        if self._owns_sockets:
            self._context.sockets.close()

    def __enter__(self) -> ZmqServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
