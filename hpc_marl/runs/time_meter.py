"""TimeMeter: adds up, from heartbeats, where the time of a run's workers goes while it trains."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.time_use import CPU_METRIC, DEVICE_METRIC, seconds_by_activity
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.control.worker_view import TRAINER, WorkerView
from hpc_marl.trials.time_record import KindTime, TimeRecord, read_time_record, write_time_record

_log = logging.getLogger(__name__)

_WRITE_INTERVAL_S = 60.0

Metrics = Mapping[str, float | int | str]


class TimeMeter:
    """Watches the workers' metrics, which count from the start of each life.

    What passes between two looks is added where the trainer was learning at both; so the lives of a worker add up,
    and pauses, start-up and the end do not count. A controller that takes over goes on with the record of the one
    before.

    Args:
        directory: of the trial.
        run_uuid: of the launch.
        clock: monotonic seconds.
    """

    def __init__(
        self, directory: RunDirectory, run_uuid: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory, self._clock = directory, clock
        self.record = read_time_record(directory, run_uuid) or TimeRecord(run_uuid)
        self._before: dict[str, Metrics] = {}
        """Of every worker, as of the last look at which it ran."""
        self._looked_s: float | None = None
        self._earlier_life: Metrics | None = None
        """What the trainer said when it did not run; no life after that has said it."""
        self._names: dict[str, set[str]] = {}
        self._next_write_s = clock() + _WRITE_INTERVAL_S

    def look(self, workers: Mapping[str, WorkerView], *, is_paused: bool, elapsed_s: float) -> None:
        """Take in what the workers say now; write the record now and then.

        Args:
            workers: all of the run, by name.
            is_paused: nobody works, and nothing counts.
            elapsed_s: since the run began.
        """
        if is_paused or not self._is_learning(workers.get(TRAINER)):
            self._before, self._looked_s = {}, None
            return
        now = self._clock()
        if self._looked_s is not None:
            self.record.training_s += now - self._looked_s
        elif self.record.training_s == 0.0:
            self.record.startup_s = elapsed_s
        self._looked_s = now
        for name, worker in workers.items():
            if worker.status is WorkerStatus.RUNNING:
                self._take(worker)
            else:
                self._before.pop(name, None)
        if now >= self._next_write_s:
            self.write()

    def write(self) -> None:
        """Leave the record for a successor and for the summary; a disk that refuses costs only the figures."""
        self._next_write_s = self._clock() + _WRITE_INTERVAL_S
        try:
            write_time_record(self._directory, self.record)
        except OSError as error:
            _log.warning("where the time went was not written: %s", error)

    def _is_learning(self, trainer: WorkerView | None) -> bool:
        """Whether the trainer runs and has made an update in this life."""
        if trainer is None or trainer.status is not WorkerStatus.RUNNING:
            self._earlier_life = trainer.metrics if trainer is not None else None
            return False
        return trainer.metrics is not self._earlier_life and _number(trainer.metrics, "time_learn_s") > 0

    def _take(self, worker: WorkerView) -> None:
        before, metrics = self._before.get(worker.name), worker.metrics
        if before is metrics:
            return
        self._before[worker.name] = metrics
        if before is None or not (spent := seconds_by_activity(metrics)):
            return
        earlier = seconds_by_activity(before)
        gained = {name: seconds - earlier.get(name, 0.0) for name, seconds in spent.items()}
        if min(gained.values()) < 0:  # a new life, which counts from 0 again
            return
        names = self._names.setdefault(worker.kind, set())
        names.add(worker.name)
        kind = self.record.kinds.setdefault(worker.kind, KindTime())
        kind.workers = max(kind.workers, len(names))
        kind.cpu_s += max(_number(metrics, CPU_METRIC) - _number(before, CPU_METRIC), 0.0)
        kind.device_s += max(_number(metrics, DEVICE_METRIC) - _number(before, DEVICE_METRIC), 0.0)
        for name, seconds in gained.items():
            kind.seconds[name] = kind.seconds.get(name, 0.0) + seconds
        if worker.name == TRAINER:
            self.record.updates += round(
                _number(metrics, "policy_version") - _number(before, "policy_version")
            )
            self.record.env_steps += round(_number(metrics, "env_steps") - _number(before, "env_steps"))


def _number(metrics: Metrics, name: str) -> float:
    return float(metrics.get(name, 0.0))
