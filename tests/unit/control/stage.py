"""All workers, their places, the panel and the clock of a controller, played by the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hpc_marl.config import ActorGroupConfig, ExperimentConfig, TrainerGroupConfig
from hpc_marl.control.controller import TRAINER, Controller
from hpc_marl.control.interfaces import Heartbeat
from hpc_marl.control.worker_base import Response
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.control.worker_view import ProcessExit, WorkerView
from hpc_marl.errors import RpcError


class Reply:
    """An answer that is there at once."""

    def __init__(self, error: RpcError | None = None, answer: Any = "OK") -> None:
        self.error, self.answer = error, answer

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> Any:
        if self.error is not None:
            raise self.error
        return self.answer


class Stage:
    """Plays all workers: panel, launcher and clock in one."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lives: dict[str, int] = {}
        self.alive: set[str] = set()
        self.registered: dict[str, str] = {}
        self.given_up: set[str] = set()
        self.status: dict[str, WorkerStatus] = {}
        self.configured: set[str] = set()  # incarnations
        self.silent_since: dict[str, float] = {}
        self.stuck_since: dict[str, float] = {}
        self.sent: list[tuple[str, str, dict[str, Any]]] = []
        self.ended: list[ProcessExit] = []
        self.answers: dict[tuple[str, str], RpcError] = {}
        self.errors: dict[str, str] = {}
        self.fail_for_good: set[str] = set()
        self.metrics: dict[str, dict[str, float | int | str]] = {}
        # places
        self.waiting: dict[str, str] = {}
        self.hopeless_places: dict[str, str] = {}
        self.unreachable: set[str] = set()
        self.interrupted: list[str] = []
        self.adopted: list[str] = []
        self.num_actor_releases = 0
        self.log: list[str] = []  # epochs granted and processes launched, in order

    # the launcher
    def step(self, registered: Mapping[str, str], heartbeats: Mapping[str, Heartbeat]) -> None:
        pass

    def launch(self, worker_name: str, life: int, num_threads: int) -> None:
        self.lives[worker_name] = life
        self.log.append(f"{worker_name} life {life}")
        if worker_name not in self.waiting:
            self.alive.add(worker_name)

    def adopt(self, worker_name: str) -> None:
        self.adopted.append(worker_name)

    def exits(self) -> list[ProcessExit]:
        ended, self.ended = self.ended, []
        return ended

    def is_alive(self, worker_name: str) -> bool:
        return worker_name in self.alive

    def is_reachable(self, worker_name: str) -> bool:
        return worker_name not in self.unreachable

    def waiting_for(self, worker_name: str) -> str:
        return self.waiting.get(worker_name, "")

    def hopeless(self, worker_name: str) -> str:
        return self.hopeless_places.get(worker_name, "")

    def kill(self, worker_name: str) -> None:
        self.alive.discard(worker_name)

    def interrupt(self, worker_name: str) -> None:
        self.interrupted.append(worker_name)

    def release_actors(self) -> None:
        self.num_actor_releases += 1

    def expects_hosts(self) -> bool:
        return bool(self.waiting)

    # the panel
    look_interval_s = 0.2

    def refresh(self) -> dict[str, str]:
        return {name: life for name, life in self.registered.items() if life not in self.given_up}

    def disconnect(self, worker_name: str) -> None:
        if worker_name in self.registered:
            self.given_up.add(self.registered[worker_name])

    def heartbeats(self) -> dict[str, Heartbeat]:
        beats = {}
        for name, incarnation in self.refresh().items():
            silent = self.now - self.silent_since.get(name, self.now)
            stuck = self.now - self.stuck_since.get(name, self.now)
            status = self.status.get(name, WorkerStatus.READY)
            error = self.errors.get(name, "")
            metrics = self.metrics.get(name, {})
            for_good = name in self.fail_for_good
            beats[name] = Heartbeat(
                name, incarnation, status, "poll", 1, metrics, error, silent, stuck, for_good
            )
        return beats

    def async_request(
        self, worker_name: str, command: str, /, timeout: float | None = None, **kwargs: Any
    ) -> Reply:
        self.sent.append((worker_name, command, kwargs))
        if (error := self.answers.get((worker_name, command))) is not None:
            return Reply(error)
        if command == "configure":
            self.configured.add(self.registered[worker_name])
        elif command == "start":
            self.status[worker_name] = WorkerStatus.RUNNING
        elif command == "pause":
            self.status[worker_name] = WorkerStatus.PAUSED
        elif command == "status":
            configured = self.registered[worker_name] in self.configured
            return Reply(answer={"configured": configured, "status": self.status[worker_name].value})
        return Reply()

    def group_request(
        self, command: str, worker_names: Any = None, timeout: float | None = None
    ) -> list[Response]:
        for name in worker_names:
            self.sent.append((name, command, {}))
            self.alive.discard(name)
        return [Response(name, result="COMPLETED") for name in worker_names]

    # what the test does
    def register(self, name: str) -> None:
        self.registered[name] = f"{name}.{self.lives[name]}"
        self.status[name] = WorkerStatus.READY
        self.silent_since.pop(name, None)
        self.stuck_since.pop(name, None)

    def appear(self, name: str) -> None:
        """The place of a worker that waited is there, and the worker."""
        del self.waiting[name]
        self.alive.add(name)
        self.register(name)

    def die(self, name: str, code: int = -9, displaced: str = "") -> None:
        self.alive.discard(name)
        self.ended.append(ProcessExit(name, code, displaced))

    def commands(self, name: str) -> list[str]:
        return [command for worker, command, _ in self.sent if worker == name and command != "ping"]

    def sent_to(self, name: str, command: str) -> list[dict[str, Any]]:
        return [kwargs for worker, sent, kwargs in self.sent if (worker, sent) == (name, command)]


NAMES = (TRAINER, "actor/0", "actor/1")


def make(
    max_restarts: int = 3,
    min_actors: int = 1,
    names: tuple[str, ...] = NAMES,
    prepare: Callable[[Controller, Stage], None] = lambda controller, stage: None,
) -> tuple[Controller, Stage]:
    """Return a controller that has launched these workers, and the stage they play on."""
    stage = Stage()
    config = ExperimentConfig(
        trial_name="t",
        actors=ActorGroupConfig(count=sum(name.startswith("actor") for name in names), min_actors=min_actors),
        trainer=TrainerGroupConfig(count=sum(name.startswith("trainer") for name in names)),
    )
    views = [WorkerView(name, max_restarts, 1) for name in names]
    controller = Controller(
        config,
        views,
        stage,  # type: ignore[arg-type]
        stage,
        epoch=5,
        grant=lambda epoch: stage.log.append(f"epoch {epoch}"),
        clock=lambda: stage.now,
    )
    prepare(controller, stage)
    controller.launch()
    return controller, stage


def turn(controller: Controller, stage: Stage, seconds: float = 1.0, steps: int = 4) -> None:
    """Let time pass."""
    for _ in range(steps):
        controller.step()
        stage.now += seconds / steps


def running(
    max_restarts: int = 3, min_actors: int = 1, names: tuple[str, ...] = NAMES
) -> tuple[Controller, Stage]:
    """Return a controller whose workers all work."""
    controller, stage = make(max_restarts, min_actors, names)
    for name in names:
        stage.register(name)
    turn(controller, stage)
    assert {controller.workers[name].status for name in names} == {WorkerStatus.RUNNING}
    return controller, stage
