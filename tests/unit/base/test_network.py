from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from hpc_marl.base import network
from hpc_marl.errors import ConfigError

SEVERAL = {"lo": ["127.0.0.1"], "eth0": ["10.1.2.3"], "ib0": ["10.9.2.3", "10.9.2.4"]}


@pytest.fixture
def several_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "interface_addresses", lambda: SEVERAL)


@pytest.mark.usefixtures("several_interfaces")
@pytest.mark.parametrize(
    ("interface", "expected"),
    [
        (None, ["127.0.0.1"]),
        ("ib0", ["10.9.2.3", "10.9.2.4"]),
        ("10.1.2.3", ["10.1.2.3"]),
        ("10.9.0.0/16", ["10.9.2.3", "10.9.2.4"]),
        ("10.1.2.99/24", ["10.1.2.3"]),
        ("all", ["10.1.2.3", "10.9.2.3", "10.9.2.4"]),
        ("127.0.1.1", ["127.0.1.1"]),
    ],
)
def test_interfaces_are_chosen(interface: str | None, expected: list[str]) -> None:
    assert network.host_addresses(interface) == expected


@pytest.mark.usefixtures("several_interfaces")
@pytest.mark.parametrize("interface", ["ib1", "10.1.2.4", "192.168.0.0/16", "", "*", "fd00::1"])
def test_an_interface_that_is_not_there_is_refused_with_those_that_are(interface: str) -> None:
    with pytest.raises(ConfigError, match=r"10\.9\.2\.3") as caught:
        network.host_addresses(interface)
    assert repr(interface) in str(caught.value)


def test_real_interfaces_include_loopback() -> None:
    assert any("127.0.0.1" in addresses for addresses in network.interface_addresses().values())


def test_own_addresses_can_be_bound_and_include_loopback() -> None:
    addresses = network.own_addresses()
    assert addresses[0] == "127.0.0.1"
    for address in addresses:
        with socket.create_server((address, 0)) as server:
            assert server.getsockname()[0] == address


def test_a_name_resolves_to_ipv4() -> None:
    assert network.resolve_ipv4("localhost") == ["127.0.0.1"]
    with pytest.raises(ConfigError, match=r"no-such-host\.invalid"):
        network.resolve_ipv4("no-such-host.invalid")


def test_processes_of_one_machine_have_one_identity() -> None:
    script = "from hpc_marl.base.network import host_identity; print(host_identity())"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == network.host_identity()


def test_start_ticks_name_a_process() -> None:
    assert network.process_start_ticks(os.getpid()) == network.process_start_ticks(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    own, childs = network.process_start_ticks(os.getpid()), network.process_start_ticks(child.pid)
    child.communicate(b"\n")
    assert own is not None and childs is not None and childs > own
    assert network.process_start_ticks(child.pid) is None
