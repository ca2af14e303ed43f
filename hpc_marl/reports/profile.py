"""The profile of a run: where the time of its workers went, as a table and as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hpc_marl.reports.bottleneck import Bottleneck
from hpc_marl.trials.time_record import KindTime, TimeRecord
from hpc_marl.views.text_table import text_table

PROFILE_CHART_FILE = "profile.png"

_LEAST_SHARE = 0.0005  # what is shown as 0.1 % at least
_ACTIVITIES = {
    "env": "env.step",
    "inference": "inference",
    "learn": "learning",
    "write": "writing samples",
    "reply": "replying",
    "publish": "publishing parameters",
    "checkpoint": "checkpoints",
    "other": "other work",
    "wait_inference": "waiting for inference",
    "wait_requests": "waiting for requests",
    "wait_data": "waiting for samples",
    "wait_trainers": "waiting for other trainers",
    "wait_credit": "waiting for the trainer (credit)",
    "wait_parameters": "waiting for parameters",
}
"""Activity -> what it is called, in the order in which it is shown."""

_KINDS = ("actor", "policy", "trainer")
_HEADER = ("worker", "activity", "share", "seconds each", "cost")
_TO_RIGHT = ("share", "seconds each", "cost")


def activity_name(activity: str) -> str:
    """Return what an activity is called, also one of a worker kind of the user's own.

    >>> activity_name("wait_data"), activity_name("wait_for_disk")
    ('waiting for samples', 'wait for disk')
    """
    return _ACTIVITIES.get(activity, activity.replace("_", " "))


def ordered_kinds(record: TimeRecord) -> list[tuple[str, KindTime]]:
    """Return the kinds of workers that have any time: actors first, then those who answer them."""
    names = [*(kind for kind in _KINDS if kind in record.kinds), *sorted(set(record.kinds) - {*_KINDS})]
    return [(name, record.kinds[name]) for name in names if record.kinds[name].shares()]


def ordered_shares(kind: KindTime) -> dict[str, float]:
    """Return activity -> share of one kind of worker: work first, then what it waited for."""
    shares = kind.shares()
    order = [*(name for name in _ACTIVITIES if name in shares), *sorted(set(shares) - set(_ACTIVITIES))]
    return {name: shares[name] for name in order}


def profile_text(record: TimeRecord, bottleneck: Bottleneck) -> str:
    """Return the profile as it is printed: what was seen, the table, the bottleneck."""
    blocks = [
        [_seen(record)],
        text_table(_HEADER, _rows(record), right=_TO_RIGHT),
        [f"CPU used while training: {_cpu(record)}", *_gpu(record)],
        [f"bottleneck: {line}" if i == 0 else line for i, line in enumerate(bottleneck.lines)],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def profile_markdown(record: TimeRecord, bottleneck: Bottleneck, title: str) -> str:
    """Return the profile as a page of Markdown, with the picture beside it."""
    marks = ["---:" if name in _TO_RIGHT else "---" for name in _HEADER]
    table = [f"| {' | '.join(cells)} |" for cells in (_HEADER, marks, *_rows(record))]
    blocks = [
        f"# Where the time of {title} went",
        _seen(record),
        "\n".join(table),
        f"CPU used while training: {_cpu(record)}.",
        *(f"{line}." for line in _gpu(record)),
        *(f"Bottleneck: {line}." if i == 0 else f"{line}." for i, line in enumerate(bottleneck.lines)),
        f"![shares of time]({PROFILE_CHART_FILE})",
    ]
    return "\n\n".join(blocks) + "\n"


def profile_values(record: TimeRecord, bottleneck: Bottleneck) -> dict[str, Any]:
    """Return the profile as plain JSON values; `cores` is what all workers of a kind used together.

    `gpu_share` is the part of their time in which their GPUs were at work.
    """
    return {
        "startup_s": record.startup_s,
        "training_s": record.training_s,
        "updates": record.updates,
        "env_steps": record.env_steps,
        "bottleneck": {"where": bottleneck.where, "lines": list(bottleneck.lines)},
        "kinds": {
            name: {
                "workers": kind.workers,
                "cores": _cores(kind),
                "gpu_share": _gpu_share(kind),
                "seconds": dict(kind.seconds),
                "shares": ordered_shares(kind),
            }
            for name, kind in ordered_kinds(record)
        },
    }


def _seen(record: TimeRecord) -> str:
    return (
        f"training was watched for {record.training_s:.1f} s, from {record.startup_s:.1f} s after the start: "
        f"{record.updates:,} updates, {record.env_steps:,} env_steps"
    )


def _rows(record: TimeRecord) -> Iterator[Sequence[str]]:
    for name, kind in ordered_kinds(record):
        label = f"{name} x {kind.workers}"
        for activity, share in ordered_shares(kind).items():
            if share < _LEAST_SHARE:
                continue
            spent = kind.seconds[activity]
            seconds = f"{spent / max(kind.workers, 1):.2f}"
            cost = _cost(name, kind.workers, spent, record)
            yield label, activity_name(activity), f"{100 * share:.1f} %", seconds, cost
            label = ""


def _cost(kind: str, workers: int, seconds: float, record: TimeRecord) -> str:
    """Return what an activity costs for each unit of the run.

    All trainers take part in every update; an env_step is of one actor and one policy worker.
    """
    if kind == "trainer" and record.updates:
        return f"{1e3 * seconds / max(workers, 1) / record.updates:,.2f} ms/update"
    if kind in ("actor", "policy") and record.env_steps:
        return f"{1e6 * seconds / record.env_steps:,.1f} us/env_step"
    return ""


def _cores(kind: KindTime) -> float:
    """Return how many cores the workers of a kind used together."""
    total = sum(kind.seconds.values())
    return kind.cpu_s / total * max(kind.workers, 1) if total > 0 else 0.0


def _gpu_share(kind: KindTime) -> float:
    total = sum(kind.seconds.values())
    return kind.device_s / total if total > 0 else 0.0


def _gpu(record: TimeRecord) -> list[str]:
    shares = {name: _gpu_share(kind) for name, kind in ordered_kinds(record) if kind.device_s}
    parts = [f"{name} {100 * share:.0f} % of the time" for name, share in shares.items()]
    return [f"GPU at work while training: {', '.join(parts)}"] if parts else []


def _cpu(record: TimeRecord) -> str:
    parts = [
        f"{name} {_cores(kind) / max(kind.workers, 1):.2f} cores" + (" each" if kind.workers > 1 else "")
        for name, kind in ordered_kinds(record)
    ]
    return ", ".join(parts) or "not known"
