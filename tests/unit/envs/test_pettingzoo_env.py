"""PettingZoo adapter: agents that die, masks, state, agents of different kinds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv

from hpc_marl.config import EnvConfig
from hpc_marl.envs import LoopedEnv, check_env, make_env
from hpc_marl.envs.pettingzoo_env import PettingZooEnv
from hpc_marl.errors import EnvContractError
from tests.unit.envs.rollouts import play

BOX = spaces.Box(-9, 9, (2,), np.float32)


class Skirmish(ParallelEnv[str, Any, Any]):
    """Three agents; `fates` says at which step each terminates (+) or is truncated (-)."""

    def __init__(
        self,
        fates: tuple[int, int, int] = (4, -2, 1),
        observation: spaces.Space[Any] = BOX,
        actions: tuple[spaces.Space[Any], ...] = (spaces.Discrete(2),) * 3,
        masked: bool = False,
        state: Any = None,
    ) -> None:
        self.metadata = {"name": "skirmish"}
        self.possible_agents = ["red", "green", "blue"]
        self._fates = dict(zip(self.possible_agents, fates, strict=True))
        self._observation = observation
        self._actions = dict(zip(self.possible_agents, actions, strict=True))
        self._masked = masked
        self._state = state
        self.played: list[dict[str, Any]] = []

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self._observation

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self._actions[agent]

    def state(self) -> Any:
        if self._state is None:
            return super().state()
        return self._state

    def _shown(self, agents: list[str]) -> dict[str, Any]:
        vector = np.array([self.steps, 1], np.float32)
        mask = np.array([self.steps % 2, 1], np.int8)
        if isinstance(self._observation, spaces.Dict):
            return {agent: {"observation": vector, "action_mask": mask} for agent in agents}
        return dict.fromkeys(agents, vector)

    def _infos(self, agents: list[str]) -> dict[str, dict[str, Any]]:
        info = {"action_mask": [True, self.steps % 2 == 0]} if self._masked else {}
        return dict.fromkeys(agents, info)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        self.agents = list(self.possible_agents)
        return self._shown(self.agents), self._infos(self.agents)

    def step(self, actions: dict[str, Any]) -> Any:
        self.played.append(actions)
        self.steps += 1
        acted = list(self.agents)
        terminations = {agent: self._fates[agent] == self.steps for agent in acted}
        truncations = {agent: self._fates[agent] == -self.steps for agent in acted}
        self.agents = [agent for agent in acted if not (terminations[agent] or truncations[agent])]
        rewards = {agent: float(self.steps) for agent in acted}
        return self._shown(acted), rewards, terminations, truncations, self._infos(acted)


def looped(skirmish: Skirmish) -> LoopedEnv:
    return LoopedEnv([PettingZooEnv(skirmish)])


def test_agents_end_one_by_one():
    skirmish = Skirmish()
    batch = play(looped(skirmish), np.ones((6, 1, 3), np.int32))
    assert [sorted(actions) for actions in skirmish.played] == [
        ["blue", "green", "red"],
        ["green", "red"],
        ["red"],
        ["red"],
        ["blue", "green", "red"],
    ]
    assert batch.alive[:, 0].astype(int).tolist() == [
        [1, 1, 1],
        [1, 1, 0],
        [1, 0, 0],
        [1, 0, 0],
        [0, 0, 0],
        [1, 1, 1],
        [1, 1, 0],
    ]
    assert np.argwhere(batch.terminated[:, 0]).tolist() == [[0, 2], [3, 0], [5, 2]]
    assert np.argwhere(batch.truncated[:, 0]).tolist() == [[1, 1]]
    assert batch.observation[2, 0].tolist() == [[2, 1], [2, 1], [0, 0]]  # green's final one, blue's zeros
    assert batch.reward[:5, 0].tolist() == [[1, 1, 1], [2, 2, 0], [3, 0, 0], [4, 0, 0], [0, 0, 0]]
    assert env_spec(skirmish).agent_names == ("red", "green", "blue")
    check_env(lambda count: LoopedEnv([PettingZooEnv(Skirmish()) for _ in range(count)]), num_steps=30)


def env_spec(skirmish: Skirmish) -> Any:
    return PettingZooEnv(skirmish).spec


@pytest.mark.parametrize(
    ("options", "first_rows"),
    [
        ({"masked": True}, [[True, True], [True, False]]),
        (
            {"observation": spaces.Dict({"observation": BOX, "action_mask": spaces.MultiBinary(2)})},
            [[False, True], [True, True]],
        ),
    ],
)
def test_masks_come_from_infos_or_observations(options: dict[str, Any], first_rows: list[list[bool]]):
    env = looped(Skirmish(fates=(3, 3, 3), **options))
    batch = play(env, np.zeros((3, 1, 3), np.int32))
    assert env.spec.observation_size == 2
    assert batch.action_mask is not None
    assert batch.action_mask[:2, 0, 0].tolist() == first_rows
    assert batch.action_mask[3].all()
    check_env(lambda n: LoopedEnv([PettingZooEnv(Skirmish(**options)) for _ in range(n)]), num_steps=30)


def test_the_state_is_taken_where_it_is_a_vector():
    batch = play(looped(Skirmish(state=np.array([5.0, 6.0]))), np.zeros((1, 1, 3), np.int32))
    assert batch.state is not None and batch.state[:, 0].tolist() == [[5, 6], [5, 6]]
    assert env_spec(Skirmish()).state_size == 0
    assert env_spec(Skirmish(state=np.zeros((4, 4, 3)))).state_size == 0  # an image


def test_smaller_action_sets_are_masked_and_kinds_not_mixed():
    skirmish = Skirmish(actions=(spaces.Discrete(2), spaces.Discrete(4, start=5), spaces.Discrete(3)))
    batch = play(looped(skirmish), np.full((1, 1, 3), 3, np.int32))
    assert batch.action_mask is not None
    assert batch.action_mask[0, 0].sum(axis=1).tolist() == [2, 4, 3]
    assert skirmish.played == [{"red": 0, "green": 8, "blue": 0}]
    with pytest.raises(EnvContractError, match="some agents act in a Discrete space and others in a Box"):
        PettingZooEnv(Skirmish(actions=(spaces.Discrete(2), BOX, BOX)))
    continuous = Skirmish(actions=(spaces.Box(0, 1, (1,)), spaces.Box(0, 2, (2,)), spaces.Box(0, 3, (2,))))
    play(looped(continuous), np.ones((1, 1, 3, 2), np.float32))
    assert {agent: action.tolist() for agent, action in continuous.played[0].items()} == {
        "red": [1],
        "green": [2, 2],
        "blue": [3, 3],
    }


class Late(Skirmish):
    """Leaves an agent out of the reset."""

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        observations, infos = super().reset(seed)
        observations.pop("blue")
        return observations, infos


class Deserter(Skirmish):
    """Lets an agent go without a word."""

    def step(self, actions: dict[str, Any]) -> Any:
        *results, infos = super().step(actions)
        for result in results:
            result.pop("red", None)
        return (*results, infos)


class Silent(Skirmish):
    """Does not show the final observation of a truncated agent."""

    def step(self, actions: dict[str, Any]) -> Any:
        observations, rewards, terminations, truncations, infos = super().step(actions)
        if truncations.get("green"):
            observations.pop("green")
        return observations, rewards, terminations, truncations, infos


class Undead(Skirmish):
    """Brings an agent back."""

    def step(self, actions: dict[str, Any]) -> Any:
        results = super().step(actions)
        if self.steps == 2:
            self.agents.append("blue")
        return results


@pytest.mark.parametrize(
    ("skirmish", "message"),
    [
        (Late(), r"no observation of \['blue'\]; all possible_agents must begin"),
        (Deserter(), "agent 'red' acted, but step.* left it out of"),
        (Silent(), "no observation of 'green', which has not terminated"),
        (Undead(), r"env.agents is \['red', 'blue'\], but .* \['red'\] are left"),
    ],
)
def test_what_breaks_the_parallel_api_is_named(skirmish: Skirmish, message: str):
    with pytest.raises(EnvContractError, match=message):
        play(looped(skirmish), np.zeros((4, 1, 3), np.int32))


def test_speaker_and_listener_have_spaces_of_their_own():
    pytest.importorskip("mpe2")
    config = EnvConfig(make={"_target_": "mpe2.simple_speaker_listener_v4.parallel_env", "max_cycles": 6})
    env = make_env(config, 2)
    batch = play(env, np.full((14, 2, 2), 4, np.int32))
    assert env.spec.agent_names == ("speaker_0", "listener_0")
    assert (env.spec.observation_size, env.spec.num_actions, env.spec.state_size) == (11, 5, 14)
    assert batch.action_mask is not None and batch.state is not None
    assert batch.action_mask[0, 0].sum(axis=1).tolist() == [3, 5]
    np.testing.assert_array_equal(batch.state[..., :3], batch.observation[:, :, 0, :3])
    np.testing.assert_array_equal(batch.state[..., 3:], batch.observation[:, :, 1])
    assert np.flatnonzero(batch.truncated[:, 0, 0]).tolist() == [5, 12]
    env.close()
