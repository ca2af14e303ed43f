from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hpc_marl.base.security import Keyring, sign
from hpc_marl.base.service_records import ServiceRecord, from_entry, to_entry
from hpc_marl.errors import ProtocolError, SecurityError


def a_record(**changes: Any) -> ServiceRecord:
    fields: dict[str, Any] = {
        "name": "exp/trial/worker/actor/0",
        "hosts": ("10.0.0.7", "127.0.0.1"),
        "port": 4711,
        "public_key": b"k" * 40,
        "incarnation": "0" * 32,
        "host_identity": "node/boot/1",
        "pid": 12,
        "start_ticks": 34,
        "extra": {"epoch": 3},
    }
    return ServiceRecord(**{**fields, **changes})


def test_a_record_comes_back_and_shows_its_address(keyring: Keyring) -> None:
    record = a_record()
    entry = to_entry(keyring, record)
    assert entry.split()[0] == "10.0.0.7:4711"
    assert from_entry(keyring, entry) == record
    assert from_entry(keyring, entry + "\n", record.name) == record


def test_forged_entries_are_refused(keyring: Keyring, other_keyring: Keyring) -> None:
    record = a_record()
    entry = to_entry(keyring, record)
    address, token = entry.split()
    forgeries = {
        "not signed": address,
        "not made with": to_entry(other_keyring, record),
        "another address": f"10.6.6.6:4711 {token}",
        "base64": f"{address} <token>",
    }
    for reason, forgery in forgeries.items():
        with pytest.raises(SecurityError, match=reason):
            from_entry(keyring, forgery)


def test_an_entry_copied_to_another_name_is_refused(keyring: Keyring) -> None:
    with pytest.raises(SecurityError, match="was made for 'exp/trial/worker/actor/0'"):
        from_entry(keyring, to_entry(keyring, a_record()), "exp/trial/worker/trainer/0")


def test_another_protocol_is_named(keyring: Keyring) -> None:
    with pytest.raises(ProtocolError, match="speaks protocol 99, expected 1"):
        from_entry(keyring, to_entry(keyring, a_record(protocol=99)))
    unknown = msgspec.json.encode({**msgspec.to_builtins(a_record()), "later": 1}).decode()
    with pytest.raises(ProtocolError, match="use one version"):
        from_entry(keyring, f"10.0.0.7:4711 {sign(keyring, unknown)}")


@pytest.mark.parametrize(
    ("hosts", "identity", "expected"),
    [
        (("127.0.0.1", "10.0.0.7"), "node/boot/1", ["127.0.0.1", "10.0.0.7"]),
        (("127.0.0.1", "10.0.0.7"), "other", ["10.0.0.7"]),
        (("127.0.0.1",), "other", ["127.0.0.1"]),
    ],
)
def test_loopback_is_for_the_same_machine(hosts: tuple[str, ...], identity: str, expected: list[str]) -> None:
    assert a_record(hosts=hosts).addresses_for(identity) == expected
