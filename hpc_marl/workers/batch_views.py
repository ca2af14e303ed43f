"""BatchViews: what each step of a sample batch reads and writes, as views that are made once per slot.

Making a dozen views anew at every step would cost as much as a small network's forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.data import EnvSpec, SampleBatch
from hpc_marl.envs.api import EnvArrays, StepArrays
from hpc_marl.policies.act_rows import ActRows

_MAX_CACHED_STEPS = 4096
"""Views of so many steps take about 15 MB; with longer batches they are made anew when a batch begins."""


@dataclass(frozen=True, slots=True)
class ActInputs:
    """What the policy needs to act for one group at one step, and where it may write what it answers."""

    observation: NDArray[Any]
    """[E, N, D]."""
    action_mask: NDArray[np.bool_] | None
    """[E, N, A]."""
    memory: NDArray[np.float32] | None
    """[E, N, H]."""
    noise: NDArray[np.float32]
    """[E, N, K]."""
    action: NDArray[Any]
    """[E, N] or [E, N, A], to be written."""
    log_prob: NDArray[np.float32]
    """[E, N], to be written."""
    rows: ActRows
    """The same memory, flat."""


class BatchViews:
    """One batch's views by time step.

    Attributes:
        batch: whose they are.
        noise: [T, E, N, K] room for the random numbers of all its steps.
        memory: [E, N, H] recurrent memory, of the present step; None for feed-forward policies.
        inputs: T of them.
        results: T of them: rewards and endings.
        seen: T+1 of them: what an environment writes.
    """

    def __init__(self, batch: SampleBatch, spec: EnvSpec) -> None:
        num_steps, shape = batch.num_steps, (batch.num_envs, spec.num_agents)
        self.batch = batch
        self.noise: NDArray[np.float32] = np.empty((num_steps, *shape, spec.noise_size), np.float32)
        self.memory: NDArray[np.float32] | None = None
        if batch.memory is not None:
            self.memory = np.zeros((*shape, batch.memory.shape[-1]), np.float32)
        self.seen = [
            EnvArrays(*views)
            for views in zip(
                batch.observation,
                _each(batch.state, num_steps + 1),
                _each(batch.action_mask, num_steps + 1),
                batch.alive,
                batch.is_first,
                strict=True,
            )
        ]
        results = zip(batch.reward, batch.terminated, batch.truncated, strict=True)
        self.results = [StepArrays(*views) for views in results]
        self.inputs = [self._inputs(t, spec) for t in range(num_steps)]

    def _inputs(self, t: int, spec: EnvSpec) -> ActInputs:
        batch, seen, memory, noise = self.batch, self.seen[t], self.memory, self.noise[t]
        action, log_prob = batch.action[t], batch.log_prob[t]
        rows = log_prob.size
        flat = ActRows(
            seen.observation.reshape(rows, -1),
            None if seen.action_mask is None else seen.action_mask.reshape(rows, -1),
            None if memory is None else memory.reshape(rows, -1),
            noise.reshape(rows, -1) if spec.is_continuous else noise.reshape(rows),
            action.reshape(rows, *action.shape[2:]),
            log_prob.reshape(rows),
        )
        return ActInputs(seen.observation, seen.action_mask, memory, noise, action, log_prob, flat)


class ViewCache:
    """The views of the slots that an actor's groups take turns in."""

    def __init__(self) -> None:
        self._views: dict[int, BatchViews] = {}

    def of(self, batch: SampleBatch, spec: EnvSpec) -> BatchViews:
        """Return the batch's views, by its identity; made anew where it was not here lately."""
        views = self._views.get(id(batch))
        if views is not None:  # it holds the batch, so nothing else can have its id
            return views
        room = max(_MAX_CACHED_STEPS // batch.num_steps, 1)
        while len(self._views) >= room:
            del self._views[next(iter(self._views))]
        views = self._views[id(batch)] = BatchViews(batch, spec)
        return views


def _each(array: NDArray[Any] | None, length: int) -> Sequence[Any]:
    return [None] * length if array is None else list(array)
