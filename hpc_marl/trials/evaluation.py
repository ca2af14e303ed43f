"""The final evaluation of a run, as its evaluator left it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.errors import HpcMarlError


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of the final policy, as the evaluator writes it to evaluation.json.

    Attributes:
        return_mean: mean return over the episodes.
        interval: the mean's 95 % interval (low, high).
        episodes: how many.
        env_steps: environment steps the policy had learned from.
    """

    return_mean: float
    interval: tuple[float, float]
    episodes: int
    env_steps: int


def read_evaluation(run_directory: str | Path) -> Evaluation | None:
    """Return a run's final evaluation; None where there is none yet.

    Raises:
        HpcMarlError: evaluation.json is not one.
    """
    path = RunDirectory.at(run_directory).evaluation_file
    try:
        found = json.loads(path.read_bytes())
        low, high = found["return_interval_95"]
        return Evaluation(found["return_mean"], (low, high), found["episodes"], found["env_steps"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise HpcMarlError(f"{path} is not an evaluation: {error!r}") from error
