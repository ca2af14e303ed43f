"""ActRows: one step of acting, flat: what is read, and the places where the answer is written."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class ActRows(NamedTuple):
    """R = E * N rows, environment by environment; contiguous views, so that nothing is copied to act on them."""

    observation: NDArray[Any]
    """[R, D] float32."""
    action_mask: NDArray[np.bool_] | None
    """[R, A] True where allowed, with at least one True in each row; None allows all."""
    memory: NDArray[np.float32] | None
    """[R, H] recurrent memory, overwritten by the next one; None for feed-forward policies."""
    noise: NDArray[np.float32]
    """[R] uniform for discrete actions, [R, A] standard normal for continuous ones."""
    action: NDArray[Any]
    """[R] int32 or [R, A] float32, written."""
    log_prob: NDArray[np.float32]
    """[R], written."""
