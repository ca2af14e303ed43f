"""What every name service must do, as functions over two places that share one.

A place is where a resolver lives: this process for the unit tests, two nodes of a cluster for the NFS tests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import pytest

from hpc_marl.base.name_resolve import MAX_VALUE_BYTES, NameResolver
from hpc_marl.errors import (
    NameEntryExistsError,
    NameEntryNotFoundError,
    NameResolveError,
    NameWaitTimeoutError,
)

PATIENCE_S = 30.0


class Places(Protocol):
    """Where the resolvers of a test live."""

    ttl_s: float  # short, but long against the time that one operation takes there

    def open(self, place: int) -> NameResolver:
        """A new resolver at place 0 or 1; all share the entries of one test."""


Contract = Callable[[Places], None]
CONTRACTS: list[Contract] = []


def contract(function: Contract) -> Contract:
    """Register a part of the contract."""
    CONTRACTS.append(function)
    return function


def eventually(condition: Callable[[], bool]) -> None:
    """Fail unless `condition` becomes true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "did not become true in time"
        time.sleep(0.01)


def is_absent(resolver: NameResolver, name: str) -> bool:
    try:
        resolver.get(name)
    except NameEntryNotFoundError:
        return True
    return False


@contextmanager
def running(*calls: Callable[[], object]) -> Iterator[list[object]]:
    """Run calls in threads during the block; their results are in the list after it."""
    results: list[object] = []
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(call) for call in calls]
        yield results
        results.extend(future.result(PATIENCE_S) for future in futures)


@contract
def what_one_adds_the_other_gets(places: Places) -> None:
    writer, reader = places.open(0), places.open(1)
    with pytest.raises(NameEntryNotFoundError, match="exp/missing"):
        reader.get("exp/missing")
    writer.add("exp/a", "10.0.0.7:4711")
    assert reader.get("exp/a") == writer.get("exp/a") == "10.0.0.7:4711"


@contract
def add_is_exclusive_and_replace_is_not(places: Places) -> None:
    first, second = places.open(0), places.open(1)
    first.add("key", "one")
    with pytest.raises(NameEntryExistsError, match="key"):
        second.add("key", "two")
    with pytest.raises(NameEntryExistsError):
        first.add("key", "two")
    assert second.get("key") == "one"
    second.add("key", "three", replace=True)
    assert first.get("key") == "three"
    first.add("new", "four", replace=True)
    assert second.get("new") == "four"


@contract
def delete_removes_one_entry_of_whomever(places: Places) -> None:
    first, second = places.open(0), places.open(1)
    for name in ("a", "a/b", "a/b/c", "a/bc"):
        first.add(name, name)
    second.delete("a/b")
    assert is_absent(first, "a/b")
    assert first.find_subtree("a") == ["a", "a/b/c", "a/bc"]
    for resolver in (first, second):
        with pytest.raises(NameEntryNotFoundError, match="a/b"):
            resolver.delete("a/b")
    first.add("a/b", "again")
    assert second.get("a/b") == "again"


@contract
def subtrees_are_made_of_components(places: Places) -> None:
    writer, reader = places.open(0), places.open(1)
    for name in ("foo/2", "foobar/1", "foo", "foo/1/deep", "other", "foo-1"):
        writer.add(name, f"value of {name}")
    assert reader.find_subtree("foo") == ["foo", "foo/1/deep", "foo/2"]
    assert reader.get_subtree("foo") == ["value of foo", "value of foo/1/deep", "value of foo/2"]
    assert reader.find_subtree("foo/1") == ["foo/1/deep"]
    assert reader.find_subtree("fo") == [] == reader.get_subtree("fo")
    reader.clear_subtree("foo")
    assert writer.find_subtree("foo") == []
    assert writer.get("foobar/1") == "value of foobar/1"
    reader.clear_subtree("foo")  # nothing there: no error


