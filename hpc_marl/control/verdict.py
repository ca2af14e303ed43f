"""Where a run stands, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hpc_marl.control.worker_state import WorkerStatus


class Phase(str, Enum):
    """Where the run stands."""

    STARTING = "starting"
    TRAINING = "training"
    EVALUATING = "evaluating"
    FINISHED = "finished"


@dataclass(frozen=True)
class Verdict:
    """How a run ended.

    Attributes:
        status: COMPLETED, INTERRUPTED or ERROR.
        reason: one sentence for the person who started it.
        exit_code: 0, 130 (interrupted) or 1.
    """

    status: WorkerStatus
    reason: str

    @property
    def exit_code(self) -> int:
        """The process's exit code."""
        return {WorkerStatus.COMPLETED: 0, WorkerStatus.INTERRUPTED: 130}.get(self.status, 1)
