"""A torch store over the name service; whole process groups are in tests/unit/algorithms/test_ranks.py."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from hpc_marl.base.name_resolve_memory import MemoryNameResolver
from hpc_marl.base.network import interface_addresses
from hpc_marl.errors import ConfigError, NameWaitTimeoutError
from hpc_marl.workers.rendezvous import NameStore, interface_of, own_gpu


def test_values_are_set_replaced_and_deleted() -> None:
    store = NameStore(MemoryNameResolver(), "exp/trial/rendezvous/1/store", timeout_s=0.05)
    assert isinstance(store, dist.Store)
    store.set("0//cpu//0/1", b"\x00\xff")
    store.set("text", "word")
    store.set("text", "another")
    assert store.get("0//cpu//0/1") == b"\x00\xff" and store.get("text") == b"another"
    assert store.check(["text", "0//cpu//0/1"]) and not store.check(["text", "absent"])
    assert store.num_keys() == 2
    assert store.delete_key("text") and not store.delete_key("text")
    with pytest.raises(NameWaitTimeoutError):
        store.get("text")
    store.set_timeout(timedelta(seconds=0.01))
    with pytest.raises(TimeoutError, match="text"):
        store.wait(["text"])


def test_a_value_is_waited_for() -> None:
    resolver = MemoryNameResolver()
    waiting, setting = (NameStore(resolver, "exp/trial/store", timeout_s=30.0) for _ in range(2))
    thread = threading.Thread(target=lambda: setting.set("key", b"value"))
    thread.start()
    waiting.wait(["key"], timedelta(seconds=30))
    assert waiting.get("key") == b"value"
    thread.join()


def test_every_addition_counts_once() -> None:
    resolver = MemoryNameResolver()
    totals: list[int] = []

    def count() -> None:
        store = NameStore(resolver, "exp/trial/store")
        totals.extend(store.add("counter", 2) for _ in range(20))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(totals) == list(range(2, 162, 2))
    store = NameStore(resolver, "exp/trial/store")
    assert store.add("counter", 0) == 160 and store.get("counter") == b"160"
    assert store.add("other", 0) == 0 and not store.check(["other"]) and store.check(["counter"])


def test_the_interface_is_that_of_the_runs_addresses() -> None:
    for name, addresses in interface_addresses().items():
        assert interface_of([addresses[0]]) == name
    assert interface_of(["127.0.1.1"]) == interface_of(["127.0.0.1"])
    with pytest.raises(ConfigError, match=r"198\.51\.100\.7"):
        interface_of(["198.51.100.7"])


@pytest.mark.parametrize(
    ("num_visible", "expected"), [(1, [0, 0, 0, 0]), (2, [0, 0, 1, 1]), (4, [0, 0, 1, 1])]
)
def test_trainers_of_one_host_that_see_the_same_gpus_take_one_each(
    num_visible: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks 0 and 2 are of one host, 1 and 3 of another; one visible GPU is one that was given to the trainer."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_visible)
    resolver, found = MemoryNameResolver(), []
    for rank in range(4):
        monkeypatch.setattr("socket.gethostname", lambda host=f"node{rank % 2}": host)
        found.append(own_gpu(NameStore(resolver, "exp/trial/store", timeout_s=0.05), rank))
    assert found == [torch.device("cuda", index) for index in expected]


def test_a_gpu_is_not_taken_before_lower_ranks_have_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(NameWaitTimeoutError):
        own_gpu(NameStore(MemoryNameResolver(), "exp/trial/store", timeout_s=0.05), 1)
