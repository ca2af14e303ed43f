"""What the controller knows of one worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from hpc_marl.control.worker_state import WorkerStatus

_QUICK_END_S = 10.0
_MAX_QUICK_ENDS = 5
_BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0)


class Launcher(Protocol):
    """How the controller starts and ends processes; `hpc_marl.launch` has implementations."""

    def launch(self, worker_name: str, life: int, num_threads: int) -> None:
        """Start a worker."""

    def exits(self) -> list[tuple[str, int]]:
        """Return (worker name, exit code) of processes that ended by themselves since the last call."""

    def is_alive(self, worker_name: str) -> bool:
        """Whether the worker's process is there."""

    def kill(self, worker_name: str) -> None:
        """Make sure that the worker's process is gone."""


class PendingReply(Protocol):
    """An RPC under way."""

    def done(self) -> bool:
        """Whether `result` returns or raises at once."""

    def result(self, timeout: float | None = None) -> Any:
        """Return the reply, or raise its error."""


@dataclass
class WorkerView:
    """One worker as the controller sees it; `status` changes only by `worker_state.transition`.

    Attributes:
        life: how often it was launched before.
        incarnation: of the life that is connected; "" while none is.
        last_incarnation: of the life before.
        launched_s: when it was launched, on the controller's monotonic clock.
        relaunch_s: when to launch it again; None while its process should be there.
        configured: whether this life has its config.
        started: whether this life was told to start.
        pending: the command under way and its reply.
        quick_ends: lives in a row that failed soon after their launch.
        metrics: of its newest heartbeat.
        last_error: why it failed last.
    """

    name: str
    max_restarts: int
    num_threads: int
    status: WorkerStatus = WorkerStatus.UNKNOWN
    life: int = 0
    launched_s: float = 0.0
    relaunch_s: float | None = None
    configured: bool = False
    started: bool = False
    given_up: bool = False
    incarnation: str = ""
    last_incarnation: str = ""
    pending: tuple[str, PendingReply] | None = None
    quick_ends: int = 0
    metrics: Mapping[str, float | int | str] = field(default_factory=dict)
    last_error: str = ""

    @property
    def kind(self) -> str:
        """The part of the name before the index."""
        return self.name.split("/")[0]

    @property
    def is_live(self) -> bool:
        """Whether it works, or will as soon as it is told to."""
        return not self.given_up and self.status in (
            WorkerStatus.READY,
            WorkerStatus.RUNNING,
            WorkerStatus.PAUSED,
        )

    @property
    def restarts_left(self) -> int:
        """Respawns left; none where it fails again and again right after its start."""
        return 0 if self.quick_ends >= _MAX_QUICK_ENDS else self.max_restarts - self.life

    def begin_life(self, now: float) -> None:
        """A process of it was launched."""
        self.launched_s, self.relaunch_s = now, None
        self.configured = self.started = False
        self.pending, self.metrics = None, {}

    def end_life(self) -> None:
        """Its process is gone, or does not count any more."""
        self.last_incarnation = self.incarnation or self.last_incarnation
        self.pending, self.incarnation = None, ""

    def schedule_relaunch(self, now: float) -> None:
        """Launch it again: at once the first time, later the more often it ends soon."""
        # One that was killed at its work did not fail; only failures of its own, or before any work, tell a crash loop.
        failed = self.status is WorkerStatus.ERROR or not self.started
        self.quick_ends = self.quick_ends + 1 if failed and now - self.launched_s < _QUICK_END_S else 0
        self.relaunch_s = now + _BACKOFF_S[min(max(self.quick_ends - 1, 0), len(_BACKOFF_S) - 1)]
        self.life += 1
