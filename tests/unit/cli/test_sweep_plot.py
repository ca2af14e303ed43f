"""`hpc-marl plot EXP`: trials become groups, groups become a mean with an interval, all becomes a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.cli import main
from hpc_marl.reports.sweep_plot import TrialCurve, group_curves, mean_curve, trial_curve


def curve(returns: list[float], steps: list[float] | None = None, **settings: Any) -> TrialCurve:
    return TrialCurve(
        settings, np.array(steps or np.arange(len(returns)), np.float64), np.array(returns, np.float64)
    )


def test_trials_that_differ_in_their_seed_are_one_group() -> None:
    curves = [
        curve([0.0], seed=seed, trial_name=f"seed{seed}", cluster={"kind": "local"}) for seed in range(3)
    ]
    assert [(label, len(members)) for label, members in group_curves(curves).items()] == [("", 3)]


def test_a_group_is_named_by_what_says_most() -> None:
    curves = [
        curve([0.0], seed=seed, algorithm={"name": name, "central": name == "mappo", "lr": lr})
        for seed in (1, 2)
        for name in ("mappo", "ippo")
        for lr in (0.1, 0.01)
    ]
    groups = group_curves(curves)
    assert list(groups) == ["ippo, lr=0.01", "ippo, lr=0.1", "mappo, lr=0.01", "mappo, lr=0.1"]
    assert all(len(members) == 2 for members in groups.values())
    curves = [curve([0.0], actors={"cpus": n}, trainer={"cpus": n // 2}) for n in (2, 9, 10)]
    assert list(group_curves(curves)) == ["actors.cpus=2", "actors.cpus=9", "actors.cpus=10"]
    curves = [curve([0.0], a={"lr": n % 2}, b={"lr": n // 2}) for n in range(4)]
    assert next(iter(group_curves(curves))) == "a.lr=0, b.lr=0"


def test_the_mean_and_its_interval_by_students_t() -> None:
    found = mean_curve([curve([0.0, 0.0]), curve([1.0, 1.0]), curve([2.0, 2.0])])
    assert found is not None and found.mean == pytest.approx(1.0)
    assert found.high - found.mean == pytest.approx(4.303 / np.sqrt(3))
    one = mean_curve([curve([3.0, 5.0])])
    assert one is not None and (one.low == one.mean).all() and one.mean[-1] == 5.0


def test_the_mean_ends_where_the_first_seed_ends() -> None:
    found = mean_curve([curve([0.0, 10.0], [0, 10]), curve([2.0, 4.0, 6.0], [2, 4, 6])])
    assert found is not None
    assert (found.env_steps[0], found.env_steps[-1]) == (2.0, 6.0)
    assert found.mean[[0, -1]] == pytest.approx([2.0, 6.0])
    assert mean_curve([curve([0.0], [1]), curve([0.0], [2])]) is None


def test_a_trial_without_an_episode_has_no_curve() -> None:
    assert trial_curve({}, []) is None and trial_curve({}, [{"env_steps": 5, "episode_return": None}]) is None
    found = trial_curve({}, [{"env_steps": 5, "episode_return": 2.0, "num_episodes": 3}, {"env_steps": 9}])
    assert found is not None and found.returns.tolist() == [2.0]


def plant_sweep(root: Path, num_seeds: int = 3, num_rows: int = 300) -> None:
    """Write the metrics of two algorithms, as trials of `exp`; one more trial has not begun."""
    for a, (name, rate, top) in enumerate((("ippo", 0.9, 0.82), ("mappo", 1.6, 0.97))):
        for seed in range(1, num_seeds + 1):
            random = np.random.default_rng(10 * a + seed)
            directory = RunDirectory(root, "exp", f"{name}-seed{seed}")
            directory.create()
            directory.launch_file.write_text("{}")
            settings = {"seed": seed, "trial_name": directory.trial_name, "algorithm": {"name": name, "a": a}}
            directory.config_file.write_text(json.dumps(settings))
            speed = rate * random.uniform(0.75, 1.25)
            # A killed seed ends early.
            rows = num_rows if (name, seed) != ("ippo", 2) else int(0.8 * num_rows)
            with (directory.metrics / "metrics.jsonl").open("w") as file:
                for i in range(rows):
                    true = top * (1 - np.exp(-speed * 4 * i / num_rows)) * random.uniform(0.93, 1.0)
                    row = {"env_steps": (i + 1) * 4096, "num_episodes": int(random.integers(1, 20))}
                    file.write(json.dumps(row | {"episode_return": true + random.normal(0, 0.05)}) + "\n")
    waiting = RunDirectory(root, "exp", "mappo-seed9")
    waiting.create()
    waiting.launch_file.write_text("{}")


def test_the_plot_command_draws_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant_sweep(tmp_path, num_rows=40)
    assert main(["plot", "exp", "--root", str(tmp_path)]) == 0
    path = tmp_path / "exp" / "learning_curves.png"
    assert capsys.readouterr().out.strip() == str(path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n") and path.stat().st_size > 20_000
    assert (
        main(["plot", "exp/mappo-seed1", "--root", str(tmp_path), "--output", str(tmp_path / "one.png")]) == 0
    )
    assert (tmp_path / "one.png").stat().st_size > 10_000
    assert main(["plot", str(tmp_path / "exp"), "--output", str(tmp_path / "all.png")]) == 0
    assert (tmp_path / "all.png").is_file()


def test_a_sweep_without_an_episode_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant_sweep(tmp_path, num_seeds=0)
    assert main(["plot", "exp", "--root", str(tmp_path)]) == 2
    assert "none of the 1 trials" in capsys.readouterr().err
    assert main(["plot", "exq", "--root", str(tmp_path)]) == 2
    assert "did you mean 'exp'" in capsys.readouterr().err


def test_more_groups_than_colours_are_drawn(tmp_path: Path) -> None:
    from hpc_marl.reports.sweep_plot import plot_learning_curves

    curves = [curve([0.0, i], lr=i) for i in range(12)]
    assert plot_learning_curves(curves, tmp_path / "many.png", title="many").stat().st_size > 20_000
