"""What every driver of a peer reports: rows like those of our metrics.jsonl, appended to a file as training goes on.

A driver gets its settings as JSON in argv[1], among them `progress`, the file that it reports to, and when to stop:
once the goal is held (or at once, where there is none) and `min_s` are over, but never later than `max_s`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from measuring.learning import first_reached


def read_settings() -> dict[str, Any]:
    """Return what the benchmark asks for."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    return settings


class PeerProgress:
    """Reports a training and says when it has been watched for long enough; times are those of time.monotonic.

    Args:
        settings: of the driver: progress (path), goal (mean return of 100 episodes, or None), min_s, max_s.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._returns: list[float] = []
        self._rows: list[dict[str, Any]] = []
        self._started_s = 0.0
        self._is_held = False

    def started(self) -> None:
        """Note that the first environment step comes now."""
        self._started_s = time.monotonic()
        self._write({"first_step_s": self._started_s})

    def episode(self, episode_return: float) -> None:
        """Note that a training episode has ended; its return is undiscounted and as the environment pays it."""
        self._returns.append(float(episode_return))

    def update(self, env_steps: int) -> bool:
        """Note that so many environment steps are done and, as a rule, learned from; return whether to go on."""
        number = len(self._returns)
        row = {"time_s": time.monotonic(), "env_steps": int(env_steps), "num_episodes": number}
        if number:
            row["episode_return"] = sum(self._returns) / number
        self._returns.clear()
        self._rows.append(row)
        self._write(row)
        return not self._is_enough(row["time_s"] - self._started_s)

    def _is_enough(self, elapsed_s: float) -> bool:
        goal = self._settings["goal"]
        if not self._is_held:
            self._is_held = goal is None or first_reached(self._rows, goal) is not None
        return elapsed_s >= self._settings["max_s"] or (
            self._is_held and elapsed_s >= self._settings["min_s"]
        )

    def _write(self, row: dict[str, Any]) -> None:
        with open(
            self._settings["progress"], "a", encoding="utf-8"
        ) as file:  # not kept open: peers copy callbacks
            print(json.dumps(row), file=file)
