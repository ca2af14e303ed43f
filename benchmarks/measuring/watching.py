"""What a training was seen to do: its rows of metrics on one clock, and the CPU time of its processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any, NamedTuple

import psutil

from measuring.learning import first_reached, mean_return
from measuring.timeline import Point, Rates, middle_rates, whole_rates

_POLL_S = 0.05
_CPU_EVERY_POLLS = 4


class Outcome(NamedTuple):
    """What a training reached.

    Attributes:
        rates: of its middle.
        goal_env_steps: at which the goal was first held; None: it was not, or there is none.
        goal_s: from the command's start until then.
        learning_s: from the first environment step until then.
        returns: mean returns of the last 100 training episodes after the env_steps asked for; None: not reached.
    """

    rates: Rates
    goal_env_steps: int | None = None
    goal_s: float | None = None
    learning_s: float | None = None
    returns: tuple[float | None, ...] = ()


class Watched(NamedTuple):
    """A training that is over; times are those of time.monotonic.

    Attributes:
        started_s: when its command was started.
        first_step_s: when its first environment step was taken.
        rows: as in metrics.jsonl: time_s, env_steps, num_episodes, episode_return.
        cpu_points: CPU time by part of the system, several times.
    """

    started_s: float
    first_step_s: float
    rows: Sequence[Mapping[str, Any]]
    cpu_points: Sequence[Point]

    def outcome(
        self, goal: float | None, returns_after: Sequence[int] = (), *, is_whole: bool = False
    ) -> Outcome:
        """Return what it reached.

        Args:
            goal: mean return of the last 100 training episodes whose time is wanted.
            returns_after: env_steps after which that mean is wanted.
            is_whole: take the rate of all updates, however few, from the first environment step to the last update.
        """
        rates = self._whole_rates() if is_whole else self._middle_rates()
        found = Outcome(rates, returns=tuple(mean_return(self.rows, steps) for steps in returns_after))
        reached = None if goal is None else first_reached(self.rows, goal)
        if reached is None:
            return found
        time_s = next(row["time_s"] for row in self.rows if row["env_steps"] >= reached)
        return found._replace(
            goal_env_steps=reached, goal_s=time_s - self.started_s, learning_s=time_s - self.first_step_s
        )

    def _middle_rates(self) -> Rates:
        return Rates(middle_rates(self._points()).env_steps_per_s, middle_rates(self.cpu_points).cores)

    def _whole_rates(self) -> Rates:
        points = [Point(self.first_step_s, 0, {}), *self._points()]
        inside = [
            point for point in self.cpu_points if self.first_step_s <= point.time_s <= points[-1].time_s
        ]
        return Rates(whole_rates(points).env_steps_per_s, whole_rates(inside).cores)

    def _points(self) -> list[Point]:
        return [Point(row["time_s"], row["env_steps"], {}) for row in self.rows]


class RowFile:
    """Reads rows of JSON as another process appends them, each once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_rows(self) -> list[dict[str, Any]]:
        """Return the rows that were completed since the last call."""
        with suppress(FileNotFoundError), open(self._path, "rb") as file:
            file.seek(self._offset)
            whole, _, _ = file.read().rpartition(b"\n")
            if whole:
                self._offset += len(whole) + 1
                return [json.loads(line) for line in whole.splitlines()]
        return []


def watch(
    process: Popen[Any], rows: RowFile, part_of: Callable[[psutil.Process], str]
) -> tuple[list[tuple[float, dict[str, Any]]], list[Point]]:
    """Wait for a process's end; return its rows with when each was seen, and the CPU time of its processes.

    Args:
        process: the parent of all that belongs to it.
        rows: where it reports.
        part_of: says to which part of the system one of its processes belongs.
    """
    seen: list[tuple[float, dict[str, Any]]] = []
    cpu_points: list[Point] = []
    polls = 0
    while process.poll() is None:
        seen += [(time.monotonic(), row) for row in rows.new_rows()]
        if polls % _CPU_EVERY_POLLS == 0:
            env_steps = seen[-1][1].get("env_steps", 0) if seen else 0
            cpu_points.append(Point(time.monotonic(), env_steps, _cpu_s(process.pid, part_of)))
        polls += 1
        with suppress(TimeoutExpired):
            process.wait(_POLL_S)
    return [*seen, *((time.monotonic(), row) for row in rows.new_rows())], cpu_points


def _cpu_s(pid: int, part_of: Callable[[psutil.Process], str]) -> dict[str, float]:
    """Return the CPU seconds so far of a process and all below it, by part."""
    used: dict[str, float] = {}
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                part, times = part_of(process), process.cpu_times()
                used[part] = used.get(part, 0.0) + times.user + times.system
    return used
