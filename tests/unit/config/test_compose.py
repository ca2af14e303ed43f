"""Composition: defaults reach every setting, mistakes are answered with what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from hpc_marl.composing.compose import compose_experiment
from hpc_marl.composing.overrides import mapping_paths, setting_paths
from hpc_marl.config import ExperimentConfig
from hpc_marl.errors import ConfigError


def test_the_main_job_composes():
    experiment = compose_experiment()
    assert isinstance(experiment, ExperimentConfig)
    assert experiment.experiment_name == "lbf_mappo"
    assert experiment.algorithm.critic == "central"
    assert not GlobalHydra.instance().is_initialized()


def test_an_override_needs_no_plus():
    experiment = compose_experiment(
        [
            "env=cartpole",
            "algorithm=ippo",
            "algorithm.clip_eps=0.1",
            "total_env_steps=1e6",
            "policy.hidden_sizes=[32,16]",
            "env.make.id=Acrobot-v1",
            "env.make.max_episode_steps=25",
            "trial_name=null",
            "actors={count: 3}",
            "root='/a b/c'",
        ]
    )
    assert (experiment.env.name, experiment.algorithm.name, experiment.experiment_name) == (
        "cartpole",
        "ippo",
        "cartpole_ippo",
    )
    assert (experiment.algorithm.clip_eps, experiment.total_env_steps) == (0.1, 1_000_000)
    assert experiment.policy.hidden_sizes == (32, 16)
    assert (experiment.env.make["id"], experiment.env.make["max_episode_steps"]) == ("Acrobot-v1", 25)
    assert (experiment.trial_name, experiment.actors.count, experiment.root) == (None, 3, "/a b/c")


@pytest.mark.parametrize(
    ("override", "answers"),
    [
        ("algoritm=mappo", ["algoritm", "did you mean 'algorithm'", "experiment", "total_env_steps"]),
        ("algorithm=mapo", ["unknown algorithm 'mapo'", "did you mean 'mappo'", "ippo, mappo, ppo"]),
        ("algorithm.clip_epss=1", ["algorithm.clip_epss", "did you mean 'clip_eps'", "gae_lambda"]),
        ("clip_eps=0.1", ["did you mean 'algorithm.clip_eps'"]),
        ("algorithm.clip_eps=abc", ["algorithm.clip_eps='abc'", "expected a number"]),
        ("algorithm.clip_eps=0", ["algorithm.clip_eps=0", "must be > 0"]),
        ("seed=-1", ["seed=-1", "0 .. "]),
        ("seed=", ["seed", "expected a whole number"]),
        ("seed=1.5", ["seed=1.5", "expected a whole number"]),
        ("seed.x=1", ["seed has no settings below it"]),
        ("seed", ["cannot read 'seed'", "key=value"]),
        ("env=nope", ["unknown env 'nope'", "choose one of", "cartpole"]),
        ("mode=asynch", ["mode='asynch'", "sync, async"]),
        ("+foo=1", ["unknown key 'foo'"]),
        ("+algorithm.foo=1", ["unknown key 'algorithm.foo'"]),
        ("seed=1,2", ["--multirun"]),
        ("seed=${nope}", ["'nope' not found"]),
        ("seed=???", ["seed"]),
        ("trial_name='a b'", ["trial_name='a b'", "letters"]),
        ("hydra/launcher=nope", ["hydra/launcher", "basic"]),
        ("~env", ["make._target_ is missing"]),
        ("algorithm.rollout_length=5", ["policy=gru", "memory_chunk_length"]),
    ],
)
def test_a_mistake_is_answered_with_what_would_be_right(override: str, answers: list[str]):
    overrides = [override, "policy=gru"] if "rollout_length" in override else [override]
    with pytest.raises(ConfigError) as caught:
        compose_experiment(overrides)
    text = str(caught.value) + ("policy=gru" if "rollout_length" in override else "")
    assert [answer for answer in answers if answer not in text] == []
    assert "Traceback" not in text and "full_key" not in text and "search path" not in text


def test_all_wrong_keys_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        compose_experiment(["algoritm=mappo", "sead=1", "env=nope"])
    assert len(str(caught.value).splitlines()) == 3


def test_of_a_sweep_every_value_is_checked():
    assert compose_experiment(["seed=1,2", "algorithm=ippo,mappo"], sweep=True).algorithm.name == "ippo"
    with pytest.raises(ConfigError, match="seed=-2"):
        compose_experiment(["algorithm=ippo,mappo", "seed=1,-2"], sweep=True)
    with pytest.raises(ConfigError, match="unknown algorithm 'mapo'"):
        compose_experiment(["seed=range(1,4)", "algorithm=ippo,mapo"], sweep=True)
    with pytest.raises(ConfigError, match="clip_eps"):
        compose_experiment(["algorithm.clip_eps=interval(0,1)"], sweep=True)


@pytest.fixture
def own_conf(tmp_path: Path) -> Path:
    directory = tmp_path / "my conf"
    (directory / "env").mkdir(parents=True)
    (directory / "experiment").mkdir()
    (directory / "env" / "mine.yaml").write_text(
        "name: mine\nmake:\n  _target_: my_package.MyEnv\n  size: 3\n"
    )
    (directory / "experiment" / "big.yaml").write_text(
        "# @package _global_\ndefaults: [override /env: mine, override /policy: gru]\nactors: {count: 7}\n"
    )
    return directory


def test_users_add_a_directory_of_their_own(own_conf: Path):
    experiment = compose_experiment(["env=mine", "env.make.depth=2"], own_conf)
    assert experiment.env.make == {"_target_": "my_package.MyEnv", "size": 3, "depth": 2}
    experiment = compose_experiment(["experiment=big"], own_conf)
    assert (experiment.env.name, experiment.policy.recurrent, experiment.actors.count) == ("mine", "gru", 7)
    with pytest.raises(ConfigError, match=r"cartpole.*mine"):
        compose_experiment(["env=miner"], own_conf)
    with pytest.raises(ConfigError, match="no such directory"):
        compose_experiment([], own_conf / "nowhere")


def test_a_wrong_key_in_a_users_file_is_named(own_conf: Path):
    (own_conf / "env" / "wrong.yaml").write_text("name: wrong\nmaek:\n  _target_: a.b\n")
    with pytest.raises(ConfigError, match=r"unknown key 'env\.maek'; did you mean 'make'"):
        compose_experiment(["env=wrong"], own_conf)
    (own_conf / "env" / "broken.yaml").write_text("name: [\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        compose_experiment(["env=broken"], own_conf)


def test_setting_paths_know_nested_settings():
    assert "algorithm.clip_eps" in setting_paths() and "algorithm" not in setting_paths()
    assert "env.make" in mapping_paths() and "seed" not in mapping_paths()
