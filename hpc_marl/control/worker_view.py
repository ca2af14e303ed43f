"""What the controller knows of one worker, and how it has processes started and ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from hpc_marl.control.interfaces import Heartbeat
from hpc_marl.control.worker_state import WorkerStatus

TRAINER = "trainer/0"
EVALUATOR = "evaluator/0"
_QUICK_END_S = 10.0
_MAX_QUICK_ENDS = 5
_BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0)


class ProcessExit(NamedTuple):
    """A worker's process ended by itself.

    Attributes:
        worker_name: whose.
        code: exit code; -N: killed by signal N.
        displaced: "", or why its place is gone: its node was lost, its job was preempted or out of time.
    """

    worker_name: str
    code: int
    displaced: str = ""

    @property
    def text(self) -> str:
        """What the exit code says."""
        if self.code == -9:
            return "killed by signal 9 (SIGKILL); if nobody did, the system ran out of memory"
        return f"killed by signal {-self.code}" if self.code < 0 else f"exit code {self.code}"


class Launcher(Protocol):
    """How the controller starts and ends processes; `HostLauncher` has it done by host processes."""

    def step(self, registered: Mapping[str, str], heartbeats: Mapping[str, Heartbeat]) -> None:
        """Take in who is registered (name -> incarnation) and what was heard, and do what is due."""

    def launch(self, worker_name: str, life: int, num_threads: int) -> None:
        """Have a worker started as soon as its place is there."""

    def adopt(self, worker_name: str) -> None:
        """Start no process of what was launched: another controller has. If there is none any more, that is an exit."""

    def exits(self) -> list[ProcessExit]:
        """Return the processes that ended by themselves since the last call."""

    def is_alive(self, worker_name: str) -> bool:
        """Whether the worker's process is there."""

    def is_reachable(self, worker_name: str) -> bool:
        """Whether the place where the worker runs is heard; if not, its silence says nothing about the worker."""

    def waiting_for(self, worker_name: str) -> str:
        """Return what a launched worker's process waits for, such as `Resources`; "" once it was started."""

    def hopeless(self, worker_name: str) -> str:
        """Return why a worker's place will not come again; "" while it may."""

    def kill(self, worker_name: str) -> None:
        """Make sure that the worker's process is gone."""

    def interrupt(self, worker_name: str) -> None:
        """Have a worker save and end."""

    def release_actors(self) -> None:
        """Give up the places where only actors are: nobody acts any more."""

    def expects_hosts(self) -> bool:
        """Whether a place that is wanted is not there yet."""


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
        restarts: how many of these launches its own failures cost.
        adopted: another controller launched it: it may have its config already.
        displaced: why its place was lost; "" while it was not.
        drained: it was told to leave for good.
        incarnation: of the life that is connected; "" while none is.
        last_incarnation: of the life before.
        launched_s: when it was launched, on the controller's monotonic clock.
        relaunch_s: when to launch it again; None while its process should be there.
        configured: whether this life has its config.
        started: whether this life was told to start.
        pending: the command under way and its reply.
        quick_ends: lives in a row that failed soon after their launch.
        metrics: of its newest heartbeat that had any.
        last_error: why it failed last.
        fails_for_good: another life would fail in the same way.
    """

    name: str
    max_restarts: int
    num_threads: int
    status: WorkerStatus = WorkerStatus.UNKNOWN
    life: int = 0
    restarts: int = 0
    adopted: bool = False
    displaced: str = ""
    drained: bool = False
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
    fails_for_good: bool = False

    @property
    def kind(self) -> str:
        """The part of the name before the index."""
        return self.name.split("/")[0]

    @property
    def index(self) -> int:
        """The part of the name after the kind."""
        return int(self.name.split("/")[1])

    @property
    def is_wanted(self) -> bool:
        """Whether it should work."""
        return not self.given_up and not self.drained

    @property
    def is_live(self) -> bool:
        """Whether it works, or will as soon as it is told to."""
        return self.is_wanted and self.status in (
            WorkerStatus.READY,
            WorkerStatus.RUNNING,
            WorkerStatus.PAUSED,
        )

    @property
    def restarts_left(self) -> int:
        """Respawns left; none where its settings are wrong, or it fails again and again right after its start."""
        in_vain = self.fails_for_good or self.quick_ends >= _MAX_QUICK_ENDS
        return 0 if in_vain else self.max_restarts - self.restarts

    def begin_life(self, now: float) -> None:
        """A process of it was launched."""
        self.launched_s, self.relaunch_s = now, None
        self.configured = self.started = self.adopted = self.fails_for_good = False
        self.pending = None  # what the life before said holds until this one has figures of its own

    def take_configured(self) -> None:
        """This life has its config."""
        self.configured = True

    def give_up(self) -> None:
        """The run goes on without it."""
        self.given_up = True

    def end_life(self) -> None:
        """Its process is gone, or does not count any more."""
        self.last_incarnation = self.incarnation or self.last_incarnation
        self.pending, self.incarnation = None, ""

    def schedule_relaunch(self, now: float, displaced: bool = False) -> None:
        """Launch it again: at once the first time, later the more often it ends soon.

        One that lost its place, or ends because a fellow did, has not failed: that costs nothing of its budget.
        """
        # One that was killed at its work did not fail; only failures of its own, or before any work, tell a crash loop.
        failed = not displaced and (self.status is WorkerStatus.ERROR or not self.started)
        self.quick_ends = self.quick_ends + 1 if failed and now - self.launched_s < _QUICK_END_S else 0
        self.relaunch_s = now + _BACKOFF_S[min(max(self.quick_ends - 1, 0), len(_BACKOFF_S) - 1)]
        self.life += 1
        self.restarts += not displaced


def evaluator_view() -> WorkerView:
    """Return a view of the evaluator, not yet launched."""
    return WorkerView(EVALUATOR, max_restarts=2, num_threads=1)
