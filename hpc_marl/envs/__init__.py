"""Environments as arrays: `make_env` makes them, `check_env` tests them, `MultiAgentEnv` is for your own."""

from hpc_marl.envs.api import BatchedEnv, EnvArrays, MultiAgentEnv, MultiAgentStep, StepArrays
from hpc_marl.envs.conformance import check_env
from hpc_marl.envs.factory import make_env
from hpc_marl.envs.looped import LoopedEnv

__all__ = [
    "BatchedEnv",
    "EnvArrays",
    "LoopedEnv",
    "MultiAgentEnv",
    "MultiAgentStep",
    "StepArrays",
    "check_env",
    "make_env",
]
