"""Distributed multi-agent reinforcement learning for Slurm clusters."""

__version__ = "0.1.0"
