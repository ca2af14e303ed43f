"""Memory for work arrays that come in many sizes, one at a time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


class WorkMemory:
    """Named pieces of memory; an array of another size takes the place of the one before.

    So what is worked on stays in the processor's cache, and takes no more memory, however sizes vary.
    """

    def __init__(self) -> None:
        self._pieces: dict[str, NDArray[np.float32]] = {}

    def array(self, name: str, *shape: int) -> NDArray[np.float32]:
        """Return an array at the beginning of the piece of that name; it holds whatever was there."""
        size = math.prod(shape)
        piece = self._pieces.get(name)
        if piece is None or piece.size < size:
            piece = self._pieces[name] = np.zeros(size, np.float32)
        return piece[:size].reshape(shape)
