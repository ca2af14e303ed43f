"""The name service of one process: for tests, and for workers that run as threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hpc_marl.base.name_resolve import NameResolver, check_name, check_ttl, check_value, is_in_subtree
from hpc_marl.base.name_watch import NameWatch, NameWatcher
from hpc_marl.errors import (
    NameEntryExistsError,
    NameEntryNotFoundError,
    NameResolveError,
    NameWaitTimeoutError,
)


@dataclass
class _Entry:
    value: str
    owner: MemoryNameResolver
    keepalive_ttl: float | None
    delete_on_exit: bool
    # Set when the owner closes: inside one process an owner cannot vanish in any other way, so nothing needs
    # to beat.
    expires_at: float | None = None


@dataclass
class MemoryNameStore:
    """The entries that several `MemoryNameResolver` share."""

    entries: dict[str, _Entry] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def live(self, name: str) -> _Entry | None:
        """The entry if it exists and has not expired; call with `changed` held."""
        entry = self.entries.get(name)
        if entry is None or entry.expires_at is None or time.monotonic() < entry.expires_at:
            return entry
        return None


class MemoryNameResolver(NameResolver):
    """Keeps the entries in a dictionary.

    Args:
        store: shared with other resolvers of this process; None for a store of its own.
    """

    def __init__(self, store: MemoryNameStore | None = None) -> None:
        self._store = store or MemoryNameStore()
        self._pid = os.getpid()
        self._closed = False
        self._watcher = NameWatcher(self._present)

    def add(
        self,
        name: str,
        value: str,
        keepalive_ttl: float | None = None,
        replace: bool = False,
        delete_on_exit: bool = True,
    ) -> None:
        """See `NameResolver.add`."""
        check_name(name)
        check_value(value)
        check_ttl(keepalive_ttl)
        with self._store.changed:
            if self._closed:
                raise NameResolveError("this name resolver is closed")
            if not replace and self._store.live(name) is not None:
                raise NameEntryExistsError(
                    f"the name {name!r} is taken; delete it first, or add with replace=True"
                )
            self._store.entries[name] = _Entry(value, self, keepalive_ttl, delete_on_exit)
            self._store.changed.notify_all()

    def get(self, name: str) -> str:
        """See `NameResolver.get`."""
        check_name(name)
        with self._store.changed:
            entry = self._store.live(name)
        if entry is None:
            raise NameEntryNotFoundError(f"there is no name {name!r}")
        return entry.value

    def wait(self, name: str, timeout: float | None = None) -> str:
        """See `NameResolver.wait`."""
        check_name(name)
        with self._store.changed:
            if not self._store.changed.wait_for(lambda: self._store.live(name) is not None, timeout):
                raise NameWaitTimeoutError(
                    f"the name {name!r} did not appear within {timeout} s; present: "
                    f"{sorted(self._store.entries)[:5] or 'nothing'}"
                )
            return self._store.entries[name].value

    def delete(self, name: str) -> None:
        """See `NameResolver.delete`."""
        check_name(name)
        with self._store.changed:
            if self._store.live(name) is None:
                raise NameEntryNotFoundError(f"there is no name {name!r} to delete")
            del self._store.entries[name]

    def find_subtree(self, name_root: str) -> list[str]:
        """See `NameResolver.find_subtree`."""
        return [name for name, _ in self._subtree(name_root)]

    def get_subtree(self, name_root: str) -> list[str]:
        """See `NameResolver.get_subtree`."""
        return [value for _, value in self._subtree(name_root)]

    def get_items(self, name_root: str) -> dict[str, str]:
        """See `NameResolver.get_items`."""
        return dict(self._subtree(name_root))

    @property
    def look_interval_s(self) -> float:
        """See `NameResolver.look_interval_s`."""
        return 0.01

    def clear_subtree(self, name_root: str) -> None:
        """See `NameResolver.clear_subtree`."""
        check_name(name_root)
        with self._store.changed:
            for name in [name for name in self._store.entries if is_in_subtree(name, name_root)]:
                del self._store.entries[name]

    def watch_names(
        self, names: Sequence[str], callback: Callable[[str], None], poll_interval_s: float = 1.0
    ) -> NameWatch:
        """See `NameResolver.watch_names`."""
        return self._watcher.watch([check_name(name) for name in names], callback, poll_interval_s)

    def close(self) -> None:
        """See `NameResolver.close`."""
        self._watcher.close()
        with self._store.changed:
            if self._closed or self._pid != os.getpid():
                return
            self._closed = True
            for name, entry in list(self._store.entries.items()):
                if entry.owner is self and entry.delete_on_exit:
                    del self._store.entries[name]
                elif entry.owner is self and entry.keepalive_ttl is not None:
                    entry.expires_at = time.monotonic() + entry.keepalive_ttl

    def _subtree(self, name_root: str) -> list[tuple[str, str]]:
        check_name(name_root)
        with self._store.changed:
            found = [name for name in self._store.entries if is_in_subtree(name, name_root)]
            live = [(name, entry.value) for name in found if (entry := self._store.live(name)) is not None]
        return sorted(live)

    def _present(self, names: frozenset[str]) -> frozenset[str]:
        with self._store.changed:
            return frozenset(name for name in names if self._store.live(name) is not None)
