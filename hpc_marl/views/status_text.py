"""`hpc-marl status` as text: of a controller's snapshot, of the files of one trial, of all trials of a sweep."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hpc_marl.trials.evaluation import Evaluation
from hpc_marl.trials.trial_files import TrialFacts
from hpc_marl.views.display import clock_text, number_text
from hpc_marl.views.snapshot_view import (
    JobView,
    KindView,
    batches_queued,
    fraction_done,
    job_views,
    kind_views,
    progress_of,
    troubled_workers,
)
from hpc_marl.views.text_table import age_text, listed, optional_number, text_table

_MAX_JOBS = 16
_MAX_EVENTS = 8
_MAX_TROUBLED = 4
_MAX_ERROR_CHARACTERS = 120


def snapshot_text(snapshot: Mapping[str, Any]) -> str:
    """Return one screen that says where a run stands, by its controller's word."""
    name = f"{snapshot.get('experiment_name')}/{snapshot.get('trial_name')}"
    verdict = f": {snapshot['verdict']}" if snapshot.get("verdict") else ""
    lines = [
        f"{name}: {snapshot.get('phase', '?')}{verdict}, {fraction_done(progress_of(snapshot)):.0%} done",
        *_aligned(_figures(snapshot)),
        "",
        *_workers(kind_views(snapshot), troubled_workers(snapshot)),
    ]
    if jobs := job_views(snapshot):
        lines += ["", *_indented(job_table(jobs, _MAX_JOBS))]
    if events := snapshot.get("events", ())[-_MAX_EVENTS:]:
        lines += ["", *(f"  {wall_clock(at)}  {text}" for at, text in events)]
    return "\n".join(lines) + "\n"


def facts_text(facts: TrialFacts, why: str) -> str:
    """Return what the files say of a trial that no controller answers for.

    Args:
        facts: of the trial.
        why: why there is no answer, and what to do.
    """
    total = f" of {facts.total_env_steps:,}" if facts.total_env_steps else ""
    figures = {
        "progress": f"{facts.env_steps:,}{total} env_steps in {clock_text(facts.train_time_s)}",
        "return": optional_number(facts.return_mean),
        "evaluation": evaluation_text(facts.evaluation),
        "rate": f"{facts.env_steps_per_s:,.0f} env_steps/s at the last update",
        "policy": f"version {facts.policy_version:,}, lag {facts.policy_lag:.1f}",
        "phase": f"{facts.phase}, as the controller on {facts.host} wrote it" if facts.phase else "",
        "jobs": ", ".join(f"{job.job_id} ({job.role}, {len(job.slots)} slots)" for job in facts.jobs),
        "last news": f"{age_text(facts.age_s)} ago",
        "run directory": str(facts.directory.path),
    }
    return "\n".join([f"{facts.name}: {facts.state}, by its files: {why}", *_aligned(figures)]) + "\n"


def sweep_text(trials: Iterable[TrialFacts]) -> str:
    """Return one line per trial, and how many stand where."""
    facts = list(trials)
    header = [
        "trial",
        "state",
        "env_steps",
        "done",
        "return",
        "evaluation",
        "env_steps/s",
        "jobs",
        "last news",
    ]
    rows = [
        [
            one.directory.trial_name,
            one.state,
            f"{one.env_steps:,}",
            percent_text(one),
            optional_number(one.return_mean),
            number_text(one.evaluation.return_mean) if one.evaluation else "",
            f"{one.env_steps_per_s:,.0f}" if one.state == "running" else "",
            listed([job.job_id for job in one.jobs], 3),
            age_text(one.age_s),
        ]
        for one in facts
    ]
    table = text_table(
        header, rows, right=["env_steps", "done", "return", "evaluation", "env_steps/s", "last news"]
    )
    return "\n".join([f"{_experiment(facts)}{state_counts(facts)}", *_indented(table)]) + "\n"


def state_counts(facts: Sequence[TrialFacts]) -> str:
    """Return how many trials stand where: `3 trials: 2 running, 1 completed`."""
    states = ("running", "pending", "completed", "failed", "interrupted")
    counts = {state: sum(one.state == state for one in facts) for state in states}
    parts = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return f"{len(facts)} trial{'s' * (len(facts) != 1)}: {parts}"


def percent_text(facts: TrialFacts) -> str:
    """Return how much of a trial is done; "" where that is not known."""
    return f"{min(facts.env_steps / facts.total_env_steps, 1.0):.0%}" if facts.total_env_steps else ""


