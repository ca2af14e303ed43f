"""make_env: adapters by type, and what it answers when something is wrong."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import AECEnv

from hpc_marl.composing.compose import conf_directory
from hpc_marl.config import EnvConfig, build
from hpc_marl.envs import BatchedEnv, LoopedEnv, check_env, make_env
from hpc_marl.envs.gymnasium_vector_env import GymnasiumVectorEnv
from hpc_marl.envs.testing import CountingEnv
from hpc_marl.errors import ConfigError, EnvContractError
from tests.unit.envs.rollouts import RecordingEnv, play
from tests.unit.envs.test_conformance import Relay
from tests.unit.envs.test_pettingzoo_env import Skirmish

HERE = __name__
BOX = spaces.Box(-1, 1, (3,), np.float32)


def single_env() -> gymnasium.Env[Any, Any]:
    return RecordingEnv(BOX, spaces.Discrete(2))


def tuple_env() -> gymnasium.Env[Any, Any]:
    return RecordingEnv(spaces.Tuple((BOX, BOX)), spaces.Tuple((spaces.Discrete(2),) * 2), num_agents=2)


def skirmish() -> Skirmish:
    return Skirmish()


def fixed_relay() -> Relay:
    return Relay(2)


class TurnBased(AECEnv[str, Any, Any]):
    """Agents that act one after the other."""

    def __init__(self) -> None:
        self.metadata = {"name": "chess"}


class OwnVector(gymnasium.vector.SyncVectorEnv):
    """A vector environment of the user's own."""

    def __init__(self, num_envs: int) -> None:
        super().__init__([lambda: gymnasium.make("CartPole-v1")] * num_envs)


NUMBER = 3


def config(target: str, **settings: Any) -> EnvConfig:
    make = settings.pop("make", {})
    return EnvConfig(make={"_target_": f"{HERE}.{target}", **make}, **settings)


@pytest.mark.parametrize(
    ("target", "kind", "num_agents"),
    [
        ("single_env", LoopedEnv, 1),
        ("tuple_env", LoopedEnv, 2),
        ("skirmish", LoopedEnv, 3),
        ("CountingEnv", LoopedEnv, 2),
        ("fixed_relay", Relay, 2),
        ("Relay", Relay, 2),
        ("OwnVector", GymnasiumVectorEnv, 1),
    ],
)
def test_the_adapter_goes_by_type(target: str, kind: type[BatchedEnv], num_agents: int):
    assert CountingEnv and Relay  # named by their paths here
    env = make_env(config(target), 2)
    assert isinstance(env, kind)
    assert (env.num_envs, env.spec.num_agents) == (2, num_agents)
    env.close()


@pytest.mark.parametrize(
    ("target", "adapter"),
    [
        ("single_env", "gymnasium"),
        ("tuple_env", "gymnasium_multi"),
        ("skirmish", "pettingzoo"),
        ("Relay", "batched"),
    ],
)
def test_an_adapter_can_be_named(target: str, adapter: Any):
    assert make_env(config(target, adapter=adapter), 2).num_envs == 2


@pytest.mark.parametrize(
    ("target", "adapter", "found"),
    [
        (
            "single_env",
            "pettingzoo",
            r"made a .*RecordingEnv, which adapter: pettingzoo does not take; known kinds are",
        ),
        ("skirmish", "gymnasium", "made a .*Skirmish, which adapter: gymnasium does not take"),
        ("Relay", "gymnasium_vector", "made a .*Relay, which adapter: gymnasium_vector does not take"),
        ("CountingEnv", "batched", "made a .*CountingEnv, which adapter: batched does not take"),
        ("str", "auto", "made a builtins.str; known kinds are .*pettingzoo.ParallelEnv"),
        ("TurnBased", "auto", "made the turn-based environment chess; use its parallel_env"),
    ],
)
def test_what_no_adapter_takes_is_named(target: str, adapter: Any, found: str):
    path = "builtins.str" if target == "str" else f"{HERE}.{target}"
    with pytest.raises(EnvContractError, match=found):
        make_env(EnvConfig(make={"_target_": path}, adapter=adapter), 2)


def test_a_batched_environment_must_have_as_many_as_asked_for_and_keep_its_limit():
    with pytest.raises(
        EnvContractError, match="2 environments where 3 were asked for; give it a parameter num_envs"
    ):
        make_env(config("fixed_relay"), 3)
    with pytest.raises(ConfigError, match=r"env.max_episode_steps=3 cannot be forced on .*Relay"):
        make_env(config("Relay", max_episode_steps=3), 2)
    assert make_env(config("Relay", max_episode_steps=4), 2).spec.episode_limit == 4
    with pytest.raises(ConfigError, match=r"global_state=false: .*Relay writes its state itself"):
        make_env(config("Relay", global_state=False), 2)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere.at.all", "there is no module 'nowhere'; install"),
        ("hpc_marl.envs.testin.MatrixGame", "hpc_marl.envs has no 'testin'; did you mean testing"),
        (
            "hpc_marl.envs.testing.MatrixGam",
            "hpc_marl.envs.testing has no 'MatrixGam'; did you mean MatrixGame",
        ),
        ("hpc_marl.envs.testing.SEED_RANGE", "is a int; it must be a class or a function"),
        ("MatrixGame", "expected a dotted path"),
        ("a..b", "expected a dotted path"),
        ("hpc_marl.envs.testing:MatrixGame", ""),
    ],
)
def test_a_wrong_target_is_answered(target: str, message: str):
    env_config = EnvConfig(make={"_target_": target})
    if not message:
        assert make_env(env_config, 1).spec.agent_names == ("row", "column")
        return
    with pytest.raises(ConfigError, match=re.escape(f"env.make._target_='{target}'") + ".*" + message):
        make_env(env_config, 1)


