"""An environment that cannot be reset."""

from __future__ import annotations

from numpy.typing import ArrayLike

from hpc_marl.envs.testing import MatrixGame


class FailingEnv(MatrixGame):
    """Raises when an episode begins."""

    def reset(self, seed: int | None = None) -> ArrayLike:
        raise RuntimeError("level 7 is not there")
