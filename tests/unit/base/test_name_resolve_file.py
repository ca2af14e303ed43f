"""The file backend under what a network file system and dying processes do to it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_marl.base import name_entry_files, name_observation
from hpc_marl.base.directory_notice import DirectoryNotice
from hpc_marl.base.mounts import mount_of
from hpc_marl.base.name_entry_files import (
    Entry,
    EntryFiles,
    decode_entry,
    encode_entry,
    file_name_of,
    name_of,
)
from hpc_marl.base.name_observation import Liveness, shared_listings
from hpc_marl.base.name_resolve_file import FileNameResolver
from hpc_marl.errors import (
    NameEntryExistsError,
    NameEntryNotFoundError,
    NameResolveError,
    SecurityError,
)
from tests.unit.base.name_resolve_contract import PATIENCE_S, eventually, is_absent

RACER = Path(__file__).with_name("name_racer.py")


@pytest.fixture
def resolver(tmp_path: Path) -> Iterator[FileNameResolver]:
    with FileNameResolver(tmp_path / "names") as resolver:
        yield resolver


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_eight_processes_race_for_500_names(tmp_path: Path) -> None:
    directory = tmp_path / "names"
    num_racers, num_names = 8, 500
    racers = [
        subprocess.Popen(
            [sys.executable, RACER, directory, str(racer), str(num_racers), str(num_names)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for racer in range(num_racers)
    ]
    won = {racer: process.communicate(timeout=60)[0].split() for racer, process in enumerate(racers)}
    assert sorted(int(number) for numbers in won.values() for number in numbers) == list(range(num_names))
    with FileNameResolver(directory) as resolver:
        for racer, numbers in won.items():
            assert {resolver.get(f"race/{number}") for number in numbers} <= {str(racer)}
    assert [item.name for item in directory.iterdir() if item.name.startswith(".")] == []


def test_files_are_flat_private_and_escaped(resolver: FileNameResolver) -> None:
    resolver.add("exp/trial/worker/actor/3", "value")
    (file,) = resolver.directory.iterdir()
    assert file.name == "exp%2Ftrial%2Fworker%2Factor%2F3"
    assert file.stat().st_mode & 0o777 == 0o400
    assert resolver.directory.stat().st_mode & 0o777 == 0o700
    assert name_of(file_name_of("..a/b%2F c")) == "..a/b%2F c"
    with pytest.raises(NameResolveError, match="shorter"):
        resolver.add("long/" * 60 + "name", "value")


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(SecurityError, match="chmod"):
        FileNameResolver(tmp_path)


def test_entries_decode_to_what_was_encoded_and_halves_do_not() -> None:
    for entry in (Entry("a\n b", "nonce", None, 7, "host:1"), Entry("", "nonce", 0.5, 0, "my host:1")):
        data = encode_entry(entry)
        assert decode_entry(data) == entry
        for broken in (b"", data[:-1], data[:30], data + b"x", data.replace(b"nonce", b"Nonce")):
            with pytest.raises(ValueError):
                decode_entry(broken)


def test_a_reader_waits_for_a_garbled_entry_to_become_whole(
    resolver: FileNameResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode_entry(Entry("whole", "nonce", None, 0, "host:1"))
    late, junk = resolver.directory / "late", resolver.directory / "junk"
    late.write_bytes(data[:-1])
    junk.write_text("no entry at all")
    pauses: list[float] = []

    def complete_the_entry_meanwhile(pause_s: float) -> None:
        pauses.append(pause_s)
        late.write_bytes(data)

    monkeypatch.setattr(name_entry_files.time, "sleep", complete_the_entry_meanwhile)
    assert resolver.get("late") == "whole"
    assert len(pauses) == 1
    with pytest.raises(NameResolveError, match="junk is not a name entry"):
        resolver.get("junk")


def test_stale_handles_are_tried_again(resolver: FileNameResolver, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver.add("key", "value")
    real_open = os.open
    failures = [OSError(errno.ESTALE, "stale"), OSError(errno.ESTALE, "stale"), FileNotFoundError()]

    def stale_open(path: object, *arguments: int, **keywords: int) -> int:
        if path == "key" and failures:
            raise failures.pop()
        return real_open(path, *arguments, **keywords)  # type: ignore[call-overload]

    monkeypatch.setattr(name_entry_files.os, "open", stale_open)
    assert resolver.get("key") == "value"
    assert failures == []
    failures = [OSError(errno.ESTALE, "stale"), OSError(errno.ESTALE, "stale")]
    real_scandir = os.scandir

    def stale_scandir(path: Path) -> object:
        if failures:
            raise failures.pop()
        return real_scandir(path)

    monkeypatch.setattr(name_entry_files.os, "scandir", stale_scandir)
    assert resolver.find_subtree("key") == ["key"]
    assert failures == []


def test_a_link_whose_answer_was_lost_counts(
    resolver: FileNameResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_link, real_replace = os.link, Path.replace

    def link_and_lose_the_answer(source: Path, target: Path) -> None:
        real_link(source, target)
        raise FileExistsError(errno.EEXIST, "the repeated request found the link")

    def replace_and_lose_the_answer(source: Path, target: Path) -> None:
        real_replace(source, target)
        raise FileNotFoundError(errno.ENOENT, "the repeated request found nothing to rename")

    monkeypatch.setattr(name_entry_files.os, "link", link_and_lose_the_answer)
    monkeypatch.setattr(Path, "replace", replace_and_lose_the_answer)
    resolver.add("linked", "1")
    resolver.add("renamed", "2", replace=True)
    assert resolver.get("linked") == "1"
    assert resolver.get("renamed") == "2"
    with pytest.raises(NameEntryExistsError):
        resolver.add("linked", "3")


def test_closing_puts_back_a_successor_that_came_in_between(tmp_path: Path) -> None:
    owner, successor = FileNameResolver(tmp_path / "names"), FileNameResolver(tmp_path / "names")
    owner.add("key", "old")
    files = owner._files
    real_read = files.read

    def read_then_lose_the_race(file_name: str) -> Entry | None:
        entry = real_read(file_name)
        files.read = real_read  # type: ignore[method-assign]
        successor.add("key", "new", replace=True)
        return entry

    files.read = read_then_lose_the_race  # type: ignore[method-assign]
    owner.close()
    assert successor.get("key") == "new"
    assert [item.name for item in owner.directory.iterdir()] == ["key"]
    successor.close()


def test_an_heir_that_died_half_way_does_not_block_the_name(resolver: FileNameResolver) -> None:
    dead = Entry("dead", "nonce-of-the-dead", 0.05, 0, "host:1")
    (resolver.directory / "lease").write_bytes(encode_entry(dead))
    half = resolver.directory / ".heir.nonce-of-the-dead"
    half.write_bytes(encode_entry(Entry("half way", "nonce-of-the-heir", 0.05, 0, "host:2")))
    eventually(lambda: is_absent(resolver, "lease"))

    def can_add() -> bool:
        try:
            resolver.add("lease", "alive", keepalive_ttl=PATIENCE_S)
        except NameEntryExistsError:
            return False
        return True

    eventually(can_add)
    assert resolver.get("lease") == "alive"
    assert not half.exists()


def test_who_is_late_cannot_take_over_from_an_heir(tmp_path: Path) -> None:
    """It read the dead entry, then another took over completely, and only now it claims the succession."""
    files = EntryFiles(tmp_path)
    dead, heir, late = (
        Entry(value, f"nonce-{value}", 1.0, 0, "host:1") for value in ("dead", "heir", "late")
    )
    assert files.link(files.write_temporary(dead), "lease")
    assert files.take_over(files.write_temporary(heir), "lease", dead, heir.nonce)
    assert not files.take_over(files.write_temporary(late), "lease", dead, late.nonce)
    assert files.read("lease") == heir
    assert files.unlink("lease")
    assert files.take_over(files.write_temporary(late), "lease", dead, late.nonce)  # the name was free
    assert files.read("lease") == late


def test_liveness_needs_evidence_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(name_observation.time, "monotonic", lambda: now)

    def is_alive(counter: int, looked_at: float) -> bool:
        return liveness.is_alive("lease", Entry("", "nonce", 9.0, counter, ""), looked_at)

    liveness = Liveness()
    assert is_alive(5, now)  # first sight: the counter may have stood still for a year, nobody knows
    now += 8.9
    assert is_alive(5, now)
    now += 0.2
    assert not is_alive(5, now)
    assert is_alive(6, now)
    now += 20.0
    assert is_alive(6, now - 4.0)  # the look itself hung for 4 s, as the owner's signs of life may have
    now += 9.1
    assert not is_alive(6, now)


def test_a_killed_owner_expires(resolver: FileNameResolver) -> None:
    code = (
        "import os, signal, sys; from hpc_marl.base.name_resolve_file import FileNameResolver as R;"
        "R(sys.argv[1]).add('lease', 'v', keepalive_ttl=0.2); os.kill(os.getpid(), signal.SIGKILL)"
    )
    run_python(code, resolver.directory)
    assert resolver.get("lease") == "v"
    eventually(lambda: is_absent(resolver, "lease"))


def test_entries_end_with_the_process_that_made_them_and_not_with_its_forks(tmp_path: Path) -> None:
    code = (
        "import os, sys; from hpc_marl.base.name_resolve_file import FileNameResolver as R\n"
        "resolver = R(sys.argv[1])\n"
        "resolver.add('made by the parent', 'v')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    resolver.add('made by the child', 'v')\n"
        "    resolver.close()\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print(resolver.find_subtree('made by the parent'), resolver.find_subtree('made by the child'))\n"
    )
    result = run_python(code, tmp_path / "names")
    assert (result.stdout, result.stderr) == ("['made by the parent'] []\n", "")
    assert list((tmp_path / "names").iterdir()) == []  # gone at interpreter exit


def test_all_waits_share_one_listing_per_tick(
    resolver: FileNameResolver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings: list[float] = []
    real_listing = EntryFiles.listing

    def counted(files: EntryFiles) -> frozenset[str]:
        listings.append(time.monotonic())
        return real_listing(files)

    monkeypatch.setattr(EntryFiles, "listing", counted)
    others = [FileNameResolver(tmp_path / "names") for _ in range(2)]
    num_waits = 40
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(others[i % 2].wait(f"late/{i}", PATIENCE_S)))
        for i in range(num_waits)
    ]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    eventually(lambda: len(listings) >= 5)
    for i in range(num_waits):
        resolver.add(f"late/{i}", str(i))
    for thread in threads:
        thread.join(PATIENCE_S)
    elapsed_s = time.monotonic() - started
    assert sorted(found) == sorted(map(str, range(num_waits)))
    # One per tick, and one for each awaited name that the kernel gives notice of.
    assert len(listings) <= elapsed_s / (0.05 * 0.75) + 1 + num_waits
    for other in others:
        other.close()


def test_a_name_is_seen_without_waiting_for_the_next_look(
    resolver: FileNameResolver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says when it is there; without that, the wait would take an hour."""
    monkeypatch.setattr("hpc_marl.base.name_resolve_file._FIRST_INTERVAL_S", 3600.0)
    other = FileNameResolver(tmp_path / "names")
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(other.wait("late", PATIENCE_S)))
    thread.start()
    listing = shared_listings.of(other._files)
    eventually(lambda: listing._is_listening)
    for i in range(20):
        resolver.add(f"nobody/waits/{i}", "")
    resolver.add("late", "here")
    thread.join(PATIENCE_S)
    assert found == ["here"]
    assert listing._notice is None
    other.close()


