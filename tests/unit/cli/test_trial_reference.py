"""Which trial EXP/TRIAL means, and what is said where it means none."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_marl.errors import ConfigError
from hpc_marl.trials.reference import ROOT_VARIABLE, default_root, find_trial, find_trials, trials_below
from tests.unit.cli.planted_runs import plant


@pytest.fixture
def root(tmp_path: Path) -> Path:
    plant(tmp_path, "foraging/seed0", launched=100)
    plant(tmp_path, "foraging/seed1", launched=300)
    plant(tmp_path, "cartpole/seed0", launched=200)
    (tmp_path / "foraging" / "multirun.yaml").write_text("")
    (tmp_path / "foraging" / "notes").mkdir()
    (tmp_path / "foraging" / "a name with spaces").mkdir()
    return tmp_path


def test_a_trial_is_meant_by_name_or_by_path(root: Path, monkeypatch: pytest.MonkeyPatch):
    assert find_trial("foraging/seed0", root).path == root / "foraging" / "seed0"
    assert find_trial("foraging/seed0/", root).trial_name == "seed0"
    assert find_trial(str(root / "cartpole" / "seed0"), "/nowhere").experiment_name == "cartpole"
    monkeypatch.chdir(root / "cartpole")
    assert find_trial("seed0", "/nowhere").path == root / "cartpole" / "seed0"
    assert find_trial("./seed0", root).path == root / "cartpole" / "seed0"


def test_an_experiment_means_its_newest_trial(root: Path):
    assert find_trial("foraging", root).trial_name == "seed1"
    assert [trial.trial_name for trial in find_trials("foraging", root)] == ["seed1", "seed0"]
    assert len(find_trials("foraging/seed1", root)) == 1


def test_all_trials_are_listed_newest_first(root: Path):
    found = [
        [f"{trial.experiment_name}/{trial.trial_name}" for trial in trials] for trials in trials_below(root)
    ]
    assert found == [["foraging/seed1", "foraging/seed0"], ["cartpole/seed0"]]


@pytest.mark.parametrize("reference", ["foraging/seed", "foragin/seed1", "forging", "foraging/notes"])
def test_an_unknown_one_is_answered_with_near_ones_and_all(root: Path, reference: str):
    with pytest.raises(ConfigError) as caught:
        find_trial(reference, root)
    text = str(caught.value)
    assert "did you mean 'foraging" in text
    assert "there are: foraging/seed1, foraging/seed0, cartpole/seed0" in text


def test_many_trials_are_not_all_listed(tmp_path: Path):
    for index in range(30):
        (tmp_path / "sweep" / f"seed{index}").mkdir(parents=True)
        (tmp_path / "sweep" / f"seed{index}" / "launch.json").write_text("{}")
    with pytest.raises(ConfigError, match="and 18 more"):
        find_trial("nothing", tmp_path)


def test_a_missing_root_says_how_to_name_it(tmp_path: Path):
    for look in (lambda: find_trial("foraging", tmp_path / "no"), lambda: trials_below(tmp_path / "no")):
        with pytest.raises(ConfigError, match=f"no directory .*no; .*--root DIR or {ROOT_VARIABLE}=DIR"):
            look()
    with pytest.raises(ConfigError, match="no run ''"):
        find_trial("", tmp_path)


def test_the_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    assert default_root() == "runs"
    monkeypatch.setenv(ROOT_VARIABLE, "/scratch/runs")
    assert default_root() == "/scratch/runs"
