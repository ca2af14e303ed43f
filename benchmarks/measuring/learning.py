"""Statistics of learning: when a goal was first held, and what several seeds say together."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WINDOW_EPISODES = 100
_RESAMPLES = 10_000
_NEAR = 0.02


def first_reached(rows: Sequence[Mapping[str, Any]], goal: float) -> int | None:
    """Return env_steps at which the mean return of the last 100 training episodes was first >= goal; None if never."""
    return next((env_steps for env_steps, mean in _running_means(rows) if mean >= goal), None)


def mean_return(rows: Sequence[Mapping[str, Any]], env_steps: int) -> float | None:
    """Return the mean return of the last 100 training episodes after so many env_steps.

    None where no 100 episodes had ended, or training had. Updates of any size come to within 2 % of `env_steps`.
    """
    if not rows or rows[-1]["env_steps"] < env_steps * (1 - _NEAR):
        return None
    means = [mean for done, mean in _running_means(rows) if done <= env_steps * (1 + _NEAR)]
    return means[-1] if means else None


def _running_means(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, float]]:
    """Yield env_steps and the mean return of the last 100 training episodes, from when there are as many.

    A row of metrics.jsonl holds the number of episodes that ended in one update's samples and their mean return, so
    an update of which only a part is among the last 100 counts with its mean.
    """
    recent: deque[tuple[int, float]] = deque()
    for row in rows:
        if not row["num_episodes"]:
            continue
        recent.append((row["num_episodes"], row["episode_return"]))
        while sum(number for number, _ in recent) - recent[0][0] >= _WINDOW_EPISODES:
            recent.popleft()
        total = sum(number for number, _ in recent)
        if total < _WINDOW_EPISODES:
            continue
        _, oldest_return = recent[0]
        too_many = (total - _WINDOW_EPISODES) * oldest_return
        mean = (sum(number * mean for number, mean in recent) - too_many) / _WINDOW_EPISODES
        yield int(row["env_steps"]), mean


def interquartile_mean(values: Sequence[float]) -> float:
    """Return the mean of the middle half: of n values, int(n / 4) are left out at either end."""
    return float(_interquartile_means(np.array([values], np.float64))[0])


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the interquartile mean; the same for the same values."""
    drawn = np.random.default_rng(0).choice(np.asarray(values, np.float64), (_RESAMPLES, len(values)))
    low, high = np.percentile(_interquartile_means(drawn), [2.5, 97.5])
    return float(low), float(high)


def _interquartile_means(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    number = samples.shape[1]
    cut = number // 4
    means: NDArray[np.float64] = np.sort(samples, axis=1)[:, cut : number - cut].mean(axis=1)
    return means
