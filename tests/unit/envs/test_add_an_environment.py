"""examples/add_an_environment: the user's own class, named by one line of YAML."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpc_marl.composing.compose import compose_experiment
from hpc_marl.config import EnvConfig
from hpc_marl.envs import check_env, make_env
from tests.architecture.source_tree import ROOT
from tests.unit.envs.rollouts import play

EXAMPLE = ROOT / "examples" / "add_an_environment"


@pytest.fixture
def rendezvous(monkeypatch: pytest.MonkeyPatch) -> EnvConfig:
    monkeypatch.syspath_prepend(EXAMPLE)
    return compose_experiment(["env=rendezvous"], config_dir=EXAMPLE / "conf").env


def test_the_example_keeps_the_contract(rendezvous: EnvConfig):
    assert rendezvous.max_episode_steps == 16
    check_env(rendezvous)


def test_agents_that_walk_towards_each_other_meet(rendezvous: EnvConfig):
    env = make_env(rendezvous, 4)
    batch = play(env, np.tile(np.array([0, 1], np.int32), (60, 4, 1)))  # ann goes left, bob stays
    assert batch.terminated.any(axis=0).all() and not batch.truncated.any()
    assert batch.reward[batch.terminated].tolist() == [1.0] * int(batch.terminated.sum())


def test_the_environment_is_as_short_as_promised():
    source = Path(EXAMPLE / "rendezvous.py").read_text()
    body = source[source.index("class Rendezvous") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 30
