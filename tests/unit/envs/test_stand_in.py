"""StandInEnv keeps the contract of environments, and takes the time that it says."""

from __future__ import annotations

import numpy as np

from hpc_marl.config import EnvConfig
from hpc_marl.envs import check_env, make_env, stand_in
from hpc_marl.envs.api import EnvArrays, StepArrays

TARGET = {"_target_": "hpc_marl.envs.stand_in.StandInEnv"}


def test_it_keeps_the_contract():
    config = EnvConfig(name="stand_in", make={**TARGET, "step_s": 0.0, "num_agents": 2, "episode_length": 4})
    check_env(config)


def test_every_step_sleeps_once_for_all_environments(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(stand_in.time, "sleep", slept.append)
    env = make_env(EnvConfig(name="stand_in", make={**TARGET, "step_s": 0.25}), num_envs=3)
    arrays, result = EnvArrays.allocate(env.spec, 3), StepArrays.allocate(env.spec, 3)
    env.reset([1, 2, 3], arrays)
    for _ in range(5):
        env.step(np.zeros((3, 1), np.int32), result, arrays)
    assert slept == [0.25] * 5