def evaluation_text(evaluation: Evaluation | None) -> str:
    """Return the final evaluation in a few words; "" where there is none."""
    if evaluation is None:
        return ""
    low, high = map(number_text, evaluation.interval)
    return f"{number_text(evaluation.return_mean)} ({low} to {high}) over {evaluation.episodes} episodes"


def job_table(jobs: Sequence[JobView], max_rows: int) -> list[str]:
    """Return the lines of a table of jobs, those that wait last, at most `max_rows` of them."""
    header = ["role", "job", "state", "slots", "workers", "nodes", "time left", "expected start", "reason"]
    rows = [
        [
            job.role,
            shortened(job.job_id, 24),
            job.state,
            str(len(job.slots)),
            str(job.workers),
            listed(job.nodes, 4),
            "" if job.time_left_s is None else clock_text(job.time_left_s),
            job.expected_start.replace("T", " "),
            job.reason,
        ]
        for job in jobs
    ]
    lines = text_table(header, rows[:max_rows], right=["slots", "workers", "time left"])
    return [*lines, *([f"and {len(rows) - max_rows} more"] if len(rows) > max_rows else [])]


def counts_text(counts: Sequence[tuple[str, int]]) -> str:
    """Return (word, how many) as `3 RUNNING, 1 PENDING`."""
    return ", ".join(f"{count} {word}" for word, count in counts)


def shortened(text: str, length: int) -> str:
    """Return the text in one line, its end left out where it is too long.

    >>> shortened("abcdef", 4)
    'abc…'
    """
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def wall_clock(at: float) -> str:
    """Return a unix time as the local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def _figures(snapshot: Mapping[str, Any]) -> dict[str, str]:
    progress, controller = progress_of(snapshot), snapshot.get("controller", {})
    actors, eta_s = snapshot.get("actors", {}), progress.get("eta_s")
    return {
        "controller": (
            f"process {controller.get('pid', '?')} on {controller.get('host', '?')} ({controller.get('kind', '?')}), "
            f"for {clock_text(controller.get('age_s') or 0.0)}"
        ),
        "progress": (
            f"{progress.get('env_steps', 0):,} of {progress.get('total_env_steps') or 0:,} env_steps in "
            f"{clock_text(progress.get('elapsed_s') or 0.0)}, ETA {'-' if eta_s is None else clock_text(eta_s)}"
        ),
        "return": optional_number(progress.get("return_mean")),
        "rates": (
            f"{progress.get('env_steps_per_s') or 0.0:,.0f} env_steps/s, "
            f"{progress.get('agent_steps_per_s') or 0.0:,.0f} agent_steps/s"
        ),
        "policy": f"version {progress.get('policy_version', 0):,}, lag {progress.get('policy_lag') or 0.0:.1f}",
        "batches": (
            f"{progress.get('batches_produced', 0):,} produced, {progress.get('batches_consumed', 0):,} consumed, "
            f"{progress.get('batches_dropped', 0):,} dropped, {batches_queued(progress):,} queued"
        ),
        "actors": f"{actors.get('wanted', '?')} wanted, at least {actors.get('min', '?')}",
        "restarts": str(snapshot.get("restarts", 0)),
    }


def _workers(kinds: Sequence[KindView], troubled: Sequence[tuple[str, str]]) -> list[str]:
    header = ["workers", "total", "states", "waiting for", "nodes", "CPU %", "restarts"]
    rows = [
        [
            kind.kind,
            str(kind.total),
            counts_text(kind.statuses),
            counts_text(kind.waiting),
            listed(kind.hosts, 4),
            "" if kind.cpu_percent is None else f"{kind.cpu_percent:.0f}",
            str(kind.restarts or ""),
        ]
        for kind in kinds
    ]
    errors = [
        f"{name}: {shortened(error, _MAX_ERROR_CHARACTERS)}" for name, error in troubled[:_MAX_TROUBLED]
    ]
    if len(troubled) > _MAX_TROUBLED:
        errors.append(f"and {len(troubled) - _MAX_TROUBLED} more that failed; see `hpc-marl logs`")
    return _indented([*text_table(header, rows, right=["total", "CPU %", "restarts"]), *errors])


def _experiment(facts: Sequence[TrialFacts]) -> str:
    return f"{facts[0].directory.experiment_name}: " if facts else ""


def _aligned(figures: Mapping[str, str]) -> list[str]:
    width = max(map(len, figures)) + 2
    return [f"  {name.ljust(width)}{text}" for name, text in figures.items() if text]


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]
