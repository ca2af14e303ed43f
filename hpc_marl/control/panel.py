"""ZmqWorkerControl: a controller's connections to the workers of one trial.

    refresh, connect     name entries -> a channel (DEALER) and a heartbeat subscription per incarnation
    request              one channel until its reply or its deadline
    group_request        all channels at once, under one deadline; a dead worker delays nobody
    heartbeats           the newest of everybody, without waiting

A worker that was replaced is known by its incarnation: what was under way to the old one fails with
StalePeerError, and the panel goes on with the new one.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from hpc_marl.base import names
from hpc_marl.base.network import host_identity
from hpc_marl.base.rpc import PendingReply, RequestIds, RpcChannel, poll_channels
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.service_records import ServiceRecord, from_entry
from hpc_marl.control.heartbeat import HeartbeatReader
from hpc_marl.control.interfaces import Heartbeat, Response, WorkerControlPanel
from hpc_marl.control.standalone import context_of_trial
from hpc_marl.errors import (
    BadRequestError,
    HpcMarlError,
    NameEntryNotFoundError,
    NameWaitTimeoutError,
    ProtocolError,
    RemoteError,
    RpcError,
    RpcTimeoutError,
    SecurityError,
    StalePeerError,
    UnknownCommandError,
)

_logger = logging.getLogger(__name__)
_LOOK_AGAIN_S = 0.05
# Keeping a connection alive costs both ends a message every few seconds, for ever; making it anew, a few milliseconds.
_REST_AFTER_S = 20.0
# The worker itself said these, so it is not a replaced one.
_ANSWERS = (RemoteError, UnknownCommandError, BadRequestError, ProtocolError)


class _Peer:
    """One connected incarnation of a worker."""

    def __init__(self, worker_name: str, incarnation: str, channel: RpcChannel) -> None:
        self.worker_name = worker_name
        self.incarnation = incarnation
        self.channel = channel
        self.replaced_by = ""


class _Call:
    """An RpcFuture on one peer; without a peer, it has failed already."""

    def __init__(
        self,
        outcome: PendingReply | HpcMarlError,
        peer: _Peer | None = None,
        find_replacement: Callable[[_Peer], str] = lambda peer: "",
    ) -> None:
        self._outcome = outcome
        self._peer = peer
        self._find_replacement = find_replacement

    @property
    def channel(self) -> RpcChannel | None:
        """Where the answer is still to come from, None once it is there."""
        if self._peer is None or isinstance(self._outcome, HpcMarlError) or self._outcome.done:
            return None
        return self._peer.channel

    def receive_soon(self) -> None:
        """Wait a moment for this answer alone."""
        if (channel := self.channel) is not None and isinstance(self._outcome, PendingReply):
            channel.receive_soon(self._outcome)

    def done(self) -> bool:
        """Return whether `result` would return or raise at once."""
        if (channel := self.channel) is not None:
            channel.process()
        return self.channel is None

    def result(self, timeout: float | None = None) -> Any:
        """Return what the handler returned, or raise what the call ended with; see `RpcFuture`."""
        _wait_for([self], timeout)
        if isinstance(self._outcome, HpcMarlError):
            raise self._outcome
        if not self._outcome.done:
            raise RpcTimeoutError(f"no reply to {self._outcome.command!r} yet after waiting {timeout:g} s")
        try:
            return self._outcome.result()
        except _ANSWERS:
            raise
        except HpcMarlError as error:
            if self._peer is None or not (newer := self._find_replacement(self._peer)):
                raise
            raise StalePeerError(
                f"{self._peer.worker_name} was replaced during {self._outcome.command!r}: "
                f"incarnation {self._peer.incarnation} is no more, {newer} is registered and connected now"
            ) from error


def _wait_for(calls: Sequence[_Call], timeout: float | None) -> None:
    """Wait until all calls are done, `timeout` seconds at most; their own deadlines bound it in any case."""
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    while channels := {id(channel): channel for call in calls if (channel := call.channel) is not None}:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return
        poll_channels(channels.values(), None if timeout is None else remaining)


class ZmqWorkerControl(WorkerControlPanel):
    """All workers of one experiment and trial, by name. Use it from one thread.

    Example:
        >>> import threading
        >>> from hpc_marl.base import name_resolve
        >>> from hpc_marl.base.name_resolve_memory import MemoryNameResolver
        >>> from hpc_marl.control.worker_control import ZmqServer
        >>> name_resolve.configure(MemoryNameResolver())
        >>> server = ZmqServer("exp", "trial", "actor/0")
        >>> server.register_handler("add", lambda x, y: x + y)
        >>> serving = threading.Thread(target=lambda: server.handle_requests(max_count=2, timeout=10))
        >>> with ZmqWorkerControl("exp", "trial") as panel:
        ...     panel.auto_connect()
        ...     serving.start()
        ...     panel.request("actor/0", "add", x=1, y=2)
        ['actor/0']
        3
        >>> serving.join()
        >>> server.close()
        >>> name_resolve.configure(None)

    Args:
        experiment_name: whose workers.
        trial_name: whose workers.
        context: names, keys and sockets of the run, which stay the caller's to close; None: the process-wide
            name service (`name_resolve.configure`) and this user's `default_keyring()`.
        timeout: deadline [s] of a request that does not say its own.
        ignore: names that are not workers of this panel, such as the controller's own.
    """

    def __init__(
        self,
        experiment_name: str,
        trial_name: str,
        context: RunContext | None = None,
        *,
        timeout: float = 30.0,
        ignore: Iterable[str] = (),
    ) -> None:
        self._ignored = frozenset(ignore)
        self._owns_sockets = context is None
        self._context = context_of_trial(experiment_name, trial_name, context)
        self._timeout_s = timeout
        self._request_ids = RequestIds()
        self._host = host_identity()
        self._peers: dict[str, _Peer] = {}
        self._given_up: dict[str, str] = {}  # worker name -> incarnation
        self._entries: dict[str, str] = {}  # as the last refresh found them
        self._heartbeats = HeartbeatReader(self._context.sockets)

    @property
    def connected(self) -> list[str]:
        """The names of the connected workers, sorted."""
        return sorted(self._peers)

    def connect(self, worker_names: Iterable[str], timeout: float = 60.0) -> list[str]:
        """Connect to these workers; see `WorkerControlPanel.connect`."""
        deadline = time.monotonic() + timeout
        wanted = list(worker_names)
        for name in wanted:
            key = self._key(name)
            while True:
                record = self._context.wait(key, max(0.0, deadline - time.monotonic()))
                if self._take(name, record):
                    break
                if time.monotonic() >= deadline:
                    raise NameWaitTimeoutError(
                        f"{name} was disconnected as incarnation {record.incarnation}, "
                        f"and no new one has registered within {timeout:g} s"
                    )
                time.sleep(_LOOK_AGAIN_S)
        return wanted

    def auto_connect(self, timeout: float = 60.0) -> list[str]:
        """Connect to every worker registered now; see `WorkerControlPanel.auto_connect`."""
        deadline = time.monotonic() + timeout
        while not self.refresh():
            if time.monotonic() >= deadline:
                raise NameWaitTimeoutError(f"no worker registered below {self._root} within {timeout:g} s")
            time.sleep(_LOOK_AGAIN_S)
        return self.connected

    def refresh(self) -> dict[str, str]:
        """Look who is registered now; see `WorkerControlPanel.refresh`."""
        entries = self._context.resolver.get_items(self._root)
        for key, entry in entries.items():
            # What was there at the last look is connected, or given up for good.
            if self._entries.get(key) == entry:
                continue
            name = key.removeprefix(self._root + "/")
            if name not in self._ignored and (record := self._verified(key, entry)) is not None:
                self._take(name, record)
        self._entries = entries
        return {name: peer.incarnation for name, peer in self._peers.items()}

    @property
    def look_interval_s(self) -> float:
        """How soon it is worth to look again; see `WorkerControlPanel.look_interval_s`."""
        return min(super().look_interval_s, self._context.resolver.look_interval_s)

    def disconnect(self, worker_name: str) -> None:
        """Give this incarnation of a worker up; see `WorkerControlPanel.disconnect`."""
        if (peer := self._peers.pop(worker_name, None)) is not None:
            self._given_up[worker_name] = peer.incarnation
            self._heartbeats.remove(worker_name)
            peer.channel.close()

    def heartbeats(self) -> dict[str, Heartbeat]:
        """Return the newest heartbeat of every connected worker; see `WorkerControlPanel.heartbeats`."""
        for peer in self._peers.values():
            if peer.channel.num_pending:
                peer.channel.process()  # Answers that nobody asks for any more are taken in here.
            elif peer.channel.idle_s > _REST_AFTER_S:
                peer.channel.rest()
        return self._heartbeats.read()

    def request(self, worker_name: str, command: str, /, timeout: float | None = None, **kwargs: Any) -> Any:
        """Have one worker run a command; see `WorkerControlPanel.request`."""
        call = self._submit(worker_name, command, kwargs, timeout)
        call.receive_soon()
        return call.result()

    def async_request(
        self, worker_name: str, command: str, /, timeout: float | None = None, **kwargs: Any
    ) -> _Call:
        """Send a request and return at once; see `WorkerControlPanel.async_request`."""
        return self._submit(worker_name, command, kwargs, timeout)

    def group_request(
        self,
        command: str,
        /,
        worker_names: Iterable[str] | None = None,
        worker_regex: str | None = None,
        worker_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> list[Response]:
        """Have several workers run a command at the same time; see `WorkerControlPanel.group_request`."""
        own = worker_kwargs or {}
        asked = worker_names
        if asked is None:
            asked = own or self._peers
        matching = [name for name in asked if worker_regex is None or re.fullmatch(worker_regex, name)]
        calls = {
            name: self._submit(name, command, {**kwargs, **own.get(name, {})}, timeout)
            for name in sorted(set(matching))
        }
        _wait_for(list(calls.values()), None)
        return [_response(name, call) for name, call in calls.items()]

    def close(self) -> None:
        """Release all sockets; requests under way fail. Can be repeated."""
        for peer in self._peers.values():
            peer.channel.close()
        self._peers.clear()
        self._heartbeats.close()
        if self._owns_sockets:
            self._context.sockets.close()

    def __enter__(self) -> ZmqWorkerControl:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _root(self) -> str:
        return names.worker_root(self._context.experiment_name, self._context.trial_name)

    def _key(self, worker_name: str) -> str:
        return names.worker(self._context.experiment_name, self._context.trial_name, worker_name)

    def _lookup(self, key: str) -> ServiceRecord | None:
        """Return the record under `key`; one that cannot be trusted or read is as good as none."""
        try:
            return self._verified(key, self._context.resolver.get(key))
        except NameEntryNotFoundError:
            return None

    def _verified(self, key: str, entry: str) -> ServiceRecord | None:
        try:
            return from_entry(self._context.sockets.keyring, entry, key)
        except (SecurityError, ProtocolError) as error:
            _logger.warning("ignored the name entry %s: %s", key, error)
            return None

    def _take(self, worker_name: str, record: ServiceRecord) -> bool:
        """Be connected to the incarnation in `record`; return False if it was given up."""
        known = self._peers.get(worker_name)
        if known is not None and known.incarnation == record.incarnation:
            return True
        if self._given_up.get(worker_name) == record.incarnation:
            return False
        hosts = record.addresses_for(self._host)
        channel = RpcChannel(
            self._context.sockets,
            hosts,
            record.port,
            record.public_key,
            request_ids=self._request_ids,
            peer=f"worker {worker_name}",
            incarnation=record.incarnation,
        )
        self._heartbeats.add(
            worker_name, record.incarnation, hosts, record.heartbeat_port, record.heartbeat_public_key
        )
        self._peers[worker_name] = _Peer(worker_name, record.incarnation, channel)
        if known is not None:
            known.replaced_by = record.incarnation
            known.channel.close()
        return True

    def _find_replacement(self, peer: _Peer) -> str:
        """Return the incarnation that took the place of `peer`, after connecting to it; "" if none did."""
        if not peer.replaced_by and self._peers.get(peer.worker_name) is peer:
            record = self._lookup(self._key(peer.worker_name))
            if record is not None and record.incarnation != peer.incarnation:
                self._take(peer.worker_name, record)
        return peer.replaced_by

    def _submit(
        self, worker_name: str, command: str, kwargs: Mapping[str, Any], timeout: float | None
    ) -> _Call:
        peer = self._peers.get(worker_name)
        if peer is None:
            listed = ", ".join(self.connected) or "nobody"
            return _Call(RpcError(f"worker {worker_name!r} is not connected; connected: {listed}"))
        try:
            pending = peer.channel.submit(command, kwargs, self._timeout_s if timeout is None else timeout)
        except HpcMarlError as error:
            return _Call(error)
        return _Call(pending, peer, self._find_replacement)


def _response(worker_name: str, call: _Call) -> Response:
    try:
        return Response(worker_name, result=call.result())
    except HpcMarlError as error:
        return Response(worker_name, error=error, timed_out=isinstance(error, RpcTimeoutError))
