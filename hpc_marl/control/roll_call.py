"""RollCall: looking for the names of workers and hosts, only while somebody is awaited."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping

from hpc_marl.control.interfaces import WorkerControlPanel
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.control.worker_view import Launcher, WorkerView
from hpc_marl.errors import NameResolveError

_log = logging.getLogger(__name__)

_SHARE = 0.05  # of the time, at most, is spent looking
_SLOW_INTERVAL_S = 2.0  # while only jobs in the queue are awaited, which may take hours


class RollCall:
    """Knows when to look, and who should have been there by now.

    Args:
        panel: finds names.
        launcher: knows whose place is there.
        connect_timeout_s: a launched worker must register within this time.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        panel: WorkerControlPanel,
        launcher: Launcher,
        connect_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._panel, self._launcher, self._clock = panel, launcher, clock
        self._connect_timeout_s = connect_timeout_s
        self._next_s = self._next_slow_s = 0.0

    def registered(self, workers: Collection[WorkerView]) -> Mapping[str, str]:
        """Return the incarnation of everybody who is registered, by name; nothing while it is no time to look."""
        awaited = any(
            worker.is_wanted and not worker.configured and not self._launcher.waiting_for(worker.name)
            for worker in workers
        )
        now = self._clock()
        if now < (self._next_s if awaited else self._next_slow_s):
            return {}
        if not awaited and not self._launcher.expects_hosts():
            return {}
        self._next_slow_s = now + _SLOW_INTERVAL_S
        try:
            return self._panel.refresh()
        except NameResolveError as error:
            # The shared file system hiccups: who is connected stays so, and the next look is soon.
            _log.warning("%s", error)
            return {}
        finally:
            self._next_s = max(
                now + self._panel.look_interval_s, self._clock() + (self._clock() - now) / _SHARE
            )

    def overdue(self, workers: Collection[WorkerView]) -> Iterator[WorkerView]:
        """Yield the workers that should have registered, with the reason in `last_error`."""
        now = self._clock()
        for worker in workers:
            is_new = worker.status is WorkerStatus.UNKNOWN and worker.relaunch_s is None
            if not is_new or worker.incarnation or not worker.is_wanted:
                continue
            if self._launcher.waiting_for(worker.name) or not self._launcher.is_reachable(worker.name):
                worker.launched_s = now  # the queue's time, or its host's, is not the worker's
            elif (waited_s := now - worker.launched_s) > self._connect_timeout_s:
                worker.last_error = f"did not register within {waited_s:.0f} s"
                yield worker
