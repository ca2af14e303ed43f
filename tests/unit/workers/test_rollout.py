"""GroupRollout, audited with an environment whose every number is known in advance."""

from __future__ import annotations

import numpy as np
import pytest

from hpc_marl.config import EnvConfig
from hpc_marl.data import SampleBatch, SampleLayout
from hpc_marl.envs import make_env
from hpc_marl.workers.rollout import GroupRollout, share_reward

ENVS, STEPS, CHUNK, MEMORY = 3, 8, 4, 2


def counting_config(**options: object) -> EnvConfig:
    return EnvConfig(make={"_target_": "hpc_marl.envs.testing.CountingEnv", **options})


def make_rollout(config: EnvConfig, memory_size: int = 0) -> tuple[GroupRollout, SampleLayout]:
    env = make_env(config, ENVS)
    rollout = GroupRollout(env, config, seed=(7, 0), memory_size=memory_size, chunk_length=CHUNK)
    return rollout, SampleLayout(env.spec, STEPS, ENVS, memory_size, CHUNK)


def fill(rollout: GroupRollout, batch: SampleBatch, version: int = 3) -> list[tuple[float, int]]:
    """Fill a batch; every action is the number of its time step modulo 3, every memory counts steps of its episode."""
    rollout.begin(batch)
    for t in range(STEPS):
        inputs = rollout.inputs()
        agents = (ENVS, rollout.env.spec.num_agents)
        action = np.full(agents, t % 3, np.int32)
        memory = None if inputs.memory is None else inputs.memory + 1
        rollout.apply(action, np.full(agents, -0.5 * t, np.float32), memory, version)
    assert rollout.is_full
    return rollout.finish()


def test_batches_continue_each_other_without_a_gap() -> None:
    rollout, layout = make_rollout(counting_config(episode_length=5))
    first, second = layout.allocate(), layout.allocate()
    fill(rollout, first)
    fill(rollout, second)
    for name in ("observation", "alive", "is_first"):
        np.testing.assert_array_equal(getattr(first, name)[-1], getattr(second, name)[0], err_msg=name)
    steps = np.concatenate([first.observation[:-1, :, 0, 2], second.observation[:, :, 0, 2]])
    # 5 steps, the final observation (step 5), then the next episode from 0: a period of 6.
    np.testing.assert_array_equal(steps, np.broadcast_to(np.arange(2 * STEPS + 1)[:, None] % 6, steps.shape))
    assert (
        first.action[2, 0, 0] == 2 and first.log_prob[2, 0, 0] == -1.0 and (first.policy_version == 3).all()
    )


def test_episodes_report_the_undivided_return_and_length() -> None:
    rollout, layout = make_rollout(counting_config(episode_length=5))
    episodes = fill(rollout, layout.allocate())
    # Rewards of step k are k for agent 0 and 100 + k for agent 1.
    assert episodes == [(2 * (1 + 2 + 3 + 4 + 5) + 500.0, 5)] * ENVS


def test_an_agent_that_ends_early_earns_and_learns_nothing_afterwards() -> None:
    rollout, layout = make_rollout(counting_config(episode_length=5, early_steps=2))
    batch = layout.allocate()
    episodes = fill(rollout, batch)
    assert batch.terminated[2, :, 1].all() and not batch.terminated[2, :, 0].any()
    assert not batch.alive[3:5, :, 1].any() and batch.alive[3:5, :, 0].all()
    assert (batch.reward[3:5, :, 1] == 0).all()
    assert episodes == [((1 + 2 + 3 + 4 + 5) + (101 + 102 + 103.0), 5)] * ENVS
    # Steps 0..4 of the first episode, the resetting step 5, then steps 6, 7 of the second one.
    assert batch.env_steps == ENVS * 7
    assert batch.agent_steps == ENVS * (5 + 3 + 2 + 2)


def test_truncation_is_told_apart_from_termination() -> None:
    rollout, layout = make_rollout(counting_config(episode_length=5, ending="truncated"))
    batch = layout.allocate()
    fill(rollout, batch)
    assert batch.truncated[4].all() and not batch.terminated.any() and batch.truncated.sum() == ENVS * 2


def test_memory_is_zero_at_the_start_of_an_episode_and_stored_for_each_chunk() -> None:
    rollout, layout = make_rollout(counting_config(episode_length=5), MEMORY)
    first, second = layout.allocate(), layout.allocate()
    fill(rollout, first)
    fill(rollout, second)
    assert first.memory is not None and second.memory is not None
    assert (first.memory[0] == 0).all()
    assert (first.memory[1] == 4).all()  # steps 0 .. 3 came before
    assert (second.memory[0] == 2).all()  # the second episode began at t=6
    assert (second.memory[1] == 0).all()  # t=12 begins the third one


def test_equal_seeds_give_equal_noise_and_other_seeds_other_noise() -> None:
    config = counting_config()
    noises = []
    for seed in ((1, 2), (1, 2), (1, 3)):
        rollout = GroupRollout(make_env(config, ENVS), config, seed=seed)
        rollout.begin(SampleLayout(rollout.env.spec, STEPS, ENVS).allocate())
        noises.append(rollout.inputs().noise)
    np.testing.assert_array_equal(noises[0], noises[1])
    assert (noises[0] != noises[2]).any()


def test_an_abandoned_batch_loses_no_step_of_the_environment() -> None:
    rollout, layout = make_rollout(counting_config(episode_length=5))
    rollout.begin(layout.allocate())
    agents = (ENVS, 2)
    for _ in range(3):
        rollout.inputs()
        rollout.apply(np.zeros(agents, np.int32), np.zeros(agents, np.float32), None, 0)
    rollout.abandon()
    assert not rollout.in_progress
    batch = layout.allocate()
    rollout.begin(batch)
    assert (batch.observation[0, :, :, 2] == 3).all()


@pytest.mark.parametrize(
    ("sharing", "expected"), [("individual", [[1, 3]]), ("sum", [[4, 4]]), ("mean", [[2, 2]])]
)
def test_reward_sharing(sharing: str, expected: list[list[float]]) -> None:
    np.testing.assert_array_equal(share_reward(np.array([[1, 3]], np.float32), sharing), expected)
