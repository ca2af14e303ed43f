"""mpe2 without PettingZoo's wrappers: the same bytes as through them."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from hpc_marl.config import EnvConfig
from hpc_marl.envs import check_env, make_env
from hpc_marl.envs.mpe_env import MpeEnv, without_wrappers
from hpc_marl.errors import EnvContractError
from tests.unit.envs.rollouts import play

pytest.importorskip("mpe2")
SCENARIOS = [
    "simple_v3",
    "simple_spread_v3",
    "simple_tag_v3",
    "simple_adversary_v3",
    "simple_push_v3",
    "simple_crypto_v3",
    "simple_reference_v3",
    "simple_speaker_listener_v4",
    "simple_world_comm_v3",
    "collect_treasure_v1",
]


def made(scenario: str, **arguments: Any) -> Any:
    return importlib.import_module(f"mpe2.{scenario}").parallel_env(**arguments)


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert list(one) == list(other)
    for agent, value in one.items():
        expected = other[agent]
        assert np.asarray(value).dtype == np.asarray(expected).dtype
        assert np.asarray(value).tobytes() == np.asarray(expected).tobytes(), agent


def compare(wrapped: Any, direct: Any, seed: int, num_steps: int) -> list[int]:
    """Play both for some steps, over several episodes; return the steps after which one ended."""
    assert isinstance(direct, MpeEnv)
    rng = np.random.default_rng(seed)
    assert_same(wrapped.reset(seed=seed)[0], direct.reset(seed=seed)[0])
    ends = []
    for step in range(num_steps):
        actions: dict[str, Any] = {}
        for agent in wrapped.possible_agents:
            space = wrapped.action_space(agent)
            is_discrete = hasattr(space, "n")
            actions[agent] = (
                int(rng.integers(space.n)) if is_discrete else rng.random(space.shape, np.float32)
            )
        for expected, found in zip(wrapped.step(actions)[:4], direct.step(actions)[:4], strict=True):
            assert_same({agent: found[agent] for agent in found}, dict(expected))
        assert wrapped.agents == direct.agents
        np.testing.assert_array_equal(wrapped.state(), direct.state())
        if not wrapped.agents:
            ends.append(step)
            assert_same(wrapped.reset()[0], direct.reset()[0])
    return ends


@pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_plays_as_in_its_wrappers(scenario: str, continuous: bool):
    arguments = {"max_cycles": 7, "continuous_actions": continuous}
    wrapped, direct = made(scenario, **arguments), without_wrappers(made(scenario, **arguments))
    for seed in (1, 2):
        assert compare(wrapped, direct, seed, 24) == [6, 13, 20]


@pytest.mark.parametrize(
    "arguments", [{"local_ratio": 0.0}, {"local_ratio": 0.8, "N": 5}, {"num_agent_neighbors": 1}], ids=str
)
def test_arguments_of_the_scenario_are_kept(arguments: dict[str, Any]):
    wrapped = made("simple_spread_v3", **arguments)
    assert compare(wrapped, without_wrappers(made("simple_spread_v3", **arguments)), 3, 60) == [24, 49]


def test_an_episode_that_succeeds_is_terminated():
    arguments = {"N": 1, "terminate_on_success": True, "max_cycles": 25}
    wrapped, direct = (made("simple_spread_v3", **arguments) for _ in range(2))
    direct = without_wrappers(direct)
    ends = compare(wrapped, direct, 0, 400)
    assert np.diff(ends).min() < 25, "no episode ended before its last cycle"


def test_a_batched_env_shows_the_same_either_way():
    make = {"_target_": "mpe2.simple_spread_v3.parallel_env", "max_cycles": 25}
    actions = np.random.default_rng(0).integers(5, size=(80, 4, 3)).astype(np.int32)
    found, expected = (
        play(make_env(EnvConfig(make=make, adapter=adapter), 4), actions, seeds=[4, 3, 2, 1])
        for adapter in ("auto", "pettingzoo")
    )
    for name in ("observation", "state", "alive", "is_first", "reward", "terminated", "truncated"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes(), name


@pytest.mark.parametrize("scenario", ["simple_spread_v3", "simple_world_comm_v3"])
def test_the_contract_holds(scenario: str):
    make = {"_target_": f"mpe2.{scenario}.parallel_env", "max_cycles": 9}
    check_env(EnvConfig(make=make), num_steps=25)


def test_an_action_that_is_none_is_named():
    env = without_wrappers(made("simple_spread_v3"))
    env.reset(seed=1)
    with pytest.raises(EnvContractError, match=r"found actions \[0, 5, 0\]; the agents have \[5, 5, 5\]"):
        env.step({"agent_0": 0, "agent_1": 5, "agent_2": 0})


def test_wrappers_that_are_not_known_are_kept():
    env = made("simple_spread_v3")
    env.aec_env = type("Noisy", (type(env.aec_env),), {})(env.aec_env.env)
    assert without_wrappers(env) is env


def test_an_environment_with_turns_of_its_own_keeps_its_wrappers(monkeypatch: pytest.MonkeyPatch):
    env = made("simple_spread_v3")
    raw = type(env.unwrapped)
    monkeypatch.setattr(raw, "observe", lambda self, agent: np.zeros(18, np.float32))
    assert without_wrappers(env) is env


def test_an_environment_that_would_play_differently_keeps_its_wrappers(monkeypatch: pytest.MonkeyPatch):
    from pettingzoo.utils.wrappers import OrderEnforcingWrapper

    # as if another version of PettingZoo rounded what is seen
    monkeypatch.setattr(
        OrderEnforcingWrapper, "observe", lambda self, agent: self.env.observe(agent).round(1)
    )
    env = made("simple_spread_v3", max_cycles=11)
    assert without_wrappers(env) is env
    assert env.unwrapped.max_cycles == 11
