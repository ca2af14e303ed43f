"""A site with hosts, a queue and a clock that the test plays, and the launcher over it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hpc_marl.base.jobs import JobReport, JobState
from hpc_marl.control.host_launcher import HostLauncher
from hpc_marl.control.interfaces import Heartbeat
from hpc_marl.control.slot_jobs import Patience
from hpc_marl.control.slot_view import SlotSpec
from hpc_marl.control.worker_base import Response
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.control.worker_view import ProcessExit
from hpc_marl.errors import HpcMarlError, LaunchError, RpcTimeoutError

CORE, FIRST, SECOND = 0, 1, 2
SLOTS = (
    SlotSpec(CORE, "core", ("trainer/0",), (CORE,), {"trainer/0": 1.0}),
    SlotSpec(FIRST, "actors", ("actor/0", "actor/1"), (FIRST,)),
    SlotSpec(SECOND, "actors", ("actor/2",), (SECOND,)),
)
PATIENCE = Patience(
    host_silence_s=80.0,
    ping_interval_s=15.0,
    registration_s=300.0,
    request_s=10.0,
    max_resubmissions=2,
    core_away_s=600.0,
    heard_lately_s=5.0,
)


class Queue:
    """A job service: jobs are what the test says."""

    def __init__(self) -> None:
        self.plan = None
        self.reports: dict[int, JobReport] = {}
        self.submissions: list[list[int]] = []
        self.cancelled: list[int] = []
        self.refuses: LaunchError | None = None

    def submit(self, slots: Iterable[int]) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.submissions.append(list(slots))
        for slot in self.submissions[-1]:
            self.say(slot, JobState.PENDING, reason="Resources")

    def poll(self) -> None:
        pass

    def report(self, slot: int) -> JobReport | None:
        return self.reports.get(slot)

    def cancel(self, slots: Iterable[int]) -> None:
        self.cancelled += slots

    def close(self) -> None:
        pass

    def say(self, slot: int, state: JobState, reason: str = "", node: str = "") -> None:
        self.reports[slot] = JobReport(f"{100 + slot}", state, reason, node)


@dataclass
class Host:
    """What a host process would do: it runs what it is told to."""

    incarnation: str
    children: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    status: WorkerStatus = WorkerStatus.READY
    ended: str = ""
    silent_since: float | None = None
    is_deaf: bool = False

    def run(self, command: str, kwargs: dict[str, Any]) -> None:
        name = kwargs.get("worker_name", "")
        if command == "launch":
            known = self.children.get(name)
            if known is None or known[0] < kwargs["life"]:
                self.children[name] = (kwargs["life"], None)
        elif command == "kill" and name in self.children:
            self.children[name] = (self.children[name][0], -9)
        elif command == "exit":
            self.status = WorkerStatus.COMPLETED
        elif command == "interrupt":
            self.status = WorkerStatus.INTERRUPTED


class Answer:
    def __init__(self, error: HpcMarlError | None = None) -> None:
        self.error = error

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> None:
        if self.error is not None:
            raise self.error


class Site:
    """Hosts, the panel that speaks to them, the queue, the clock, and the launcher over all of it."""

    def __init__(self, slots: Iterable[SlotSpec] = SLOTS, patience: Patience = PATIENCE) -> None:
        self.now = 1000.0
        self.queue = Queue()
        self.hosts: dict[str, Host] = {}
        self.given_up: set[str] = set()
        self.sent: list[tuple[str, str, dict[str, Any]]] = []
        self.said: list[str] = []
        self.launcher = HostLauncher(
            slots,
            self,  # type: ignore[arg-type]
            self.queue,
            patience,
            say=self.said.append,
            clock=lambda: self.now,
        )

    # the panel
    look_interval_s = 0.2

    def refresh(self) -> dict[str, str]:
        known = {name: host.incarnation for name, host in self.hosts.items()}
        return {name: incarnation for name, incarnation in known.items() if incarnation not in self.given_up}

    def disconnect(self, name: str) -> None:
        if name in self.hosts:
            self.given_up.add(self.hosts[name].incarnation)

    def heartbeats(self) -> dict[str, Heartbeat]:
        self.now += 0.01
        beats = {}
        for name, incarnation in self.refresh().items():
            host = self.hosts[name]
            age_s = 0.0 if host.silent_since is None else self.now - host.silent_since
            text = " ".join(f"{w}:{life}:{'r' if c is None else c}" for w, (life, c) in host.children.items())
            metrics = {"children": text, "node": f"node{name[-1]}", "ended": host.ended}
            beats[name] = Heartbeat(name, incarnation, host.status, "idle", 1, metrics, "", age_s, 0.0)
        return beats

    def async_request(
        self, name: str, command: str, /, timeout: float | None = None, **kwargs: Any
    ) -> Answer:
        self.sent.append((name, command, kwargs))
        host = self.hosts[name]
        if name not in self.refresh() or host.is_deaf or host.silent_since is not None:
            return Answer(RpcTimeoutError("no answer"))
        host.run(command, kwargs)
        return Answer()

    def group_request(self, command: str, worker_names: Iterable[str], timeout: float) -> list[Response]:
        for name in worker_names:
            self.async_request(name, command)
        return []

    # what the test does
    def step(self, seconds: float = 0.1) -> list[ProcessExit]:
        """Let time pass; return the exits that were told."""
        self.launcher.step(self.refresh(), self.heartbeats())
        self.now += seconds
        return self.launcher.exits()

    def want(self, *names: str, life: int = 0) -> None:
        for name in names:
            self.launcher.launch(name, life, 1)

    def appear(self, slot: int, incarnation: str = "a") -> Host:
        """The job of a slot starts, and its host with it."""
        self.queue.say(slot, JobState.RUNNING, node=f"node{slot}")
        self.hosts[f"host/{slot}"] = host = Host(f"{slot}{incarnation}")
        return host

    def end(self, slot: int, ended: str = "", state: JobState = JobState.COMPLETED) -> None:
        """The host of a slot says its last word, and its job ends."""
        host = self.hosts[f"host/{slot}"]
        host.status = WorkerStatus.INTERRUPTED if ended else WorkerStatus.COMPLETED
        host.ended, host.children = ended, {n: (life, c or 0) for n, (life, c) in host.children.items()}
        self.queue.say(slot, state)

    def commands(self, slot: int) -> list[str]:
        return [command for name, command, _ in self.sent if name == f"host/{slot}" and command != "ping"]


def working(*names: str) -> Site:
    """Return a site where these workers run."""
    site = Site()
    site.want(*names)
    site.step()
    for slot in site.queue.submissions[0]:
        site.appear(slot)
    for _ in range(3):
        site.step()
    assert all(site.launcher.is_alive(name) for name in names)
    return site
