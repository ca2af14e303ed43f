"""A controller's snapshot as people look at it: workers by kind, slots by job. Values only, however large the run.

A snapshot of another version may lack fields; what is not there is shown as not known.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_marl.views.text_table import index_ranges

# The counter in the heartbeats of a kind that says how much it does, and its unit.
WORK_COUNTERS = {"actor": ("env_steps_produced", "env_steps/s"), "policy": ("rows", "rows/s")}
_TROUBLED = ("ERROR", "LOST")


@dataclass(frozen=True)
class KindView:
    """All workers of one kind.

    Attributes:
        kind: such as `actor`.
        statuses: (status, how many): those that run first, then the most frequent.
        waiting: (why processes are not there yet, how many).
        hosts: nodes they are on.
        cpu_percent: mean of those that say it, 100 is one core; None where none does.
        gpu_percent: mean over their slots.
        rss_mb: total.
        restarts: of all of them.
        time_left_s: of the job that ends first.
        policy_lag: mean versions behind the trainer; None where none says it.
        rate: what they do per second, with its unit; "" where it is not known.
    """

    kind: str
    statuses: Sequence[tuple[str, int]]
    waiting: Sequence[tuple[str, int]]
    hosts: Sequence[str]
    cpu_percent: float | None
    gpu_percent: float | None
    rss_mb: float | None
    restarts: int
    time_left_s: float | None
    policy_lag: float | None
    rate: str

    @property
    def total(self) -> int:
        """How many workers of the kind there are."""
        return sum(count for _, count in self.statuses)


@dataclass(frozen=True)
class JobView:
    """The slots that one job fills and that stand alike.

    Attributes:
        role: core or actors.
        job_id: such as `123`, or `123_0-3,7` for elements of an array.
        state: of the job, in the queue's word; of the host process where there is no queue.
        reason: why it is pending.
        expected_start: the queue's guess.
        slots: their numbers.
        nodes: where they run.
        time_left_s: of the one that ends first.
        cpu_percent: mean.
        gpu_percent: mean.
        rss_mb: total.
        workers: how many workers they hold.
    """

    role: str
    job_id: str
    state: str
    reason: str
    expected_start: str
    slots: Sequence[int]
    nodes: Sequence[str]
    time_left_s: float | None
    cpu_percent: float | None
    gpu_percent: float | None
    rss_mb: float | None
    workers: int


def kind_views(snapshot: Mapping[str, Any], rates: Mapping[str, float] | None = None) -> list[KindView]:
    """Return the workers of a snapshot by kind, in its order.

    Args:
        snapshot: as `status` returns it.
        rates: what each kind does per second, as `work_rates` says.
    """
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for worker in snapshot.get("workers", ()):
        by_kind.setdefault(kind_of(worker), []).append(worker)
    slots = {slot.get("slot"): slot for slot in snapshot.get("slots", ())}
    return [_kind_view(kind, workers, slots, snapshot, rates or {}) for kind, workers in by_kind.items()]


def job_views(snapshot: Mapping[str, Any]) -> list[JobView]:
    """Return the slots of a snapshot, those that stand alike together: one row for an array of a thousand."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for slot in snapshot.get("slots", ()):
        base = str(slot.get("job_id", "")).partition("_")[0]
        state = slot.get("job_state") or slot.get("status", "")
        key = (slot.get("role", ""), base, state, slot.get("reason", ""), slot.get("expected_start", ""))
        groups.setdefault(key, []).append(slot)
    return [_job_view(key, slots) for key, slots in groups.items()]


