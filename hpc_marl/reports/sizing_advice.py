"""Advice on sizes: a few rules over a report, each with the setting to change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from hpc_marl.config import ExperimentConfig
from hpc_marl.reports.bottleneck import find_bottleneck
from hpc_marl.reports.efficiency import KindReport, Report, RoleReport
from hpc_marl.trials.time_record import TimeRecord
from hpc_marl.views.display import clock_text

_BUSY = 0.85
_IDLE = 0.5
_GPU_IDLE = 0.3
_MEMORY_EXCESS = 4.0
_MEMORY_MARGIN = 1.5
_MEMORY_TIGHT = 0.9
_DROPPED_SHARE = 0.1
_LOST_SHARE = 0.1
_SHORTEST_LIMIT_S = 600.0


def advise(
    report: Report, config: ExperimentConfig | None, times: TimeRecord | None = None
) -> tuple[str, ...]:
    """Return what to change about a run's sizes; nothing where it is well sized or too little is known.

    Args:
        report: what it used.
        config: the experiment; None: not known.
        times: where its workers' time went, which tells more than their CPU use does; None: not known.
    """
    if config is None:
        return ()
    bottleneck = find_bottleneck(times, config)
    is_known = bottleneck.where != "unknown"
    rules: tuple[Callable[[Report, ExperimentConfig], Iterator[str]], ...] = (
        *(() if is_known else (_balance,)),
        _gpus,
        _memory,
        _queue,
        _checkpoints,
        _dropped,
    )
    found = tuple(text for rule in rules for text in rule(report, config))
    return (*bottleneck.lines, *found) if is_known else found


def _balance(report: Report, config: ExperimentConfig) -> Iterator[str]:
    """Actors and trainer should be busy at the same time."""
    trainer, actor = _kind(report, "trainer"), _kind(report, "actor")
    if trainer is None or actor is None or trainer.cpu_efficiency is None or actor.cpu_efficiency is None:
        return
    gpu = max((role.gpu_efficiency or 0.0 for role in report.roles), default=0.0)
    trains, acts = max(trainer.cpu_efficiency, gpu), actor.cpu_efficiency
    count = config.actors.count
    saw = f"the trainer works {_percent(trains)} of its time, actors use {_percent(acts)} of their CPUs"
    if trains < _IDLE and acts >= _BUSY:
        more = math.ceil(count * min(2.0, _BUSY / max(trains, 0.01)))
        yield f"{saw}: the trainer waits for samples; use more actors: actors.count={more}"
    elif trains < _IDLE and acts < _IDLE:
        change = (
            f"actors.count={2 * count} actors.num_envs={max(1, config.actors.num_envs // 2)}"
            if config.actors.num_envs > 1
            else f"actors.count={2 * count}"
        )
        yield f"{saw}: both wait for each other; use more actors with fewer environments ({change})" + (
            ", or actors.num_groups=2, so that one group steps while another waits"
            if config.actors.num_groups == 1 and config.actors.num_envs % 2 == 0
            else ""
        )
    elif trains >= _BUSY and acts < _IDLE:
        fewer = max(config.actors.min_actors, math.ceil(count * acts / _BUSY))
        hint = f"fewer actors do (actors.count={fewer})" if fewer < count else "it needs more"
        yield f"{saw}: the trainer is the bottleneck; {hint}, or give it more cores: trainer.cpus={2 * trainer.cpus}"


def _gpus(report: Report, config: ExperimentConfig) -> Iterator[str]:
    for role in report.roles:
        if role.gpu_h and role.gpu_efficiency is not None and role.gpu_efficiency < _GPU_IDLE:
            yield (
                f"{role.role}: GPUs are used {_percent(role.gpu_efficiency)}; let workers share them "
                "(trainer.gpus=0.5, policies.gpus=0.5), use more actors per GPU, or train on the CPU "
                "(trainer.device=cpu)"
            )


def _memory(report: Report, config: ExperimentConfig) -> Iterator[str]:
    for role in report.roles:
        if not role.memory_mb or not role.peak_rss_mb:
            continue
        peak, held = role.peak_rss_mb, role.memory_mb
        saw = f"{role.role}: {peak:,.0f} MB at most of {held:,.0f} MB requested per slot"
        enough = 100 * math.ceil(peak * _MEMORY_MARGIN / 100)
        if held >= _MEMORY_EXCESS * peak:
            yield f"{saw}; {enough:,} MB would do: lower memory_mb of its workers"
        elif peak >= _MEMORY_TIGHT * held:
            yield f"{saw}: close to being killed; raise memory_mb of its workers to {enough:,} MB per slot"


def _queue(report: Report, config: ExperimentConfig) -> Iterator[str]:
    for role in report.roles:
        if not role.queue_wait_s or not role.run_s:
            continue
        wait, run = _mean(role.queue_wait_s), _mean(role.run_s)
        if wait > 2 * run and wait > _SHORTEST_LIMIT_S:
            limit = max(_SHORTEST_LIMIT_S, 2 * max(role.run_s))
            configured = f" instead of {role.time_limit}" if role.time_limit else ""
            yield (
                f"{role.role}: waited {clock_text(wait)} in the queue for {clock_text(run)} of work; a shorter "
                f"time limit fits into gaps: {_limit_setting(role)}={clock_text(limit)}{configured}"
            )


def _checkpoints(report: Report, config: ExperimentConfig) -> Iterator[str]:
    for role in report.roles:
        hours = sum(role.run_s) / 3600
        if hours and role.lost_h > _LOST_SHARE * hours:
            seconds = max(5, round(config.trainer.checkpoint_interval_s / 2))
            yield (
                f"{role.role}: {_percent(role.lost_h / hours)} of the work came after a last checkpoint and was lost; "
                f"save more often: trainer.checkpoint_interval_s={seconds}"
            )


def _dropped(report: Report, config: ExperimentConfig) -> Iterator[str]:
    produced = report.ledger.get("produced", 0)
    dropped = sum(number for fate, number in report.ledger.items() if fate.startswith("dropped"))
    if produced and dropped > _DROPPED_SHARE * produced:
        yield (
            f"{_percent(dropped / produced)} of the sample batches were dropped: actors produce more than the "
            "trainer takes in time; use fewer actors, or a faster trainer"
        )


def _limit_setting(role: RoleReport) -> str:
    return "actors.time_limit" if role.role == "actors" else "trainer.time_limit"


def _kind(report: Report, kind: str) -> KindReport | None:
    return next((one for one in report.kinds if one.kind == kind), None)


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
