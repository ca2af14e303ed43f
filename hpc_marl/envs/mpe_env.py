"""mpe2's particle worlds without PettingZoo's wrappers, which take nearly half of a step.

mpe2 makes a parallel environment by wrapping a turn-based one three times; each agent's turn goes through all of them,
and looks at observations that nobody needs. `without_wrappers` plays the same environment a whole round at a time, by
the methods of mpe2's own environment: physics, rewards, observations and random numbers are its own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from pettingzoo import ParallelEnv
from pettingzoo.utils.conversions import aec_to_parallel_wrapper
from pettingzoo.utils.wrappers import AssertOutOfBoundsWrapper, ClipOutOfBoundsWrapper, OrderEnforcingWrapper

from hpc_marl.errors import EnvContractError

_TURNS = ("step", "reset", "observe", "state", "last", "_was_dead_step", "_accumulate_rewards")
"""What the wrappers call; an environment that has its own is left in its wrappers."""
_CYCLES = 3
_Step = tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]


class MpeEnv(ParallelEnv[str, Any, Any]):  # type: ignore[misc]
    """One of mpe2's environments, stepped a whole round at a time.

    Args:
        env: of mpe2, without wrappers.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self.metadata = env.metadata
        self.render_mode = env.render_mode
        self.possible_agents = list(env.possible_agents)
        self.agents: list[str] = []
        self._all_false = dict.fromkeys(self.possible_agents, False)
        self._all_true = dict.fromkeys(self.possible_agents, True)
        spaces = [env.action_space(agent) for agent in self.possible_agents]
        self._counts = None if env.continuous_actions else [int(space.n) for space in spaces]

    def observation_space(self, agent: str) -> Any:
        """Return what the agent sees."""
        return self._env.observation_space(agent)

    def action_space(self, agent: str) -> Any:
        """Return how the agent acts."""
        return self._env.action_space(agent)

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode."""
        self._env.reset(seed=seed, options=options)
        self.agents = self.possible_agents
        return self._seen(), dict(self._env.infos)

    def step(self, actions: Mapping[str, Any]) -> _Step:
        """Play a round.

        Raises:
            EnvContractError: an action is not one that its agent has.
        """
        env = self._env
        played = [actions[agent] for agent in self.possible_agents]
        if self._counts is not None:
            for action, count in zip(played, self._counts, strict=True):
                if not 0 <= action < count:
                    raise EnvContractError(f"{self}: found actions {played}; the agents have {self._counts}")
        env.current_actions = played
        env._execute_world_step()
        env.steps += 1
        terminations = truncations = self._all_false
        if env.steps >= env.max_cycles:
            truncations, self.agents = self._all_true, []
        elif env.scenario.is_terminal(env.world):
            terminations, self.agents = self._all_true, []
        return self._seen(), dict(env.rewards), terminations, truncations, dict(env.infos)

    def state(self) -> Any:
        """Return all observations, one after the other."""
        return self._env.state()

    def render(self) -> Any:
        """Return a picture, where the environment was made to draw some."""
        return self._env.render()

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def __str__(self) -> str:
        """Return its name."""
        return str(self._env)

    def _seen(self) -> dict[str, Any]:
        observe = self._env.observe
        return {agent: observe(agent) for agent in self.possible_agents}


def without_wrappers(env: ParallelEnv[Any, Any, Any]) -> ParallelEnv[Any, Any, Any]:
    """Return an MpeEnv that plays as `env` does, where that is one of mpe2's in its wrappers; else `env` itself.

    Three rounds are played either way and compared, so that another version of mpe2 or PettingZoo, whose wrappers do
    more than those known here, keeps them. The environment must be reset before it is used.
    """
    raw = _wrapped_by_known(env)
    if raw is None:
        return env
    direct = MpeEnv(raw)
    limit, raw.max_cycles = raw.max_cycles, _CYCLES  # so that a whole episode is compared
    try:
        return direct if _played(direct) == _played(env) else env
    finally:
        raw.max_cycles = limit


def _wrapped_by_known(env: Any) -> Any | None:
    """Return mpe2's own environment, where only wrappers are around it that change nothing; else None."""
    if "mpe2" not in sys.modules or type(env) is not aec_to_parallel_wrapper:
        return None
    from mpe2._mpe_utils.simple_env import SimpleEnv

    raw: Any = None
    if type(env.aec_env) is OrderEnforcingWrapper:
        bounds = env.aec_env.env
        raw = bounds.env if type(bounds) in (AssertOutOfBoundsWrapper, ClipOutOfBoundsWrapper) else None
    is_known = (
        isinstance(raw, SimpleEnv)
        and all(getattr(type(raw), name) is getattr(SimpleEnv, name) for name in _TURNS)
        and hasattr(raw.scenario, "is_terminal")
        and raw.render_mode != "human"  # draws at every step
    )
    return raw if is_known else None


def _played(env: ParallelEnv[Any, Any, Any]) -> list[Any]:
    """Return all that an episode of a few rounds shows, in bytes and plain values."""
    rng = np.random.default_rng(0)
    observations, _ = env.reset(seed=0)
    found: list[Any] = [_in_bytes(observations)]
    for _ in range(_CYCLES):
        actions = {}
        for agent in env.possible_agents:
            space = env.action_space(agent)
            is_discrete = hasattr(space, "n")
            actions[agent] = (
                int(rng.integers(space.n)) if is_discrete else rng.random(space.shape, np.float32)
            )
        observations, rewards, *ends, _ = env.step(actions)
        found.append((_in_bytes(observations), dict(rewards), *map(dict, ends), list(env.agents)))
    return found


def _in_bytes(observations: Mapping[Any, Any]) -> list[tuple[Any, str, bytes]]:
    return [(agent, str(seen.dtype), seen.tobytes()) for agent, seen in observations.items()]
