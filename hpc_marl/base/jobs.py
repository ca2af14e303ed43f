"""JobService: how a controller gets slots filled, whoever does it: Slurm, or processes of this machine.

The controller knows slots (see `hpc_marl.launch.plan`) and the *host* processes `host/<slot>` that fill them; a job
service knows which job fills which slot, submits, cancels and tells what became of jobs. Its answers are hints: that a
host lives is known by its heartbeats alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol


class JobState(str, Enum):
    """Where a job stands; the last six are final."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    NODE_FAIL = "NODE_FAIL"
    FORGOTTEN = "FORGOTTEN"
    """The queue answers, but does not know the job (any more)."""

    @property
    def is_final(self) -> bool:
        """Whether nothing will come of this job any more."""
        return self not in (JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True)
class JobReport:
    """What the queue says of the job that fills a slot.

    Attributes:
        job_id: as scancel takes it: `123`, `123_4`, `123+1`.
        state: where it stands.
        reason: why it is pending, in the queue's word; "" otherwise.
        node: where it runs; "" while it does not.
        expected_start: the queue's guess as ISO time, "" where it has none.
    """

    job_id: str
    state: JobState
    reason: str = ""
    node: str = ""
    expected_start: str = ""


class JobService(Protocol):
    """Fills slots with host processes. For one thread; `poll` never blocks for long.

    Attributes:
        plan: which job a slot belongs to (`hpc_marl.launch.Plan`); may be replaced by a larger one.
    """

    plan: Any

    def submit(self, slots: Iterable[int]) -> None:
        """Have these slots filled, by as few submissions as possible; each job is remembered on disk at once.

        Raises:
            LaunchError: the queue refused; what it said.
        """

    def poll(self) -> None:
        """Ask the queue if it is time to; a queue that does not answer changes nothing."""

    def report(self, slot: int) -> JobReport | None:
        """Return what is known of the job of a slot; None while it has none."""

    def cancel(self, slots: Iterable[int]) -> None:
        """End the jobs of these slots, by one command, tolerating those that have ended; poll() sees the rest."""

    def close(self) -> None:
        """Release what is held here; jobs of Slurm go on, processes of this machine end."""
