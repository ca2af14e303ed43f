"""GroupRollout, audited with an environment whose every number is known in advance."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hpc_marl.config import EnvConfig
from hpc_marl.data import SampleBatch, SampleLayout
from hpc_marl.envs import make_env
from hpc_marl.policies import make_noise
from hpc_marl.workers.batch_views import ViewCache
from hpc_marl.workers.rollout import GroupRollout, share_reward

ENVS, STEPS, CHUNK, MEMORY = 3, 8, 4, 2


def counting_config(**options: object) -> EnvConfig:
    return EnvConfig(make={"_target_": "hpc_marl.envs.testing.CountingEnv", **options})


def make_rollout(config: EnvConfig, memory_size: int = 0) -> tuple[GroupRollout, SampleLayout]:
    env = make_env(config, ENVS)
    rollout = GroupRollout(env, config, seed=(7, 0), memory_size=memory_size, chunk_length=CHUNK)
    return rollout, SampleLayout(env.spec, STEPS, ENVS, memory_size, CHUNK)


def fill(rollout: GroupRollout, batch: SampleBatch, version: int = 3) -> list[tuple[float, int]]:
    """Fill a batch; every action is the number of its time step modulo 3, every memory counts steps of its episode.

    Returns the episodes that ended in it.
    """
    rollout.begin(batch)
    for t in range(STEPS):
        inputs = rollout.inputs()
        agents = (ENVS, rollout.env.spec.num_agents)
        action = np.full(agents, t % 3, np.int32)
        memory = None if inputs.memory is None else inputs.memory + 1
        rollout.apply(action, np.full(agents, -0.5 * t, np.float32), memory, version)
    assert rollout.is_full
    counted = rollout.finish()
    assert (counted.env_steps, counted.agent_steps) == (batch.env_steps, batch.agent_steps)
    return counted.episodes


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


@pytest.mark.parametrize("continuous", [False, True])
def test_equal_seeds_give_equal_noise_and_other_seeds_other_noise(continuous: bool) -> None:
    config = counting_config(num_agents=1, continuous=continuous)
    noises = []
    for seed in ((1, 2), (1, 2), (1, 3)):
        rollout = GroupRollout(make_env(config, ENVS), config, seed=seed)
        action = np.zeros((ENVS, 1, 3), np.float32) if continuous else np.zeros((ENVS, 1), np.int32)
        noises.append([])
        for _ in range(2):
            rollout.begin(SampleLayout(rollout.env.spec, STEPS, ENVS).allocate())
            for _ in range(STEPS):
                noises[-1].append(rollout.inputs().noise.copy())
                rollout.apply(action, np.zeros((ENVS, 1), np.float32), None, 0)
            rollout.finish()
    np.testing.assert_array_equal(noises[0], noises[1])
    assert (noises[0][0] != noises[2][0]).any()
    # drawn for a whole batch at once, and yet what a caller who draws step by step would get
    stream = np.random.SeedSequence([1, 2]).spawn(2)[1]
    rng = np.random.Generator(np.random.PCG64(stream))
    np.testing.assert_array_equal(noises[0], [make_noise(rollout.env.spec, rng, ENVS) for _ in noises[0]])


def test_what_is_written_in_place_need_not_be_copied() -> None:
    rollout, layout = make_rollout(counting_config(episode_length=5), MEMORY)
    copied, copies = make_rollout(counting_config(episode_length=5), MEMORY)
    batch, other = layout.allocate(), copies.allocate()
    for _ in range(2):
        rollout.begin(batch)
        for t in range(STEPS):
            inputs = rollout.inputs()
            assert inputs.memory is not None and inputs.rows.memory is not None
            inputs.rows.action[:], inputs.rows.log_prob[:] = t % 3, -0.5 * t
            inputs.rows.memory[...] += 1
            rollout.apply(inputs.action, inputs.log_prob, inputs.memory, 3)
        episodes = rollout.finish().episodes
        assert episodes == fill(copied, other)
        for name, array in batch.arrays().items():
            np.testing.assert_array_equal(array, other.arrays()[name], err_msg=name)


def test_slots_are_used_again() -> None:
    """Views are made once per slot, for as many slots as there is room for."""
    rollout, layout = make_rollout(counting_config(episode_length=5))
    fresh, _ = make_rollout(counting_config(episode_length=5))
    slots = [layout.allocate() for _ in range(3)]
    for index in (0, 1, 2, 1, 0, 2):
        expected = layout.allocate()
        assert fill(rollout, slots[index]) == fill(fresh, expected)
        for name, array in slots[index].arrays().items():
            np.testing.assert_array_equal(array, expected.arrays()[name], err_msg=name)


def test_views_of_long_batches_make_room_for_others() -> None:
    env = make_env(counting_config(), 1)
    long = [SampleLayout(env.spec, 2000, 1).allocate() for _ in range(3)]
    cache = ViewCache()
    views = [cache.of(batch, env.spec) for batch in long]
    assert [each.batch for each in views] == long
    assert cache.of(long[2], env.spec) is views[2] and cache.of(long[1], env.spec) is views[1]
    again = cache.of(long[0], env.spec)
    assert again is not views[0] and again.batch is long[0]


@pytest.mark.parametrize(("num_agents", "early_steps"), [(1, 0), (3, 2)])
def test_episodes_are_counted_as_step_by_step(num_agents: int, early_steps: int) -> None:
    """Episodes of 1 to 20 steps, so that some span several batches and others lie within one."""
    config = counting_config(
        num_agents=num_agents, episode_length=1, length_spread=19, early_steps=early_steps
    )
    rollout, layout = make_rollout(config)
    earned, lasted = np.zeros(ENVS), np.zeros(ENVS, int)
    expected, found = [], []
    for _ in range(40):
        batch = layout.allocate()
        found += fill(rollout, batch)
        for t in range(STEPS):
            earned += batch.reward[t].sum(axis=1)
            acted = batch.alive[t].any(axis=1)
            lasted += acted
            for e in np.flatnonzero(acted & ~batch.alive[t + 1].any(axis=1)):
                expected.append((earned[e], lasted[e]))
                earned[e], lasted[e] = 0, 0
    assert found == expected
    assert {length for _, length in found} == set(range(1, 21))


def test_rewards_are_shared_and_returns_are_not() -> None:
    config = dataclasses.replace(counting_config(episode_length=5), reward_sharing="mean")
    rollout, layout = make_rollout(config)
    batch = layout.allocate()
    assert fill(rollout, batch)[0] == (2 * (1 + 2 + 3 + 4 + 5) + 500.0, 5)
    assert batch.reward[2].tolist() == [[53.0, 53.0]] * ENVS


@pytest.mark.parametrize(
    ("sharing", "expected"), [("individual", [[1, 3]]), ("sum", [[4, 4]]), ("mean", [[2, 2]])]
)
def test_reward_sharing(sharing: str, expected: list[list[float]]) -> None:
    np.testing.assert_array_equal(share_reward(np.array([[1, 3]], np.float32), sharing), expected)
