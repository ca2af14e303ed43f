"""PlainEnv: an adapter around an environment whose observations are N vectors of equal width, and nothing else.

Most environments are such. What their own step returns goes to `LoopedEnv` as it is, which writes all environments'
observations in one go: a third of the time that writing them one by one takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from hpc_marl.envs.api import MultiAgentEnv

PlainStep: TypeAlias = Callable[[Sequence[Any]], tuple[Sequence[Any], Any, Any, Any]]
"""N actions, numbers or rows -> N vectors [D], and reward, terminated, truncated: one per agent, or one for all."""


class PlainEnv(MultiAgentEnv):
    """A MultiAgentEnv that may have a shorter way to step.

    Attributes:
        plain_step: does what `step` does; None where observations must be flattened or padded, or actions are masked.
            It is used when no agent has ended its episode before the others.
    """

    plain_step: PlainStep | None = None
