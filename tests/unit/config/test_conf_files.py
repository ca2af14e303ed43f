"""Every file of conf/ composes to its own type, and holds choices only."""

from __future__ import annotations

import typing

import pytest
from omegaconf import OmegaConf

from hpc_marl.composing.compose import compose_experiment, conf_directory
from hpc_marl.config import ExperimentConfig, build, to_dict

FILES = sorted(path.relative_to(conf_directory()).as_posix() for path in conf_directory().rglob("*.yaml"))
GROUP_FILES = [file for file in FILES if "/" in file and not file.startswith(("experiment/", "hydra/"))]
EXPERIMENTS = [file for file in FILES if file.startswith("experiment/")]
MAIN_JOB = OmegaConf.load(conf_directory() / "experiment" / "lbf_mappo.yaml")


def test_the_groups_that_are_promised_exist():
    groups = {file.split("/")[0] for file in GROUP_FILES}
    assert {"algorithm", "cluster", "env", "policy"} <= groups <= set(typing.get_type_hints(ExperimentConfig))
    assert {"experiment/lbf_mappo.yaml", "experiment/cartpole_ppo.yaml"} <= set(EXPERIMENTS)
    assert [file for file in FILES if "/" not in file] == ["config.yaml"]


@pytest.mark.parametrize("file", GROUP_FILES)
def test_a_group_file_composes_to_its_own_type(file: str):
    group, option = file.removesuffix(".yaml").split("/")
    cls = typing.get_type_hints(ExperimentConfig)[group]
    content = OmegaConf.to_container(OmegaConf.load(conf_directory() / file), resolve=True)
    assert isinstance(content, dict)
    content.pop("defaults", None)
    build(cls, content)
    experiment = compose_experiment([f"{group}={option}"])
    composed = to_dict(getattr(experiment, group))
    assert isinstance(getattr(experiment, group), cls)
    for key, value in content.items():
        if key not in MAIN_JOB.get(group, {}):
            assert composed[key] == value, f"{file}: {key} does not reach the experiment"


@pytest.mark.parametrize("file", EXPERIMENTS)
def test_an_experiment_composes(file: str):
    assert (conf_directory() / file).read_text().startswith("# @package _global_\n")
    name = file.removesuffix(".yaml").split("/")[1]
    experiment = compose_experiment([f"experiment={name}"])
    content = OmegaConf.to_container(OmegaConf.load(conf_directory() / file))
    assert isinstance(content, dict)
    for key in content.keys() - {"defaults"}:
        assert hasattr(experiment, key)


def test_the_main_job_is_the_experiment_of_config_yaml():
    assert compose_experiment() == compose_experiment(["experiment=lbf_mappo"])
