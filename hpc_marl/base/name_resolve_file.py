"""The name service of a cluster: files in one flat directory of a shared file system, correct on NFS.

    add      working file, fsync, link() (exclusive) or rename() (replace)
    get      open the directory, open the file
    wait     one scandir per tick for all waits of the process: 50 ms at first, 0.9 s at last, and when the kernel
             gives notice of a change on a file system of this machine
    items    one scandir; only files that are new, or may have expired, are opened
    live     the owner changes a counter inside its entry every ttl/3; each reader judges by its own clock

It uses link, rename and scandir only, no locks, so it works as well on Lustre, GPFS and BeeGFS.
"""

from __future__ import annotations

import atexit
import difflib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_marl.base.mounts import mount_of
from hpc_marl.base.name_entry_files import (
    Entry,
    EntryFiles,
    Stamp,
    file_name_of,
    name_of,
    new_entry,
)
from hpc_marl.base.name_observation import Liveness, shared_listings
from hpc_marl.base.name_resolve import NameResolver, check_name, check_ttl, check_value
from hpc_marl.base.name_watch import NameWatch, NameWatcher
from hpc_marl.base.permissions import check_private_directory
from hpc_marl.errors import (
    NameEntryExistsError,
    NameEntryNotFoundError,
    NameResolveError,
    NameWaitTimeoutError,
)

logger = logging.getLogger(__name__)

_FIRST_INTERVAL_S = 0.05
_INTERVAL_GROWTH = 1.5
_LAST_INTERVAL_S = 0.9  # a name must be seen within 1 s
_LOCAL_INTERVAL_S = 0.02
_MAX_STALE_READS = 1000
_REREAD_S = 30.0  # how often a watched entry without a time to live is opened although it is still listed
_ADD_ATTEMPTS = 20


@dataclass
class _Own:
    """An entry that this resolver has added."""

    file_name: str
    nonce: str
    delete_on_exit: bool
    ttl_s: float | None
    pid: int
    counter: int = 0
    next_beat: float = 0.0


