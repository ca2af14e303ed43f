"""From a SampleBatch to the tensors that an epoch of updates walks over.

Feed-forward policies learn from *rows*, one per step and environment in which an agent acted, in any order.
Recurrent ones learn from *sequences* of L consecutive steps, one per chunk and environment, each with the
memory it began with. Either way the first axis is what minibatches are drawn from, and all N agents of a row
stay together, so that what they share (the global state) is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc_marl.algorithms.staging import to_device
from hpc_marl.data.samples import SampleBatch
from hpc_marl.policies.actor_critic import ActorCritic, NetworkInputs

NUM_SCALARS = 5


@dataclass(frozen=True)
class TrainingRows:
    """R rows [R, ...] or sequences [R, L, ...]."""

    inputs: NetworkInputs
    action: Tensor
    """[R, (L,) N] int64 or [R, (L,) N, A] float32; 0 where nobody was alive."""
    scalars: Tensor
    """[5, R, (L,) N]: old log-probability, advantage, value target, old value, alive."""

    def __len__(self) -> int:
        return int(self.action.shape[0])

    def map(
        self, function: Callable[[Tensor], Tensor], along_second: Callable[[Tensor], Tensor]
    ) -> TrainingRows:
        """Return rows with `function` applied to all tensors but `scalars`, whose second axis is R."""
        return TrainingRows(self.inputs.map(function), function(self.action), along_second(self.scalars))

    def select(self, index: Tensor) -> TrainingRows:
        """Return the rows of `index` [R'], copied."""
        return self.map(lambda x: x.index_select(0, index), lambda x: x.index_select(1, index))

    def minibatches(
        self, count: int, generator: torch.Generator, *, keep_empty: bool = False
    ) -> Iterator[TrainingRows]:
        """Yield `count` disjoint parts of about equal size, in random order; one part is all, as it is.

        Where there are fewer rows than parts, some are empty: left out, unless `keep_empty`.
        """
        if count == 1:
            yield self
            return
        # one gather for the whole epoch, then views: fewer kernels than a gather per minibatch
        order = to_device(torch.randperm(len(self), generator=generator), self.action.device)
        shuffled = self.select(order)
        for part in range(count):
            piece = slice(len(self) * part // count, len(self) * (part + 1) // count)
            if piece.start < piece.stop or keep_empty:
                yield _slice(shuffled, piece)


def _slice(rows: TrainingRows, piece: slice) -> TrainingRows:
    return rows.map(lambda x: x[piece], lambda x: x[:, piece])


class BatchTensors:
    """One SampleBatch on the device, arranged for the networks.

    Args:
        batch: what actors sent.
        model: whose inputs are to be assembled.
        chunk_length: L, for recurrent policies.
        device: where to compute.
        on_device: those of the batch's arrays that are there already, by name.
    """

    def __init__(
        self,
        batch: SampleBatch,
        model: ActorCritic,
        chunk_length: int,
        device: torch.device,
        on_device: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        self._batch = batch
        self._device = device
        self._on_device = on_device
        self._chunk_length = chunk_length
        self.is_recurrent = batch.memory is not None
        absent = absent_agents(batch)
        action = np.where(_expand(batch.alive[:-1], batch.action), batch.action, 0)
        self._action = self.tensor(action if action.dtype == np.float32 else action.astype(np.int64))
        self._all = model.inputs(  # [T+1, E, ...]
            self._given("observation"),
            state=None if batch.state is None else self._given("state"),
            absent=None if absent is None else self.tensor(absent),
            action_mask=None if batch.action_mask is None else self._given("action_mask"),
        )

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """Return `array` on the device; see `to_device`."""
        return to_device(array, self._device)

    def arrange(self, values: Tensor) -> Tensor:
        """Return [T, E, ...] as rows [T * E, ...] or sequences [C * E, L, ...]."""
        if not self.is_recurrent:
            return values.flatten(0, 1)
        chunks = values.reshape(-1, self._chunk_length, *values.shape[1:])  # [C, L, E, ...]
        return chunks.transpose(1, 2).flatten(0, 1)

    def restore(self, values: Tensor) -> Tensor:
        """Undo `arrange`."""
        if not self.is_recurrent:
            return values.reshape(-1, self._batch.num_envs, *values.shape[1:])
        chunks = values.reshape(-1, self._batch.num_envs, *values.shape[1:])  # [C, E, L, ...]
        return chunks.transpose(1, 2).flatten(0, 1)

    def step_inputs(self) -> NetworkInputs:
        """Return the inputs of the T steps, arranged."""
        inputs = self._all.map(lambda x: self.arrange(x[:-1]))
        if self._batch.memory is None:
            return inputs
        memory = self._given("memory").flatten(0, 1)
        is_first = self.arrange(self._given("is_first")[:-1])
        return replace(inputs, memory=memory, is_first=is_first)

    def final_inputs(self, memory: Tensor | None) -> NetworkInputs:
        """Return the inputs of what is seen after the last step: E rows, or E sequences of one step.

        Args:
            memory: [C * E, N, H] after the last step of every sequence; None for feed-forward policies.
        """
        inputs = self._all.map(lambda x: x[-1])
        if memory is None:
            return inputs
        last_chunk = memory[-self._batch.num_envs :]
        is_first = self._given("is_first")[-1]
        sequences = replace(inputs, is_first=is_first).map(lambda x: x.unsqueeze(1))
        return replace(sequences, memory=last_chunk)

    def action(self) -> Tensor:
        """Return the actions, arranged."""
        return self.arrange(self._action)

    def rows(self, inputs: NetworkInputs, scalars: list[NDArray[np.float32]]) -> TrainingRows:
        """Join all that one pass of learning reads, without rows in which nobody acted.

        Args:
            inputs: of `step_inputs`.
            scalars: five arrays [T, E, N], as `TrainingRows.scalars` lists them; the last is `alive`.
        """
        assert len(scalars) == NUM_SCALARS
        stacked = self.tensor(np.stack(scalars, axis=1))  # [T, 5, E, N]: time first, as arrange expects
        arranged = self.arrange(stacked.transpose(1, 2))  # [R, (L,) 5, N]
        rows = TrainingRows(inputs, self.action(), arranged.movedim(-2, 0).contiguous())
        if self.is_recurrent:
            return rows
        alive = self._batch.alive[:-1].any(axis=2).reshape(-1)
        return rows if alive.all() else rows.select(self.tensor(np.flatnonzero(alive)))

    def _given(self, name: str) -> Tensor:
        """Return one of the batch's arrays on the device."""
        found = self._on_device.get(name)
        return self.tensor(getattr(self._batch, name)) if found is None else found


def absent_agents(batch: SampleBatch) -> NDArray[np.bool_] | None:
    """Return [T+1, E, N] True for dead agents in episodes that go on for others; None where there are none.

    An agent cut off at the step before is not absent: its final observation gives the bootstrap value.
    Where nobody is left, nobody's values are read and nothing needs to be masked.
    """
    absent = ~batch.alive
    absent[1:] &= ~batch.truncated
    absent &= ~absent.all(axis=2, keepdims=True)
    return absent if absent.any() else None


def _expand(alive: NDArray[np.bool_], like: NDArray[Any]) -> NDArray[np.bool_]:
    return alive.reshape(alive.shape + (1,) * (like.ndim - alive.ndim))
