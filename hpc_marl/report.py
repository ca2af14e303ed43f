"""What a finished run is summed up as: the final evaluation, where everything is, how to go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.display import clock_text, number_text
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


@dataclass(frozen=True)
class RunSummary:
    """Everything that the end of a run says.

    Attributes:
        name: EXPERIMENT/TRIAL.
        verdict: how it ended, in one sentence.
        run_directory: where everything of the trial is.
        env_steps: environment steps learned from.
        agent_steps: agent steps learned from.
        elapsed_s: time of this command.
        env_steps_per_s: over the whole training.
        evaluation: of the final policy; None where there was none.
        checkpoint: the newest one; None where there is none.
        learning_curve: the PNG; None where there is none.
        tensorboard: directory of the event files.
        ledger: sample batches by what became of them: produced, consumed, dropped.
        resume_command: what to type to go on; "" where the run is finished.
    """

    name: str
    verdict: str
    run_directory: Path
    env_steps: int
    agent_steps: int
    elapsed_s: float
    env_steps_per_s: float
    evaluation: Evaluation | None = None
    checkpoint: Path | None = None
    learning_curve: Path | None = None
    tensorboard: Path | None = None
    ledger: Mapping[str, int] = field(default_factory=dict)
    resume_command: str = ""


def summary_text(summary: RunSummary) -> str:
    """Return the text that ends a run: what is known, one line each, the result first."""
    rows = {
        "final evaluation": _evaluation_text(summary.evaluation),
        "trained": (
            f"{summary.env_steps:,} env_steps, {summary.agent_steps:,} agent_steps in "
            f"{clock_text(summary.elapsed_s)} ({summary.env_steps_per_s:,.0f} env_steps/s)"
        ),
        "sample batches": ", ".join(f"{number:,} {fate}" for fate, number in summary.ledger.items()),
        "checkpoint": _path_text(summary.checkpoint),
        "learning curve": _path_text(summary.learning_curve),
        "TensorBoard": f"tensorboard --logdir {_path_text(summary.tensorboard)}"
        if summary.tensorboard
        else "",
        "logs": _path_text(summary.run_directory / "logs"),
        "go on with": summary.resume_command,
    }
    width = max(map(len, rows)) + 2
    lines = [f"  {name.ljust(width)}{text}" for name, text in rows.items() if text]
    return "\n".join(["", f"{summary.name}: {summary.verdict}", *lines, ""])


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


def _evaluation_text(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return ""
    low, high = map(number_text, evaluation.interval)
    return (
        f"return {number_text(evaluation.return_mean)}, 95 % interval {low} to {high}, "
        f"over {evaluation.episodes} episodes"
    )


def _path_text(path: Path | None) -> str:
    """Return a path as short as it can be typed from here."""
    if path is None:
        return ""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)
