"""DirectoryNotice: the kernel says when names in a directory change, where a machine's own kernel makes the changes.

What other machines do in a directory of a network file system is not noticed, and on every kernel the number of notices
is limited: a notice only makes waiting shorter, and whoever waits for one also looks by himself now and then.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import time
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

_IN_CREATE, _IN_MOVED_TO, _IN_DELETE, _IN_Q_OVERFLOW = 0x100, 0x80, 0x200, 0x4000
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, bytes of the name that follows; see inotify(7)
_BUFFER_BYTES = 1 << 16
_IN_NONBLOCK, _IN_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC


class DirectoryNotice:
    """Watches the names of one directory until closed.

    Attributes:
        descriptor: readable when names have changed since the last `take`; -1 where the kernel gives no notice.
    """

    def __init__(self, path: Path) -> None:
        libc = _libc()
        self.descriptor = libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        events = _IN_CREATE | _IN_MOVED_TO | _IN_DELETE
        if self.descriptor >= 0 and libc.inotify_add_watch(self.descriptor, os.fsencode(path), events) < 0:
            self.close()

    def wait(self, timeout_s: float, names: Collection[str]) -> bool:
        """Wait until one of these names may have changed; return whether it has. Without notices, it takes the time."""
        deadline = time.monotonic() + timeout_s
        watched = select.poll()  # select() knows no descriptor above 1023
        if self.descriptor >= 0:
            watched.register(self.descriptor, select.POLLIN)
        while (left_s := deadline - time.monotonic()) > 0:
            watched.poll(int(1000 * left_s) + 1)
            changed = self.take()
            if changed is None or not changed.isdisjoint(names):
                return True
        return False

    def take(self) -> set[str] | None:
        """Return the names that have changed since the last call; None: there were more than the kernel remembers."""
        if self.descriptor < 0:
            return set()
        try:
            content = os.read(self.descriptor, _BUFFER_BYTES)
        except BlockingIOError:
            return set()
        names, position = set(), 0
        while position < len(content):
            _, mask, _, num_bytes = _EVENT.unpack_from(content, position)
            if mask & _IN_Q_OVERFLOW:
                return None
            position += _EVENT.size + num_bytes
            names.add(os.fsdecode(content[position - num_bytes : position].rstrip(b"\0")))
        return names

    def close(self) -> None:
        """Watch no longer. Can be repeated."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
