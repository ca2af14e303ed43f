"""Steps by hand, in numpy, on one flat vector: for feed-forward networks on the CPU.

    rows of the batch ──► minibatch ──► chunks: gather ──► forward ──► loss ──► backward ──► sum of gradients
                                                      one exchange with the other ranks ──► clip ──► Adam

On small networks torch spends most of a step in its calls, not in its sums, and its tanh takes several times numpy's.
Here all arrays exist before the step begins and are small enough to stay in the processor's cache.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hpc_marl.algorithms.flat_losses import FlatLoss, LossSums, LossWork
from hpc_marl.algorithms.flat_networks import FlatNetworks, Work, columns_of_chunk
from hpc_marl.algorithms.flat_parameters import FlatAdam, Layout, aligned_zeros, share_memory
from hpc_marl.algorithms.flat_rows import Chunk, FlatRows
from hpc_marl.algorithms.ranks import Ranks
from hpc_marl.algorithms.steps import Array, Found, Scalars, Steps
from hpc_marl.algorithms.work_memory import WorkMemory
from hpc_marl.config.algorithm import PPOConfig
from hpc_marl.data.samples import SampleBatch
from hpc_marl.policies.actor_critic import ActorCritic

_KEPT_SIZES = 64  # views of work arrays are kept for this many different numbers of rows


class Arrays(NamedTuple):
    """Work arrays for chunks of one size."""

    chunk: Chunk
    networks: Work
    loss: LossWork


class Share(NamedTuple):
    """This rank's share of a minibatch."""

    rows: NDArray[np.int64]
    """[R'] of the batch."""
    scale: float
    """Weight of an agent that is alive: over all ranks' shares weights sum to the number of ranks."""