def test_a_module_that_lacks_something_itself_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "env_of_mine.py").write_text("import not_installed_anywhere\nclass Env: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("env_of_mine.Env", "env_of_mine.Env.make"):
        with pytest.raises(ConfigError, match="there is no module 'not_installed_anywhere'"):
            make_env(EnvConfig(make={"_target_": target}), 1)
    with pytest.raises(
        ConfigError, match=r"env.imports, 'env_of_mine': there is no module 'not_installed_anywhere'"
    ):
        make_env(EnvConfig(imports=("env_of_mine",)), 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id": "CartPole-v7"}, "'CartPole-v7' is not registered with gymnasium; close ones: .*CartPole-v1"),
        ({"id": "lbforaging:Foraging-8x8-2p-3f-v9"}, "close ones: .*Foraging-8x8-2p-3f-v3"),
        ({"id": "Zzzzzzzz-v0"}, r"none of the \d+ registered is close.* env.imports lists"),
        ({"id": "nowhere:Env-v0"}, "there is no module 'nowhere'"),
        ({}, "env.make.id=None: expected the id"),
    ],
)
def test_a_wrong_gymnasium_id_is_answered(arguments: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        make_env(EnvConfig(make={"_target_": "gymnasium.make", **arguments}), 1)


def test_wrong_arguments_and_numbers_are_answered():
    with pytest.raises(
        ConfigError,
        match=r"CountingEnv\(num_agents.* cannot be called with .*unexpected keyword argument 'size'",
    ):
        make_env(config("CountingEnv", make={"size": 3}), 1)
    with pytest.raises(ConfigError, match="num_envs=0: must be >= 1"):
        make_env(EnvConfig(), 0)


def test_the_passive_checker_is_off_unless_asked_for():
    def layers(**make: Any) -> str:
        env = make_env(EnvConfig(make={"_target_": "gymnasium.make", "id": "CartPole-v1", **make}), 1)
        assert isinstance(env, LoopedEnv)
        return str(env._envs[0]._env)  # type: ignore[attr-defined]

    assert "PassiveEnvChecker" not in layers()
    assert "PassiveEnvChecker" in layers(disable_env_checker=False)


def test_max_episode_steps_truncates_any_single_environment():
    env = make_env(EnvConfig(max_episode_steps=3), 2)
    batch = play(env, np.zeros((7, 2, 1), np.int32))
    assert np.flatnonzero(batch.truncated[:, 0, 0]).tolist() == [2, 6]
    assert env.spec.episode_limit == 3


CONF_FILES = sorted((conf_directory() / "env").glob("*.yaml"))
NEEDS = {"mpe": "mpe2", "rware": "rware", "pong": "ale_py", "vmas": "vmas"}


@pytest.mark.parametrize("path", CONF_FILES, ids=[path.stem for path in CONF_FILES])
def test_every_environment_of_conf_can_be_played(path: Path):
    from omegaconf import OmegaConf

    for prefix, package in NEEDS.items():
        if path.stem.startswith(prefix):
            pytest.importorskip(package)
    env_config = build(EnvConfig, OmegaConf.to_container(OmegaConf.load(path)))  # type: ignore[arg-type]
    assert env_config.name == path.stem
    env = make_env(env_config, 2)
    kind = (np.float32, (env.spec.action_size,)) if env.spec.is_continuous else (np.int32, ())
    batch = play(env, np.ones((8, 2, env.spec.num_agents, *kind[1]), kind[0]))
    assert np.isfinite(batch.observation).all() and batch.observation.any()
    env.close()


@pytest.mark.parametrize("name", ["lbf", "pendulum", "cartpole_vector"])
def test_environments_of_conf_keep_the_contract(name: str):
    from omegaconf import OmegaConf

    content: Any = OmegaConf.to_container(OmegaConf.load(conf_directory() / "env" / f"{name}.yaml"))
    check_env(build(EnvConfig, {**content, "max_episode_steps": 20}), num_envs=2, num_steps=45)


def test_gymnasium_is_not_imported_by_who_only_writes_an_environment():
    import subprocess

    code = "import sys, hpc_marl.envs.testing; print('gymnasium' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
