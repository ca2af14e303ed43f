"""VMAS: the contract, fast resets against slow ones, random numbers of one's own."""

from __future__ import annotations

import importlib
import random
from typing import Any

import numpy as np
import pytest

from hpc_marl.config import EnvConfig
from hpc_marl.data import SampleBatch
from hpc_marl.envs import check_env, make_env
from hpc_marl.errors import EnvContractError
from tests.unit.envs.rollouts import play

pytest.importorskip("vmas")
import torch
import vmas

from hpc_marl.envs.vmas_env import VmasEnv

torch.set_num_threads(1)


def config(scenario: str = "balance", max_steps: int = 12, **make: Any) -> EnvConfig:
    make = {"scenario": scenario, "max_steps": max_steps, **make}
    return EnvConfig(make={"_target_": "hpc_marl.envs.vmas_env.VmasEnv", **make})


def random_actions(env: VmasEnv, steps: int, seed: int = 0) -> np.ndarray:
    shape = (steps, env.num_envs, env.spec.num_agents, env.spec.action_size)
    return np.random.default_rng(seed).uniform(-1.2, 1.2, shape).astype(np.float32)


def assert_equal(one: SampleBatch, two: SampleBatch, tolerance: float = 0.0) -> None:
    for name, array in one.arrays().items():
        np.testing.assert_allclose(array, getattr(two, name), rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    "make",
    [
        {"fast_resets": True},
        {"fast_resets": False},
        {"fast_resets": True, "continuous_actions": False},
        {
            "scenario": "navigation",
            "fast_resets": True,
        },  # agents reset by rejection: positions must not collide
        {"scenario": "simple_speaker_listener"},  # agents with different spaces, one of them speaks
    ],
)
def test_scenarios_keep_the_contract(make: dict[str, Any]):
    check_env(config(**make))


def test_steps_are_those_of_vmas_itself():
    env, seeds = VmasEnv("balance", 3, n_agents=4, max_steps=100), [5, 6, 7]
    actions = random_actions(env, 40)
    batch = play(env, actions, seeds=seeds)
    alone = vmas.make_env("balance", 3, n_agents=4, max_steps=100, seed=0, terminated_truncated=True)
    seen = alone.reset(seed=int(np.random.SeedSequence(seeds).generate_state(2)[0]))
    for t, played in enumerate(torch.from_numpy(actions.clip(-1, 1))):
        np.testing.assert_array_equal(batch.observation[t], torch.stack(seen, dim=1).numpy())
        seen, rewards, *_ = alone.step(list(played.unbind(1)))
        np.testing.assert_array_equal(batch.reward[t], torch.stack(rewards, dim=1).numpy())


@pytest.mark.parametrize("scenario", ["balance", "wheel"])
def test_fast_resets_play_what_slow_ones_play(scenario: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, low, high: self.fill_(0.7 * low + 0.3 * high))
    batches = []
    for fast_resets in (True, False):
        env = make_env(config(scenario, 40, fast_resets=fast_resets), 7)
        assert isinstance(env, VmasEnv)
        actions = random_actions(env, 120)
        actions[..., 0, 1] += np.linspace(
            -1, 1, 7
        )  # one robot lifts the line, or lets it down: sooner or later it falls
        batches.append(play(env, actions))
    assert batches[0].is_first[1:].sum() >= 14
    if scenario == "balance":
        assert batches[0].terminated.any(), "episodes end at different times"
    assert_equal(*batches, tolerance=2e-3)


def test_episodes_differ_and_follow_from_the_seeds():
    env = make_env(config(fast_resets=True), 5)
    assert isinstance(env, VmasEnv)
    actions = random_actions(env, 60)
    one, two, other = (play(env, actions, seeds) for seeds in (range(5), range(5), range(1, 6)))
    assert_equal(one, two)
    assert not np.array_equal(one.observation, other.observation)
    firsts = one.observation[one.is_first][:, 0]
    assert len(firsts) >= 20
    assert len(np.unique(firsts, axis=0)) == len(firsts), "no episode is dealt out twice"


def test_worlds_leave_each_other_and_the_process_alone():
    one, two = (make_env(config("navigation", fast_resets=False), 3) for _ in range(2))
    assert isinstance(one, VmasEnv)
    actions = random_actions(one, 30)
    alone = play(one, actions)
    states = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    play(two, random_actions(one, 17, seed=1), [9, 8, 7])
    for before, after in zip(
        states, (torch.get_rng_state(), np.random.get_state()[1], random.getstate()), strict=True
    ):
        assert np.array_equal(before, after) if not isinstance(before, tuple) else before == after
    assert_equal(alone, play(one, actions))


def test_a_scenario_that_keeps_something_elsewhere_is_found():
    base = importlib.import_module("vmas.scenarios.balance").Scenario

    class Tired(base):  # type: ignore[misc, valid-type]
        """Pays less with every step of an episode; counts them in a list."""

        def reset_world_at(self, env_index: int | None = None) -> None:
            super().reset_world_at(env_index)
            if env_index is None:
                self.counts = [0] * self.world.batch_dim
            else:
                self.counts[env_index] = 0

        def reward(self, agent: Any) -> Any:
            if agent is self.world.agents[0]:
                self.counts = [count + 1 for count in self.counts]
            return super().reward(agent) - torch.tensor(self.counts)

    check_env(lambda count: VmasEnv(Tired(), count, max_steps=5))
    with pytest.raises(EnvContractError, match=r"Tired: .* Use fast_resets: false"):
        VmasEnv(Tired(), 4, fast_resets=True)


def test_discrete_actions_must_be_equally_many():
    with pytest.raises(EnvContractError, match=r"agents have .* actions; discrete ones must be equally many"):
        make_env(config("simple_speaker_listener", continuous_actions=False), 2)
