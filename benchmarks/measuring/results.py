"""What learning runs reached, the goals they are held against, and the file that keeps a series."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hpc_marl.base.run_directory import atomic_write

GOALS = {
    "lbf_mappo": 0.95,
    "cartpole_ppo": 475.0,
    "vmas_balance_mappo": 168.0,
    "pong_small_ppo": 18.0,
    "pong_ppo": 18.0,
    "matrix_game": 7.5,
}
"""Least final evaluation return; matrix_game takes seconds, for trying this script.

vmas_balance_mappo: four robots times 42, which BenchMARL has seen after as many steps. pong_ppo is for a GPU.
"""


class Run(NamedTuple):
    """What identifies a run: one that is in results.json is not repeated."""

    experiment: str
    variant: str
    total_env_steps: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Score:
    """What a run reached.

    Attributes:
        experiment: of conf/experiment.
        variant: mode/inference.
        total_env_steps: its budget.
        seed: of everything random.
        return_mean: of the final evaluation.
        interval: 95 % interval of return_mean over episodes.
        episodes: of the final evaluation.
        env_steps: learned from.
        goal_env_steps: at which the mean return of the last 100 training episodes first held the goal.
        wall_s: of the whole command, start-up and evaluation included.
        machine: where it ran, and with which versions.
    """

    experiment: str
    variant: str
    total_env_steps: int
    seed: int
    return_mean: float
    interval: tuple[float, float]
    episodes: int
    env_steps: int
    goal_env_steps: int | None
    wall_s: float
    machine: str

    @property
    def run(self) -> Run:
        """Which run it is of."""
        return Run(self.experiment, self.variant, self.total_env_steps, self.seed)

    @property
    def holds(self) -> bool:
        """Whether the goal was reached."""
        return self.return_mean >= GOALS[self.experiment]


def read_scores(path: Path) -> list[Score]:
    """Return what a series has so far; nothing where there is no file.

    Raises:
        ValueError: the file is no results file.
    """
    try:
        found = json.loads(path.read_bytes())["scores"]
        return [Score(**{**score, "interval": tuple(score["interval"])}) for score in found]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} was not written by this script: {error!r}") from error


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Write the file as a whole, so that an interruption leaves the old one or the new one."""
    content = {"scores": [dataclasses.asdict(score) for score in scores]}
    atomic_write(path, json.dumps(content, indent=1).encode() + b"\n")
