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
from hpc_marl.envs.plain import PlainEnv, PlainStep
from hpc_marl.errors import EnvContractError

_MIN_PLAIN = 4
"""Fewer environments are written more quickly one by one than all at once."""


class LoopedEnv(BatchedEnv):
    """A BatchedEnv of E MultiAgentEnv.

    Environment e is reset with seeds[e] by `reset`; its later episodes continue its own generator
    (`reset(seed=None)`). Its time is the environments' own; the loop adds about 0.5 us per environment and
    step.
    """

    def __init__(
        self,
        envs: Sequence[MultiAgentEnv],
        max_episode_steps: int | None = None,
        *,
        global_state: bool = True,
    ) -> None:
        """Take over the environments.

        Args:
            envs: E environments with equal specs.
            max_episode_steps: truncate episodes after this many steps; None leaves it to the environments.
            global_state: False: as if they had none; they are not asked for it.

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
        if not global_state:
            self.spec = dataclasses.replace(self.spec, state_size=0)
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
        self._plain_steps = _plain_steps(self._envs)
        self._no_reward: Any = 0.0  # of the step that resets, in the form in which others have theirs
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
        self._take_actions(action)
        result.terminated.fill(False)
        result.truncated.fill(False)
        if self._plain_steps and not self._some_ended_early:
            has_ends = self._step_plain(self._plain_steps, result, out)
        else:
            has_ends = self._step_each(result, out)
        if self._limit is not None:
            has_ends |= self._cut(result.truncated)
        if has_ends or not self._all_alive:
            self._settle(result, out)
        else:
            out.alive.fill(True)
            out.is_first.fill(False)

    def _step_each(self, result: StepArrays, out: EnvArrays) -> bool:
        """Step, writing environment by environment; return whether any agent's episode has ended."""
        rows = self._action_rows
        observation, state, action_mask = out.observation, out.state, out.action_mask
        reward, terminated, truncated = result.reward, result.terminated, result.truncated
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
            if ends is not False and _is_any(ends):
                terminated[e] = ends
                has_ends = True
            if cut is not False and _is_any(cut):
                truncated[e] = cut
                has_ends = True
            if state is not None:
                state[e] = env.state()
            if action_mask is not None:
                action_mask[e] = env.action_mask()
        return has_ends

    def _step_plain(self, steps: list[PlainStep], result: StepArrays, out: EnvArrays) -> bool:
        """Step, writing all environments' observations and rewards at once; the same as `_step_each`."""
        actions: Sequence[Any] = self._action_rows if self.spec.is_continuous else self._action.tolist()
        over, state = self._over, out.state
        terminated, truncated = result.terminated, result.truncated
        has_ends = False
        rows: list[Any] = []
        rewards: list[Any] = []
        for e, step in enumerate(steps):
            if over[e]:
                self._reset_one(e, None, out)
                rows.extend(out.observation[e].copy())
                rewards.append(self._no_reward)
                continue
            seen, reward, ends, cut = step(actions[e])
            if not self._checked_step:
                self._check_step((seen, reward, ends, cut))
            rows.extend(seen)
            rewards.append(reward)
            if ends is not False and _is_any(ends):
                terminated[e] = ends
                has_ends = True
            if cut is not False and _is_any(cut):
                truncated[e] = cut
                has_ends = True
            if state is not None:
                state[e] = self._envs[e].state()
        self._write_rows(rows, out.observation)
        paid: NDArray[Any] = np.array(rewards, np.float32)
        result.reward[...] = paid if paid.ndim == 2 else paid[:, None]
        return has_ends

    def _write_rows(self, rows: list[Any], observation: NDArray[Any]) -> None:
        try:
            np.concatenate(rows, out=observation.reshape(-1))
        except ValueError:
            for row in rows:
                self._check_shape("step() returned an agent's observation", row, observation.shape[2:])
            raise

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def _take_actions(self, action: NDArray[Any]) -> None:
        """Copy the actions of living agents to where nobody else writes; the others' become 0."""
        if self._all_alive:
            np.copyto(self._action, action, casting="same_kind")
        else:
            alive = self._alive if action.ndim == 2 else self._alive[..., None]
            self._action.fill(0)
            np.copyto(self._action, action, casting="same_kind", where=alive)
        if self.spec.is_continuous:
            np.clip(self._action, -1.0, 1.0, out=self._action)

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
        if not self._all_alive:
            self._steps[np.array(self._over)] = 0  # those were reset
        at_limit = self._steps == self._limit
        if not np.count_nonzero(at_limit):
            return False
        truncated[at_limit] = True
        return True

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
        # termination goes before truncation
        np.greater(result.truncated, result.terminated, out=result.truncated)
        np.greater(alive, self._ended, out=alive)
        alive[over] = True
        np.copyto(out.alive, alive)
        np.copyto(out.is_first, over)
        num_alive = np.count_nonzero(alive)
        self._all_alive = num_alive == alive.size
        np.logical_not(np.logical_or.reduce(alive, axis=1), out=over)
        self._over = over.tolist()
        self._some_ended_early = num_alive + np.count_nonzero(over) * alive.shape[1] < alive.size
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
        self._no_reward = 0.0 if np.shape(step[1]) == () else [0.0] * self.spec.num_agents
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


def _plain_steps(envs: Sequence[MultiAgentEnv]) -> list[PlainStep]:
    """Return the shorter ways to step; [] where an environment has none, or too few are there for it to pay."""
    steps = [env.plain_step for env in envs if isinstance(env, PlainEnv) and env.plain_step is not None]
    return steps if len(steps) == len(envs) >= _MIN_PLAIN else []


def _is_any(flags: Any) -> bool:
    """Whether one flag, or one of several, is True."""
    return bool(np.count_nonzero(flags)) if isinstance(flags, (np.ndarray, list, tuple)) else bool(flags)


def _with_limit(spec: EnvSpec, max_episode_steps: int | None) -> EnvSpec:
    if max_episode_steps is None:
        return spec
    limit = min(max_episode_steps, spec.episode_limit or max_episode_steps)
    return dataclasses.replace(spec, episode_limit=limit)
