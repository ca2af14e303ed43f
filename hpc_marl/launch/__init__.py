"""Launch: from a plan to processes. Workers are known here only as command lines."""

from hpc_marl.launch.local_jobs import LocalJobs
from hpc_marl.launch.plan import Plan, WorkerGroup, make_plan

__all__ = ["LocalJobs", "Plan", "WorkerGroup", "make_plan"]
