"""ProgressMeter: what a trainer counts and reports: steps, rates, returns, lag."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from hpc_marl.streams.samples import SampleMetadata

_RECENT_EPISODES = 200
_RATE_WINDOW_S = 10.0


class ProgressMeter:
    """Counters that survive a restart, and rates that do not.

    Attributes:
        env_steps: environment steps learned from.
        agent_steps: agent steps learned from.
        train_time_s: time of all lives since the first update of each.
    """

    def __init__(
        self, env_steps: int = 0, agent_steps: int = 0, episodes: int = 0, train_time_s: float = 0.0
    ) -> None:
        self.env_steps = env_steps
        self.agent_steps = agent_steps
        self.episodes = episodes
        self._earlier_s = train_time_s
        self._start = time.monotonic()
        self._window: deque[tuple[float, int, int]] = deque()
        self._recent: deque[float] = deque(maxlen=_RECENT_EPISODES)
        self._row: dict[str, Any] = {}
        self._policy_lag = 0.0

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> ProgressMeter:
        """Return a meter that goes on from `to_dict()`."""
        return cls(**state)

    def to_dict(self) -> dict[str, Any]:
        """Return what must survive a restart."""
        return {
            "env_steps": self.env_steps,
            "agent_steps": self.agent_steps,
            "episodes": self.episodes,
            "train_time_s": self.train_time_s,
        }

    @property
    def train_time_s(self) -> float:
        """Seconds of this life and those before it."""
        return self._earlier_s + time.monotonic() - self._start

    def count(self, samples: Sequence[SampleMetadata], policy_version: int, policy_lag: float) -> None:
        """Take in what the batches of one update say of themselves."""
        self.env_steps += sum(sample.env_steps for sample in samples)
        self.agent_steps += sum(sample.agent_steps for sample in samples)
        episodes = [episode for sample in samples for episode in sample.episodes]
        self.episodes += len(episodes)
        self._recent.extend(return_ for return_, _ in episodes)
        self._policy_lag = policy_lag
        now = time.monotonic()
        self._window.append((now, self.env_steps, self.agent_steps))
        while len(self._window) > 2 and now - self._window[0][0] > _RATE_WINDOW_S:
            self._window.popleft()
        env_rate, agent_rate = self._rates()
        self._row = {
            "time_s": round(self.train_time_s, 3),
            "env_steps": self.env_steps,
            "agent_steps": self.agent_steps,
            "policy_version": policy_version,
            "policy_lag": policy_lag,
            "num_episodes": len(episodes),
            "env_steps_per_s": round(env_rate, 1),
            "agent_steps_per_s": round(agent_rate, 1),
        }
        if episodes:
            self._row["episode_return"] = fmean(return_ for return_, _ in episodes)
            self._row["episode_length"] = fmean(length for _, length in episodes)

    def row(self) -> dict[str, Any]:
        """Return the metrics of the last update."""
        return self._row

    def summary(self) -> dict[str, float | int | str]:
        """Return the figures that heartbeats carry."""
        env_rate, agent_rate = self._rates()
        summary: dict[str, float | int | str] = {
            "env_steps": self.env_steps,
            "agent_steps": self.agent_steps,
            "env_steps_per_s": env_rate,
            "agent_steps_per_s": agent_rate,
            "policy_lag": self._policy_lag,
            "num_episodes": self.episodes,
            "train_time_s": self.train_time_s,
        }
        if self._recent:
            summary["return_mean"] = fmean(self._recent)
        return summary

    def _rates(self) -> tuple[float, float]:
        if len(self._window) < 2:
            return 0.0, 0.0
        (t0, env0, agent0), (t1, env1, agent1) = self._window[0], self._window[-1]
        elapsed = max(t1 - t0, 1e-9)
        return (env1 - env0) / elapsed, (agent1 - agent0) / elapsed
