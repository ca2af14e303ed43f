"""Whether a trainer's networks can fit into memory at all, seen before the kernel ends an attempt without a word."""

from __future__ import annotations

import math

import psutil

from hpc_marl.errors import ConfigError
from hpc_marl.policies.spec import PolicySpec, actor_shapes

_COPIES = 4  # weights, their gradients, and the optimiser's two moments of each, all in float32
_GB = 1e9


def check_fits_memory(spec: PolicySpec, memory_bytes: int | None = None) -> None:
    """See that the actor's network, which is the least that a trainer holds, is no larger than this machine.

    Args:
        spec: the policy.
        memory_bytes: of the machine; None asks the system.

    Raises:
        ConfigError: it is larger.
    """
    memory_bytes = psutil.virtual_memory().total if memory_bytes is None else memory_bytes
    weights = sum(math.prod(shape) for shape in actor_shapes(spec).values())
    if 4 * _COPIES * weights <= memory_bytes:
        return
    policy = spec.policy
    sizes = f"policy.hidden_sizes={list(policy.hidden_sizes)}"
    if spec.memory_size:
        sizes += f" and policy.memory_size={policy.memory_size}"
    raise ConfigError(
        f"{sizes} make an actor of {weights:,} weights, which with gradients and optimiser take "
        f"{4 * _COPIES * weights / _GB:,.0f} GB; this machine has {memory_bytes / _GB:,.1f} GB, room for at most "
        f"{memory_bytes // (4 * _COPIES):,} weights: use smaller layers"
    )
