"""Steps by hand, in numpy, on one flat vector: for feed-forward networks on the CPU.

    rows of the batch ──► minibatch ──► chunks: gather ──► forward ──► loss ──► backward ──► sum of gradients
                                                      one exchange with the other ranks ──► clip ──► Adam

On small networks torch spends most of a step in its calls, not in its sums, and its tanh takes several times numpy's.
Here all arrays exist before the step begins and are small enough to stay in the processor's cache. Several threads
divide the rows of large minibatches among them; each has a lane of its own, and their gradients are summed in order, so
that equal numbers of threads give equal weights. numpy's own threads (of its BLAS) should then be one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from hpc_marl.algorithms.flat_lane import Lane
from hpc_marl.algorithms.flat_losses import LossSums
from hpc_marl.algorithms.flat_parameters import FlatAdam, Layout, aligned_zeros, share_memory
from hpc_marl.algorithms.flat_rows import FlatRows
from hpc_marl.algorithms.ranks import Ranks
from hpc_marl.algorithms.steps import Array, Found, Scalars, StepsOnHost
from hpc_marl.config.algorithm import PPOConfig
from hpc_marl.data.samples import SampleBatch
from hpc_marl.policies.actor_critic import ActorCritic

T = TypeVar("T")

_COLUMNS_OF_LANE = 256  # with fewer a thread of its own is not worth while


class Share(NamedTuple):
    """This rank's share of a minibatch."""

    rows: NDArray[np.int64]
    """[R'] of the batch."""
    scale: float
    """Weight of an agent that is alive: over all ranks' shares weights sum to the number of ranks."""


class FlatSteps(StepsOnHost[Share]):
    """See Steps. The model's parameters become views of one vector.

    Args:
        config: hyper-parameters.
        model: the networks; `can_learn` them.
        ranks: the trainers that learn together.
        num_threads: that may work on a minibatch.
    """

    def __init__(self, config: PPOConfig, model: ActorCritic, ranks: Ranks, num_threads: int = 1) -> None:
        super().__init__(config, ranks)
        self._spec = model.spec
        self._layout = layout = Layout(model.spec)
        self._values = share_memory(model, layout)
        ranks.copy_from_first(torch.from_numpy(self._values))
        self._adam = FlatAdam(self._values, config.adam_eps)
        # behind the gradient stand the loss's parts, so that ranks exchange both at once
        self._exchanged = aligned_zeros(layout.size + len(LossSums._fields))
        self._total = self._exchanged[: layout.size]
        totals = [self._total, *(aligned_zeros(layout.size) for _ in range(num_threads - 1))]
        self._lanes = [
            Lane(config, model.spec, values=self._values, total=total, layout=layout) for total in totals
        ]
        self._rows: FlatRows | None = None
        self._helpers: ThreadPoolExecutor | None = None

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
        log_prob = np.empty_like(value) if with_log_prob else None
        with self._at_work():
            self._side_by_side(
                functools.partial(lane.evaluate, rows, within, value, log_prob)
                for lane, within in self._split(num_rows)
            )
        values = np.ascontiguousarray(value.T).reshape(-1, rows.num_envs, num_agents)
        if log_prob is None:
            return values, None
        return values, np.ascontiguousarray(log_prob.T).reshape(values.shape)[:-1]

    def fit(self, scalars: Scalars, generator: torch.Generator, learning_rate: float) -> dict[str, float]:
        """See Steps."""
        with self._at_work():
            return super().fit(scalars, generator, learning_rate)

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
        rows, split = self._rows, self._split(len(minibatch.rows))
        found = self._side_by_side(
            functools.partial(lane.gradient, rows, minibatch.rows[within], minibatch.scale, watch)
            for lane, within in split
        )
        with np.errstate(all="ignore"):
            for lane, _ in split[1:]:
                self._total += lane.total
            sums = self._exchange(LossSums(*map(sum, zip(*found, strict=True))))
            norm = math.sqrt(float(np.dot(self._total, self._total)))
        loss = (
            sums.policy_loss
            + self.config.value_coef * sums.value_loss
            - self.config.entropy_coef * sums.entropy
        )
        return Found(loss, *sums, norm)

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

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Have threads for all lanes but the first, which is this thread's."""
        if len(self._lanes) == 1:
            yield
            return
        with ThreadPoolExecutor(len(self._lanes) - 1, "learner") as self._helpers:
            yield
        self._helpers = None

    def _split(self, num_rows: int) -> list[tuple[Lane, slice]]:
        """Return lanes and what each is to work on; as few as make it worth their while."""
        count = max(min(num_rows * self._spec.env.num_agents // _COLUMNS_OF_LANE, len(self._lanes)), 1)
        cuts = [num_rows * part // count for part in range(count + 1)]
        return [(self._lanes[part], slice(cuts[part], cuts[part + 1])) for part in range(count)]

    def _side_by_side(self, tasks: Iterable[Callable[[], T]]) -> list[T]:
        """Return what the tasks do, in order; the first is done by this thread."""
        first, *others = tasks
        if not others:
            return [first()]
        assert self._helpers is not None, "threads come with _at_work()"
        futures = [self._helpers.submit(task) for task in others]
        return [first(), *(future.result() for future in futures)]
