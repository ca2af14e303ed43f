"""What a finished run is summed up as: the final evaluation, where everything is, how to go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpc_marl.trials.evaluation import Evaluation
from hpc_marl.views.display import clock_text, number_text


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
