"""What a process publishes about a socket of its own, signed, so that a name entry cannot be forged.

An entry reads `host:port <token>`: the address for people and tools, the token (see `security.sign`) with the
whole record for us.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from hpc_marl.base.network import is_loopback
from hpc_marl.base.security import Keyring, sign, verify
from hpc_marl.errors import ProtocolError, SecurityError

PROTOCOL_VERSION = 1

_Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class ServiceRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach one service of one process, and which process that is.

    Attributes:
        name: the key it is published under; an entry copied to another name is not believed.
        hosts: IPv4 addresses it listens at, at least one.
        port: the same at each of them.
        public_key: the CURVE key (Z85) of this incarnation; nothing else at that address is talked to.
        incarnation: one life of one process (uuid).
        host_identity: see `network.host_identity`.
        pid: the process, in its own pid namespace.
        start_ticks: when it started; with the pid it names the process for good.
        heartbeat_port: where it publishes heartbeats, 0 if it does not.
        heartbeat_public_key: the CURVE key there.
        protocol: version of the wire.
        extra: plain values that the service's clients need.
    """

    name: str
    hosts: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    port: _Port
    public_key: bytes
    incarnation: str
    host_identity: str
    pid: int
    start_ticks: int
    heartbeat_port: _Port = 0
    heartbeat_public_key: bytes = b""
    protocol: int = PROTOCOL_VERSION
    extra: dict[str, Any] = {}

    def addresses_for(self, host_identity: str) -> list[str]:
        """Return the addresses worth trying from a process on the host with this identity.

        127.0.0.1 on another machine is that machine's own, so it is left out if there is any other address.
        """
        remote = [host for host in self.hosts if not is_loopback(host)]
        return list(self.hosts) if host_identity == self.host_identity or not remote else remote


def to_entry(keyring: Keyring, record: ServiceRecord) -> str:
    """Return the value to store in the name service."""
    return f"{record.hosts[0]}:{record.port} {sign(keyring, msgspec.json.encode(record).decode())}"


def from_entry(keyring: Keyring, entry: str, name: str | None = None) -> ServiceRecord:
    """Return the record in a name entry.

    Args:
        keyring: of the run that the entry must belong to.
        entry: the stored value.
        name: the key it was found under; None if that does not matter.

    Raises:
        SecurityError: forged, changed, of another run, or copied from another name.
        ProtocolError: made by another version of this package.
    """
    address, _, token = entry.strip().partition(" ")
    if not token:
        raise SecurityError(f"name entry {entry[:80]!r} is not signed; expected `host:port <token>`")
    try:
        record = msgspec.json.decode(verify(keyring, token), type=ServiceRecord)
    except msgspec.MsgspecError as error:
        raise ProtocolError(
            f"the signed record at {address} is not of protocol {PROTOCOL_VERSION} ({error}); "
            "use one version of hpc_marl throughout a run"
        ) from error
    if record.protocol != PROTOCOL_VERSION:
        raise ProtocolError(
            f"{record.name} speaks protocol {record.protocol}, expected {PROTOCOL_VERSION}; "
            "use one version of hpc_marl throughout a run"
        )
    if name is not None and record.name != name:
        raise SecurityError(f"the entry {name!r} was made for {record.name!r}; remove it")
    if address != f"{record.hosts[0]}:{record.port}":
        raise SecurityError(
            f"the entry of {record.name!r} shows {address} but was signed for another address"
        )
    return record
