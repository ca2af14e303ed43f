"""Atari: the contract, the preprocessing, seeds."""

from __future__ import annotations

import numpy as np
import pytest

from hpc_marl.config import EnvConfig
from hpc_marl.envs import check_env, make_env
from hpc_marl.errors import ConfigError
from tests.unit.envs.rollouts import play

pytest.importorskip("ale_py")


def atari(game="pong", **make):
    return EnvConfig(make={"_target_": "hpc_marl.envs.atari.AtariEnv", "game": game, **make})


def test_atari_keeps_the_contract():
    check_env(atari(frame_limit=80), num_envs=2)
    check_env(atari("breakout", episodic_life=True, frame_limit=1200), num_envs=2, num_steps=80)


def test_an_episode_can_be_played_again_from_its_own_seed():
    actions = np.random.default_rng(0).integers(6, size=(40, 3, 1)).astype(np.int32)
    env = make_env(atari(frame_limit=100), 3)
    together = play(env, actions, [5, 6, 2**32 - 1])
    env.close()
    alone = make_env(atari(frame_limit=100), 1)
    batch = play(alone, actions[:, 1:2], [6])
    alone.close()
    assert together.truncated.any()
    for name, array in batch.arrays().items():
        if name != "policy_version":
            assert np.array_equal(array[:, 0], getattr(together, name)[:, 1]), name
    assert not np.array_equal(together.observation[10, 0], together.observation[10, 1])


def test_the_newest_frames_are_stacked():
    env = make_env(atari(noop_max=0), 1)
    batch = play(env, np.zeros((6, 1, 1), np.int32))
    frames = batch.observation.reshape(7, 4, 84, 84)
    env.close()
    for t in range(6):
        assert np.array_equal(frames[t, 1:], frames[t + 1, :-1])
    assert frames[0, -1].max() > 100
    assert len(np.unique(frames[:, -1].reshape(7, -1), axis=0)) > 1


def test_pong_ends_with_21_points_and_other_settings_have_effect():
    env = make_env(atari(), 1)
    assert (
        env.spec.num_actions == 6 and env.spec.image_shape == (4, 84, 84) and env.spec.episode_limit == 27_000
    )
    batch = play(env, np.zeros((800, 1, 1), np.int32))
    env.close()
    assert batch.terminated.sum() == 1
    assert batch.reward[: int(batch.terminated.argmax()) + 1].sum() == -21
    small = make_env(atari(size=42, stack=2), 1)
    assert small.spec.image_shape == (2, 42, 42)
    small.close()


def test_a_game_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(ConfigError, match=r"env.make.game='Pong': choose one of adventure, .*, pong, "):
        make_env(atari("Pong"), 1)