class FileNameResolver(NameResolver):
    """Keeps each entry in a file of `directory`.

    Args:
        directory: created with mode 0700 if missing; all processes of the trial name the same one.

    Raises:
        SecurityError: somebody else could write to the directory.
        NameResolveError: it cannot be made or used.
    """

    def __init__(self, directory: str | Path) -> None:
        self._files = EntryFiles(_private_directory(Path(directory)))
        self._listing = shared_listings.of(self._files)
        self._liveness = Liveness()
        self._claims = Liveness()
        self._reread_at: dict[str, float] = {}
        self._read: dict[
            str, tuple[Stamp, str]
        ] = {}  # file name -> what was read of an entry that cannot expire
        self._pid = os.getpid()
        self._own: dict[str, _Own] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._keeper: threading.Thread | None = None
        self._watcher = NameWatcher(self._present)
        atexit.register(self.close)

    @property
    def directory(self) -> Path:
        """Where the entries are."""
        return self._files.path

    def add(
        self,
        name: str,
        value: str,
        keepalive_ttl: float | None = None,
        replace: bool = False,
        delete_on_exit: bool = True,
    ) -> None:
        """See `NameResolver.add`."""
        file_name = file_name_of(check_name(name))
        check_value(value)
        check_ttl(keepalive_ttl)
        self._check_open()
        if not replace and self._look(file_name) is not None:
            raise self._exists(name, file_name)  # most losers need not write anything
        entry = new_entry(value, keepalive_ttl)
        temporary = self._files.write_temporary(entry)
        try:
            if replace:
                self._files.replace(temporary, file_name, entry.nonce)
            elif not self._add_exclusively(temporary, file_name, entry.nonce):
                raise self._exists(name, file_name)
        finally:
            self._files.remove_temporary(temporary)
        self._keep(_Own(file_name, entry.nonce, delete_on_exit, keepalive_ttl, os.getpid()))
        self._files.settle()

    def get(self, name: str) -> str:
        """See `NameResolver.get`."""
        entry = self._look(file_name_of(check_name(name)))
        if entry is None:
            raise NameEntryNotFoundError(f"there is no name {name!r} in {self.directory}")
        return entry.value

    def wait(self, name: str, timeout: float | None = None) -> str:
        """See `NameResolver.wait`."""
        file_name = file_name_of(check_name(name))
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        entry = self._look(file_name)
        if entry is not None:
            return entry.value
        with self._listing.waiting(file_name):
            entry = self._wait(file_name, deadline)
        if entry is None:
            raise NameWaitTimeoutError(self._what_was_there(name, timeout))
        return entry.value

    def _wait(self, file_name: str, deadline: float) -> Entry | None:
        """The entry as soon as it is there; None after the deadline."""
        interval_s = _FIRST_INTERVAL_S
        number = self._listing.newest()
        entry = self._look(file_name)
        while entry is None:
            # the jitter keeps a thousand workers that were started together from asking the server in step
            jittered_s = interval_s * random.uniform(0.75, 1.0)
            left_s = min(deadline - time.monotonic(), threading.TIMEOUT_MAX)
            listed = self._listing.later_than(number, jittered_s, left_s)
            if listed is None:
                return None
            number, names = listed
            if file_name in names:
                entry = self._look(file_name)
            interval_s = min(interval_s * _INTERVAL_GROWTH, _LAST_INTERVAL_S)
        return entry

    def delete(self, name: str) -> None:
        """See `NameResolver.delete`."""
        file_name = file_name_of(check_name(name))
        if self._look(file_name) is None or not self._files.unlink(file_name):
            raise NameEntryNotFoundError(f"there is no name {name!r} to delete in {self.directory}")
        self._disown(file_name)
        self._files.settle()

    def find_subtree(self, name_root: str) -> list[str]:
        """See `NameResolver.find_subtree`."""
        found = self._stamped_subtree(name_root)
        return [
            name
            for name, (file_name, stamp) in found.items()
            if not stamp.can_expire or self._look(file_name) is not None
        ]

    def get_subtree(self, name_root: str) -> list[str]:
        """See `NameResolver.get_subtree`."""
        return list(self.get_items(name_root).values())

    def get_items(self, name_root: str) -> dict[str, str]:
        """See `NameResolver.get_items`."""
        found: dict[str, str] = {}
        for name, (file_name, stamp) in self._stamped_subtree(name_root).items():
            known = self._read.get(file_name)
            if known is not None and known[0] == stamp and not stamp.can_expire:
                found[name] = known[1]
            elif (entry := self._look(file_name)) is not None:
                found[name] = entry.value
                self._read[file_name] = stamp, entry.value
        if len(self._read) > 2 * len(found) + _MAX_STALE_READS:
            self._read.clear()
        return found

    @property
    def look_interval_s(self) -> float:
        """See `NameResolver.look_interval_s`."""
        return _LOCAL_INTERVAL_S if self._files.is_local else super().look_interval_s

    def clear_subtree(self, name_root: str) -> None:
        """See `NameResolver.clear_subtree`."""
        for name in self._stamped_subtree(name_root):
            self._files.unlink(file_name_of(name))
            self._disown(file_name_of(name))
        self._files.settle()

    def watch_names(
        self, names: Sequence[str], callback: Callable[[str], None], poll_interval_s: float = 1.0
    ) -> NameWatch:
        """See `NameResolver.watch_names`."""
        for name in names:
            file_name_of(check_name(name))
        return self._watcher.watch(names, callback, poll_interval_s)

    def close(self) -> None:
        """See `NameResolver.close`. Runs at interpreter exit if it was not called before."""
        self._watcher.close()
        with self._changed:
            self._closed = True
            own = [own for own in self._own.values() if own.delete_on_exit and own.pid == os.getpid()]
            self._own.clear()
            self._changed.notify_all()
        if self._keeper is not None and self._keeper is not threading.current_thread():
            self._keeper.join()
        for entry in own:
            try:
                self._files.unlink_if(entry.file_name, entry.nonce)
            except NameResolveError as error:
                logger.warning("the name %r stays behind: %s", name_of(entry.file_name), error)
        if own:
            self._files.settle()
        atexit.unregister(self.close)

    # Looking

    def _look(self, file_name: str, looked_at: float | None = None) -> Entry | None:
        """The entry if it exists and is alive."""
        if looked_at is None:
            looked_at = time.monotonic()
        entry = self._files.read(file_name)
        if entry is None:
            self._liveness.forget(file_name)
            return None
        return entry if self._liveness.is_alive(file_name, entry, looked_at) else None

    def _stamped_subtree(self, name_root: str) -> dict[str, tuple[str, Stamp]]:
        """The names below a root, sorted, with their files and what the directory says of these."""
        start = file_name_of(check_name(name_root))
        below = start + file_name_of("/")
        stamps = self._files.stamps(start, below)
        return {name: (file_name, stamps[file_name]) for name, file_name in sorted(map(_named, stamps))}

    def _present(self, names: frozenset[str]) -> frozenset[str]:
        """For the watcher: those of `names` that exist; opens only what may have expired meanwhile."""
        looked_at = time.monotonic()
        listed = self._files.listing()
        return frozenset(name for name in names if self._is_present(file_name_of(name), listed, looked_at))

    def _is_present(self, file_name: str, listed: frozenset[str], looked_at: float) -> bool:
        if file_name in listed and looked_at < self._reread_at.get(file_name, 0.0):
            return True
        # Opened even if it is not listed: a listing may miss a name that is just being replaced.
        entry = self._look(file_name, looked_at)
        if entry is None:
            self._reread_at.pop(file_name, None)
            return False
        self._reread_at[file_name] = looked_at + (_REREAD_S if entry.ttl_s is None else entry.ttl_s / 3)
        return True

    # Adding

    def _add_exclusively(self, temporary: Path, file_name: str, nonce: str) -> bool:
        for _ in range(_ADD_ATTEMPTS):
            looked_at = time.monotonic()
            found = self._files.read(file_name)
            if found is None:
                if self._files.link(temporary, file_name):
                    return True
            elif self._liveness.is_alive(file_name, found, looked_at):
                return False
            elif self._files.take_over(temporary, file_name, found, nonce):
                return True
            else:
                self._help_heir(file_name, found)
        return False

    def _help_heir(self, file_name: str, dead: Entry) -> None:
        """Finish the take-over of a dead entry that somebody else has begun, if it does not end by itself.

        Normally it takes a moment; if it is seen to take the entry's time to live, its process died inside.
        """
        stalled = Entry("", dead.nonce, dead.ttl_s, 0, "")
        if not self._claims.is_alive(dead.nonce, stalled, time.monotonic()):
            self._files.finish_take_over(file_name, dead)
        time.sleep(random.uniform(0.0, 0.01))

    def _exists(self, name: str, file_name: str) -> NameEntryExistsError:
        found = self._files.read(file_name)
        owner = "somebody else just now" if found is None else found.owner
        return NameEntryExistsError(
            f"the name {name!r} is taken by {owner} (in {self.directory}); "
            "delete it first, or add with replace=True"
        )

    def _keep(self, own: _Own) -> None:
        """Remember an entry as this resolver's own, and keep it alive if it wants to be."""
        with self._changed:
            is_closed = self._closed
            if not is_closed:
                self._own[own.file_name] = own
                if own.ttl_s is not None:
                    own.next_beat = time.monotonic() + own.ttl_s / 3
                    if (
                        self._keeper is None or not self._keeper.is_alive()
                    ):  # not alive: this is a fork of the process
                        self._keeper = threading.Thread(
                            target=self._keep_alive, name="name-keepalive", daemon=True
                        )
                        self._keeper.start()
                    self._changed.notify_all()
        if is_closed:
            self._files.unlink_if(own.file_name, own.nonce)
            self._check_open()

    def _disown(self, file_name: str) -> None:
        with self._changed:
            self._own.pop(file_name, None)

    def _check_open(self) -> None:
        if self._closed:
            raise NameResolveError("this name resolver is closed")

    # Keeping alive

    def _keep_alive(self) -> None:
        while (own := self._next_beat()) is not None:
            own.counter += 1
            try:
                is_ours = self._files.beat(own.file_name, own.nonce, own.counter)
                own.next_beat = time.monotonic() + (own.ttl_s or 0.0) / 3
            except NameResolveError as error:
                logger.warning("%s; trying again", error)
                own.next_beat = time.monotonic() + (own.ttl_s or 0.0) / 10
                continue
            if not is_ours:
                with self._changed:
                    was_ours = self._own.get(own.file_name) is own
                    if was_ours:
                        del self._own[own.file_name]
                if was_ours:
                    logger.warning(
                        "lost the name %r: deleted or replaced by somebody else", name_of(own.file_name)
                    )

    def _next_beat(self) -> _Own | None:
        """Sleep until an entry needs a sign of life and return it; None when closed."""
        with self._changed:
            while not self._closed:
                mortal = [
                    own for own in self._own.values() if own.ttl_s is not None and own.pid == os.getpid()
                ]
                first = min(mortal, key=lambda own: own.next_beat, default=None)
                now = time.monotonic()
                if first is not None and first.next_beat <= now:
                    return first
                self._changed.wait(None if first is None else first.next_beat - now)
        return None

    def _what_was_there(self, name: str, timeout: float | None) -> str:
        present = sorted(name_of(file_name) for file_name in self._files.listing())
        nearest = difflib.get_close_matches(name, present, n=5, cutoff=0.0)
        kind, options = mount_of(self.directory)
        return (
            f"the name {name!r} did not appear within {timeout} s in {self.directory} "
            f"(mounted as {kind}, {options}); {len(present)} names are there"
            f"{', nearest: ' if nearest else ''}{', '.join(nearest)}"
        )


def _named(file_name: str) -> tuple[str, str]:
    return name_of(file_name), file_name


def _private_directory(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NameResolveError(f"cannot use {path} as names directory: {error}") from error
    check_private_directory(path)
    return path
