"""Watching names: one thread per resolver calls back when a name is gone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from hpc_marl.errors import NameResolveError

logger = logging.getLogger(__name__)


class NameWatch:
    """Handle of one `watch_names` call.

    Attributes:
        error: the latest error of the callback or of looking, None if there was none.
    """

    def __init__(self, names: Sequence[str], callback: Callable[[str], None], poll_interval_s: float) -> None:
        self.error: Exception | None = None
        self._callback = callback
        self._poll_interval_s = poll_interval_s
        self._due = 0.0
        self._left = set(names)
        self._closed = threading.Event()

    @property
    def names(self) -> frozenset[str]:
        """The names that have not vanished yet."""
        return frozenset(self._left)

    def check(self) -> None:
        """Raise NameResolveError from `error` if there is one."""
        if self.error is not None:
            raise NameResolveError(f"watching names failed: {self.error}") from self.error

    def close(self) -> None:
        """Stop watching. A callback that is running is not waited for."""
        self._closed.set()

    def _is_done(self) -> bool:
        return self._closed.is_set() or not self._left

    def _vanished(self, name: str) -> None:
        self._left.discard(name)  # first, so that a callback that raises is not called again and again
        try:
            self._callback(name)
        except (
            Exception
        ) as error:  # the user's code in our thread: one bad callback must not end the other watches
            self.error = error
            logger.exception("the callback for the vanished name %r raised", name)

    def _cannot_look(self, error: NameResolveError) -> None:
        if self.error is None:
            logger.error("cannot look after the watched names %s, trying on: %s", sorted(self._left), error)
        self.error = error


class NameWatcher:
    """The thread behind all watches of one resolver; it starts with the first watch.

    Args:
        present: returns those of the given names that exist now; raises NameResolveError if it cannot tell.
    """

    def __init__(self, present: Callable[[frozenset[str]], frozenset[str]]) -> None:
        self._present = present
        self._watches: list[NameWatch] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def watch(
        self, names: Sequence[str], callback: Callable[[str], None], poll_interval_s: float
    ) -> NameWatch:
        """Add a watch."""
        if not names or not poll_interval_s > 0:
            raise NameResolveError(
                f"watch_names needs names and a positive interval, found {names}, {poll_interval_s}"
            )
        watch = NameWatch(names, callback, poll_interval_s)
        with self._changed:
            if self._closed:
                raise NameResolveError("this name resolver is closed")
            self._watches.append(watch)
            if (
                self._thread is None or not self._thread.is_alive()
            ):  # not alive: this is a fork of the process
                self._thread = threading.Thread(target=self._run, name="name-watch", daemon=True)
                self._thread.start()
            self._changed.notify()
        return watch

    def close(self) -> None:
        """End all watches and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while (due := self._next_due()) is not None:
            names = frozenset().union(*(watch.names for watch in due))
            try:
                gone = names - self._present(names)
            except NameResolveError as error:
                for watch in due:
                    watch._cannot_look(error)
                gone = frozenset()
            for watch in due:
                for name in sorted(gone & watch.names):
                    if not watch._is_done():
                        watch._vanished(name)
                watch._due = time.monotonic() + watch._poll_interval_s

    def _next_due(self) -> list[NameWatch] | None:
        """Sleep until watches are due and return them; None when closed."""
        with self._changed:
            while not self._closed:
                self._watches = [watch for watch in self._watches if not watch._is_done()]
                if not self._watches:
                    self._changed.wait()
                    continue
                now = time.monotonic()
                first = min(watch._due for watch in self._watches)
                if first <= now:
                    # those nearly due come along, so that many watches cost one look
                    return [
                        watch for watch in self._watches if watch._due <= now + watch._poll_interval_s / 4
                    ]
                self._changed.wait(first - now)
        return None