def test_where_the_kernel_gives_no_notice_waits_look_by_themselves(
    resolver: FileNameResolver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DirectoryNotice, "take", lambda self: set())
    other = FileNameResolver(tmp_path / "names")
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(other.wait("late", PATIENCE_S)))
    thread.start()
    resolver.add("late", "here")
    thread.join(PATIENCE_S)
    assert found == ["here"]
    other.close()


def test_items_are_read_once_and_again_when_they_are_replaced(
    resolver: FileNameResolver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    real_read = EntryFiles.read

    def counted(files: EntryFiles, file_name: str) -> Entry | None:
        reads.append(name_of(file_name))
        return real_read(files, file_name)

    for name in ("a", "a/b", "a/c", "ab"):
        resolver.add(name, f"value of {name}")
    resolver.add("a/mortal", "lives", keepalive_ttl=60.0)
    monkeypatch.setattr(EntryFiles, "read", counted)
    first = resolver.get_items("a")
    assert first == {name: f"value of {name}" for name in ("a", "a/b", "a/c")} | {"a/mortal": "lives"}
    assert list(first) == resolver.find_subtree("a")
    reads.clear()
    assert resolver.get_items("a") == first
    assert reads == ["a/mortal"], "only what may have expired"
    with FileNameResolver(tmp_path / "names") as other:
        other.add("a/b", "new", replace=True)
        other.delete("a/c")
        assert resolver.get_items("a") == {"a": "value of a", "a/b": "new", "a/mortal": "lives"}
    assert resolver.get_subtree("a") == ["value of a", "lives"], "deleted when its owner closed"


def test_trouble_with_the_directory_is_told_and_survived(
    resolver: FileNameResolver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resolver.add("key", "value", keepalive_ttl=0.06)
    vanished: list[str] = []
    watch = resolver.watch_names(["key"], vanished.append, 0.01)
    away = tmp_path / "away"
    resolver.directory.rename(away)
    eventually(lambda: watch.error is not None)
    eventually(lambda: "cannot keep" in caplog.text or "names directory" in caplog.text)
    with pytest.raises(NameResolveError, match="names directory"):
        watch.check()
    for use in (resolver.get, resolver.find_subtree, resolver.delete, lambda name: resolver.wait(name, 1)):
        with pytest.raises(NameResolveError, match="names directory"):
            use("key")
    assert vanished == []
    away.rename(resolver.directory)
    resolver.delete("key")
    eventually(lambda: vanished == ["key"])


def test_working_files_are_no_entries(resolver: FileNameResolver) -> None:
    (resolver.directory / ".nfs000001").write_text("silly rename")
    (resolver.directory / ".tmp.host.1.x").write_text("a writer died")
    resolver.add("key", "value")
    assert resolver.find_subtree("key") == ["key"]
    assert resolver._files.listing() == {"key"}
    with pytest.raises(NameEntryNotFoundError):
        resolver.get(".nfs000001")


def test_mount_of_names_the_innermost_mount() -> None:
    assert mount_of(Path("/proc/self"))[0] == "proc"
    assert mount_of(Path("/"))[0] != "unknown"
