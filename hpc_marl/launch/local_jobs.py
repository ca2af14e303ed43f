"""LocalJobs: the JobService of one machine. The plan of a cluster run, as processes on simulated nodes.

submit -> PENDING --its slots fit--> RUNNING --exit 0--> COMPLETED
             ^                          |  `--other----> FAILED
             `-----preempt--------------'--cancel------> CANCELLED
"""

from __future__ import annotations

import contextlib
import logging
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby

from hpc_marl.base.early_host import HOST_PROGRAM, EarlyHost
from hpc_marl.base.jobs import JobReport, JobState
from hpc_marl.base.launch_record import JobRecord, add_job, read_launch_record
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ExperimentConfig
from hpc_marl.errors import LaunchError
from hpc_marl.launch.host_process import host_environment, kill_marked, start_process
from hpc_marl.launch.plan import Job, Plan
from hpc_marl.launch.simulated_nodes import Seat, SeatRequest, SimulatedNodes

_log = logging.getLogger("hpc_marl.local_jobs")

_KILL_AFTER_S = 5.0
_ID_PREFIX = "local-"


@dataclass
class _Task:
    """One slot's process."""

    slot: int
    seat: Seat | None = None
    process: subprocess.Popen[bytes] | None = None


@dataclass
class _LocalJob:
    """Tasks that share a fate: the core job, an element of an array, an actor task of a heterogeneous job."""

    order: int
    """Place in the queue; kept when it is preempted."""
    job_id: str
    job: Job
    tasks: list[_Task]
    state: JobState = JobState.PENDING
    restarts: int = 0
    not_before: float = 0.0
    signals: list[tuple[float, signal.Signals]] = field(default_factory=list)
    """Still to be sent, and when."""
    ends_as: JobState | None = None
    """What becomes of it once its processes have ended; None: their exit codes decide."""
    has_failed: bool = False
    mark: str = ""
    """Of the processes of its present start."""

    @property
    def is_alive(self) -> bool:
        """Whether a process of it is left."""
        return any(task.process is not None for task in self.tasks)


