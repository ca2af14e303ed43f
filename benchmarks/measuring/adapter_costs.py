"""What adapters add to environments that do nothing: the same steps through a BatchedEnv, and in a bare loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from hpc_marl.config import EnvConfig
from hpc_marl.data import EnvSpec
from hpc_marl.envs.adapters import adapt_singles
from hpc_marl.envs.api import EnvArrays, MultiAgentEnv, StepArrays

_WIDTH = 15
_ZEROS = np.zeros(_WIDTH, np.float32)
_AGENTS = ("first", "second", "third")
_BOX = spaces.Box(-1, 1, (_WIDTH,), np.float32)


class OneAgent(gymnasium.Env[Any, Any]):
    """Of gymnasium."""

    observation_space, action_space = _BOX, spaces.Discrete(6)
    bare_action: Any = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Show zeros."""
        return _ZEROS, {}

    def step(self, action: Any) -> Any:
        """Show zeros."""
        return _ZEROS, 1.0, False, False, {}


class Team(gymnasium.Env[Any, Any]):
    """Of gymnasium, with two agents."""

    observation_space = spaces.Tuple([_BOX] * 2)
    action_space = spaces.Tuple([spaces.Discrete(6)] * 2)
    bare_action: Any = (0, 0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Show zeros."""
        return (_ZEROS, _ZEROS), {}

    def step(self, action: Any) -> Any:
        """Show zeros."""
        return (_ZEROS, _ZEROS), [0.0, 0.0], False, False, {}


class Parallel(ParallelEnv[str, Any, Any]):
    """Of PettingZoo, with three agents."""

    bare_action: Any = dict.fromkeys(_AGENTS, 0)

    def __init__(self) -> None:
        self.metadata = {"name": "nothing"}
        self.possible_agents, self.agents = list(_AGENTS), list(_AGENTS)
        self._shown = dict.fromkeys(self.agents, _ZEROS)
        self._paid = dict.fromkeys(self.agents, 0.0)
        self._never = dict.fromkeys(self.agents, False)
        self._infos: dict[str, dict[str, Any]] = {agent: {} for agent in self.agents}

    def observation_space(self, agent: str) -> Any:
        """Return everyone's."""
        return _BOX

    def action_space(self, agent: str) -> Any:
        """Return everyone's."""
        return spaces.Discrete(6)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        """Show zeros."""
        return self._shown, self._infos

    def step(self, actions: Any) -> Any:
        """Show zeros."""
        return self._shown, self._paid, self._never, self._never, self._infos


class Own(MultiAgentEnv):
    """A MultiAgentEnv with two agents."""

    spec = EnvSpec(agent_names=("first", "second"), observation_size=_WIDTH, num_actions=6)
    bare_action: Any = np.zeros(2, np.int32)

    def __init__(self) -> None:
        self._shown, self._paid = np.zeros((2, _WIDTH), np.float32), np.zeros(2, np.float32)

    def reset(self, seed: int | None = None) -> Any:
        """Show zeros."""
        return self._shown

    def step(self, action: Any) -> Any:
        """Show zeros."""
        return self._shown, self._paid, False, False


ADAPTERS: dict[str, Callable[[], Any]] = {
    "gymnasium, 1 agent": OneAgent,
    "gymnasium, 2 agents": Team,
    "PettingZoo, 3 agents": Parallel,
    "MultiAgentEnv, 2 agents": Own,
}


class AdapterCost:
    """One adapter with one number of environments.

    Attributes:
        ours: microseconds of CPU per step of one environment through a BatchedEnv, one of each repeat.
        bare: the same in a loop that calls `step` and drops what it returns.
    """

    def __init__(self, name: str, num_envs: int, make: Callable[[], Any]) -> None:
        self.name, self.num_envs = name, num_envs
        self.ours: list[float] = []
        self.bare: list[float] = []
        self._singles = [make() for _ in range(num_envs)]
        self._env = adapt_singles([make() for _ in range(num_envs)], EnvConfig())
        spec = self._env.spec
        self._arrays, self._result = EnvArrays.allocate(spec, num_envs), StepArrays.allocate(spec, num_envs)
        self._actions = np.zeros((num_envs, spec.num_agents), np.int32)
        self._env.reset(list(range(num_envs)), self._arrays)

    def measure(self, num_steps: int) -> None:
        """Measure both once."""
        started_s = time.thread_time()
        for _ in range(num_steps):
            self._env.step(self._actions, self._result, self._arrays)
        between_s = time.thread_time()
        for _ in range(num_steps):
            for env in self._singles:
                env.step(env.bare_action)
        ended_s = time.thread_time()
        per_step_us = 1e6 / num_steps / self.num_envs
        self.ours.append((between_s - started_s) * per_step_us)
        self.bare.append((ended_s - between_s) * per_step_us)
