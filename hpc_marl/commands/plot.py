"""`hpc-marl plot EXP[/TRIAL]`: the learning curves of a run, or of a sweep's trials."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.commands.command_line import run_command, trial_parser
from hpc_marl.reports.curve_files import (
    LEARNING_CURVE_FILE,
    LEARNING_CURVES_FILE,
    draw_learning_curve,
    draw_learning_curves,
)
from hpc_marl.trials.reference import find_trials


def plot(arguments: Sequence[str]) -> int:
    """Draw the learning curves of a run or a sweep: `hpc-marl plot EXP[/TRIAL] [--root DIR] [--output FILE]`."""
    parser = trial_parser(
        "plot",
        "Draw the learning curve of one run, or those of all trials of an experiment: the mean over seeds.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help=f"the PNG; default: {LEARNING_CURVE_FILE} of the run, {LEARNING_CURVES_FILE} of the experiment",
    )
    options = parser.parse_args(arguments)

    def body() -> int:
        run = _run_directory(options.reference, options.root)
        if run is not None:
            path = draw_learning_curve(run, options.output)
        else:
            path = draw_learning_curves(find_trials(options.reference, options.root), options.output)
        sys.stdout.write(f"{path}\n")
        return 0

    return run_command(body)


def _run_directory(reference: str, root: str) -> RunDirectory | None:
    """Return the one run that is meant, by EXP/TRIAL or its path; None where it is an experiment."""
    for path in (Path(root).expanduser() / reference, Path(reference).expanduser()):
        if (path / "metrics").is_dir() or (path / "launch.json").is_file():
            return RunDirectory.at(path)
    return None
