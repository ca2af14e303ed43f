"""The end of a run: its summary and its picture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.telemetry import METRICS_FILE
from hpc_marl.cli import main
from hpc_marl.errors import HpcMarlError
from hpc_marl.reports.plotting import plot_learning_curve, smooth
from hpc_marl.reports.run_summary import RunSummary, summary_text
from hpc_marl.trials.evaluation import Evaluation, read_evaluation

EVALUATION = Evaluation(0.9812, (0.968, 0.9934), 100, 1_474_560)


def rows(count: int) -> list[dict[str, float]]:
    made = []
    for i in range(count):
        row = {
            "env_steps": (i + 1) * 4096,
            "env_steps_per_s": 9000.0,
            "value_loss": 5.0 / (i + 1),
            "policy_lag": 0.0,
            "entropy": 1.8,
        }
        if i >= 2:
            row |= {"episode_return": math.tanh(i / count), "num_episodes": 3}
        made.append(row)
    return made


def summary(**changes: object) -> RunSummary:
    values = {
        "name": "lbf_mappo/seed1",
        "verdict": "completed",
        "run_directory": Path("runs/lbf_mappo/seed1"),
        "env_steps": 1_474_560,
        "agent_steps": 2_949_120,
        "elapsed_s": 145.0,
        "env_steps_per_s": 10_169.4,
    }
    return RunSummary(**{**values, **changes})  # type: ignore[arg-type]


def test_the_summary_says_what_to_know_and_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs/lbf_mappo/seed1"
    text = summary_text(
        summary(
            run_directory=run,
            evaluation=EVALUATION,
            checkpoint=run / "checkpoints/step-000360.e0001",
            learning_curve=run / "learning_curve.png",
            tensorboard=run / "metrics",
            ledger={"produced": 722, "consumed": 720, "dropped": 2},
            resume_command="hpc-marl train resume=true",
        )
    )
    for part in (
        "lbf_mappo/seed1: completed",
        "return 0.981, 95 % interval 0.968 to 0.993, over 100 episodes",
        "1,474,560 env_steps, 2,949,120 agent_steps in 02:25 (10,169 env_steps/s)",
        "722 produced, 720 consumed, 2 dropped",
        " runs/lbf_mappo/seed1/checkpoints/step-000360.e0001",
        " runs/lbf_mappo/seed1/learning_curve.png",
        "tensorboard --logdir runs/lbf_mappo/seed1/metrics",
        " hpc-marl train resume=true",
    ):
        assert part in text
    assert str(tmp_path) not in text


def test_the_bottleneck_is_wrapped_below_itself():
    lines = ("the trainer: " + "it learns and learns " * 10 + "mode=async", "cores are shared")
    rows = summary_text(summary(bottleneck=lines, profile=Path("/elsewhere/profile.md"))).splitlines()
    first = next(i for i, row in enumerate(rows) if row.startswith("  bottleneck  "))
    column = rows[first].index("the trainer")
    below = [row for row in rows[first:] if row[:column].strip() in ("", "bottleneck")]
    assert " ".join(row[column:] for row in below) == " ".join(lines)
    assert all(len(row) <= 110 for row in below) and len(below) > 3
    assert below[-1][column:] == "cores are shared" and rows[first + len(below)].split()[0] == "profile"


def test_what_there_is_not_is_left_out():
    text = summary_text(summary(run_directory=Path("/elsewhere/run")))
    assert "/elsewhere/run/logs" in text
    assert not any(
        word in text for word in ("evaluation", "checkpoint", "None", "go on", "TensorBoard", "batches")
    )


def test_the_evaluation_is_read_from_its_file(tmp_path: Path):
    assert read_evaluation(tmp_path) is None
    content = {"return_mean": 0.5, "return_interval_95": [0.4, 0.6], "episodes": 100, "env_steps": 9}
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    assert read_evaluation(tmp_path) == Evaluation(0.5, (0.4, 0.6), 100, 9)
    (tmp_path / "evaluation.json").write_text(json.dumps({"return_mean": 0.5}))
    with pytest.raises(HpcMarlError, match="return_interval_95"):
        read_evaluation(tmp_path)


def test_smoothing_weighs_and_keeps_the_ends():
    values, weights = np.array([0.0, 1.0, 4.0, 1.0]), np.array([1.0, 1.0, 2.0, 0.0])
    assert smooth(values, weights, 3) == pytest.approx([0.5, 2.25, 3.0, 4.0])
    assert smooth(values, np.ones(4), 1) == pytest.approx(values)


@pytest.mark.parametrize("count", [0, 3])
def test_any_number_of_rows_makes_a_picture(tmp_path: Path, count: int):
    path = plot_learning_curve(
        rows(count), tmp_path / "curve.png", title="a/b", evaluation=EVALUATION if count else None
    )
    assert path.read_bytes().startswith(b"\x89PNG\r\n")


def test_the_plot_command_draws_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    directory = RunDirectory(tmp_path, "lbf_mappo", "seed1")
    directory.metrics.mkdir(parents=True)
    lines = [json.dumps(row) for row in rows(40)]
    (directory.metrics / METRICS_FILE).write_text("\n".join(lines) + '\n{"env_st')
    assert main(["plot", str(directory.path)]) == 0
    path = directory.path / "learning_curve.png"
    assert capsys.readouterr().out.strip() == str(path)
    assert path.stat().st_size > 10_000
