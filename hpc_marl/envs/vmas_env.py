"""VMAS scenarios (Bettini et al. 2022): hundreds of multi-robot worlds stepped at once as torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.data.spaces import EnvSpec
from hpc_marl.envs.api import BatchedEnv, EnvArrays, StepArrays
from hpc_marl.envs.vmas_world import Path, World, WorldStep, per_env_paths
from hpc_marl.errors import EnvContractError

_CHECKED_STEPS = 10
_TOLERANCE = 1e-3


class VmasEnv(BatchedEnv):
    """E environments of one VMAS scenario on the CPU; rewards are each agent's own.

    All E draw from one generator, seeded with a mixture of all seeds, so no single environment can be replayed from
    its own seed alone.

    VMAS resets one environment in about the time in which it resets all of them, which soon takes longer than the
    stepping. With `fast_resets` a second world is reset as a whole, and where an episode begins, its rows are copied
    over: every tensor with one row per environment, wherever the scenario keeps it. What a scenario keeps otherwise is
    not copied; the constructor therefore plays ten steps from copied rows and compares.

    Args:
        scenario: name in vmas.scenarios, such as balance, or an object of one's own scenario class.
        num_envs: E.
        max_steps: truncate episodes after this many steps.
        continuous_actions: or else discrete ones.
        fast_resets: copy the rows of a second world instead of resetting environments one by one.
        arguments: of the scenario.

    Raises:
        EnvContractError: observations or actions of a kind that is not supported, or fast_resets does not work here.
    """

    def __init__(
        self,
        scenario: Any,
        num_envs: int,
        *,
        max_steps: int = 100,
        continuous_actions: bool = True,
        fast_resets: bool = False,
        **arguments: Any,
    ) -> None:
        self.num_envs = num_envs
        self._name = scenario if isinstance(scenario, str) else type(scenario).__name__
        self._world = World(scenario, num_envs, max_steps, continuous_actions, arguments)
        self.spec = self._spec(max_steps)
        self._scales = [_scale(space) for space in self._world.environment.action_space]
        self._over = np.zeros(num_envs, np.bool_)
        self._fresh: list[NDArray[np.float32]] = []
        self._used = 0
        self._paths: list[tuple[Path, int]] = []
        self._nursery: World | None = None
        if fast_resets:
            if not isinstance(scenario, str):
                scenario = type(scenario)()
            # one environment more, so that an axis of the environments can be told from any other of the same length
            self._nursery = World(scenario, num_envs + 1, max_steps, continuous_actions, arguments)
            self._refill(self._nursery)
            self._check_copies(self._nursery)

    def reset(self, seeds: Sequence[int], out: EnvArrays) -> None:
        """Begin an episode in every environment."""
        if len(seeds) != self.num_envs:
            raise EnvContractError(f"reset got {len(seeds)} seeds for {self.num_envs} environments")
        seed, nursery_seed = np.random.SeedSequence([int(seed) for seed in seeds]).generate_state(2)
        self._show(self._world.reset(int(seed)), out.observation)
        if self._nursery is not None:
            self._refill(self._nursery, int(nursery_seed))
        self._over.fill(False)
        out.alive.fill(True)
        out.is_first.fill(True)

    def step(self, action: NDArray[Any], result: StepArrays, out: EnvArrays) -> None:
        """Step every environment, or reset it where its episode is over."""
        over = self._over
        self._decode(action, over)
        step = self._world.step()
        self._show(step.observations, out.observation)
        for n, reward in enumerate(step.rewards):
            result.reward[:, n] = reward
        result.terminated[...] = step.terminated[:, None]
        np.greater(step.truncated[:, None], result.terminated, out=result.truncated)
        ended = step.terminated | step.truncated
        if over.any():
            self._begin_episodes(np.flatnonzero(over), out.observation)
            for array in (result.reward, result.terminated, result.truncated):
                array[over] = 0
            ended &= ~over
        out.is_first[:] = over
        out.alive[...] = ~ended[:, None]
        self._over = ended

    def _decode(self, action: NDArray[Any], over: NDArray[np.bool_]) -> None:
        """Write the actions [E, N] or [E, N, A] where the world reads them, zeros where an episode is over."""
        for n, (target, scale) in enumerate(zip(self._world.actions, self._scales, strict=True)):
            if scale is None:
                target[:, 0] = action[:, n]
            else:
                middle, half_range = scale
                played = np.clip(action[:, n, : target.shape[1]], -1.0, 1.0)
                target[...] = played * half_range + middle
            target[over] = 0.0

    def _show(
        self, observations: list[NDArray[np.float32]], out: NDArray[np.float32], rows: Any = slice(None)
    ) -> None:
        for n, seen in enumerate(observations):
            out[rows, n, : seen.shape[1]] = seen
            out[rows, n, seen.shape[1] :] = 0.0

    def _begin_episodes(self, rows: NDArray[np.intp], out: NDArray[np.float32]) -> None:
        """Begin an episode in these environments and write their first observations."""
        if self._nursery is None:
            self._show([seen[rows] for seen in self._world.reset_rows(rows)], out, rows)
            return
        while rows.size:
            left = self.num_envs - self._used
            if not left:
                self._refill(self._nursery)
                continue
            now, rows = rows[:left], rows[left:]
            taken = np.arange(self._used, self._used + now.size)
            self._world.copy_rows(now, self._nursery, taken, self._paths)
            self._show([seen[taken] for seen in self._fresh], out, now)
            self._used += now.size

    def _refill(self, nursery: World, seed: int | None = None) -> None:
        """Reset the nursery; its first E rows are episodes that nobody has played."""
        self._fresh = nursery.reset(seed)
        self._used = 0
        # again each time: a scenario may have begun to keep something since
        self._paths = per_env_paths(self._world, nursery)

    def _check_copies(self, nursery: World) -> None:
        """Play from copied rows what the nursery plays from its own.

        Raises:
            EnvContractError: it goes on differently.
        """
        rng = np.random.default_rng(0)
        rows = np.arange(self.num_envs)[::-2].copy()
        source = np.arange(rows.size)
        for step in range(2 * _CHECKED_STEPS):
            if step == _CHECKED_STEPS:
                self._world.copy_rows(rows, nursery, source, self._paths)
            for ours, theirs in zip(self._world.actions, nursery.actions, strict=True):
                theirs[...] = rng.uniform(-0.5, 0.5, theirs.shape)
                if not self.spec.is_continuous:
                    theirs[...] = rng.integers(self.spec.num_actions, size=theirs.shape)
                ours[...] = theirs[: len(ours)]
                ours[rows] = theirs[source]
            found = _arrays(self._world.step())
            if step < _CHECKED_STEPS:
                continue
            expected = _arrays(nursery.step())
            pairs = zip(found, expected, strict=True)
            if not all(np.allclose(one[rows], two[source], _TOLERANCE, _TOLERANCE) for one, two in pairs):
                raise EnvContractError(
                    f"{self._name}: environments copied from another world do not go on as there; the scenario keeps "
                    "something of them that is no tensor with one row each, or draws random numbers while it steps. "
                    "Use fast_resets: false"
                )

    def _spec(self, max_steps: int) -> EnvSpec:
        """Read the agents' spaces.

        Raises:
            EnvContractError: they are of a kind that is not supported.
        """
        environment = self._world.environment
        seen, spaces = environment.observation_space, environment.action_space
        for space in seen:
            if len(space.shape or ()) != 1:
                raise EnvContractError(f"{self._name}: found observations of {space}; supported are vectors")
        counts = {int(space.n) for space in spaces if hasattr(space, "n")}
        if len(counts) > 1:
            raise EnvContractError(
                f"{self._name}: agents have {sorted(counts)} actions; discrete ones must be equally many. "
                "Use continuous_actions: true"
            )
        return EnvSpec(
            agent_names=tuple(agent.name for agent in environment.agents),
            observation_size=max(space.shape[0] for space in seen),
            num_actions=max(counts, default=0),
            action_size=0 if counts else max(space.shape[0] for space in spaces),
            episode_limit=max_steps,
        )


def _scale(space: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Return middle and half range of a box of actions; None of a discrete one."""
    if hasattr(space, "n"):
        return None
    return (space.high + space.low) / 2, (space.high - space.low) / 2


def _arrays(step: WorldStep) -> list[NDArray[Any]]:
    return [*step.observations, *step.rewards, step.terminated, step.truncated]
