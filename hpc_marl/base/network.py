"""Which IPv4 addresses this machine has, which one others reach, and who shares memory with whom."""

from __future__ import annotations

import errno
import ipaddress
import os
import selectors
import socket
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import psutil

from hpc_marl.errors import ConfigError

LOOPBACK = "127.0.0.1"

_PROBE_TIMEOUT_S = 1.0

# A documentation network: never reachable, so asking for the route to it asks for the default route.
_ANY_REMOTE_ADDRESS = ("198.51.100.1", 9)


def interface_addresses() -> dict[str, list[str]]:
    """Return the IPv4 addresses of every interface that is up, loopback included."""
    statistics = psutil.net_if_stats()
    addresses: dict[str, list[str]] = {}
    for name, entries in psutil.net_if_addrs().items():
        found = [entry.address for entry in entries if entry.family == socket.AF_INET]
        if found and (name not in statistics or statistics[name].isup):
            addresses[name] = found
    return addresses


def host_addresses(interface: str | None) -> list[str]:
    """Return the IPv4 addresses to bind and to publish.

    Args:
        interface: None for loopback only; an interface's name (`ib0`), one of this machine's addresses
            (`10.1.2.3`), a network (`10.1.0.0/16`), or `all` for every address but loopback.

    Raises:
        ConfigError: nothing on this machine matches; the message lists what it has.
    """
    if interface is None:
        return [LOOPBACK]
    available = interface_addresses()
    flat = [address for addresses in available.values() for address in addresses]
    if interface == "all":
        matching = [address for address in flat if not is_loopback(address)]
    elif interface in available:
        matching = available[interface]
    else:
        try:
            network = ipaddress.ip_network(interface, strict=False)
        except ValueError:
            matching = []
        else:
            # An address written without /length is a network of one; 127.0.1.1 is not listed but is local.
            matching = [address for address in flat if ipaddress.ip_address(address) in network]
            if not matching and network.num_addresses == 1 and network.is_loopback:
                matching = [str(network.network_address)]
    if not matching:
        listing = ", ".join(f"{name} {' '.join(addresses)}" for name, addresses in sorted(available.items()))
        raise ConfigError(
            f"interface {interface!r} matches no IPv4 address of {socket.gethostname()}; "
            f"it has: {listing or 'none'}"
        )
    return matching


def is_loopback(address: str) -> bool:
    """Return whether `address` is reachable on its own machine only.

    >>> is_loopback("127.0.1.1"), is_loopback("10.0.0.1")
    (True, False)
    """
    return ipaddress.ip_address(address).is_loopback


def routable_address() -> str | None:
    """Return the address by which other machines reach this one by default, None where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ANY_REMOTE_ADDRESS)  # Sends nothing: the kernel only picks a route.
            address = str(probe.getsockname()[0])
        except OSError:
            address = LOOPBACK
    if not is_loopback(address):
        return address
    return next((a for group in interface_addresses().values() for a in group if not is_loopback(a)), None)


def resolve_ipv4(host: str) -> list[str]:
    """Return the IPv4 addresses of a host name or address literal, in the resolver's order.

    Raises:
        ConfigError: the name does not resolve to an IPv4 address.
    """
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host {host!r} does not resolve to an IPv4 address: {error}") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def own_addresses() -> list[str]:
    """Return loopback, what the machine's own name resolves to here, and the routable address.

    A server bound to these answers to `localhost`, to the host name on this machine (Debian maps it to
    127.0.1.1) and to the host name as other machines resolve it.
    """
    own = {address for addresses in interface_addresses().values() for address in addresses}
    try:
        by_name = resolve_ipv4(socket.gethostname())
    except ConfigError:
        by_name = []
    routable = routable_address()
    candidates = [
        LOOPBACK,
        *(a for a in by_name if a in own or is_loopback(a)),
        *([routable] if routable else []),
    ]
    return list(dict.fromkeys(candidates))


@lru_cache(maxsize=1)
def _host_identity(_pid: int) -> str:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    pid_namespace = os.stat("/proc/self/ns/pid").st_ino
    return f"{socket.gethostname()}/{boot_id}/{pid_namespace}"


def host_identity() -> str:
    """Return a text equal for two processes iff one can open the other's /proc/<pid>/fd.

    It joins the host name, the kernel's boot id and the pid namespace: containers on one node differ.
    """
    return _host_identity(os.getpid())


def process_start_ticks(pid: int) -> int | None:
    """Return when process `pid` started (clock ticks since boot), None where there is no such process.

    With the pid it names a process for good, although pids are reused.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name, in parentheses, may contain anything; the fields follow the last parenthesis.
    return int(status.rpartition(")")[2].split()[19])


def first_answering(addresses: Sequence[str], port: int) -> str:
    """Return the first address to accept a TCP connection; the first of the list if none does in time."""
    deadline = time.monotonic() + _PROBE_TIMEOUT_S
    with selectors.DefaultSelector() as selector:
        probes = []
        try:
            for address in dict.fromkeys(addresses):
                probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                probes.append(probe)
                if probe.connect_ex((address, port)) in (0, errno.EINPROGRESS):
                    selector.register(probe, selectors.EVENT_WRITE, address)
            while selector.get_map() and (remaining := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(remaining):
                    probe = next(p for p in probes if p is key.fileobj)
                    selector.unregister(probe)
                    if probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                        return str(key.data)
        finally:
            for probe in probes:
                probe.close()
    return addresses[0]
