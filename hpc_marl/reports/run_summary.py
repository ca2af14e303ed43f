"""What a finished run is summed up as: the final evaluation, where everything is, how to go on."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpc_marl.trials.evaluation import Evaluation
from hpc_marl.views.display import clock_text, number_text

_WIDTH = 108


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
        bottleneck: what held the run up and what to change, in sentences; none where that is not known.
        profile: the Markdown page of where the time went; None where none was asked for.
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
    bottleneck: tuple[str, ...] = ()
    profile: Path | None = None


def summary_text(summary: RunSummary) -> str:
    """Return the text that ends a run: what is known, one line each, the result first."""
    rows = {
        "final evaluation": _evaluation_text(summary.evaluation),
        "trained": (
            f"{summary.env_steps:,} env_steps, {summary.agent_steps:,} agent_steps in "
            f"{clock_text(summary.elapsed_s)} ({summary.env_steps_per_s:,.0f} env_steps/s)"
        ),
        "sample batches": ", ".join(f"{number:,} {fate}" for fate, number in summary.ledger.items()),
        "bottleneck": "\n".join(summary.bottleneck),
        "profile": _path_text(summary.profile),
        "checkpoint": _path_text(summary.checkpoint),
        "learning curve": _path_text(summary.learning_curve),
        "TensorBoard": f"tensorboard --logdir {_path_text(summary.tensorboard)}"
        if summary.tensorboard
        else "",
        "logs": _path_text(summary.run_directory / "logs"),
        "go on with": summary.resume_command,
    }
    width = max(map(len, rows)) + 2
    lines = [line for name, text in rows.items() if text for line in _row(name.ljust(width), text)]
    return "\n".join(["", f"{summary.name}: {summary.verdict}", *lines, ""])


def _row(name: str, text: str) -> list[str]:
    """Return the lines of one row; only sentences are wrapped, as paths and commands are there to be copied."""
    is_prose = name.startswith("bottleneck")
    parts = [
        part
        for line in text.split("\n")
        for part in (textwrap.wrap(line, _WIDTH - len(name), break_on_hyphens=False) if is_prose else [line])
    ]
    return [f"  {name if i == 0 else ' ' * len(name)}{part}" for i, part in enumerate(parts)]


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
