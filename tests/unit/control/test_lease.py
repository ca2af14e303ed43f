"""The lease: one controller drives, another one takes over when it is gone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from hpc_marl.base import names
from hpc_marl.base.name_resolve_memory import MemoryNameResolver, MemoryNameStore
from hpc_marl.base.run_context import RunContext
from hpc_marl.control.lease import ControllerLease, LeaseHolder
from hpc_marl.errors import NameResolveError

TTL_S = 0.2
KEY = names.controller("exp", "trial")


class Process:
    """One process of a run: its resolver lives as long as it does."""

    def __init__(self, store: MemoryNameStore, kind: str = "session") -> None:
        self.now = 0.0
        self.resolver = MemoryNameResolver(store)
        context = RunContext("exp", "trial", self.resolver, cast(Any, None))
        self.lease = ControllerLease(context, kind, ttl_s=TTL_S, clock=lambda: self.now)


@pytest.fixture
def processes() -> Iterator[tuple[Process, Process]]:
    store = MemoryNameStore()
    made = Process(store), Process(store, "job")
    yield made
    for process in made:
        process.resolver.close()


def test_one_process_holds_it_until_it_gives_it_back(processes: tuple[Process, Process]) -> None:
    first, second = processes
    assert first.lease.holder() is None and not first.lease.holds()
    assert first.lease.acquire(0.0) and first.lease.holds()
    assert not second.lease.acquire(0.0) and not second.lease.holds()
    patience = iter((False, True))
    assert not second.lease.acquire(1e9, poll_s=0.01, give_up=lambda: next(patience))
    assert second.lease.holder() == first.lease.own
    assert str(first.lease.own).endswith("(session)")
    second.lease.release()
    assert second.lease.holder() == first.lease.own, "what is not held cannot be given back"
    first.lease.release()
    assert not first.lease.holds() and first.lease.holder() is None
    assert second.lease.acquire(0.0)


def test_the_lease_of_a_dead_process_runs_out(processes: tuple[Process, Process]) -> None:
    first, second = processes
    assert first.lease.acquire(0.0)
    first.resolver.close()
    assert second.lease.acquire(timeout_s=1.0, poll_s=0.02) and second.lease.holds()


def test_a_lease_that_somebody_else_took_is_noticed(processes: tuple[Process, Process]) -> None:
    first, second = processes
    assert first.lease.acquire(0.0)
    second.resolver.delete(KEY)
    assert first.lease.holds(), "looks only now and then"
    assert second.lease.acquire(0.0)
    first.now += 3.0
    assert not first.lease.holds()
    first.lease.release()
    assert second.lease.holder() == second.lease.own


def test_a_lease_that_expired_is_lost(processes: tuple[Process, Process]) -> None:
    first, second = processes
    assert first.lease.acquire(0.0)
    second.resolver.delete(KEY)
    first.now += 3.0
    assert not first.lease.holds()


def test_a_name_service_that_does_not_answer_takes_nothing_away(
    processes: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = processes
    assert first.lease.acquire(0.0)

    def fail(self: ControllerLease) -> LeaseHolder | None:
        raise NameResolveError("the shared file system does not answer")

    monkeypatch.setattr(ControllerLease, "holder", fail)
    first.now += 3.0
    assert first.lease.holds()
    first.lease.release()
    assert not first.lease.holds()
