"""What the controller knows of one slot: its host process, what should run there and what does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hpc_marl.control.interfaces import Heartbeat

RUNNING = "r"


class Launch(NamedTuple):
    """A worker that should run: which life of it, with how many threads and GPUs.

    `is_adopted`: another controller has started this life; a second process of it must never be.
    """

    life: int
    num_threads: int
    gpus: float
    is_adopted: bool = False


class Process(NamedTuple):
    """A worker's process as its host sees it; `code` is None while it runs."""

    life: int
    code: int | None


def parse_children(text: str) -> dict[str, Process]:
    """Return the processes in a host's heartbeat.

    >>> parse_children("actor/3:0:r actor/4:1:-9")
    {'actor/3': Process(life=0, code=None), 'actor/4': Process(life=1, code=-9)}
    """
    found = {}
    for word in text.split():
        name, life, state = word.rsplit(":", 2)
        found[name] = Process(int(life), None if state == RUNNING else int(state))
    return found


@dataclass(frozen=True)
class SlotSpec:
    """A place of the plan.

    Attributes:
        index: of the host: `host/<index>`.
        role: `core` or `actors`.
        workers: by name.
        unit: slots that are submitted together, in one job; an element of an array is alone.
        gpus: GPUs of each worker, by name.
    """

    index: int
    role: str
    workers: tuple[str, ...]
    unit: tuple[int, ...]
    gpus: Mapping[str, float] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """Name of the host process."""
        return f"host/{self.index}"


@dataclass
class SlotView:
    """One slot.

    Attributes:
        spec: its place in the plan; replaced when actors are added to it.
        incarnation: of the host that is connected; "" while none is.
        ended: the host that was connected last has said its last word; its process ends by itself.
        silent: the host was not heard for so long that its workers do not count any more.
        heard: the host's newest heartbeat.
        unheard_s: when the host was last seen out of reach; on the controller's clock.
        processes: what the host says of its workers.
        wanted: what should run here.
        pending: commands under way to the host.
        told: exits that were passed on already.
        submissions: jobs submitted for it, also by earlier controllers.
        resubmit_s: not before; on the controller's clock.
        seen_running_s: when its job was first seen running without its host being heard.
        dropped: its newest job was cancelled by the controller.
        parked: nobody needs it for now: its job is gone on purpose.
        hopeless: why nothing will come of it any more.
        lost: why its host went.
    """

    spec: SlotSpec
    incarnation: str = ""
    ended: bool = False
    silent: bool = False
    heard: Heartbeat | None = None
    unheard_s: float = -float("inf")
    processes: dict[str, Process] = field(default_factory=dict)
    wanted: dict[str, Launch] = field(default_factory=dict)
    pending: dict[str, Any] = field(default_factory=dict)
    told: set[tuple[str, int]] = field(default_factory=set)
    submissions: int = 0
    resubmit_s: float = 0.0
    seen_running_s: float | None = None
    dropped: bool = False
    parked: bool = False
    hopeless: str = ""
    lost: str = ""

    @property
    def is_up(self) -> bool:
        """Whether a host fills it."""
        return bool(self.incarnation) and not self.silent

    def metric(self, name: str, default: Any = None) -> Any:
        """Return a figure of the host's newest heartbeat."""
        return default if self.heard is None else self.heard.metrics.get(name, default)

    def runs(self, worker_name: str) -> bool:
        """Whether the wanted life of a worker, or an earlier one, is a process here."""
        process = self.processes.get(worker_name)
        return self.is_up and process is not None and process.code is None
