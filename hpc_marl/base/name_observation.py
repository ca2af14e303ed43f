"""How this process looks at a names directory: one shared listing, and its own judgement of who is alive."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpc_marl.base.directory_notice import DirectoryNotice
from hpc_marl.base.name_entry_files import Entry, EntryFiles


class SharedListing:
    """Lists one directory for all threads that wait for something in it, at the pace of the most impatient
    one.

    Each waiting thread asks for a listing later than the one it has seen. Whose turn comes first does the
    work, and all others that wait are served by it, so that hundreds of waits cost one `scandir` per tick. A change
    that the kernel notices is listed at once.
    """

    def __init__(self, files: EntryFiles) -> None:
        self._files = files
        self._changed = threading.Condition()
        self._number = 0
        self._listing: frozenset[str] = frozenset()
        self._started_at = -float("inf")
        self._is_scanning = False
        self._is_listening = False
        self._awaited: list[str] = []
        self._notice: DirectoryNotice | None = None

    @contextmanager
    def waiting(self, file_name: str) -> Iterator[None]:
        """Surrounds the listings that one thread waits for, until this entry is there: the kernel may give notice."""
        with self._changed:
            self._awaited.append(file_name)
            if self._notice is None:
                self._notice = DirectoryNotice(self._files.path)
        try:
            yield
        finally:
            with self._changed:
                self._awaited.remove(file_name)
                if not self._awaited and self._notice is not None:
                    self._notice.close()
                    self._notice = None

    def newest(self) -> int:
        """Number of the newest listing so far."""
        with self._changed:
            return self._number

    def later_than(
        self, number: int, interval_s: float, timeout_s: float
    ) -> tuple[int, frozenset[str]] | None:
        """The next listing after `number`, with its number; None after `timeout_s`. To be called inside `waiting`.

        Args:
            number: of the listing last seen.
            interval_s: seconds after the start of the last listing at which this thread wants another.
            timeout_s: longest time to wait.

        Raises:
            NameResolveError: the directory cannot be listed.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._number <= number:
                now = time.monotonic()
                due = self._started_at + interval_s
                if now >= deadline:
                    return None
                if not self._is_scanning and now >= due:
                    self._is_scanning = True
                    self._started_at = now
                    break
                if self._is_scanning:
                    self._changed.wait(deadline - now)
                elif self._is_listening:
                    self._changed.wait(min(due, deadline) - now)
                else:
                    self._listen(min(due, deadline) - now)
            else:
                return self._number, self._listing
        return self._scan()

    def _listen(self, timeout_s: float) -> None:
        """Wait, for all threads, until the kernel says that awaited names have come; the next listing is due then."""
        notice = self._notice
        assert notice is not None, "waiting() comes first"
        self._is_listening = True
        self._changed.release()
        try:
            has_changed = notice.wait(timeout_s, self._awaited)  # those that come meanwhile count too
        finally:
            self._changed.acquire()
            self._is_listening = False
            self._changed.notify_all()
        if has_changed:
            self._started_at = -float("inf")

    def _scan(self) -> tuple[int, frozenset[str]]:
        listing = None
        try:
            listing = self._files.listing()
        finally:
            with self._changed:
                self._is_scanning = False
                if listing is not None:
                    self._number += 1
                    self._listing = listing
                number = self._number
                self._changed.notify_all()
        return number, listing


class _Registry:
    """The shared listings of this process, by directory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listings: dict[Path, SharedListing] = {}

    def of(self, files: EntryFiles) -> SharedListing:
        with self._lock:
            return self._listings.setdefault(files.path.resolve(), SharedListing(files))


shared_listings = _Registry()


class Liveness:
    """Judges from its own observations whether the owner of an entry with a time to live is alive.

    Clocks of two hosts may differ by seconds, and the times of files mix theirs with the server's. So the
    only clock used is this process's monotonic one, and the only evidence is a counter that the owner keeps
    changing: an owner is dead when the counter was not seen to change for `ttl_s`. The price is that at first
    sight nothing is known: an entry whose owner died long ago counts as alive until it has been observed for
    `ttl_s`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[str, int, float]] = {}

    def is_alive(self, file_name: str, entry: Entry, looked_at: float) -> bool:
        """Judge an entry that was read just now.

        Args:
            file_name: where the entry was found.
            entry: what was found.
            looked_at: monotonic time at which the look that found it began.
        """
        if entry.ttl_s is None:
            self.forget(file_name)
            return True
        now = time.monotonic()
        # A file system that hangs (a server that reboots) silences the owner just as it holds up this look:
        # then the silence proves nothing, and the observation starts again.
        is_stuck = now - looked_at > entry.ttl_s / 3
        with self._lock:
            nonce, counter, since = self._seen.get(file_name, ("", 0, now))
            if is_stuck or (nonce, counter) != (entry.nonce, entry.counter):
                since = now
            self._seen[file_name] = (entry.nonce, entry.counter, since)
        return looked_at - since < entry.ttl_s

    def forget(self, file_name: str) -> None:
        """There is no such entry any more."""
        with self._lock:
            self._seen.pop(file_name, None)
