"""Launch: from a plan to processes. Workers are known here only as command lines."""

from hpc_marl.launch.local import LocalLauncher
from hpc_marl.launch.plan import Plan, WorkerGroup, make_plan

__all__ = ["LocalLauncher", "Plan", "WorkerGroup", "make_plan"]
