"""Evaluation plays whole episodes, as many in every environment."""

from __future__ import annotations

import numpy as np
import pytest

from hpc_marl.config import EnvConfig, PolicyConfig
from hpc_marl.envs import make_env
from hpc_marl.policies.numpy_actor import NumpyActor
from hpc_marl.policies.spec import PolicySpec, actor_shapes
from hpc_marl.workers.evaluator import EpisodePlayer, mean_and_interval


@pytest.mark.parametrize("recurrent", ["none", "gru"])
def test_episodes_are_whole_and_evenly_spread(recurrent: str) -> None:
    target = {"_target_": "hpc_marl.envs.testing.CountingEnv", "episode_length": 3, "length_spread": 4}
    env = make_env(EnvConfig(make=target), 4)
    spec = PolicySpec(env=env.spec, policy=PolicyConfig(recurrent=recurrent))  # type: ignore[arg-type]
    actor = NumpyActor(spec)
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in actor_shapes(spec).items()}
    actor.load(weights, 1)
    player = EpisodePlayer(env, actor, seed=(1, 2), episodes=10, greedy=False)
    while not player.finished:
        player.step()
    assert len(player.returns) == len(player.lengths) == 12  # 10 rounded up to a multiple of 4
    for total, length in zip(player.returns, player.lengths, strict=True):
        assert 3 <= length <= 7
        assert (
            total == 2 * length * (length + 1) / 2 + 100 * length
        )  # step k pays k to agent 0, 100 + k to agent 1


def test_the_interval_is_that_of_the_mean() -> None:
    mean, half_width = mean_and_interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert half_width == pytest.approx(1.96 * np.std([1, 2, 3, 4], ddof=1) / 2)
    assert mean_and_interval([5.0]) == (5.0, 0.0)
