"""The shorter way to step: the same numbers as environment by environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import lbforaging  # noqa: F401 - registers Foraging
import numpy as np
import pytest
from gymnasium import spaces
from mpe2 import simple_spread_v3
from numpy.typing import NDArray

from hpc_marl.envs import LoopedEnv
from hpc_marl.envs.gymnasium_env import GymnasiumEnv, GymnasiumMultiAgentEnv
from hpc_marl.envs.pettingzoo_env import PettingZooEnv
from hpc_marl.envs.plain import PlainEnv
from hpc_marl.errors import EnvContractError
from tests.unit.envs.rollouts import RecordingEnv, play
from tests.unit.envs.test_pettingzoo_env import Skirmish

NUM_ENVS, NUM_STEPS = 5, 60
BOX = spaces.Box(-9, 9, (2,), np.float32)


def skirmish(index: int) -> PettingZooEnv:
    """Return one of which the agents end in another order than in the others, or all at once."""
    fates = [(4, -2, 1), (3, 3, 3), (-2, -2, -2), (1, 7, -7), (9, 9, 8)]
    return PettingZooEnv(Skirmish(fates[index]))


MAKERS: dict[str, Callable[[int], PlainEnv]] = {
    "one agent": lambda _: GymnasiumEnv(gymnasium.make("CartPole-v1", disable_env_checker=True)),
    "actions from 1": lambda _: GymnasiumEnv(RecordingEnv(BOX, spaces.Discrete(2, start=1))),
    "continuous": lambda _: GymnasiumEnv(gymnasium.make("Pendulum-v1", disable_env_checker=True)),
    "rows of numbers": lambda _: GymnasiumMultiAgentEnv(
        RecordingEnv(spaces.Tuple([BOX, BOX]), spaces.Tuple([spaces.Discrete(3)] * 2), num_agents=2)
    ),
    "team": lambda _: GymnasiumMultiAgentEnv(
        gymnasium.make("Foraging-8x8-2p-3f-v3", disable_env_checker=True)
    ),
    "dictionaries": skirmish,
    "state": lambda _: PettingZooEnv(simple_spread_v3.parallel_env(N=2, max_cycles=9)),
}


def actions_for(env: LoopedEnv) -> NDArray[Any]:
    rng, shape = np.random.default_rng(0), (NUM_STEPS, env.num_envs, env.spec.num_agents)
    if env.spec.is_continuous:
        return rng.uniform(-1.5, 1.5, (*shape, env.spec.action_size)).astype(np.float32)
    return rng.integers(0, env.spec.num_actions, shape, np.int32)


def make(name: str, plain: bool, limit: int | None) -> LoopedEnv:
    envs = [MAKERS[name](index) for index in range(NUM_ENVS)]
    for env in envs:
        assert env.plain_step is not None
        if not plain:
            env.plain_step = None
    return LoopedEnv(envs, limit)


@pytest.mark.parametrize("limit", [None, 6])
@pytest.mark.parametrize("name", MAKERS)
def test_all_at_once_is_the_same_as_one_by_one(name: str, limit: int | None) -> None:
    envs = [make(name, plain, limit) for plain in (True, False)]
    played = [play(env, actions_for(env)) for env in envs]
    assert name == "continuous" or not played[0].alive[1:].all()
    for field, array in played[0].arrays().items():
        np.testing.assert_array_equal(array, played[1].arrays()[field], err_msg=field)
    for env in envs:
        env.close()


def test_images_masks_and_different_widths_have_no_shorter_way() -> None:
    mask = {"action_mask": np.array([1, 0], np.int8)}
    wide = spaces.Box(-9, 9, (3,), np.float32)
    pairs = spaces.Tuple([spaces.Discrete(2)] * 2)
    envs = [
        GymnasiumEnv(RecordingEnv(spaces.Box(0, 255, (9, 9, 3), np.uint8), spaces.Discrete(2))),
        GymnasiumEnv(RecordingEnv(BOX, spaces.Discrete(2), info=mask)),
        GymnasiumMultiAgentEnv(RecordingEnv(spaces.Tuple([BOX, wide]), pairs, num_agents=2)),
        PettingZooEnv(Skirmish(masked=True)),
    ]
    assert [env.plain_step for env in envs] == [None] * len(envs)


class Growing(RecordingEnv):
    """Shows one number too many from the second step on."""

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return (observation if len(self.actions) < 2 else np.zeros(3)), *rest


def test_an_observation_that_changes_its_width_is_named() -> None:
    env = LoopedEnv([GymnasiumEnv(Growing(BOX, spaces.Discrete(2))) for _ in range(NUM_ENVS)])
    with pytest.raises(
        EnvContractError, match=r"an agent's observation of shape \(3,\), its spec says \(2,\)"
    ):
        play(env, np.zeros((2, NUM_ENVS, 1), np.int32))