def work_rates(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """Return what each kind did per second between two snapshots of one controller; {} where that cannot be said."""
    elapsed_s = progress_of(after).get("elapsed_s", 0.0) - progress_of(before).get("elapsed_s", 0.0)
    if elapsed_s <= 0:
        return {}
    counted = {
        _life(worker): work for worker in before.get("workers", ()) if (work := _work(worker)) is not None
    }
    rates: dict[str, float] = {}
    for worker in after.get("workers", ()):
        work, earlier = _work(worker), counted.get(_life(worker))
        if work is not None and earlier is not None:
            kind = kind_of(worker)
            rates[kind] = rates.get(kind, 0.0) + max(0.0, work - earlier) / elapsed_s
    return rates


def progress_of(snapshot: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the figures of a snapshot."""
    progress: Mapping[str, Any] = snapshot.get("progress", {})
    return progress


def batches_queued(progress: Mapping[str, Any]) -> int:
    """Return how many sample batches are under way: produced, and neither consumed nor dropped yet."""
    produced = progress.get("batches_produced", 0)
    return int(max(0, produced - progress.get("batches_consumed", 0) - progress.get("batches_dropped", 0)))


def fraction_done(progress: Mapping[str, Any]) -> float:
    """Return how much of the run is done, from 0 to 1."""
    total = progress.get("total_env_steps") or 0
    return min(progress.get("env_steps", 0) / total, 1.0) if total else 0.0


def troubled_workers(snapshot: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (worker name, last error) of workers that have failed."""
    return [
        (worker.get("name", ""), worker["last_error"])
        for worker in snapshot.get("workers", ())
        if worker.get("status") in _TROUBLED and worker.get("last_error")
    ]


def kind_of(worker: Mapping[str, Any]) -> str:
    """Return the part of a worker's name before the index."""
    return str(worker.get("name", "")).partition("/")[0]


def _kind_view(
    kind: str,
    workers: Sequence[Mapping[str, Any]],
    slots: Mapping[Any, Mapping[str, Any]],
    snapshot: Mapping[str, Any],
    rates: Mapping[str, float],
) -> KindView:
    own_slots = [slots[index] for index in {worker.get("slot") for worker in workers} if index in slots]
    statuses = Counter(worker.get("status", "UNKNOWN") for worker in workers)
    progress = progress_of(snapshot)
    lags = [lag for worker in workers if (lag := _policy_lag(worker, progress)) is not None]
    return KindView(
        kind=kind,
        statuses=sorted(statuses.items(), key=lambda item: (item[0] != "RUNNING", -item[1])),
        waiting=Counter(worker["waiting"] for worker in workers if worker.get("waiting")).most_common(),
        hosts=sorted({worker["node"] for worker in workers if worker.get("node")}, key=_natural),
        cpu_percent=_mean(worker.get("cpu_percent") for worker in workers),
        gpu_percent=_mean(slot.get("gpu_percent") for slot in own_slots),
        rss_mb=_total(worker.get("rss_mb") for worker in workers),
        restarts=sum(worker.get("life", 0) for worker in workers),
        time_left_s=_least(slot.get("time_left_s") for slot in own_slots),
        policy_lag=_mean(lags),
        rate=_rate_text(kind, rates, progress),
    )


def _job_view(key: tuple[str, ...], slots: Sequence[Mapping[str, Any]]) -> JobView:
    role, base, state, reason, expected_start = key
    ids = [str(slot.get("job_id", "")) for slot in slots]
    elements = [int(found[1]) for job_id in ids if (found := re.fullmatch(r"\d+_(\d+)", job_id))]
    return JobView(
        role=role,
        job_id=f"{base}_{index_ranges(elements)}" if elements else base,
        state=state,
        reason=reason,
        expected_start=expected_start,
        slots=[slot.get("slot", 0) for slot in slots],
        nodes=sorted({slot["node"] for slot in slots if slot.get("node")}, key=_natural),
        time_left_s=_least(slot.get("time_left_s") for slot in slots),
        cpu_percent=_mean(slot.get("cpu_percent") for slot in slots),
        gpu_percent=_mean(slot.get("gpu_percent") for slot in slots),
        rss_mb=_total(slot.get("rss_mb") for slot in slots),
        workers=sum(len(slot.get("workers", ())) for slot in slots),
    )


def _policy_lag(worker: Mapping[str, Any], progress: Mapping[str, Any]) -> float | None:
    metrics = worker.get("metrics", {})
    if "policy_lag" in metrics:
        return float(metrics["policy_lag"])
    if "policy_version" in metrics and kind_of(worker) != "trainer":
        return float(max(0, progress.get("policy_version", 0) - metrics["policy_version"]))
    return None


def _rate_text(kind: str, rates: Mapping[str, float], progress: Mapping[str, Any]) -> str:
    if kind == "trainer":
        return f"{progress.get('env_steps_per_s') or 0.0:,.0f} env_steps/s"
    return f"{rates[kind]:,.0f} {WORK_COUNTERS[kind][1]}" if kind in rates else ""


def _work(worker: Mapping[str, Any]) -> float | None:
    counter = WORK_COUNTERS.get(kind_of(worker))
    work = worker.get("metrics", {}).get(counter[0]) if counter else None
    return None if work is None else float(work)


def _life(worker: Mapping[str, Any]) -> tuple[str, int]:
    return worker.get("name", ""), worker.get("life", 0)


def _natural(text: str) -> list[tuple[int, str]]:
    """Order cpu2 before cpu10."""
    return [(int(part or 0), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)