class FlatSteps(Steps[Share]):
    """See Steps. The model's parameters become views of one vector.

    Args:
        config: hyper-parameters.
        model: the networks; `can_learn` them.
        ranks: the trainers that learn together.
    """

    def __init__(self, config: PPOConfig, model: ActorCritic, ranks: Ranks) -> None:
        super().__init__(config, ranks)
        self._spec = model.spec
        self._layout = Layout(model.spec)
        self._values = share_memory(model, self._layout)
        ranks.copy_from_first(torch.from_numpy(self._values))
        self._adam = FlatAdam(self._values, config.adam_eps)
        # behind the gradient stand the loss's parts, so that ranks exchange both at once
        self._exchanged = aligned_zeros(self._layout.size + len(LossSums._fields))
        self._total, self._part = self._exchanged[: self._layout.size], aligned_zeros(self._layout.size)
        self._gradients = [self._layout.networks(vector) for vector in (self._total, self._part)]
        parameters = self._layout.networks(self._values)
        self._memory = WorkMemory()
        self._networks = FlatNetworks(model.spec, parameters, self._memory)
        self._loss = FlatLoss(config, model.spec, parameters.log_std)
        self._arrays = functools.lru_cache(_KEPT_SIZES)(self._make_arrays)
        self._rows_of_chunk = max(columns_of_chunk(model.spec) // model.spec.env.num_agents, 1)
        self._rows: FlatRows | None = None

    @staticmethod
    def can_learn(model: ActorCritic) -> bool:
        """Return whether these are networks and a device that this implementation knows."""
        parameters = dict(model.named_parameters())
        if model.spec.env.has_images or model.spec.memory_size:
            return False
        if any(tensor.device.type != "cpu" for tensor in parameters.values()):
            return False
        layout = Layout(model.spec)
        return {name: layout.shape(name) for name in layout.names} == {
            name: tuple(tensor.shape) for name, tensor in parameters.items()
        }

    def read(self, batch: SampleBatch) -> None:
        """See Steps."""
        self._rows = FlatRows(self._spec, batch)

    def evaluate(self, *, with_log_prob: bool) -> tuple[Array, Array | None]:
        """See Steps."""
        assert self._rows is not None, "read() a batch first"
        rows = self._rows
        num_agents, num_rows = rows.table.shape[:2]
        value = np.empty((num_agents, num_rows), np.float32)
        log_prob = np.empty_like(value)
        with np.errstate(all="ignore"):
            for start, stop in self._cuts(num_rows):
                piece = slice(start, stop)
                chunk, work, loss = self._arrays(stop - start)
                chunk.read(rows, piece)
                self._networks.forward(work, chunk.own, chunk.state, chunk.present, with_actor=with_log_prob)
                value[:, piece] = work.value.reshape(num_agents, -1)
                if with_log_prob:
                    log_prob[:, piece] = self._loss.log_prob(loss, chunk, work.output).reshape(num_agents, -1)
        values = np.ascontiguousarray(value.T).reshape(-1, rows.num_envs, num_agents)
        if not with_log_prob:
            return values, None
        return values, np.ascontiguousarray(log_prob.T).reshape(values.shape)[:-1]

    def state(self) -> dict[str, NDArray[Any]]:
        """See Steps."""
        return dict(self._adam.state(self._layout))

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See Steps."""
        self._adam.load(state, self._layout)

    def _begin(self, scalars: Scalars) -> None:
        assert self._rows is not None, "read() a batch first"
        self._rows.fill_scalars(list(scalars))

    def _minibatches(self, generator: torch.Generator) -> Iterator[Share]:
        assert self._rows is not None
        rows, alive, count = self._rows.live, self._rows.num_alive, self.config.num_minibatches
        if count > 1:
            order = torch.randperm(len(rows), generator=generator).numpy()
            rows, alive = rows[order], alive[order]
        cuts = [len(rows) * part // count for part in range(count + 1)]
        sums = [float(alive[cuts[part] : cuts[part + 1]].sum()) for part in range(count)]
        totals = self.ranks.sums(*sums)
        for part in range(count):
            if cuts[part] < cuts[part + 1] or self.ranks.size > 1:
                scale = self.ranks.size / max(totals[part], 1.0)
                yield Share(rows[cuts[part] : cuts[part + 1]], scale)

    def _gradient(self, minibatch: Share, watch: bool) -> Found:
        assert self._rows is not None
        found: list[LossSums] = []
        with np.errstate(all="ignore"):
            if not len(minibatch.rows):
                self._total[:] = 0.0
            for start, stop in self._cuts(len(minibatch.rows)):
                index = minibatch.rows[start:stop]
                found.append(self._chunk_gradient(index, minibatch.scale, watch, start > 0))
                if start:
                    self._total += self._part
            sums = self._exchange(LossSums(*map(sum, zip(*found, strict=True))))
            norm = math.sqrt(float(np.dot(self._total, self._total)))
        loss = (
            sums.policy_loss
            + self.config.value_coef * sums.value_loss
            - self.config.entropy_coef * sums.entropy
        )
        return Found(loss, *sums, norm)

    def _chunk_gradient(
        self, index: NDArray[np.int64], scale: float, watch: bool, is_later: bool
    ) -> LossSums:
        """Write the gradient of some rows' loss into the total, or where it is a later one's into the part."""
        assert self._rows is not None
        chunk, work, loss = self._arrays(len(index))
        gradient = self._gradients[is_later]
        chunk.read(self._rows, index)
        self._networks.forward(work, chunk.own, chunk.state, chunk.present)
        sums = self._loss.gradient(
            loss, chunk, work.output, work.value, gradient.log_std, scale=scale, watch=watch
        )
        self._networks.backward(work, chunk.own_rows, chunk.state_rows, chunk.present, gradient)
        return sums

    def _exchange(self, sums: LossSums) -> LossSums:
        """Take the mean over the ranks of the gradient and of the loss's parts."""
        if self.ranks.size == 1:
            return sums
        size = self._layout.size
        self._exchanged[size:] = sums
        self._exchanged[:] = self.ranks.mean(torch.from_numpy(self._exchanged)).numpy()
        return LossSums(*self._exchanged[size:].tolist())

    def _descend(self, grad_norm: float, learning_rate: float) -> None:
        self._total *= min(1.0, self.config.max_grad_norm / (grad_norm + 1e-6))  # clip_grad_norm_'s guard
        self._adam.step(self._total, learning_rate)

    def _make_arrays(self, num_rows: int) -> Arrays:
        columns = num_rows * self._spec.env.num_agents
        return Arrays(
            Chunk(self._memory, self._spec, num_rows),
            self._networks.work(num_rows),
            LossWork(self._memory, self._spec.output_size, columns),
        )

    def _cuts(self, num_rows: int) -> list[tuple[int, int]]:
        """Return beginnings and ends of chunks of about equal size."""
        count = -(-num_rows // self._rows_of_chunk)
        return [(num_rows * part // count, num_rows * (part + 1) // count) for part in range(count)]