class LocalJobs:
    """Fills slots with host processes of this machine; see `JobService`.

    Jobs start in the order of their submission: one that does not fit yet holds up those behind it, so that actors
    never starve a core job. All records go to launch.json, which must be there.

    Args:
        config: says which nodes are simulated.
        plan: what the slots are.
        directory: of the trial.
        command: slot -> command line; None: the host process.
        clock: seconds, as `time.monotonic`.
        early_host: becomes the first host of a core job.

    Attributes:
        plan: may be replaced by a larger one.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        plan: Plan,
        directory: RunDirectory,
        *,
        command: Callable[[int], list[str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        early_host: EarlyHost | None = None,
    ) -> None:
        cluster = config.cluster
        self.plan = plan
        self._directory = directory
        self._name = f"{config.experiment_name}.{directory.trial_name}"
        self._nodes = SimulatedNodes(cluster.nodes, cluster.node_cpus, cluster.node_gpus)
        self._command = command or self._host_command
        self._clock = clock
        self._early_host = early_host
        self._num_jobs = 0
        self._job_of_slot: dict[int, _LocalJob] = {}
        self._queue: list[list[_LocalJob]] = []
        self._running: list[_LocalJob] = []
        self._preempt_interval_s = cluster.preempt_interval_s
        self._next_preemption_s = clock() + (cluster.preempt_interval_s or 0.0)
        self._choose = random.Random(config.seed)

    def submit(self, slots: Iterable[int]) -> None:
        """Queue these slots: one submission for each job of the plan, started as far as there is room.

        Raises:
            LaunchError: a slot is unknown or filled, or would not fit on the nodes even if they were empty.
        """
        submissions = self._by_job(slots)
        number = self._next_number()
        together = self.plan.placement == "hetjob" and len(submissions) > 1
        gangs: list[list[_LocalJob]] = []
        records = []
        for component, (job, indices) in enumerate(submissions):
            job_id = f"{_ID_PREFIX}{number}+{component}" if together else f"{_ID_PREFIX}{number + component}"
            made = self._make_jobs(job, indices, job_id)
            gangs += [[one] for one in made] if job.is_array else [made]
            submitted = datetime.now().isoformat(timespec="seconds")
            records.append(
                JobRecord(
                    job_id=job_id, role=job.role, slots=indices, is_array=job.is_array, submitted=submitted
                )
            )
        if together:
            gangs = [[one for gang in gangs for one in gang]]
        for gang in gangs:
            self._require_fit(gang)
        for record in records:
            add_job(self._directory, record)
        for gang in gangs:
            self._queue.append(gang)
            self._job_of_slot |= {task.slot: one for one in gang for task in one.tasks}
        self._start_what_fits()

    def poll(self) -> None:
        """Reap what has ended, send the signals that are due, start what fits."""
        self._reap()
        self._send_due_signals()
        self._preempt_due()
        self._start_what_fits()

    def report(self, slot: int) -> JobReport | None:
        """Return what is known of the job of a slot; None while it has none."""
        job = self._job_of_slot.get(slot)
        if job is None:
            return None
        seat = next(task.seat for task in job.tasks if task.slot == slot)
        is_waiting = job.state is JobState.PENDING
        reason = "BeginTime" if job.not_before > self._clock() else "Resources"
        return JobReport(
            job.job_id,
            job.state,
            reason if is_waiting else "",
            seat.node_name if seat and not is_waiting else "",
        )

    def cancel(self, slots: Iterable[int]) -> None:
        """End the jobs of these slots: SIGTERM at once, SIGKILL seconds later by `poll`."""
        for job in {id(job): job for slot in slots if (job := self._job_of_slot.get(slot))}.values():
            if job.state is JobState.PENDING:
                job.state = JobState.CANCELLED
            elif job.state is JobState.RUNNING and job.ends_as is not JobState.CANCELLED:
                job.ends_as = JobState.CANCELLED
                self._end(job)
        self._queue = [gang for gang in map(_waiting, self._queue) if gang]

    def preempt(self, slot: int, grace_s: float = 30.0, hold_s: float = 0.0) -> None:
        """Do to the job of a slot what Slurm does when another needs its place; its job then waits to start again.

        Args:
            slot: whose job it is; nothing happens to one that does not run.
            grace_s: time between SIGUSR2 and SIGTERM. SIGKILL comes seconds later.
            hold_s: the job does not start again before, as after a requeue by Slurm.
        """
        job = self._job_of_slot.get(slot)
        if job is None or job.state is not JobState.RUNNING or job.ends_as is not None:
            return
        job.ends_as = JobState.PENDING
        job.not_before = self._clock() + hold_s
        self._end(job, first=signal.SIGUSR2, grace_s=grace_s)

    def _preempt_due(self) -> None:
        """Rehearse what a cluster does, where cluster.preempt_interval_s says so."""
        if self._preempt_interval_s is None or self._clock() < self._next_preemption_s:
            return
        self._next_preemption_s = self._clock() + self._preempt_interval_s
        if self._running:
            job = self._choose.choice(self._running)
            _log.info("job %s is preempted, as a rehearsal", job.job_id)
            self.preempt(job.tasks[0].slot)

    def pids(self) -> dict[int, int]:
        """Return slot -> process id of every host that has not been reaped."""
        return {
            task.slot: task.process.pid
            for job in self._running
            for task in job.tasks
            if task.process is not None
        }

    def close(self) -> None:
        """End everything, and return when nothing is left; it takes seconds where a host does not listen."""
        self.cancel(self._job_of_slot)
        deadline = time.monotonic() + _KILL_AFTER_S
        for process in self._processes():
            # Whoever is late is killed below.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0.0))
        for process in self._processes():
            process.kill()
            process.wait()
        kill_marked([job.mark for job in self._running], wait=True)
        self._reap()

    def _host_command(self, slot: int) -> list[str]:
        run_directory = str(self._directory.path)
        return [*HOST_PROGRAM, "--run-dir", run_directory, "--slots", str(slot)]

    def _by_job(self, slots: Iterable[int]) -> list[tuple[Job, list[int]]]:
        """Return the slots by the plan's jobs, both in the plan's order."""
        wanted = set(slots)
        known = [(job, slot.index) for job in self.plan.jobs for slot in job.slots]
        if unknown := wanted - {index for _, index in known}:
            raise LaunchError(
                f"the plan has no slot {min(unknown)}; it has slots {[index for _, index in known]}"
            )
        for slot in sorted(wanted):
            job = self._job_of_slot.get(slot)
            if job is not None and not job.state.is_final and job.ends_as is not JobState.CANCELLED:
                raise LaunchError(f"slot {slot} is filled by job {job.job_id}; cancel that one first")
        chosen = [(job, index) for job, index in known if index in wanted]
        return [
            (self.plan.jobs[position], [index for _, index in group])
            for position, group in groupby(chosen, lambda pair: self.plan.jobs.index(pair[0]))
        ]

    def _next_number(self) -> int:
        """Return the number of the next submission, above all of the record: a controller may have driven before."""
        ids = [job.job_id for job in read_launch_record(self._directory).jobs]
        numbers = [id_.removeprefix(_ID_PREFIX).split("+")[0] for id_ in ids if id_.startswith(_ID_PREFIX)]
        return 1 + max((int(number) for number in numbers if number.isdigit()), default=0)

    def _make_jobs(self, job: Job, slots: list[int], job_id: str) -> list[_LocalJob]:
        hands = [[slot] for slot in slots] if job.role == "actors" else [slots]
        made = []
        for index, hand in enumerate(hands):
            self._num_jobs += 1
            element = f"{job_id}_{index}" if job.is_array else job_id
            made.append(_LocalJob(self._num_jobs, element, job, [_Task(slot) for slot in hand]))
        return made

    def _require_fit(self, gang: list[_LocalJob]) -> None:
        requests = _requests(gang)
        if not self._nodes.can_ever_seat(requests):
            needs = ", ".join(
                f"{len(job.tasks)} x {job.job.cpus} CPUs"
                + (f" and {job.job.gpus} GPUs" if job.job.gpus else "")
                for job in gang
            )
            apart = " on different nodes" if sum(request.is_apart for request in requests) > 1 else ""
            raise LaunchError(
                f"{needs}{apart} can never start: there are {self._nodes}; "
                "raise cluster.nodes, cluster.node_cpus or cluster.node_gpus, or ask for less"
            )

    def _start_what_fits(self) -> None:
        now = self._clock()
        for gang in list(self._queue):
            if any(job.not_before > now for job in gang):
                continue
            seats = self._nodes.take(_requests(gang))
            if seats is None:
                return
            self._queue.remove(gang)
            waiting = iter(seats)
            for job in gang:
                job.state = JobState.RUNNING
                self._running.append(job)
                early = None
                if job.job.role == "core":
                    early, self._early_host = self._early_host, None
                job.mark = early.mark if early else uuid.uuid4().hex
                for task in job.tasks:
                    self._start(job, task, next(waiting), early)

    def _start(self, job: _LocalJob, task: _Task, seat: Seat, early: EarlyHost | None) -> None:
        task.seat = seat
        environment = host_environment(
            seat,
            job_id=job.job_id,
            restarts=job.restarts,
            mark=job.mark,
            has_gpus=self._nodes.counts_gpus,
        )
        log_file = self._directory.logs / "jobs" / f"{self._name}.{job.job.role}.{job.job_id}.out"
        try:
            task.process = start_process(self._command(task.slot), environment, log_file, early)
        except OSError as error:
            _log.error("slot %d of job %s cannot start: %s", task.slot, job.job_id, error)
            job.has_failed = True

    def _reap(self) -> None:
        for job in self._running:
            for task in job.tasks:
                if task.process is not None and (code := task.process.poll()) is not None:
                    task.process = None
                    job.has_failed |= code != 0
        ended = [job for job in self._running if not job.is_alive]
        self._running = [job for job in self._running if job.is_alive]
        kill_marked([job.mark for job in ended])
        for job in ended:
            self._settle(job)
        for job in self._running:
            # As srun --kill-on-bad-exit: trainers that have lost one of them cannot go on.
            if job.has_failed and job.ends_as is None and not job.signals:
                self._end(job)

    def _settle(self, job: _LocalJob) -> None:
        """Give back the seats of a job whose processes have ended, and say what has become of it."""
        self._nodes.give_back([task.seat for task in job.tasks if task.seat])
        job.signals.clear()
        job.state = job.ends_as or (JobState.FAILED if job.has_failed else JobState.COMPLETED)
        if job.state is JobState.PENDING:
            job.ends_as = None
            job.has_failed = False
            job.restarts += 1
            self._queue = sorted([*self._queue, [job]], key=lambda gang: gang[0].order)

    def _end(self, job: _LocalJob, first: signal.Signals = signal.SIGTERM, grace_s: float = 0.0) -> None:
        now = self._clock()
        term = [] if first == signal.SIGTERM else [(now + grace_s, signal.SIGTERM)]
        job.signals = [(now, first), *term, (now + grace_s + _KILL_AFTER_S, signal.SIGKILL)]
        self._send_due_signals()

    def _send_due_signals(self) -> None:
        now = self._clock()
        for job in self._running:
            while job.signals and job.signals[0][0] <= now:
                _, number = job.signals.pop(0)
                for task in job.tasks:
                    if task.process is not None:
                        task.process.send_signal(number)

    def _processes(self) -> list[subprocess.Popen[bytes]]:
        return [task.process for job in self._running for task in job.tasks if task.process is not None]


def _waiting(gang: list[_LocalJob]) -> list[_LocalJob]:
    return [job for job in gang if job.state is JobState.PENDING]


def _requests(gang: list[_LocalJob]) -> list[SeatRequest]:
    return [SeatRequest(job.job.cpus, job.job.gpus, job.job.task_per_node) for job in gang for _ in job.tasks]
