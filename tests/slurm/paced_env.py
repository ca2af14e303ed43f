"""A matrix game that takes its time, so that a run lasts while things happen to it and leaves the CPUs to others."""

from __future__ import annotations

import time
from typing import Any

from numpy.typing import NDArray

from hpc_marl.envs.api import MultiAgentStep
from hpc_marl.envs.testing import MatrixGame


class PacedGame(MatrixGame):
    """A MatrixGame with a step that lasts."""

    def __init__(self, step_s: float = 0.001) -> None:
        """Choose how long a step takes at least, in seconds."""
        super().__init__()
        self._step_s = step_s

    def step(self, action: NDArray[Any]) -> MultiAgentStep:
        """Wait, then play."""
        time.sleep(self._step_s)
        return super().step(action)
