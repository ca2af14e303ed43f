"""Policies: acting in numpy, learning in torch, which is imported on first use of what needs it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hpc_marl.policies.making import PolicyActor, make_actor
from hpc_marl.policies.numpy_actor import NumpyActor
from hpc_marl.policies.spec import ActResult, PolicySpec, actor_shapes, make_noise

if TYPE_CHECKING:
    from hpc_marl.policies.actor_critic import ActorCritic
    from hpc_marl.policies.torch_actor import TorchActor

__all__ = [
    "ActResult",
    "ActorCritic",
    "NumpyActor",
    "PolicyActor",
    "PolicySpec",
    "TorchActor",
    "actor_shapes",
    "make_actor",
    "make_noise",
]

_NEEDS_TORCH = {"ActorCritic": "actor_critic", "TorchActor": "torch_actor"}


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_NEEDS_TORCH[name]}"), name)
