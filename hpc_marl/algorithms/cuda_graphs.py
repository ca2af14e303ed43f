"""One minibatch's step as a CUDA graph: recorded once, then launched as a whole.

Of small networks a GPU computes a kernel faster than the CPU can launch it; a graph is one launch. It reads and writes
where it did when it was recorded, so minibatches are copied to one place (`FixedMinibatch`), all of one size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hpc_marl.algorithms.minibatches import TrainingRows
from hpc_marl.algorithms.staging import to_device

_REHEARSALS = 3
_ALIVE = 4  # of TrainingRows.scalars


def record(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Run `step` a few times, then record it; return what replays it, and returns its result at one place.

    The pattern of https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture: whatever is set up on
    first use (by cuBLAS, cuDNN, autograd) is set up beforehand, on a stream that is not the default one.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_REHEARSALS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = step()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class FixedMinibatch:
    """Minibatches of one size, at one place, one after the other.

    Where there are fewer rows than that, the first one stands in for those that are missing, with a weight of 0.
    """

    def __init__(self) -> None:
        self._rows: TrainingRows | None = None

    def minibatches(
        self, rows: TrainingRows, most_rows: int, count: int, generator: torch.Generator
    ) -> Iterator[TrainingRows]:
        """Yield what `rows.minibatches` yields, to be used before the next.

        Args:
            rows: of the batch.
            most_rows: that such a batch can have; the size is a part of these.
            count: of minibatches.
            generator: of the random order.
        """
        if not len(rows):
            return
        size = -(-most_rows // count)
        fixed = self._rows = self._place_for(rows, size)
        order = torch.arange(len(rows)) if count == 1 else torch.randperm(len(rows), generator=generator)
        cuts = [len(rows) * part // count for part in range(count + 1)]
        pieces = [order[start:stop] for start, stop in itertools.pairwise(cuts) if start < stop]
        table = [torch.cat([piece, piece[:1].expand(size - len(piece))]) for piece in pieces]
        indices = to_device(torch.stack(table), rows.action.device)
        for index, piece in zip(indices, pieces, strict=True):
            for source, target in zip(_tensors(rows), _tensors(fixed), strict=True):
                torch.index_select(source, 0, index, out=target)
            torch.index_select(rows.scalars, 1, index, out=fixed.scalars)
            if len(piece) < size:
                fixed.scalars[_ALIVE, len(piece) :] = 0.0
            yield fixed

    def _place_for(self, rows: TrainingRows, size: int) -> TrainingRows:
        """Return the former place, or a new one where rows have another size or shape."""
        if self._rows is not None and _shapes(self._rows) == [
            (tensor.dtype, size, *tensor.shape[1:]) for tensor in _tensors(rows)
        ]:
            return self._rows
        return rows.map(
            lambda x: x.new_zeros((size, *x.shape[1:])),
            lambda x: x.new_zeros((len(x), size, *x.shape[2:])),
        )


class StepGraph:
    """A step that is recorded whenever minibatches come at another place, and replayed as long as they do not.

    Args:
        step: to be recorded; no result of it may depend on the CPU, nor may the CPU wait in it.
        record: how; returns what replays it.
    """

    def __init__(
        self,
        step: Callable[[TrainingRows], Tensor],
        record: Callable[[Callable[[], Tensor]], Callable[[], Tensor]],
    ) -> None:
        self._step, self._record = step, record
        self._rows: TrainingRows | None = None
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, rows: TrainingRows) -> Tensor:
        """Make the step; return a copy of its result."""
        if rows is not self._rows or self._replay is None:
            self._replay = None  # two graphs' memory need not fit
            self._replay, self._rows = self._record(lambda: self._step(rows)), rows
        return self._replay().clone()


def _tensors(rows: TrainingRows) -> list[Tensor]:
    inputs = [tensor for tensor in vars(rows.inputs).values() if tensor is not None]
    return [*inputs, rows.action]


def _shapes(rows: TrainingRows) -> list[tuple[object, ...]]:
    return [(tensor.dtype, *tensor.shape) for tensor in _tensors(rows)]
