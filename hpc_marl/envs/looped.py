"""LoopedEnv: E single environments stepped one after the other; the one place that knows about autoreset.

alive ──step──> alive                 (all agents act)
  │ └─ some agents end ─> partly alive (their rows: final observation once, then zeros)
  └─ the last one ends, or max_episode_steps ─> over ──step (resets)──> alive, is_first
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.data.spaces import EnvSpec
from hpc_marl.envs.api import BatchedEnv, EnvArrays, MultiAgentEnv, StepArrays
from hpc_marl.errors import EnvContractError


class LoopedEnv(BatchedEnv):
    """A BatchedEnv of E MultiAgentEnv.

    Environment e is reset with seeds[e] by `reset`; its later episodes continue its own generator
    (`reset(seed=None)`). Its time is the environments' own; the loop adds about 2 us per environment and
    step.
    """

    def __init__(self, envs: Sequence[MultiAgentEnv], max_episode_steps: int | None = None) -> None:
        """Take over the environments.

        Args:
            envs: E environments with equal specs.
            max_episode_steps: truncate episodes after this many steps; None leaves it to the environments.

        Raises:
            EnvContractError: there is none, or their specs differ.
        """
        if not envs:
            raise EnvContractError("a LoopedEnv needs at least one environment")
        for e, env in enumerate(envs):
            if env.spec != envs[0].spec:
                raise EnvContractError(
                    f"environment {e} has another spec than 0: {env.spec} and {envs[0].spec}"
                )
        self.spec = _with_limit(envs[0].spec, max_episode_steps)
        self.num_envs = len(envs)
        self._envs = list(envs)
        self._limit = max_episode_steps
        shape = (self.num_envs, self.spec.num_agents)
        self._alive = np.zeros(shape, np.bool_)
        self._all_alive = False
        self._some_ended_early = False  # an agent is not alive while others of its environment are
        self._over = [False] * self.num_envs  # no agent is alive: the next step resets
        self._ended = np.zeros(shape, np.bool_)
        self._steps = np.zeros(self.num_envs, np.int64)
        self._action: NDArray[Any] = np.zeros(shape, np.int32)
        if self.spec.is_continuous:
            self._action = np.zeros((*shape, self.spec.action_size), np.float32)
        self._action_rows = list(self._action)  # views, made once
        self._checked_step = False

    def reset(self, seeds: Sequence[int], out: EnvArrays) -> None:
        """Begin an episode in every environment; environment e gets seeds[e]."""
        if len(seeds) != self.num_envs:
            raise EnvContractError(f"reset got {len(seeds)} seeds for {self.num_envs} environments")
        for e, seed in enumerate(seeds):
            self._reset_one(e, int(seed), out)
        self._alive.fill(True)
        self._all_alive, self._some_ended_early = True, False
        self._over = [False] * self.num_envs
        self._steps.fill(0)
        out.alive.fill(True)
        out.is_first.fill(True)

    def step(self, action: NDArray[Any], result: StepArrays, out: EnvArrays) -> None:
        """Step every environment, or reset it where its episode is over."""
        rows = self._playable(action)
        observation, state, action_mask = out.observation, out.state, out.action_mask
        reward, terminated, truncated = result.reward, result.terminated, result.truncated
        terminated.fill(False)
        truncated.fill(False)
        has_ends = False
        for e, env in enumerate(self._envs):
            if self._over[e]:
                self._reset_one(e, None, out)
                reward[e] = 0.0
                continue
            step = env.step(rows[e])
            if not self._checked_step:
                self._check_step(step)
            observation[e], reward[e], ends, cut = step
            # most steps end nothing: writing arrays only where there is something to write is what makes this quick
            if ends is not False:
                terminated[e] = ends
                has_ends = True
            if cut is not False:
                truncated[e] = cut
                has_ends = True
            if state is not None:
                state[e] = env.state()
            if action_mask is not None:
                action_mask[e] = env.action_mask()
        if self._limit is not None:
            has_ends |= self._cut(truncated)
        if has_ends or not self._all_alive:
            self._settle(result, out)
        else:
            out.alive.fill(True)
            out.is_first.fill(False)

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def _playable(self, action: NDArray[Any]) -> list[NDArray[Any]]:
        """Copy the actions of living agents to where nobody else writes; the others' become 0."""
        if self._all_alive:
            np.copyto(self._action, action, casting="same_kind")
        else:
            alive = self._alive if action.ndim == 2 else self._alive[..., None]
            self._action.fill(0)
            np.copyto(self._action, action, casting="same_kind", where=alive)
        if self.spec.is_continuous:
            np.clip(self._action, -1.0, 1.0, out=self._action)
        return self._action_rows

    def _reset_one(self, e: int, seed: int | None, out: EnvArrays) -> None:
        env = self._envs[e]
        observation = env.reset(seed)
        self._check_shape(
            "reset() returned an observation", observation, (self.spec.num_agents, self.spec.observation_size)
        )
        out.observation[e] = observation
        if out.state is not None:
            state = env.state()
            self._check_shape("state() returned an array", state, (self.spec.state_size,))
            out.state[e] = state
        if out.action_mask is not None:
            mask = env.action_mask()
            self._check_shape(
                "action_mask() returned an array", mask, (self.spec.num_agents, self.spec.num_actions)
            )
            out.action_mask[e] = mask

    def _cut(self, truncated: NDArray[np.bool_]) -> bool:
        """Count the step, and truncate what reaches the limit with it."""
        self._steps += 1
        self._steps[np.array(self._over)] = 0  # those were reset
        at_limit = self._steps == self._limit
        truncated[at_limit] = True
        return bool(at_limit.any())

    def _settle(self, result: StepArrays, out: EnvArrays) -> None:
        """Work out who is alive now, and overwrite what was written about agents that were not."""
        alive, over = self._alive, np.array(self._over)
        if self._some_ended_early:
            ended_before = ~(alive | over[:, None])
            result.terminated[ended_before] = False
            result.truncated[ended_before] = False
            result.reward[ended_before] = 0.0
            out.observation[ended_before] = 0.0
        np.logical_or(result.terminated, result.truncated, out=self._ended)
        np.greater(
            result.truncated, result.terminated, out=result.truncated
        )  # termination goes before truncation
        np.greater(alive, self._ended, out=alive)
        alive[over] = True
        out.alive[...] = alive
        out.is_first[...] = over
        np.logical_not(np.logical_or.reduce(alive, axis=1), out=over)
        self._over = over.tolist()
        self._all_alive = bool(alive.all())
        self._some_ended_early = not self._all_alive and not (alive | over[:, None]).all()
        if out.action_mask is not None:
            out.action_mask[~alive] = True

    def _check_step(self, step: Any) -> None:
        """Check the first step's shapes: numpy would broadcast [D] over agents without a word."""
        agents = (self.spec.num_agents,)
        if not isinstance(step, tuple) or len(step) != 4:
            raise EnvContractError(
                f"{self._name()}: step() must return (observation, reward, terminated, truncated), "
                f"found {type(step).__name__}{f' of {len(step)}' if isinstance(step, tuple) else ''}"
            )
        self._check_shape("step() returned an observation", step[0], (*agents, self.spec.observation_size))
        for name, value in zip(("reward", "terminated", "truncated"), step[1:], strict=True):
            if np.shape(value) != ():
                self._check_shape(f"step() returned {name}", value, agents)
        self._checked_step = True

    def _check_shape(self, what: str, value: Any, expected: tuple[int, ...]) -> None:
        try:
            found: Any = np.shape(value)
        except ValueError:  # rows of unequal length
            found = "that differs from row to row"
        if found != expected:
            raise EnvContractError(f"{self._name()}: {what} of shape {found}, its spec says {expected}")

    def _name(self) -> str:
        return type(self._envs[0]).__name__


def _with_limit(spec: EnvSpec, max_episode_steps: int | None) -> EnvSpec:
    if max_episode_steps is None:
        return spec
    limit = min(max_episode_steps, spec.episode_limit or max_episode_steps)
    return dataclasses.replace(spec, episode_limit=limit)
