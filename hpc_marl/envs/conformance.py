"""`check_env`: does an environment keep the contract of `BatchedEnv`?

Two instances each play two rollouts of random legal actions, into arrays filled with garbage. The rules of
autoreset, masks, dead agents and so on are checked on the first instance. The second must write the same,
although its actions differ where they should not count: those of dead agents are others, continuous ones are
already clipped to [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.config.environment import EnvConfig
from hpc_marl.data.samples import SampleBatch, SampleLayout
from hpc_marl.data.spaces import EnvSpec
from hpc_marl.envs.api import BatchedEnv, EnvArrays, StepArrays
from hpc_marl.envs.factory import make_env
from hpc_marl.errors import EnvContractError

_AFTER_STEP = ("observation", "state", "action_mask", "alive", "is_first")
_STEP_RESULTS = ("reward", "terminated", "truncated")
_WRITTEN = _AFTER_STEP + _STEP_RESULTS
_LONGEST_DEFAULT = 2000
_UNWRITTEN = "is not written: it holds what it held before the call"
# Garbage that no environment writes by itself: a NaN with a payload, a byte that is neither False nor True.
_UNWRITTEN_BITS = {np.dtype(np.float32): np.uint32(0x7FC0BEEF), np.dtype(np.bool_): np.uint8(0xA5)}
_UNWRITTEN_PIXELS = (np.uint8(0xA5), np.uint8(0x5A))
"""A pixel may be any byte, so each instance has garbage of its own: where both keep it, neither wrote."""


def check_env(
    env: EnvConfig | Callable[[int], BatchedEnv],
    *,
    num_envs: int = 3,
    num_steps: int | None = None,
    seed: int = 1,
) -> None:
    """Check an environment against the contract of `BatchedEnv`.

    Args:
        env: a configuration, or a function that makes a BatchedEnv of so many environments.
        num_envs: E.
        num_steps: steps of every play; some episodes must end within them. Default: two episodes where the
            spec has an episode_limit, else 300.
        seed: seed of the actions and, with E seeds that follow it, of the environments.

    Raises:
        EnvContractError: says which rule is broken, and at which step, environment and agent.

    >>> check_env(EnvConfig(), num_steps=100)
    """
    make = (lambda count: make_env(env, count)) if isinstance(env, EnvConfig) else env
    spec, rollouts = _played(make, num_envs, num_steps, seed, is_elsewhere=False)
    _, others = _played(make, num_envs, num_steps, seed, is_elsewhere=True)
    for rollout, other in zip(rollouts, others, strict=True):
        _check_values(rollout)
        _check_episodes(rollout)
        _check_masks(rollout)
        _check_ends(rollout, spec.episode_limit)
        _require_equal(rollout, other)


def _played(
    make: Callable[[int], BatchedEnv], num_envs: int, num_steps: int | None, seed: int, is_elsewhere: bool
) -> tuple[EnvSpec, list[SampleBatch]]:
    """Make an instance and let it play twice, as it would after a second `reset`."""
    env = _made(make, num_envs)
    try:
        limit = env.spec.episode_limit
        if num_steps is None:
            num_steps = min(2 * limit + 5, _LONGEST_DEFAULT) if limit else 300
        layout = SampleLayout(env.spec, num_steps, num_envs)
        return env.spec, [_play(env, layout, seed + first, is_elsewhere) for first in (0, num_envs)]
    finally:
        env.close()


def _made(make: Callable[[int], BatchedEnv], num_envs: int) -> BatchedEnv:
    env = make(num_envs)
    if not isinstance(env, BatchedEnv):
        raise EnvContractError(
            f"found a {type(env).__name__}; check_env needs an EnvConfig or what makes a BatchedEnv"
        )
    if not isinstance(getattr(env, "spec", None), EnvSpec):
        raise EnvContractError(f"{type(env).__name__}.spec is not an EnvSpec")
    if len(set(env.spec.agent_names)) != env.spec.num_agents or not env.spec.num_agents:
        raise EnvContractError(
            f"agent_names {env.spec.agent_names}: there must be at least one, and no two equal"
        )
    if env.num_envs != num_envs:
        raise EnvContractError(f"{type(env).__name__}.num_envs is {env.num_envs}, asked for were {num_envs}")
    return env


def _play(env: BatchedEnv, layout: SampleLayout, seed: int, is_elsewhere: bool) -> SampleBatch:
    """Play one rollout into arrays full of garbage; check that each call writes its arrays, and no others."""
    batch, kept = layout.allocate(), layout.allocate()
    for name in _WRITTEN:
        if (array := getattr(batch, name)) is not None:
            is_image = array.dtype == np.uint8
            _bits(array).fill(_UNWRITTEN_PIXELS[is_elsewhere] if is_image else _UNWRITTEN_BITS[array.dtype])
    rng = np.random.default_rng(seed)
    env.reset(range(seed, seed + layout.num_envs), _env_arrays(batch, 0))
    _keep(batch, kept, _AFTER_STEP, 0)
    for t in range(layout.num_steps):
        action = _random_action(batch, t, layout.spec, rng, is_elsewhere)
        given = action.copy()
        result = StepArrays(batch.reward[t], batch.terminated[t], batch.truncated[t])
        env.step(action, result, _env_arrays(batch, t + 1))
        if not np.array_equal(action, given):
            raise EnvContractError(f"step {t}: the environment wrote into the action array")
        _keep(batch, kept, _AFTER_STEP, t + 1)
        _keep(batch, kept, _STEP_RESULTS, t)
    for name in _WRITTEN:
        if (array := getattr(batch, name)) is not None:
            _require(
                _bits(array) == _bits(getattr(kept, name)),
                f"{name} changed after the call it belongs to; its caller's arrays must not be kept",
            )
    return batch


def _keep(batch: SampleBatch, kept: SampleBatch, names: tuple[str, ...], t: int) -> None:
    """Copy what the call just wrote, after checking that it did."""
    for name in names:
        if (array := getattr(batch, name)) is not None:
            if array.dtype != np.uint8:
                written = _bits(array[t]) != _UNWRITTEN_BITS[array.dtype]
                _require(written, f"{name} {_UNWRITTEN}", t)
            getattr(kept, name)[t] = array[t]


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    bits: NDArray[Any] = array.view(np.uint32 if array.dtype == np.float32 else np.uint8)
    return bits


def _env_arrays(batch: SampleBatch, t: int) -> EnvArrays:
    return EnvArrays(
        observation=batch.observation[t],
        state=None if batch.state is None else batch.state[t],
        action_mask=None if batch.action_mask is None else batch.action_mask[t],
        alive=batch.alive[t],
        is_first=batch.is_first[t],
    )


def _random_action(
    batch: SampleBatch, t: int, spec: EnvSpec, rng: np.random.Generator, is_elsewhere: bool
) -> NDArray[Any]:
    """Choose legal actions for agents that are alive, and something else for the others."""
    alive = batch.alive[t]
    if spec.is_continuous:
        action: NDArray[Any] = rng.uniform(-1.5, 1.5, (*alive.shape, spec.action_size)).astype(np.float32)
        if is_elsewhere:
            np.clip(action, -1.0, 1.0, out=action)
            action[~alive] = 0.5
        return action
    scores = rng.random((*alive.shape, spec.num_actions))
    if batch.action_mask is not None:
        _require(
            batch.action_mask[t].any(axis=-1), "action_mask allows no action; at least one must be allowed", t
        )
        scores = np.where(batch.action_mask[t], scores, -1.0)
    chosen: NDArray[Any] = scores.argmax(axis=-1).astype(np.int32)
    chosen[~alive] = spec.num_actions - 1 if is_elsewhere else 0
    return chosen


def _check_values(batch: SampleBatch) -> None:
    for name in ("observation", "state", "reward"):
        array = getattr(batch, name)
        if array is not None:
            _require(np.isfinite(array), f"{name} is not finite")


def _check_episodes(batch: SampleBatch) -> None:
    """Check alive, terminated, truncated, is_first and what is written about agents that are not alive."""
    alive, after = batch.alive[:-1], batch.alive[1:]
    over = _is_over(alive)  # these steps reset
    ended = batch.terminated | batch.truncated
    _require(batch.alive[0], "alive is False after reset(); all agents begin an episode", step=0)
    _require(batch.is_first[0], "is_first is False after reset()", step=0)
    _require(
        ~(batch.terminated & batch.truncated),
        "terminated and truncated are both True; termination goes before truncation",
    )
    _require(
        ~ended | alive,
        "terminated or truncated is True for an agent that was not alive, or on a step that resets",
    )
    _require(
        alive | (batch.reward == 0),
        "reward is not 0 for an agent that was not alive, or on a step that resets",
    )
    _require(
        ~after | ~ended, "alive is True on an agent's final observation; it is True only where the agent acts"
    )
    _require(
        batch.is_first[1:] == over,
        "is_first must be True on the observation of the step that resets, and only there; "
        "that is the step after the last agent's end",
    )
    _require(after | ~over[..., None], "alive is False after a step that resets; all agents begin an episode")
    _require(~after | alive | over[..., None], "alive became True in the middle of an episode")
    _require(
        after | ended | ~alive,
        "alive became False although neither terminated nor truncated is True",
    )
    _require(
        (batch.observation[1:] == 0).all(axis=-1) | alive | over[..., None],
        "observation is not zeros for an agent whose episode ended at an earlier step",
    )


def _check_masks(batch: SampleBatch) -> None:
    if batch.action_mask is not None:
        _require(
            batch.action_mask.all(axis=-1) | batch.alive, "action_mask must be all True where alive is False"
        )


def _check_ends(batch: SampleBatch, episode_limit: int | None) -> None:
    """Check that episodes ended, in time, and that truncated ones show their own final observation."""
    over = _is_over(batch.alive)  # [T+1, E]
    if not over.any():
        raise EnvContractError(
            f"no episode ended within {batch.num_steps} steps, so what happens then is unchecked: "
            "set env.max_episode_steps, or check_env(..., num_steps=) to more than the longest episode"
        )
    if episode_limit is not None:
        length = np.zeros(batch.num_envs, np.int64)
        for t in range(batch.num_steps):
            length = np.where(over[t], 0, length + 1)
            _require(
                length <= episode_limit, f"the episode is longer than spec.episode_limit={episode_limit}", t
            )
    was_cut = batch.truncated[:-1] & over[1:-1, :, None]  # [T-1, E, N] at step t, and t+1 resets
    last, final, first = (batch.observation[i : i - 2 or None][was_cut] for i in range(3))
    if was_cut.any() and np.array_equal(final, first) and not np.array_equal(last, final):
        raise EnvContractError(
            "the observation after a truncating step always equals the next episode's first: it must be the "
            "true final one, from which the value of what was cut off is bootstrapped; the next step resets"
        )


def _is_over(alive: NDArray[np.bool_]) -> NDArray[np.bool_]:
    over: NDArray[np.bool_] = np.logical_not(np.any(alive, axis=-1))
    return over


def _require_equal(left: SampleBatch, right: SampleBatch) -> None:
    for name in _WRITTEN:
        one, other = getattr(left, name), getattr(right, name)
        if one is not None:
            if one.dtype == np.uint8:
                unwritten = (one == _UNWRITTEN_PIXELS[0]) & (other == _UNWRITTEN_PIXELS[1])
                _require(~unwritten, f"{name} {_UNWRITTEN}")
            _require(
                _bits(one) == _bits(other),
                f"{name} differs between two instances with equal seeds and actions, apart from actions of "
                "agents not alive, which must be ignored, and beyond [-1, 1], which must be clipped",
            )


def _require(holds: NDArray[np.bool_], message: str, step: int | None = None) -> None:
    """Raise where `holds` is False, naming the first place.

    Args:
        holds: [T, E, N, ...] or [T, E, ...]; without T where `step` is given.
        message: which rule is broken.
        step: time index of all of `holds`.
    """
    if holds.all():
        return
    index = [int(i) for i in np.argwhere(~holds)[0]]
    if step is not None:
        index.insert(0, step)
    names = ("time index", "environment", "agent", "entry")
    where = ", ".join(f"{name} {i}" for name, i in zip(names, index, strict=False))
    raise EnvContractError(f"{message} (first at {where})")
