"""Watching names: one thread per resolver looks which names are gone, another one calls back.

What a callback raises is kept and reported by its watch, and ends neither thread: an executor does both.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor

from hpc_marl.errors import NameResolveError

logger = logging.getLogger(__name__)


class NameWatch:
    """Handle of one `watch_names` call.

    Attributes:
        error: the latest error of the callback or of looking, None if there was none.
    """

    def __init__(self, names: Sequence[str], callback: Callable[[str], None], poll_interval_s: float) -> None:
        self.error: BaseException | None = None
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

    def _vanished(self, name: str, callbacks: Executor) -> None:
        self._left.discard(name)  # first, so that a callback that raises is not called again and again
        callbacks.submit(self._callback, name).add_done_callback(self._called)

    def _called(self, call: Future[None]) -> None:
        if not call.cancelled() and (error := call.exception()) is not None:
            self.error = error
            logger.error("the callback for a vanished name raised", exc_info=error)

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
        self._callbacks: ThreadPoolExecutor | None = None
        self._callback_thread = 0

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
                self._start()
            self._changed.notify()
        return watch

    def close(self) -> None:
        """End all watches and both threads; a callback that is running is waited for, unless it is the caller."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        in_callback = threading.get_ident() == self._callback_thread
        if self._thread is not None:
            self._thread.join()
        if self._callbacks is not None:
            self._callbacks.shutdown(wait=not in_callback, cancel_futures=True)

    def _start(self) -> None:
        self._callbacks = ThreadPoolExecutor(1, "name-watch-callback", self._note_callback_thread)
        self._thread = threading.Thread(
            target=self._run, args=(self._callbacks,), name="name-watch", daemon=True
        )
        self._thread.start()

    def _note_callback_thread(self) -> None:
        self._callback_thread = threading.get_ident()

    def _run(self, callbacks: Executor) -> None:
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
                        watch._vanished(name, callbacks)
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
