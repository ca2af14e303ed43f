"""What a process of a run holds in hand: names, keys, sockets, and who it is itself."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from hpc_marl.base.name_resolve import NameResolver
from hpc_marl.base.name_resolve_file import FileNameResolver
from hpc_marl.base.network import host_addresses, host_identity, process_start_ticks
from hpc_marl.base.permissions import make_private_directory
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.security import load_keyring
from hpc_marl.base.service_records import ServiceRecord, from_entry, to_entry
from hpc_marl.base.sockets import BoundSocket, SocketFactory
from hpc_marl.errors import NameEntryNotFoundError


class HeartbeatAddress(Protocol):
    """Where heartbeats are published: a socket of this process, or of another one with the same addresses."""

    @property
    def port(self) -> int:
        """The port."""

    @property
    def public_key(self) -> bytes:
        """The CURVE key there, in Z85."""


@dataclass(frozen=True)
class RunContext:
    """The surroundings of one process (in tests: of one thread) of a run.

    Make it with `open`, or from parts in tests, and `close` it last.

    Attributes:
        experiment_name: as in the run directory.
        trial_name: the same.
        resolver: the run's name service.
        sockets: makes the sockets, with the run's keys.
        bind_hosts: the IPv4 addresses to listen at.
        incarnation: this life of this process.
    """

    experiment_name: str
    trial_name: str
    resolver: NameResolver
    sockets: SocketFactory
    bind_hosts: tuple[str, ...] = ("127.0.0.1",)
    incarnation: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def open(
        cls,
        run_directory: RunDirectory,
        run_uuid: str,
        *,
        interface: str | None,
        port_range: tuple[int, ...] = (),
    ) -> RunContext:
        """Load the keys and open the name service of a run that exists.

        Args:
            run_directory: of the trial.
            run_uuid: which run of it.
            interface: where to listen, as for `network.host_addresses`; None means this machine only.
            port_range: first and last port to listen at; empty: any.

        Raises:
            SecurityError: the keys are missing, or others could have read or replaced them.
            ConfigError: this machine has no such interface.
        """
        run_directory.check()
        keyring = load_keyring(run_directory.auth(run_uuid))
        hosts = tuple(host_addresses(interface))
        return cls(
            run_directory.experiment_name,
            run_directory.trial_name,
            FileNameResolver(make_private_directory(run_directory.names(run_uuid))),
            SocketFactory(keyring, port_range=port_range),
            hosts,
        )

    def publish(
        self,
        key: str,
        socket: BoundSocket,
        *,
        heartbeat: HeartbeatAddress | None = None,
        extra: Mapping[str, Any] | None = None,
        replace: bool = True,
    ) -> ServiceRecord:
        """Store under `key` how to reach `socket`, signed, until this context closes.

        Args:
            key: spelled by `names`.
            socket: the bound socket.
            heartbeat: where the heartbeats are published, on this machine, if anywhere.
            extra: plain values that the service's clients need.
            replace: take the place of an earlier incarnation.

        Raises:
            NameEntryExistsError: there is an entry and `replace` is False.
        """
        record = ServiceRecord(
            name=key,
            hosts=socket.hosts,
            port=socket.port,
            public_key=socket.public_key,
            incarnation=self.incarnation,
            host_identity=host_identity(),
            pid=os.getpid(),
            start_ticks=process_start_ticks(os.getpid()) or 0,
            heartbeat_port=heartbeat.port if heartbeat else 0,
            heartbeat_public_key=heartbeat.public_key if heartbeat else b"",
            extra=dict(extra or {}),
        )
        self.resolver.add(key, to_entry(self.sockets.keyring, record), replace=replace)
        return record

    def lookup(self, key: str) -> ServiceRecord | None:
        """Return the record under `key`, None if there is none.

        Raises:
            SecurityError: the entry was not made with this run's keys for this key.
        """
        try:
            entry = self.resolver.get(key)
        except NameEntryNotFoundError:
            return None
        return from_entry(self.sockets.keyring, entry, key)

    def wait(self, key: str, timeout: float | None = None) -> ServiceRecord:
        """Wait for a record under `key` and return it.

        Args:
            key: spelled by `names`.
            timeout: seconds; None waits for ever.

        Raises:
            NameWaitTimeoutError: none appeared; the message says what was there instead.
            SecurityError: the entry was not made with this run's keys for this key.
        """
        return from_entry(self.sockets.keyring, self.resolver.wait(key, timeout), key)

    def close(self) -> None:
        """Withdraw what was published and close all sockets. Can be repeated."""
        self.resolver.close()
        self.sockets.close()

    def __enter__(self) -> RunContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
