"""RequestJoiner: the arrays of several requests as those of one batch, without allocating anything per pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.errors import StreamError
from hpc_marl.streams.inference_requests import InferenceRequest


class RequestJoiner:
    """Joins requests along their environments; its arrays are valid until the next `join`."""

    def __init__(self) -> None:
        self._buffers: dict[str, NDArray[Any]] = {}

    def join(self, requests: Sequence[InferenceRequest]) -> dict[str, NDArray[Any]]:
        """Return every array with the environments of all requests one after another, in their order.

        Args:
            requests: at least one; of several, the arrays differ in their number of environments only.

        Raises:
            StreamError: they differ in more.
        """
        first = requests[0].arrays
        if len(requests) == 1:
            return first
        num_envs = sum(request.layout.num_envs for request in requests)
        try:
            return {
                name: np.concatenate(
                    [request.arrays[name] for request in requests],
                    out=self._buffer(name, array, num_envs),
                    casting="no",
                )
                for name, array in first.items()
            }
        except (KeyError, ValueError, TypeError) as error:
            raise StreamError(
                f"requests of different policies cannot be answered together: {error}"
            ) from error

    def _buffer(self, name: str, like: NDArray[Any], num_envs: int) -> NDArray[Any]:
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < num_envs or buffer.shape[1:] != like.shape[1:]:
            buffer = self._buffers[name] = np.empty((2 * num_envs, *like.shape[1:]), like.dtype)
        return buffer[:num_envs]
