"""`make_actor`: with what a policy worker, an actor or an evaluator acts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpc_marl.policies.act_rows import ActRows
from hpc_marl.policies.numpy_actor import NumpyActor
from hpc_marl.policies.spec import ActResult, PolicySpec


class PolicyActor(Protocol):
    """What `NumpyActor` and `TorchActor` have in common; see `NumpyActor`."""

    spec: PolicySpec
    policy_version: int

    def load(self, weights: Mapping[str, NDArray[Any]], policy_version: int) -> None:
        """Copy new weights in."""

    def act(
        self,
        observation: NDArray[Any],
        action_mask: NDArray[np.bool_] | None,
        memory: NDArray[np.float32] | None,
        noise: NDArray[np.float32],
        greedy: bool = False,
    ) -> ActResult:
        """Choose actions."""

    def act_rows(self, rows: ActRows, greedy: bool = False) -> None:
        """Choose actions and write them into `rows`."""


def make_actor(spec: PolicySpec, device: str = "cpu") -> PolicyActor:
    """Return an actor without weights; torch is imported only where it is needed: for images and on GPUs.

    >>> from hpc_marl.config import PolicyConfig
    >>> from hpc_marl.data import EnvSpec
    >>> type(make_actor(PolicySpec(env=EnvSpec(num_actions=2), policy=PolicyConfig()))).__name__
    'NumpyActor'
    """
    if device == "cpu" and not spec.env.has_images:
        return NumpyActor(spec)
    from hpc_marl.policies.torch_actor import TorchActor

    return TorchActor(spec, device)
