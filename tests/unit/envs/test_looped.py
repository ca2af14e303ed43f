"""LoopedEnv owns autoreset: audited number by number with CountingEnv."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpc_marl.data.spaces import EnvSpec
from hpc_marl.envs import EnvArrays, LoopedEnv, MultiAgentEnv, StepArrays
from hpc_marl.envs.testing import SEED_RANGE, CountingEnv
from hpc_marl.errors import EnvContractError
from tests.unit.envs.rollouts import play

SEED, EPISODE, STEP, AGENT, LAST_ACTION = range(5)


def counting(num_envs: int, max_episode_steps: int | None = None, **options: Any) -> LoopedEnv:
    return LoopedEnv([CountingEnv(**options) for _ in range(num_envs)], max_episode_steps)


def actions_for(env: LoopedEnv, num_steps: int) -> NDArray[np.int32]:
    shape = (num_steps, env.num_envs, env.spec.num_agents)
    return np.random.default_rng(0).integers(0, env.spec.num_actions, shape, np.int32)


def test_every_number_of_a_trajectory_with_episodes_of_two_lengths():
    env = counting(3, episode_length=3, length_spread=1)
    seeds = [5, 8, SEED_RANGE + 2]
    batch = play(env, actions_for(env, 20), seeds)
    for e, seed in enumerate(seeds):
        episode, step = 0, 0
        for t in range(20):
            length = 3 + (seed % SEED_RANGE + episode) % 2
            assert batch.observation[t, e, :, :3].tolist() == [[seed % SEED_RANGE, episode, step]] * 2
            assert batch.observation[t, e, :, AGENT].tolist() == [0, 1]
            assert batch.is_first[t, e] == (step == 0)
            if step == length:  # the final observation; this step resets
                assert not batch.alive[t, e].any()
                assert batch.reward[t, e].tolist() == [0, 0]
                assert not batch.terminated[t, e].any()
                episode, step = episode + 1, 0
                assert batch.observation[t + 1, e, :, LAST_ACTION].tolist() == [-1, -1]
                continue
            step += 1
            assert batch.alive[t, e].all()
            assert batch.reward[t, e].tolist() == [step, 100 + step]
            assert batch.terminated[t, e].tolist() == [step == length] * 2
            assert batch.observation[t + 1, e, :, LAST_ACTION].tolist() == batch.action[t, e].tolist()
        assert episode >= 4
    assert not batch.truncated.any()


def test_agents_that_end_early_show_their_final_observation_once_and_zeros_afterwards():
    env = counting(1, num_agents=3, episode_length=5, early_steps=2, masked=True, has_state=True)
    batch = play(env, actions_for(env, 7))
    assert batch.alive[:, 0].astype(int).tolist() == [
        [1, 1, 1],
        [1, 1, 0],
        [1, 1, 0],
        [1, 0, 0],
        [1, 0, 0],
        [0, 0, 0],
        [1, 1, 1],
        [1, 1, 0],
    ]
    assert np.argwhere(batch.terminated[:, 0]).tolist() == [[0, 2], [2, 1], [4, 0], [6, 2]]
    assert batch.observation[:, 0, 2, STEP].tolist() == [0, 1, 0, 0, 0, 0, 0, 1]
    assert batch.observation[1, 0, 2].any() and not batch.observation[2:6, 0, 2].any()
    assert batch.reward[:, 0].tolist() == [
        [1, 101, 201],
        [2, 102, 0],
        [3, 103, 0],
        [4, 0, 0],
        [5, 0, 0],
        [0] * 3,
        [1, 101, 201],
    ]
    assert batch.action_mask is not None and batch.state is not None
    assert batch.action_mask[~batch.alive].all()
    assert (~batch.action_mask[batch.alive]).sum(axis=-1).tolist() == [1] * int(batch.alive.sum())
    assert batch.state[:, 0, 2].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]


def test_the_time_limit_truncates_and_termination_goes_before_it():
    batch = play(
        env := counting(2, max_episode_steps=4, episode_length=3, length_spread=2),
        actions_for(env, 12),
        [0, 1],
    )
    ends = {
        (t, e): bool(batch.terminated[t, e, 0])
        for t, e in np.argwhere((batch.terminated | batch.truncated)[..., 0])
    }
    # environment 0 has episodes of 3, 4, 5 -> 4 steps; environment 1 of 4, 5 -> 4, 3
    assert ends == {(2, 0): True, (7, 0): True, (3, 1): True, (8, 1): False}
    assert not (batch.terminated & batch.truncated).any()
    assert env.spec.episode_limit == 4


def test_truncation_follows_an_early_end_only_for_those_who_still_play():
    env = counting(1, max_episode_steps=3, num_agents=2, episode_length=9, early_steps=7)
    batch = play(env, actions_for(env, 4))
    assert batch.terminated[:, 0].tolist() == [[False, False], [False, True], [False, False], [False, False]]
    assert batch.truncated[:, 0].tolist() == [[False, False], [False, False], [True, False], [False, False]]
    assert batch.is_first[:, 0].tolist() == [True, False, False, False, True]


def test_an_end_just_before_the_limit_does_not_truncate_the_step_that_resets():
    env = counting(1, max_episode_steps=4, episode_length=3)
    batch = play(env, actions_for(env, 12))
    assert not batch.truncated.any()
    assert np.flatnonzero(batch.terminated[:, 0, 0]).tolist() == [2, 6, 10]


def test_truncated_agents_keep_their_final_observation():
    env = counting(1, ending="truncated", episode_length=2)
    batch = play(env, actions_for(env, 3))
    assert np.flatnonzero(batch.truncated[:, 0, 0]).tolist() == [1]
    assert batch.observation[2, 0, :, STEP].tolist() == [2, 2] and not batch.alive[2].any()


def test_reset_begins_anew_from_the_seeds():
    env = counting(2, episode_length=2, early_steps=1)
    actions = actions_for(env, 6)
    first, other, again = (
        play(env, actions, [3, 4]),
        play(env, actions[:2], [7, 8]),
        play(env, actions, [3, 4]),
    )
    assert other.observation[0, :, 0, SEED].tolist() == [7, 8]
    for name, array in first.arrays().items():
        np.testing.assert_array_equal(array, again.arrays()[name], err_msg=name)


class Listener(MultiAgentEnv):
    """Records the actions that reach it; agent 1 ends at the first step."""

    def __init__(self, **spec: Any) -> None:
        self.spec = EnvSpec(agent_names=("a", "b"), **spec)
        self.heard: list[Any] = []

    def reset(self, seed: int | None = None) -> Any:
        return np.zeros((2, 1))

    def step(self, action: NDArray[Any]) -> Any:
        self.heard.append(action.tolist())
        action[...] = -7  # an environment may spoil what it is given
        return np.ones((2, 1)), [1, 2], [False, True], [False, len(self.heard) == 3]


def test_continuous_actions_arrive_clipped_and_those_of_ended_agents_are_zero():
    listener = Listener(action_size=2)
    given = np.array([[[[0.5, -3.0], [2.0, 1.0]]], [[[0.25, 0.5], [9.0, np.nan]]]], np.float32)
    batch = play(LoopedEnv([listener]), given)
    assert listener.heard == [[[0.5, -1.0], [1.0, 1.0]], [[0.25, 0.5], [0.0, 0.0]]]
    np.testing.assert_array_equal(batch.action, given)


def test_discrete_actions_of_ended_agents_are_zero():
    listener = Listener(num_actions=5)
    play(LoopedEnv([listener]), np.full((2, 1, 2), 4, np.int32))
    assert listener.heard == [[4, 4], [4, 0]]


class Scripted(MultiAgentEnv):
    """Returns what it is told to."""

    def __init__(self, observation: Any = ((1.0,), (2.0,)), step: Any = None, **spec: Any) -> None:
        self.spec = EnvSpec(agent_names=("a", "b"), num_actions=2, **spec)
        self._observation = observation
        self._step = step

    def reset(self, seed: int | None = None) -> Any:
        return self._observation

    def step(self, action: NDArray[Any]) -> Any:
        return self._step


GOOD = ((1.0,), (2.0,))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            Scripted(observation=[1.0]),
            r"reset\(\) returned an observation of shape \(1,\), its spec says \(2, 1\)",
        ),
        (Scripted(observation=[[1.0], [1.0, 2.0]]), "that differs from row to row"),
        (Scripted(step=(GOOD, 0.0, False)), "found tuple of 3"),
        (Scripted(step=None), r"must return \(observation, reward, terminated, truncated\), found NoneType"),
        (Scripted(step=([[1.0]], 0.0, False, False)), r"step\(\) returned an observation of shape \(1, 1\)"),
        (Scripted(step=(GOOD, [0.0], False, False)), r"step\(\) returned reward of shape \(1,\)"),
        (Scripted(step=(GOOD, 0.0, False, [False])), r"step\(\) returned truncated of shape \(1,\)"),
        (Scripted(state_size=3), r"needs a method state\(\)"),
        (Scripted(has_action_mask=True), r"needs action_mask\(\)"),
    ],
)
def test_what_does_not_fit_the_spec_is_named(env: MultiAgentEnv, message: str):
    with pytest.raises(EnvContractError, match=message):
        play(LoopedEnv([env]), np.zeros((1, 1, 2), np.int32))


def test_environments_must_be_alike_and_seeds_as_many():
    with pytest.raises(EnvContractError, match="environment 1 has another spec than 0"):
        LoopedEnv([CountingEnv(num_agents=2), CountingEnv(num_agents=3)])
    with pytest.raises(EnvContractError, match="at least one environment"):
        LoopedEnv([])
    with pytest.raises(EnvContractError, match="3 seeds for 2 environments"):
        play(counting(2), np.zeros((0, 2, 2), np.int32), [1, 2, 3])


def test_allocated_arrays_fit_the_spec():
    spec = counting(1, masked=True, has_state=True, num_agents=3).spec
    arrays, result = EnvArrays.allocate(spec, 4), StepArrays.allocate(spec, 4)
    assert arrays.action_mask is not None and arrays.state is not None
    shapes = [arrays.observation.shape, arrays.state.shape, arrays.action_mask.shape, result.reward.shape]
    assert shapes == [(4, 3, 5), (4, 3), (4, 3, 3), (4, 3)]
    bare = EnvArrays.allocate(counting(1).spec, 4)
    assert bare.state is None and bare.action_mask is None


def test_environments_are_not_asked_for_a_state_that_nobody_wants():
    class Asked(CountingEnv):
        def state(self) -> Any:
            raise AssertionError("nobody wants it")

    env = LoopedEnv([Asked(has_state=True)], global_state=False)
    batch = play(env, actions_for(env, 8))
    assert env.spec.state_size == 0 and batch.state is None
