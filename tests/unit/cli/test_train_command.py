"""`hpc-marl train` up to the run itself, which is replaced: settings, sweeps, exit codes, no litter."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hpc_marl.composing.overrides import setting_paths
from hpc_marl.composing.train_help import MOST_USED
from hpc_marl.config import ExperimentConfig, build, to_dict
from hpc_marl.errors import CheckpointError, ConfigError
from hpc_marl.train import main


@dataclass
class Outcome:
    exit_code: int = 0
    objective: float | None = 0.5


class Session:
    """Stands for hpc_marl.runs.session: notes the experiments and ends them as told."""

    def __init__(self) -> None:
        self.experiments: list[ExperimentConfig] = []
        self.overrides: list[list[str]] = []
        self.outcomes: list[Outcome | Exception] = []

    def run_experiment(
        self, experiment: ExperimentConfig, overrides: Sequence[str], early_host: object = None
    ) -> Outcome:
        self.experiments.append(experiment)
        self.overrides.append(list(overrides))
        outcome = self.outcomes.pop(0) if self.outcomes else Outcome()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Session:
    session, module = Session(), types.ModuleType("hpc_marl.runs.session")
    module.run_experiment = session.run_experiment  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hpc_marl.runs.session", module)
    monkeypatch.chdir(tmp_path)
    return session


def test_a_run_gets_its_settings_and_leaves_no_litter(session: Session, tmp_path: Path):
    argv = list(sys.argv)
    assert main(["algorithm.clip_eps=0.1", "env=cartpole", "seed=4"]) == 0
    (experiment,) = session.experiments
    assert (experiment.algorithm.clip_eps, experiment.env.name, experiment.seed) == (0.1, "cartpole", 4)
    assert list(tmp_path.iterdir()) == [] and sys.argv == argv


@pytest.mark.parametrize(
    "arguments",
    [["algoritm=mappo"], ["seed=-1"], ["seed=1,2"], ["seed=1,-2", "--multirun"], ["--config-dir", "nowhere"]],
)
def test_a_wrong_setting_ends_before_anything_starts(
    session: Session, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err and captured.out == ""
    assert session.experiments == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--config-path", "--experimental-rerun"])
def test_flags_that_would_leave_our_rules_are_refused(
    session: Session, flag: str, capsys: pytest.CaptureFixture[str]
):
    assert main([flag, "somewhere"]) == 2
    assert f"{flag} is not supported" in capsys.readouterr().err
    assert session.experiments == []


@pytest.mark.parametrize(
    ("outcome", "code"),
    [(Outcome(1, None), 1), (ConfigError("x"), 2)],
)
def test_the_exit_code_tells_how_the_run_ended(session: Session, outcome: Outcome | Exception, code: int):
    session.outcomes = [outcome]
    assert main([]) == code


def test_a_sweep_runs_every_combination_under_a_name_of_its_own(session: Session, tmp_path: Path):
    assert main(["algorithm=ippo,mappo", "--multirun", "algorithm.clip_eps=0.1"]) == 0
    assert [run.algorithm.name for run in session.experiments] == ["ippo", "mappo"]
    assert [run.trial_name for run in session.experiments] == [
        "algorithm=ippo-seed=1",
        "algorithm=mappo-seed=1",
    ]
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert files == ["runs/lbf_mappo/multirun.yaml"]


def test_one_failed_job_does_not_stop_a_sweep(session: Session, capsys: pytest.CaptureFixture[str]):
    session.outcomes = [CheckpointError("disk full"), Outcome()]
    assert main(["-m", "seed=1,2", "trial_name=fixed"]) == 1
    assert [run.seed for run in session.experiments] == [1, 2]
    assert {run.trial_name for run in session.experiments} == {"fixed"}
    assert "error: disk full" in capsys.readouterr().err


def test_an_interrupt_stops_a_sweep(session: Session):
    session.outcomes = [Outcome(130, None)]
    with pytest.raises(SystemExit) as caught:
        main(["-m", "seed=1,2,3"])
    assert caught.value.code == 130
    assert len(session.experiments) == 1


def test_cfg_job_shows_every_value_as_it_will_be(session: Session, capsys: pytest.CaptureFixture[str]):
    assert main(["--cfg", "job", "total_env_steps=1e6"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# @package _global_\n")
    shown = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(shown, dict)
    assert shown["total_env_steps"] == 1_000_000 and isinstance(shown["total_env_steps"], int)
    experiment = build(ExperimentConfig, shown)
    assert shown == to_dict(experiment) | {"env": shown["env"], "policy": shown["policy"]}
    assert session.experiments == []


def test_hydra_shows_its_own_settings(session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--cfg", "hydra", "env=cartpole"]) == 0
    assert "output_subdir: null" in capsys.readouterr().out
    assert session.experiments == [] and list(tmp_path.iterdir()) == []


def test_help_is_made_from_conf_and_settings(capsys: pytest.CaptureFixture[str]):
    assert set(MOST_USED) <= set(setting_paths())
    assert main(["--help", "seed=77", "env=cartpole"]) == 0
    text = capsys.readouterr().out
    for part in (
        "experiment=",
        "lbf_mappo*",
        "cartpole*",
        "ippo | mappo*",
        "seed=77",
        "[env_steps, >= 1]",
        "--cfg job",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120


def test_help_explains_one_branch(capsys: pytest.CaptureFixture[str]):
    assert main(["--help", "algorithm"]) == 0
    text = capsys.readouterr().out
    assert "algorithm.clip_eps=0.2" in text and "clip range of the probability ratio [> 0]" in text
    assert "[none|vtrace|decoupled]" in text and "actors" not in text
    assert main(["--help", "all"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {path}=" in shown for path in setting_paths())
    assert main(["--help", "algoritm"]) == 2
    assert "did you mean 'algorithm'" in capsys.readouterr().err
    assert main(["--help", "sead=1"]) == 2


def test_a_single_run_is_the_same_with_and_without_hydra_around_it(session: Session) -> None:
    assert main(["seed=3", "actors.count=5"]) == 0
    assert main(["seed=3", "actors.count=5", "hydra.job.chdir=false"]) == 0
    assert session.experiments[0] == session.experiments[1]
    assert session.overrides == [["seed=3", "actors.count=5"]] * 2
