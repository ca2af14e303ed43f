"""The end of a run: draw the learning curve, gather what the workers left behind, print it."""

from __future__ import annotations

import sys

from hpc_marl.base.checkpoints import latest_checkpoint
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.telemetry import METRICS_FILE, read_metrics
from hpc_marl.config import ExperimentConfig
from hpc_marl.control.controller import Verdict
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.reports.bottleneck import find_bottleneck
from hpc_marl.reports.curve_files import draw_learning_curve
from hpc_marl.reports.profile import profile_text
from hpc_marl.reports.profile_files import write_profile
from hpc_marl.reports.run_summary import RunSummary, summary_text
from hpc_marl.reports.usage import read_ledger
from hpc_marl.trials.evaluation import read_evaluation
from hpc_marl.trials.time_record import TimeRecord, read_time_record


def write_summary(
    config: ExperimentConfig, directory: RunDirectory, verdict: Verdict, elapsed_s: float, command: str
) -> float | None:
    """Draw and print everything; return the final evaluation's mean return.

    Args:
        config: the experiment.
        directory: of the trial.
        verdict: how it ended.
        elapsed_s: time of this command.
        command: what starts this trial again, to which `resume=true` is added.
    """
    rows = (
        read_metrics(directory.metrics / METRICS_FILE) if (directory.metrics / METRICS_FILE).exists() else []
    )
    newest = rows[-1] if rows else {}
    finished = verdict.status is WorkerStatus.COMPLETED
    evaluation = read_evaluation(directory.path) if finished else None
    checkpoint = latest_checkpoint(directory.checkpoints)
    times = read_time_record(directory) or TimeRecord()
    bottleneck = find_bottleneck(times, config, elapsed_s)
    env_steps, train_time_s = int(newest.get("env_steps", 0)), float(newest.get("time_s", 0.0))
    summary = RunSummary(
        name=f"{directory.experiment_name}/{directory.trial_name}",
        verdict=verdict.reason,
        run_directory=directory.path,
        env_steps=env_steps,
        agent_steps=int(newest.get("agent_steps", 0)),
        elapsed_s=elapsed_s,
        env_steps_per_s=env_steps / train_time_s if train_time_s > 0 else 0.0,
        evaluation=evaluation,
        checkpoint=checkpoint.path if checkpoint else None,
        learning_curve=draw_learning_curve(directory) if rows else None,
        tensorboard=directory.metrics,
        ledger=read_ledger(directory),
        resume_command="" if finished or checkpoint is None else f"{command} resume=true",
        bottleneck=bottleneck.lines if rows else (),
        profile=write_profile(directory, times, bottleneck) if config.profile and rows else None,
    )
    if summary.profile is not None:
        sys.stdout.write(f"\n{profile_text(times, bottleneck)}")
    sys.stdout.write(summary_text(summary))
    sys.stdout.flush()
    return evaluation.return_mean if evaluation else None
