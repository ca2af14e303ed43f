"""World: one vectorised VMAS environment with random numbers of its own, and rows that are copied from another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import vmas
from numpy.typing import NDArray
from vmas.simulator.environment import Environment

_NOT_ENTERED = (str, bytes, int, float, np.ndarray, type, FunctionType, MethodType, ModuleType)
_inference_mode = vmas.simulator.utils.torch.inference_mode
"""Of the torch that vmas has loaded: nobody wants gradients, and not being ready for them saves 9 % of a step."""
Path = tuple[tuple[bool, Any], ...]
"""Steps from a world to one of its tensors: (is it an attribute, its name) or (False, key or index)."""


class WorldStep(NamedTuple):
    """What one step of E environments did."""

    observations: list[NDArray[np.float32]]
    """Per agent [E, D]."""
    rewards: list[NDArray[np.float32]]
    """Per agent [E]."""
    terminated: NDArray[np.bool_]
    """[E]."""
    truncated: NDArray[np.bool_]
    """[E]."""


class World:
    """`num_envs` environments of one scenario.

    VMAS keeps one random state for all environments of a process. This class puts its own in its place during every
    call, so that worlds do not disturb each other.

    Args:
        scenario: name in vmas.scenarios, or an object of one's own scenario class.
        num_envs: E.
        max_steps: truncate episodes here.
        continuous_actions: or else discrete ones.
        arguments: of the scenario.
    """

    def __init__(
        self,
        scenario: Any,
        num_envs: int,
        max_steps: int,
        continuous_actions: bool,
        arguments: dict[str, Any],
    ) -> None:
        self._random_state = list(Environment.vmas_random_state)
        with self._at_work():
            self.environment = vmas.make_env(
                scenario,
                num_envs,
                device="cpu",
                continuous_actions=continuous_actions,
                max_steps=max_steps,
                seed=0,
                clamp_actions=True,
                terminated_truncated=True,
                **arguments,
            )
            sizes = [self.environment.get_agent_action_size(agent) for agent in self.environment.agents]
            # tensors made through one that is there: importing torch is left to vmas
            self._actions = [self.environment.steps.new_zeros((num_envs, size)) for size in sizes]
        self.num_envs = num_envs
        self.actions: list[NDArray[np.float32]] = [tensor.numpy() for tensor in self._actions]
        """Per agent [E, A]: write here what the next `step` plays."""

    def reset(self, seed: int | None = None) -> list[NDArray[np.float32]]:
        """Begin an episode everywhere; return each agent's observations [E, D]."""
        with self._at_work():
            return _numpy(self.environment.reset(seed=seed))

    def reset_rows(self, rows: NDArray[np.intp]) -> list[NDArray[np.float32]]:
        """Begin an episode in some environments, one after the other; return each agent's observations [E, D]."""
        with self._at_work():
            for row in rows.tolist():
                self.environment.reset_at(row, return_observations=False)
            found = self.environment.get_from_scenario(
                get_observations=True, get_rewards=False, get_infos=False, get_dones=False
            )
        return _numpy(found[0])

    def step(self) -> WorldStep:
        """Play `actions`."""
        with self._at_work():
            observations, rewards, terminated, truncated, _ = self.environment.step(list(self._actions))
        flat = _numpy(tensor.reshape(-1) for tensor in (*rewards, terminated, truncated))  # some are [E, 1]
        return WorldStep(_numpy(observations), flat[:-2], flat[-2], flat[-1])

    def copy_rows(
        self,
        rows: NDArray[np.intp],
        source: World,
        source_rows: NDArray[np.intp],
        paths: Sequence[tuple[Path, int]],
    ) -> None:
        """Overwrite all that is kept of some environments with what `source` keeps of others.

        Args:
            rows: of the environments here, [K].
            source: a world of the same scenario.
            source_rows: of the environments there, [K].
            paths: of `per_env_paths`.
        """
        with _inference_mode():
            index, source_index = (
                self.environment.steps.new_tensor(one).long() for one in (rows, source_rows)
            )
            for path, axis in paths:
                fresh = _at(source.environment, path).index_select(axis, source_index)
                target = _at(self.environment, path)
                target.index_copy_(axis, index, fresh.type_as(target))

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Have random numbers of one's own, and no gradients."""
        shared = Environment.vmas_random_state
        others = list(shared)
        shared[:] = self._random_state
        try:
            with _inference_mode():
                yield
        finally:
            self._random_state = list(shared)
            shared[:] = others


def per_env_paths(one: World, other: World) -> list[tuple[Path, int]]:
    """Return the paths of all tensors that both worlds have, one row per environment, and the axis of the rows.

    Args:
        one: of E environments.
        other: of the same scenario with another number; an axis that differs by it is that of the environments.
    """
    return list(_walk(one.environment, other.environment, (one.num_envs, other.num_envs), (), set()))


def _walk(
    one: Any, other: Any, sizes: tuple[int, int], path: Path, seen: set[int]
) -> Iterator[tuple[Path, int]]:
    # by name: vmas loads the module of a scenario anew each time
    is_other = type(one).__qualname__ != type(other).__qualname__
    if one is None or is_other or isinstance(one, _NOT_ENTERED) or id(one) in seen:
        return
    seen.add(id(one))
    if hasattr(one, "index_copy_"):
        axes = [axis for axis, pair in enumerate(zip(one.shape, other.shape, strict=False)) if pair == sizes]
        # a stride of 0: one row that stands for all environments
        if axes and one.dim() == other.dim() and one.stride(axes[0]):
            yield path, axes[0]
        return
    for step in _members(one):
        if _has(other, step):
            yield from _walk(_at(one, (step,)), _at(other, (step,)), sizes, (*path, step), seen)


def _members(found: Any) -> list[tuple[bool, Any]]:
    if isinstance(found, dict):
        return [(False, key) for key in found]
    if isinstance(found, (list, tuple)):
        return [(False, index) for index in range(len(found))]
    return [(True, name) for name in getattr(found, "__dict__", ())]


def _has(found: Any, step: tuple[bool, Any]) -> bool:
    is_attribute, key = step
    if is_attribute:
        return hasattr(found, key)
    return key in found if isinstance(found, dict) else key < len(found)


def _at(found: Any, path: Path) -> Any:
    for is_attribute, key in path:
        found = getattr(found, key) if is_attribute else found[key]
    return found


def _numpy(tensors: Any) -> list[NDArray[Any]]:
    return [tensor.numpy() for tensor in tensors]