@contract
def names_may_contain_anything_but_empty_components(places: Places) -> None:
    writer, reader = places.open(0), places.open(1)
    names = ["with blank", "per%2Fcent", ".hidden", "a/.tmp", "ünïcode/名", "a\nb", "~", "c:\\d", "A", "a"]
    for name in names:
        writer.add(name, name)
    assert [reader.get(name) for name in names] == names
    for bad in ("", "/", "/a", "a/", "a//b", "..", "a/../b", "a/.", "nul\0"):
        for use in (writer.get, writer.delete, writer.find_subtree, writer.clear_subtree):
            with pytest.raises(NameResolveError, match="not a name"):
                use(bad)
        with pytest.raises(NameResolveError, match="not a name"):
            writer.add(bad, "value")


@contract
def values_are_any_text_of_64_kib(places: Places) -> None:
    writer, reader = places.open(0), places.open(1)
    values = ["", "\n", "two\nlines\r\n\n", "名" * (MAX_VALUE_BYTES // 3), "x" * MAX_VALUE_BYTES, "nul\0"]
    for index, value in enumerate(values):
        writer.add(f"value/{index}", value)
    assert [reader.get(f"value/{index}") for index in range(len(values))] == values
    with pytest.raises(NameResolveError, match="65537"):
        writer.add("large", "x" * (MAX_VALUE_BYTES + 1))
    with pytest.raises(NameResolveError, match="keepalive_ttl"):
        writer.add("dead", "", keepalive_ttl=0)


@contract
def wait_returns_what_is_there_and_what_comes(places: Places) -> None:
    writer, reader = places.open(0), places.open(1)
    writer.add("early", "1")
    assert reader.wait("early", 0) == "1"
    waits = [lambda: reader.wait("late", PATIENCE_S), lambda: writer.wait("late")]
    with running(*waits) as results:
        writer.add("unrelated", "2")
        writer.add("late", "3")
    assert results == ["3", "3"]


@contract
def wait_that_times_out_says_what_was_there(places: Places) -> None:
    writer, reader = places.open(0), places.open(1)
    writer.add("exp/worker/actor/0", "there")
    with pytest.raises(NameWaitTimeoutError, match=r"'exp/worker/actor/1'.* 0\.2 s.*exp/worker/actor/0"):
        reader.wait("exp/worker/actor/1", 0.2)
    with pytest.raises(TimeoutError):
        reader.wait("exp/worker/actor/1", 0)


@contract
def close_deletes_only_what_is_still_its_own(places: Places) -> None:
    owner, other = places.open(0), places.open(1)
    owner.add("mine", "1")
    owner.add("mine/twice", "1")
    owner.add("mine/twice", "2", replace=True)
    owner.add("kept", "1", delete_on_exit=False)
    owner.add("replaced", "1")
    other.add("replaced", "2", replace=True)
    owner.add("deleted, then somebody else's", "1")
    other.delete("deleted, then somebody else's")
    other.add("deleted, then somebody else's", "2")
    owner.close()
    assert is_absent(other, "mine") and is_absent(other, "mine/twice")
    assert other.get("kept") == "1"
    assert other.get("replaced") == other.get("deleted, then somebody else's") == "2"
    owner.close()
    with pytest.raises(NameResolveError, match="closed"):
        owner.add("after", "close")
    with pytest.raises(NameResolveError, match="closed"):
        owner.watch_names(["kept"], print)


@contract
def time_to_live(places: Places) -> None:
    """Lives while its owner does, expires for everybody afterwards, and can then be taken by exactly one."""
    owner, reader = places.open(0), places.open(1)
    owner.add("lease", "owner", keepalive_ttl=places.ttl_s, delete_on_exit=False)
    end = time.monotonic() + 2 * places.ttl_s
    while time.monotonic() < end:
        assert reader.get("lease") == "owner"
        time.sleep(places.ttl_s / 10)
    with pytest.raises(NameEntryExistsError):
        reader.add("lease", "too early")
    vanished: list[str] = []
    watch = reader.watch_names(["lease"], vanished.append, places.ttl_s / 10)
    owner.close()
    eventually(lambda: is_absent(reader, "lease"))
    eventually(lambda: vanished == ["lease"])
    assert reader.find_subtree("lease") == []
    with pytest.raises(NameEntryNotFoundError):
        reader.delete("lease")
    with pytest.raises(NameWaitTimeoutError):
        reader.wait("lease", 0)
    heirs = [places.open(place) for place in (0, 1, 0, 1)]
    eventually(lambda: [is_absent(heir, "lease") for heir in heirs] == [True] * 4)
    outcomes: list[str] = []

    def inherit(heir: NameResolver, value: str) -> None:
        try:
            heir.add("lease", value, keepalive_ttl=10 * places.ttl_s)
        except NameEntryExistsError:
            return
        outcomes.append(value)

    with running(*(lambda heir=heir, i=i: inherit(heir, f"heir {i}") for i, heir in enumerate(heirs))):
        pass
    assert len(outcomes) == 1
    assert [resolver.get("lease") for resolver in (reader, *heirs)] == outcomes * 5
    assert watch.error is None


@contract
def keep_alive_resurrects_nothing_and_overwrites_nobody(places: Places) -> None:
    owner, other = places.open(0), places.open(1)
    for name in ("deleted", "replaced", "deleted and added"):
        owner.add(name, "owner's", keepalive_ttl=places.ttl_s)
    other.delete("deleted")
    other.add("replaced", "other's", replace=True)
    other.delete("deleted and added")
    other.add("deleted and added", "other's")
    time.sleep(places.ttl_s)  # two signs of life
    assert is_absent(owner, "deleted") and is_absent(other, "deleted")
    assert owner.get("replaced") == owner.get("deleted and added") == "other's"


@contract
def watch_calls_back_once_for_each_vanished_name(places: Places) -> None:
    writer, reader = places.open(0), places.open(1)
    for name in ("a", "b", "c", "d"):
        writer.add(name, "1")
    vanished: list[str] = []
    watch = reader.watch_names(["a", "b", "c", "never there"], vanished.append, 0.02)
    eventually(lambda: vanished == ["never there"])
    writer.add("c", "2", replace=True)  # replaced is not vanished
    writer.delete("b")
    eventually(lambda: vanished == ["never there", "b"])
    writer.add("b", "2")
    writer.delete("b")
    writer.delete("a")
    eventually(lambda: vanished == ["never there", "b", "a"])
    assert watch.names == {"c"}
    watch.check()
    watch.close()
    again: list[str] = []
    reader.watch_names(["c", "d"], again.append, 0.02)
    writer.delete("c")
    eventually(lambda: again == ["c"])
    assert vanished == ["never there", "b", "a"]  # the closed watch stayed silent


@contract
def watch_survives_and_reports_a_callback_that_raises(places: Places) -> None:
    writer, reader = places.open(0), places.open(1)
    writer.add("a", "1")
    writer.add("b", "1")
    vanished: list[str] = []

    def fail_once(name: str) -> None:
        vanished.append(name)
        if name == "a":
            raise RuntimeError("the callback is broken")

    watch = reader.watch_names(["a", "b"], fail_once, 0.02)
    writer.delete("a")
    eventually(lambda: watch.error is not None)
    with pytest.raises(NameResolveError, match="the callback is broken"):
        watch.check()
    writer.delete("b")
    eventually(lambda: vanished == ["a", "b"])


@contract
def neighbours_do_not_disturb_each_other(places: Places) -> None:
    """Adding and deleting siblings at the same time: every operation on one's own name succeeds."""

    def churn(resolver: NameResolver, name: str) -> int:
        for round_ in range(30):
            resolver.add(name, str(round_))
            assert resolver.get(name) == str(round_)
            resolver.delete(name)
        return 30

    names = ("parent/a", "parent/b", "parent", "parent/b/c")
    with running(
        *(lambda i=i, name=name: churn(places.open(i % 2), name) for i, name in enumerate(names))
    ) as rounds:
        pass
    assert rounds == [30] * len(names)
    assert places.open(0).find_subtree("parent") == []


@contract
def one_winner_among_threads(places: Places) -> None:
    resolvers = [places.open(place) for place in (0, 1, 0, 1)]
    start = threading.Barrier(len(resolvers))

    def race(resolver: NameResolver) -> list[int]:
        start.wait(PATIENCE_S)
        won = []
        for key in range(20):
            try:
                resolver.add(f"race/{key}", "mine")
            except NameEntryExistsError:
                continue
            won.append(key)
        return won

    with running(*(lambda resolver=resolver: race(resolver) for resolver in resolvers)) as wins:
        pass
    assert sorted(key for won in wins for key in won) == list(range(20))
