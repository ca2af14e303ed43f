"""Algorithms: from a SampleBatch to better weights; torch is imported when one is made."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from hpc_marl.errors import ConfigError

if TYPE_CHECKING:
    from hpc_marl.algorithms.ppo import PPO

ALGORITHMS = {
    "ppo": "hpc_marl.algorithms.ppo:PPO",
    "ippo": "hpc_marl.algorithms.ppo:PPO",
    "mappo": "hpc_marl.algorithms.ppo:PPO",
}
"""Where the class of each `algorithm.name` is; IPPO and MAPPO are PPO with a local and a central critic."""


def algorithm_class(name: str) -> type[PPO]:
    """Import and return the class of an algorithm.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in ALGORITHMS:
        raise ConfigError(f"algorithm.name={name!r}: choose one of {', '.join(sorted(ALGORITHMS))}")
    module, _, attribute = ALGORITHMS[name].partition(":")
    found: type[PPO] = getattr(importlib.import_module(module), attribute)
    return found
