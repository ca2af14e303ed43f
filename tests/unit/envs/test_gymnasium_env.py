"""Gymnasium adapters: spaces, masks, seeds, rewards."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from hpc_marl.config import EnvConfig
from hpc_marl.envs import LoopedEnv, make_env
from hpc_marl.envs.gymnasium_env import GymnasiumEnv, GymnasiumMultiAgentEnv
from hpc_marl.errors import EnvContractError
from tests.unit.envs.rollouts import RecordingEnv, play

BOX = spaces.Box(-1, 1, (3,), np.float32)


def test_one_agent_sees_what_gymnasium_shows():
    batch = play(make_env(EnvConfig(), 2), np.ones((30, 2, 1), np.int32), [4, 9])
    reference = gymnasium.make("CartPole-v1")
    for e, seed in enumerate([4, 9]):
        observation, _ = reference.reset(seed=seed)
        terminated = False
        for t in range(30):
            np.testing.assert_array_equal(batch.observation[t, e, 0], observation)
            assert batch.alive[t, e, 0] == (not terminated)
            if terminated:
                observation, _ = reference.reset()
                terminated = False
                continue
            observation, reward, terminated, _, _ = reference.step(1)
            assert batch.reward[t, e, 0] == reward
            assert batch.terminated[t, e, 0] == terminated
    assert batch.terminated.sum() >= 4
    reference.close()


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (spaces.Box(0, 255, (2, 3), np.uint8), 6),
        (spaces.Discrete(4, start=2), 4),
        (spaces.MultiBinary(5), 5),
        (spaces.MultiDiscrete([2, 3]), 5),
        (spaces.Tuple((spaces.Discrete(2), BOX)), 5),
        (spaces.Dict({"a": BOX, "b": spaces.Dict({"c": spaces.Discrete(3)})}), 6),
    ],
)
def test_observations_of_every_flat_kind_are_flattened(space: spaces.Space[Any], size: int):
    env = GymnasiumEnv(RecordingEnv(space, spaces.Discrete(2)))
    seen = env.reset(seed=3)
    space.seed(3)
    np.testing.assert_array_equal(seen, [spaces.flatten(space, space.sample())])
    assert env.spec.observation_size == size
    assert play(LoopedEnv([env]), np.zeros((5, 1, 1), np.int32)).observation.shape == (6, 1, 1, size)


def test_actions_of_discrete_spaces_begin_at_start():
    recording = RecordingEnv(BOX, spaces.Discrete(3, start=-1))
    play(LoopedEnv([GymnasiumEnv(recording)]), np.array([[[0]], [[2]]], np.int32))
    assert recording.actions == [-1, 1]


def test_actions_of_boxes_are_scaled_from_one_to_the_bounds():
    recording = RecordingEnv(
        BOX, spaces.Box(np.array([[0.0], [-4.0]]), np.array([[1.0], [2.0]]), dtype=np.float64)
    )
    play(LoopedEnv([GymnasiumEnv(recording)]), np.array([[[[-1, 1]]], [[[5, -5]]], [[[0, 0]]]], np.float32))
    assert [action.reshape(-1).tolist() for action in recording.actions] == [[0, 2], [1, -4], [0.5, -1]]


@pytest.mark.parametrize(
    "space",
    [
        spaces.MultiDiscrete([2, 2]),
        spaces.MultiBinary(2),
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(0, 9, (2,), np.int64),
        spaces.Dict({"a": spaces.Discrete(2)}),
    ],
)
def test_other_action_spaces_are_refused_with_what_is_supported(space: spaces.Space[Any]):
    with pytest.raises(EnvContractError, match="supported are Discrete and a bounded Box of floats"):
        GymnasiumEnv(RecordingEnv(BOX, space))


def test_observations_without_a_fixed_size_are_refused():
    with pytest.raises(EnvContractError, match="cannot flatten observations of Sequence"):
        GymnasiumEnv(RecordingEnv(spaces.Sequence(BOX), spaces.Discrete(2)))


def test_masks_come_from_info_or_from_the_observation():
    mask = np.array([0, 1, 1], np.int8)
    env = LoopedEnv([GymnasiumEnv(RecordingEnv(BOX, spaces.Discrete(3), info={"action_mask": mask}))])
    batch = play(env, np.zeros((4, 1, 1), np.int32))
    assert batch.action_mask is not None
    assert batch.action_mask[:, 0, 0].astype(int).tolist() == [[0, 1, 1]] * 3 + [[1, 1, 1]] + [[0, 1, 1]]
    assert batch.action[0] == 1
    observed = spaces.Dict({"observation": BOX, "action_mask": spaces.MultiBinary(3)})
    env = LoopedEnv([adapter := GymnasiumEnv(RecordingEnv(observed, spaces.Discrete(3)))])
    observed.seed(7)
    expected = observed.sample()
    np.testing.assert_array_equal(adapter.reset(seed=7), [expected["observation"]])
    np.testing.assert_array_equal(adapter.action_mask(), [expected["action_mask"].astype(bool)])
    assert env.spec.has_action_mask and env.spec.observation_size == 3


def test_agents_of_tuple_spaces_have_their_own_rewards_and_actions():
    recording = RecordingEnv(spaces.Tuple((BOX, BOX)), spaces.Tuple((spaces.Discrete(4),) * 2), num_agents=2)
    env = LoopedEnv([GymnasiumMultiAgentEnv(recording)])
    batch = play(env, np.array([[[3, 0]], [[1, 2]], [[0, 0]], [[3, 3]]], np.int32), [11])
    assert env.spec.agent_names == ("agent_0", "agent_1")
    assert recording.actions == [(3, 0), (1, 2), (0, 0)]
    assert batch.reward[:, 0].tolist() == [[1, 11], [2, 12], [3, 13], [0, 0]]
    assert batch.terminated[:, 0].tolist() == [[False] * 2] * 2 + [[True] * 2] + [[False] * 2]
    assert recording.seeds == [0, 11, None]
    recording.observation_space.seed(11)
    np.testing.assert_array_equal(batch.observation[0, 0], recording.observation_space.sample())


def test_different_tuple_spaces_are_padded_and_masked():
    recording = RecordingEnv(
        spaces.Tuple((spaces.Box(1, 2, (2,)), spaces.Box(1, 2, (4,)))),
        spaces.Tuple((spaces.Discrete(3, start=1), spaces.Discrete(2))),
        num_agents=2,
    )
    env = LoopedEnv([GymnasiumMultiAgentEnv(recording)])
    batch = play(env, np.full((3, 1, 2), 2, np.int32))
    assert (env.spec.observation_size, env.spec.num_actions, env.spec.has_action_mask) == (4, 3, True)
    assert not batch.observation[..., 0, 2:].any() and batch.observation[..., 0, :2].all()
    assert batch.observation[..., 1, :].all()
    assert batch.action_mask is not None
    assert batch.action_mask[:3, 0].astype(int).tolist() == [[[1, 1, 1], [1, 1, 0]]] * 3
    assert recording.actions == [(3, 0)] * 3


def test_tuple_spaces_must_match():
    with pytest.raises(EnvContractError, match="2 observation spaces but 3 action spaces"):
        GymnasiumMultiAgentEnv(
            RecordingEnv(spaces.Tuple((BOX,) * 2), spaces.Tuple((spaces.Discrete(2),) * 3))
        )
    with pytest.raises(EnvContractError, match="a Tuple of spaces, one per agent"):
        GymnasiumMultiAgentEnv(RecordingEnv(BOX, spaces.Discrete(2)))
    with pytest.raises(EnvContractError, match="some agents act in a Discrete space and others in a Box"):
        GymnasiumMultiAgentEnv(
            RecordingEnv(spaces.Tuple((BOX,) * 2), spaces.Tuple((spaces.Discrete(2), BOX)))
        )


def test_level_based_foraging_pays_the_share_of_food_collected():
    config = EnvConfig(
        imports=("lbforaging",), make={"_target_": "gymnasium.make", "id": "Foraging-5x5-2p-1f-v3"}
    )
    env = make_env(config, 4)
    actions = np.random.default_rng(0).integers(0, 6, (300, 4, 2), np.int32)
    batch = play(env, actions)
    returns = [
        batch.reward[max(0, t - 60) : t + 1, e][_since_reset(batch.is_first[max(0, t - 60) : t + 1, e])].sum()
        for t, e in np.argwhere(batch.terminated.all(axis=2))
    ]
    assert {round(float(value), 5) for value in returns} == {0.0, 1.0}  # one food: all of it, or none
    env.close()


def _since_reset(is_first: Any) -> slice:
    return slice(int(np.flatnonzero(is_first)[-1]), None)


@pytest.mark.parametrize(
    ("shape", "image_shape"),
    [((4, 12, 10), (4, 12, 10)), ((12, 10, 3), (3, 12, 10)), ((12, 10), (1, 12, 10))],
)
def test_images_are_rows_of_bytes_with_channels_first(shape: tuple[int, ...], image_shape: tuple[int, ...]):
    space = spaces.Box(0, 255, shape, np.uint8)
    env = LoopedEnv([GymnasiumEnv(RecordingEnv(space, spaces.Discrete(2)))])
    assert env.spec.image_shape == image_shape
    batch = play(env, np.zeros((5, 1, 1), np.int32), [3])
    assert batch.observation.dtype == np.uint8
    space.seed(3)
    image = space.sample()
    if shape[-1] == 3:
        image = image.transpose(2, 0, 1)
    np.testing.assert_array_equal(batch.observation[0, 0, 0].reshape(image_shape), image.reshape(image_shape))


def test_agents_with_images_of_different_shapes_are_refused():
    images = [spaces.Box(0, 255, (side, side, 3), np.uint8) for side in (8, 16)]
    for other in (images[1], BOX):
        seen = spaces.Tuple((images[0], other))
        actions = spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2)))
        with pytest.raises(EnvContractError, match=r"images \[3, 8, 8\].*; all must see images of one shape"):
            GymnasiumMultiAgentEnv(RecordingEnv(seen, actions, num_agents=2))
