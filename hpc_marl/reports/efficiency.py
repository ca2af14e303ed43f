"""How well a run used what it held: facts -> Report. Pure functions; `hpc-marl report` prints the result.

What sacct knows counts first: it saw every life of a job, killed ones too. What the host processes measured
themselves fills the rest, and is all there is where Slurm keeps no accounts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hpc_marl.base.launch_record import JobRecord
from hpc_marl.launch.accounting import AccountedLife
from hpc_marl.reports.usage import HostLife, RunFacts, submission_time

FROM_SACCT = "sacct"
FROM_HOSTS = "own measurements"
_GOOD_ENDS = ("", "DONE", "COMPLETED", "RUNNING", "PENDING", "ORPHANED")


@dataclass(frozen=True)
class RoleReport:
    """One role of jobs: core or actors.

    Attributes:
        role: `core` or `actors`.
        slots: host processes.
        starts: lives of all jobs of the role, requeued and resubmitted ones included.
        ends: state -> lives that ended so.
        queue_wait_s: of each life that started, in seconds.
        run_s: wall time of each life.
        cpu_h: CPU hours that were held.
        cpu_efficiency: share of them that was used; None: unknown.
        gpu_h: GPU hours that were held.
        gpu_efficiency: mean utilisation of the GPUs; None: not measured.
        peak_rss_mb: most resident memory of any slot.
        memory_mb: memory of one slot, as requested; None: unknown.
        time_limit: of the job as configured; "" unknown.
        lost_h: hours of work done after the last checkpoint of lives that ended badly.
        lost_is_bound: `lost_h` is the most it can be, because the checkpoints of that time are gone.
        source: of starts, waits and times: sacct or own measurements.
    """

    role: str
    slots: int
    starts: int
    ends: Mapping[str, int]
    queue_wait_s: tuple[float, ...]
    run_s: tuple[float, ...]
    cpu_h: float
    cpu_efficiency: float | None
    gpu_h: float
    gpu_efficiency: float | None
    peak_rss_mb: float
    memory_mb: float | None
    time_limit: str
    lost_h: float
    lost_is_bound: bool
    source: str

    @property
    def wasted_cpu_h(self) -> float:
        """CPU hours held and not used."""
        return 0.0 if self.cpu_efficiency is None else self.cpu_h * max(1.0 - self.cpu_efficiency, 0.0)

    @property
    def wasted_gpu_h(self) -> float:
        """GPU hours held and not used."""
        return 0.0 if self.gpu_efficiency is None else self.gpu_h * max(1.0 - self.gpu_efficiency, 0.0)


@dataclass(frozen=True)
class KindReport:
    """The workers of one kind, by own measurements.

    Attributes:
        kind: such as `actor`.
        count: workers seen.
        restarts: of all of them.
        cpus: cores of one.
        cpu_efficiency: CPU time used by CPU time held; above 1 where it uses more cores than it asked for.
        peak_rss_mb: most resident memory of one.
        seconds: time of all of them together.
    """

    kind: str
    count: int
    restarts: int
    cpus: int
    cpu_efficiency: float | None
    peak_rss_mb: float
    seconds: float


@dataclass(frozen=True)
class Report:
    """What `hpc-marl report` says.

    Attributes:
        name: EXPERIMENT/TRIAL.
        roles: of jobs.
        kinds: of workers.
        ledger: sample batches: produced, consumed, dropped by reason.
        accounting_problem: why sacct gave nothing; "" where it did.
        advice: on sizes, one sentence each.
    """

    name: str
    roles: tuple[RoleReport, ...]
    kinds: tuple[KindReport, ...]
    ledger: Mapping[str, int] = field(default_factory=dict)
    accounting_problem: str = ""
    advice: tuple[str, ...] = ()


def make_report(facts: RunFacts) -> Report:
    """Return the report of a run, without advice."""
    plan = facts.plan
    names = [*(job.role for job in facts.jobs), *(life.role for life in facts.lives)]
    if plan is not None:
        names = [*(job.role for job in plan.jobs), *names]
    used = {*(job.role for job in facts.jobs), *(life.role for life in facts.lives)}
    return Report(
        name=facts.name,
        roles=tuple(_role_report(role, facts) for role in dict.fromkeys(names) if role in used),
        kinds=_kind_reports(facts),
        ledger=facts.ledger,
        accounting_problem=facts.accounting.problem,
    )


def _role_report(role: str, facts: RunFacts) -> RoleReport:
    jobs = [job for job in facts.jobs if job.role == role]
    own = [life for life in facts.lives if life.role == role]
    accounted = [life for life in facts.accounting.lives if any(_belongs(life.job_id, job) for job in jobs)]
    planned = next((job for job in facts.plan.jobs if job.role == role), None) if facts.plan else None
    slots = {slot for job in jobs for slot in job.slots} | {life.slot for life in own}
    started = [life for life in accounted if life.started is not None]
    used_s = max(sum(life.cpu_s for life in accounted), sum(life.cpu_s for life in own))
    held_s = (
        sum(life.allocated_cpu_s for life in accounted)
        if accounted
        else sum(life.seconds * life.cpus for life in own)
    )
    lost_s, is_bound = _lost_s(own, facts) if role == "core" else (0.0, False)
    return RoleReport(
        role=role,
        slots=len(slots),
        starts=len(started) if accounted else len(own),
        ends=_counted([life.state for life in accounted] if accounted else [life.ended for life in own]),
        queue_wait_s=_accounted_waits(accounted) if accounted else _own_waits(jobs, own),
        run_s=tuple(life.elapsed_s for life in started) if accounted else tuple(life.seconds for life in own),
        cpu_h=held_s / 3600,
        cpu_efficiency=used_s / held_s if held_s and used_s else None,
        gpu_h=_gpu_hours(accounted, own),
        gpu_efficiency=_gpu_efficiency(own),
        peak_rss_mb=max(
            [*(life.max_rss_mb for life in accounted), *(life.max_rss_mb for life in own)], default=0
        ),
        memory_mb=(planned.memory_mb if planned else None) or _held_memory(accounted, jobs),
        time_limit=planned.time_limit if planned else "",
        lost_h=lost_s / 3600,
        lost_is_bound=is_bound,
        source=FROM_SACCT if accounted else FROM_HOSTS,
    )


def _belongs(job_id: str, job: JobRecord) -> bool:
    return job_id == job.job_id or job_id.startswith(f"{job.job_id}_")


def _counted(states: Iterable[str]) -> dict[str, int]:
    return dict(Counter(state for state in states if state).most_common())


def _accounted_waits(lives: Sequence[AccountedLife]) -> tuple[float, ...]:
    return tuple(max(life.queue_wait_s, 0.0) for life in lives if life.queue_wait_s is not None)


def _own_waits(jobs: Sequence[JobRecord], lives: Sequence[HostLife]) -> tuple[float, ...]:
    """Return the time between each submission of a slot and the first start of its host after that."""
    waits = []
    for job in jobs:
        submitted = submission_time(job)
        if submitted is None:
            continue
        for slot in job.slots:
            # Submissions are noted in whole seconds.
            starts = [life.started for life in lives if life.slot == slot and life.started >= submitted - 1]
            if starts:
                waits.append(max(min(starts) - submitted, 0.0))
    return tuple(waits)


def _gpu_hours(accounted: Sequence[AccountedLife], own: Sequence[HostLife]) -> float:
    if accounted:
        return sum(life.elapsed_s * life.gpus for life in accounted) / 3600
    return sum(life.seconds * life.gpus for life in own) / 3600


def _gpu_efficiency(own: Sequence[HostLife]) -> float | None:
    """Return the mean utilisation, each life counted by its GPU time."""
    measured = [
        (life.gpu_percent_mean, life.seconds * life.gpus) for life in own if life.gpu_percent_mean is not None
    ]
    total = sum(weight for _, weight in measured)
    return sum(percent * weight for percent, weight in measured) / total / 100 if total else None


def _held_memory(accounted: Sequence[AccountedLife], jobs: Sequence[JobRecord]) -> float | None:
    """Return the memory of one slot: a job that is no array shares its memory among its slots."""
    held = [
        life.memory_mb / (1 if job.is_array else len(job.slots))
        for life in accounted
        for job in jobs
        if _belongs(life.job_id, job) and life.memory_mb
    ]
    return max(held, default=None)


def _lost_s(own: Sequence[HostLife], facts: RunFacts) -> tuple[float, bool]:
    """Return the seconds between the last checkpoint and the end of lives that ended badly, and whether it is a bound.

    Where no checkpoint of that life is kept any more, as much as one checkpoint interval may have been lost.
    """
    interval = facts.config.trainer.checkpoint_interval_s if facts.config else 0.0
    last_of_slot = {life.slot: life for life in own}
    lost, is_bound = 0.0, False
    for life in own:
        was_killed = not life.ended and life is not last_of_slot[life.slot]
        if life.ended in _GOOD_ENDS and not was_killed:
            continue
        end = life.started + life.seconds
        kept = [time for time in facts.checkpoint_times if life.started <= time <= end]
        lost += end - max(kept) if kept else min(interval, life.seconds)
        is_bound |= not kept
    return lost, is_bound


def _kind_reports(facts: RunFacts) -> tuple[KindReport, ...]:
    uses = [(name, use) for life in facts.lives for name, use in life.workers.items()]
    cpus_of = {group.kind: group.cpus for group in facts.plan.groups} if facts.plan else {}
    kinds = [*cpus_of, *(name.split("/")[0] for name, _ in uses)]
    reports = []
    for kind in dict.fromkeys(kinds):
        ours = [(name, use) for name, use in uses if name.split("/")[0] == kind]
        if not ours:
            continue
        cpus = cpus_of.get(kind, 1)
        seconds = sum(use.seconds for _, use in ours)
        reports.append(
            KindReport(
                kind=kind,
                count=len({name for name, _ in ours}),
                restarts=sum(n for name, n in facts.worker_lives.items() if name.split("/")[0] == kind),
                cpus=cpus,
                cpu_efficiency=sum(use.cpu_s for _, use in ours) / (seconds * cpus) if seconds else None,
                peak_rss_mb=max(use.max_rss_mb for _, use in ours),
                seconds=seconds,
            )
        )
    return tuple(reports)
