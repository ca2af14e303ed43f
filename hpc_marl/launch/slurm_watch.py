"""QueueWatch: what Slurm's queue knows of some jobs, at the price of at most one question an interval."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hpc_marl.base.jobs import JobReport, JobState
from hpc_marl.launch.slurm_commands import RATE_LIMITED, Answer, BackgroundCommand
from hpc_marl.launch.slurm_queue import SACCT_FORMAT, SQUEUE_FORMAT, QueueRow, parse_sacct, parse_squeue

_MAX_INTERVAL_S = 600.0
# A squeue that is served by another thread of slurmctld may be older than what sbatch returned.
_MISSES_BEFORE_SACCT = 2

_log = logging.getLogger("hpc_marl.launch")


@dataclass
class _Watched:
    """One job and what is known of it."""

    name: str
    report: JobReport
    misses: int = 0
    is_stuck: bool = False


class QueueWatch:
    """Asks squeue in the background and remembers the answers. A queue that does not answer changes nothing.

    A job that two answers in a row do not list is looked up once by sacct, in place of the next squeue; where sacct
    does not know its end either, or does not work here, the job is forgotten. One that Slurm holds because it could
    not start it counts as failed, whatever becomes of it then.

    Args:
        user: whose jobs they are.
        interval_s: least time between two questions; doubled, up to ten minutes, while Slurm complains of too many.
        clock: seconds, never going back.
    """

    def __init__(self, user: str, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._user = user
        self._interval_s = interval_s
        self._wait_s = interval_s
        self._clock = clock
        self._jobs: dict[str, _Watched] = {}
        self._stuck: list[str] = []
        self._command: BackgroundCommand | None = None
        self._asked: tuple[str, ...] = ()
        self._is_sacct = False
        self._sacct_works = True
        self._asked_at = -float("inf")
        self._not_before = -float("inf")

    def add(self, job_ids: Iterable[str], name: str) -> None:
        """Watch jobs that were just submitted, all of this name; "" for any name."""
        for job_id in job_ids:
            self._jobs[job_id] = _Watched(name, JobReport(job_id, JobState.PENDING))

    def keep(self, job_ids: set[str]) -> None:
        """Watch no others any more."""
        self._jobs = {job_id: job for job_id, job in self._jobs.items() if job_id in job_ids}

    def report(self, job_id: str) -> JobReport:
        """Return what is known of a job that is watched; its node is as Slurm lists nodes."""
        return self._jobs[job_id].report

    def ask_in(self, delay_s: float) -> None:
        """Ask no sooner than this: a queue that was just changed does not show it at once."""
        self._not_before = self._clock() + delay_s

    def take_stuck(self) -> list[str]:
        """Return, once, the jobs that Slurm holds because it could not start them: they are to be cancelled."""
        stuck, self._stuck = self._stuck, []
        return stuck

    def poll(self) -> None:
        """Take an answer that has come, or ask if it is time to."""
        if self._command is not None:
            answer = self._command.collect()
            if answer is not None:
                self._command = None
                self._take(answer)
        elif self._clock() >= max(self._asked_at + self._wait_s, self._not_before):
            self._ask()

    def close(self) -> None:
        """End a question that is under way."""
        if self._command is not None:
            self._command.close()
            self._command = None

    def _ask(self) -> None:
        open_ids = [job_id for job_id, job in self._jobs.items() if not job.report.state.is_final]
        if not open_ids:
            return
        missed = [job_id for job_id in open_ids if self._jobs[job_id].misses >= _MISSES_BEFORE_SACCT]
        self._is_sacct = bool(missed)
        self._asked = tuple(missed or open_ids)
        if self._is_sacct:
            whole = ",".join(dict.fromkeys(job_id.partition("_")[0].partition("+")[0] for job_id in missed))
            command = ["sacct", "-n", "-P", "-X", "-o", SACCT_FORMAT, "-j", whole]
        else:
            command = ["squeue", "-h", "-r", "-t", "all", "-u", self._user, "-o", SQUEUE_FORMAT]
        self._asked_at = self._clock()
        self._command = BackgroundCommand(command, clock=self._clock)

    def _take(self, answer: Answer) -> None:
        # A job may have been replaced by a newer one since.
        asked = [job_id for job_id in self._asked if job_id in self._jobs]
        if self._is_sacct:
            self._take_sacct(answer, asked)
        elif answer.is_ok:
            self._wait_s = self._interval_s
            self._take_squeue(parse_squeue(answer.output), asked)
        else:
            _log.warning("squeue said: %s", answer.error or "nothing")
            if RATE_LIMITED.search(answer.error):
                self._wait_s = min(2 * self._wait_s, max(_MAX_INTERVAL_S, self._interval_s))

    def _take_squeue(self, rows: dict[str, QueueRow], asked: list[str]) -> None:
        for job_id in {*asked, *(rows.keys() & self._jobs.keys())}:
            job, row = self._jobs[job_id], rows.get(job_id)
            if row is None:
                job.misses += 1
                if job.misses >= _MISSES_BEFORE_SACCT and not self._sacct_works:
                    self._forget(job_id)
            elif not self._is_ours(job, row):
                # slurmctld gives an id twice if it was killed before it had saved the first job.
                self._forget(job_id)
            else:
                job.misses = 0
                self._set(job_id, row)

    def _take_sacct(self, answer: Answer, asked: list[str]) -> None:
        if not answer.is_ok:
            _log.info("sacct does not work here: %s", answer.error or "it says nothing")
            self._sacct_works = False
        rows = parse_sacct(answer.output) if answer.is_ok else {}
        for job_id in asked:
            row = rows.get(job_id)
            if row and row.state and row.state.is_final and self._is_ours(self._jobs[job_id], row):
                self._set(job_id, row)
            else:
                self._forget(job_id)

    def _is_ours(self, job: _Watched, row: QueueRow) -> bool:
        return row.user == self._user and job.name in ("", row.name)

    def _set(self, job_id: str, row: QueueRow) -> None:
        job = self._jobs[job_id]
        if row.is_stuck and not job.is_stuck:
            _log.warning("Slurm could not start job %s and holds it (%s)", job_id, row.reason)
            job.is_stuck = True
            job.report = JobReport(job_id, JobState.FAILED, row.reason)
            self._stuck.append(job_id)
        elif row.state is not None and not job.is_stuck:
            job.report = JobReport(job_id, row.state, row.reason, row.nodes, row.expected_start)

    def _forget(self, job_id: str) -> None:
        _log.warning("Slurm no longer knows job %s", job_id)
        self._jobs[job_id].report = JobReport(job_id, JobState.FORGOTTEN)
