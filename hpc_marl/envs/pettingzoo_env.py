"""PettingZoo parallel environments: dictionaries by agent, agents that die early, action masks, state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pettingzoo import ParallelEnv

from hpc_marl.data.spaces import EnvSpec
from hpc_marl.envs.api import MultiAgentStep
from hpc_marl.envs.gym_spaces import ActionCodec, AgentRows, ObservationCodec
from hpc_marl.envs.plain import PlainEnv
from hpc_marl.errors import EnvContractError

_MASK_KEY = "action_mask"


class PettingZooEnv(PlainEnv):
    """A pettingzoo.ParallelEnv; the agents are its `possible_agents`, in that order.

    - Agents may end their episodes one by one. All must be there after reset; none comes back before the next
      one.
    - Actions are masked where observations are {"observation", "action_mask"}, or reset() returns infos with
      "action_mask", or agents have different numbers of actions.
    - The global state is `state()`, where the environment defines it as a vector (an image is left out).
    """

    def __init__(self, env: ParallelEnv[Any, Any, Any]) -> None:
        """Take over `env`; it is reset once to see what it has.

        Raises:
            EnvContractError: a space is of a kind that is not supported, or agents are missing after reset.
        """
        self._env = env
        self._name = str(env)
        self._agents = list(env.possible_agents)
        self._live = list(range(len(self._agents)))
        names = tuple(str(agent) for agent in self._agents)
        self._observations = [
            ObservationCodec.of(env.observation_space(a), f"agent {a}") for a in self._agents
        ]
        self._actions = [ActionCodec.of(env.action_space(a), f"agent {a}") for a in self._agents]
        self._rows = AgentRows(self._observations, self._actions, self._name)
        _, infos = env.reset(seed=0)
        self._mask_in_info = any(_MASK_KEY in info for info in infos.values())
        masks = (
            self._mask_in_info or self._rows.action_sets_differ or any(c.has_mask for c in self._observations)
        )
        state = self._state_or_none()
        self._reward = np.zeros(len(names), np.float32)
        self._terminated = np.zeros(len(names), np.bool_)
        self._truncated = np.zeros(len(names), np.bool_)
        self.spec = EnvSpec(
            agent_names=names,
            observation_size=self._rows.observation_size,
            image_shape=self._rows.image_shape,
            state_size=0 if state is None else state.size,
            num_actions=self._rows.num_actions,
            action_size=self._rows.action_size,
            has_action_mask=bool(self._rows.num_actions) and masks,
        )
        whole = all(codec.num_actions and not codec.start for codec in self._actions)
        if self._rows.are_equal_vectors and whole and not masks:
            self.plain_step = self._step_all

    def reset(self, seed: int | None = None) -> ArrayLike:
        """Begin an episode."""
        observations, infos = self._env.reset(seed=seed)
        if missing := [agent for agent in self._agents if agent not in observations]:
            raise EnvContractError(
                f"{self._name}: reset() returned no observation of {missing}; "
                "all possible_agents must begin an episode"
            )
        self._live = list(range(len(self._agents)))
        for n, agent in enumerate(self._agents):
            self._write(n, observations[agent], infos.get(agent, {}))
        return self._rows.observation

    def step(self, action: NDArray[Any]) -> MultiAgentStep:
        """Step once."""
        actions = {self._agents[n]: self._actions[n].decode(action[n]) for n in self._live}
        return self._taken(*self._env.step(actions))

    def _step_all(self, actions: Sequence[Any]) -> tuple[Sequence[Any], Any, Any, Any]:
        """Step while all agents are there; the same as `step`."""
        agents = self._agents
        played = self._env.step(dict(zip(agents, actions, strict=True)))
        observations, rewards, terminations, truncations, _ = played
        all_there = len(observations) == len(rewards) == len(self._env.agents) == len(agents)
        if not all_there or True in terminations.values() or True in truncations.values():
            seen, *rest = self._taken(*played)
            return seen, *rest  # type: ignore[return-value]
        return [observations[agent] for agent in agents], [rewards[agent] for agent in agents], False, False

    def _taken(
        self,
        observations: Mapping[Any, Any],
        rewards: Mapping[Any, Any],
        terminations: Mapping[Any, Any],
        truncations: Mapping[Any, Any],
        infos: Mapping[Any, Any],
    ) -> MultiAgentStep:
        """Check and write down what a step returned."""
        still_live = []
        for n in self._live:
            agent = self._agents[n]
            try:
                self._reward[n] = rewards[agent]
                self._terminated[n] = terminations[agent]
                self._truncated[n] = truncations[agent]
            except KeyError:
                raise EnvContractError(
                    f"{self._name}: agent {agent!r} acted, but step() left it out of rewards, "
                    "terminations or truncations"
                ) from None
            if not terminations[agent]:
                self._require_observation(agent, observations)
            self._write(n, observations.get(agent), infos.get(agent, {}))
            if not (terminations[agent] or truncations[agent]):
                still_live.append(n)
        self._live = still_live
        if still_live and len(self._env.agents) != len(still_live):
            raise EnvContractError(
                f"{self._name}: env.agents is {self._env.agents}, but by its terminations and truncations "
                f"{[self._agents[n] for n in still_live]} are left; none can come back before a reset"
            )
        return self._rows.observation, self._reward, self._terminated, self._truncated

    def state(self) -> ArrayLike:
        """Return the global state [S]."""
        return np.asarray(self._env.state(), np.float32)

    def action_mask(self) -> ArrayLike:
        """Return the allowed actions [N, A]."""
        return self._rows.mask

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _write(self, n: int, observation: Any, info: Mapping[str, Any]) -> None:
        self._rows.write_one(n, observation)
        if self.spec.has_action_mask:
            in_observation = self._observations[n].has_mask and observation is not None
            self._rows.write_mask(n, observation[_MASK_KEY] if in_observation else info.get(_MASK_KEY))

    def _require_observation(self, agent: Any, observations: Mapping[Any, Any]) -> None:
        if agent not in observations:
            raise EnvContractError(
                f"{self._name}: step() returned no observation of {agent!r}, which has not terminated"
            )

    def _state_or_none(self) -> NDArray[Any] | None:
        try:
            state = np.asarray(self._env.state())
        except (NotImplementedError, AttributeError):
            return None
        return state if state.ndim == 1 else None
