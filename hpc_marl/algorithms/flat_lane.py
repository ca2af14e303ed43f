"""A lane: what one thread needs to take some rows forward and backward."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpc_marl.algorithms.flat_losses import FlatLoss, LossSums, LossWork
from hpc_marl.algorithms.flat_networks import COLUMNS_OF_CHUNK, FlatNetworks, Work
from hpc_marl.algorithms.flat_parameters import Layout, aligned_zeros
from hpc_marl.algorithms.flat_rows import Chunk, FlatRows
from hpc_marl.algorithms.work_memory import WorkMemory
from hpc_marl.config.algorithm import PPOConfig
from hpc_marl.policies.spec import PolicySpec

Array = NDArray[np.float32]

_KEPT_SIZES = 64  # views of work arrays are kept for this many different numbers of rows


class Arrays(NamedTuple):
    """Work arrays for chunks of one size."""

    chunk: Chunk
    networks: Work
    loss: LossWork


class Lane:
    """Forward and backward passes over any number of rows, chunk by chunk, in work arrays of its own.

    Args:
        config: of the loss.
        spec: the policy.
        values: [size] the parameters.
        total: [size] where the gradient is left.
        layout: of both.
    """

    def __init__(
        self, config: PPOConfig, spec: PolicySpec, *, values: Array, total: Array, layout: Layout
    ) -> None:
        parameters = layout.networks(values)
        self.total = total
        self._spec = spec
        self._part = aligned_zeros(layout.size)
        self._gradients = [layout.networks(vector) for vector in (self.total, self._part)]
        self._memory = WorkMemory()
        self._networks = FlatNetworks(spec, parameters, self._memory)
        self._loss = FlatLoss(config, spec, parameters.log_std)
        self._arrays = functools.lru_cache(_KEPT_SIZES)(self._make_arrays)
        self._rows_of_chunk = max(COLUMNS_OF_CHUNK // spec.env.num_agents, 1)

    def evaluate(self, rows: FlatRows, within: slice, value: Array, log_prob: Array | None) -> None:
        """Write values [N, R] and, where there is room for them, log-probabilities of some rows.

        Args:
            rows: the batch.
            within: which of them.
            value: [N, all rows].
            log_prob: likewise; None where they are not wanted.
        """
        with np.errstate(all="ignore"):
            for start, stop in self._cuts(within.start, within.stop):
                piece = slice(start, stop)
                chunk, work, loss = self._arrays(stop - start)
                chunk.read(rows, piece)
                self._networks.forward(
                    work, chunk.own, chunk.state, chunk.present, with_actor=log_prob is not None
                )
                value[:, piece] = work.value.reshape(len(value), -1)
                if log_prob is not None:
                    found = self._loss.log_prob(loss, chunk, work.output)
                    log_prob[:, piece] = found.reshape(len(value), -1)

    def gradient(self, rows: FlatRows, index: NDArray[np.int64], scale: float, watch: bool) -> LossSums:
        """Leave the gradient of some rows' loss in `total`; return the loss's parts.

        Args:
            rows: the batch.
            index: which of them.
            scale: weight of each agent that is alive.
            watch: sum up what tells how far the policy has come, too.
        """
        found: list[LossSums] = []
        with np.errstate(all="ignore"):
            if not len(index):
                self.total[:] = 0.0
            for start, stop in self._cuts(0, len(index)):
                gradient = self._gradients[start > 0]
                chunk, work, loss = self._arrays(stop - start)
                chunk.read(rows, index[start:stop])
                self._networks.forward(work, chunk.own, chunk.state, chunk.present)
                sums = self._loss.gradient(
                    loss, chunk, work.output, work.value, gradient.log_std, scale=scale, watch=watch
                )
                self._networks.backward(work, chunk.own_rows, chunk.state_rows, chunk.present, gradient)
                found.append(sums)
                if start:
                    self.total += self._part
        return LossSums(*map(sum, zip(*found, strict=True)))

    def _make_arrays(self, num_rows: int) -> Arrays:
        columns = num_rows * self._spec.env.num_agents
        return Arrays(
            Chunk(self._memory, self._spec, num_rows),
            self._networks.work(num_rows),
            LossWork(self._memory, self._spec.output_size, columns),
        )

    def _cuts(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield beginnings and ends of chunks of about equal size."""
        count = -(-(stop - start) // self._rows_of_chunk)
        for part in range(count):
            yield start + (stop - start) * part // count, start + (stop - start) * (part + 1) // count
