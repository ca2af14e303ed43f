"""Gymnasium's vectorised classes: equal to the single environment, in place, next-step autoreset."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from hpc_marl.config import EnvConfig
from hpc_marl.envs import check_env, make_env
from hpc_marl.envs.gymnasium_vector_env import GymnasiumVectorEnv
from hpc_marl.errors import ConfigError, EnvContractError
from tests.unit.envs.rollouts import play

NATIVE = EnvConfig(
    make={"_target_": "gymnasium.make_vec", "id": "CartPole-v1"},
    adapter="gymnasium_vector",
    max_episode_steps=12,
)


def test_the_native_class_keeps_the_contract_and_the_limit():
    check_env(NATIVE, num_envs=5, num_steps=60)
    env = make_env(NATIVE, 64)
    assert env.spec.episode_limit == 12
    batch = play(env, np.random.default_rng(1).integers(0, 2, (60, 64, 1), np.int32))
    assert batch.truncated.sum() > 50 and batch.terminated.sum() > 10
    np.testing.assert_array_equal(batch.is_first[1:], ~batch.alive[:-1, :, 0])
    assert (batch.reward[..., 0] == batch.alive[:-1, :, 0]).all()


def test_the_native_class_is_cartpole():
    env = make_env(NATIVE, 3)
    actions = np.random.default_rng(1).integers(0, 2, (8, 3, 1), np.int32)
    batch = play(env, actions)
    for e in range(3):
        single: Any = gymnasium.make("CartPole-v1").unwrapped
        single.reset()
        single.state = batch.observation[0, e, 0].astype(np.float64)
        for t in range(8):
            observation = single.step(int(actions[t, e, 0]))[0]
            np.testing.assert_allclose(batch.observation[t + 1, e, 0], observation, rtol=1e-4, atol=1e-6)


def test_a_sync_vector_env_is_seeded_one_by_one():
    env = GymnasiumVectorEnv(SyncVectorEnv([lambda: gymnasium.make("Pendulum-v1", max_episode_steps=4)] * 2))
    batch = play(env, np.full((9, 2, 1, 1), 3.0, np.float32), [21, 22])
    single = gymnasium.make("Pendulum-v1")
    for e, seed in enumerate([21, 22]):
        np.testing.assert_array_equal(batch.observation[0, e, 0], single.reset(seed=seed)[0])
        observation, reward, *_ = single.step(np.array([2.0], np.float32))  # 3 is clipped to 1, which means 2
        np.testing.assert_array_equal(batch.observation[1, e, 0], observation)
        assert batch.reward[0, e, 0] == np.float32(reward)
    assert np.flatnonzero(batch.truncated[:, 0, 0]).tolist() == [3, 8]
    env.close()
    single.close()


def test_other_autoreset_modes_are_refused():
    made = [lambda: gymnasium.make("CartPole-v1")]
    with pytest.raises(
        EnvContractError, match=r"found autoreset_mode AutoresetMode.SAME_STEP; only .*NEXT_STEP"
    ):
        GymnasiumVectorEnv(SyncVectorEnv(made, autoreset_mode=AutoresetMode.SAME_STEP))


def test_an_id_without_a_vectorised_class_is_refused():
    config = EnvConfig(make={"_target_": "gymnasium.make", "id": "Pendulum-v1"}, adapter="gymnasium_vector")
    with pytest.raises(
        ConfigError, match="Pendulum-v1 has no vectorised class of its own; use adapter: gymnasium"
    ):
        make_env(config, 2)


def test_seeds_must_be_as_many_as_environments():
    with pytest.raises(EnvContractError, match="1 seeds for 2 environments"):
        play(make_env(NATIVE, 2), np.zeros((0, 2, 1), np.int32), [1])
