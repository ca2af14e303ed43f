"""The controller's decisions, with workers, clock and processes that the test plays."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from hpc_marl.config import ActorGroupConfig, ExperimentConfig
from hpc_marl.control.controller import EVALUATOR, TRAINER, Controller, Phase
from hpc_marl.control.interfaces import Heartbeat
from hpc_marl.control.worker_base import Response
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.control.worker_view import WorkerView
from hpc_marl.errors import RemoteError, RpcError


class Reply:
    """An answer that is there at once."""

    def __init__(self, error: RpcError | None = None) -> None:
        self.error = error

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> str:
        if self.error is not None:
            raise self.error
        return "OK"


class Stage:
    """Plays all workers: panel, launcher and clock in one."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lives: dict[str, int] = {}
        self.alive: set[str] = set()
        self.registered: dict[str, str] = {}
        self.given_up: set[str] = set()
        self.status: dict[str, WorkerStatus] = {}
        self.silent_since: dict[str, float] = {}
        self.stuck_since: dict[str, float] = {}
        self.sent: list[tuple[str, str, dict[str, Any]]] = []
        self.ended: list[tuple[str, int]] = []
        self.answers: dict[tuple[str, str], RpcError] = {}
        self.errors: dict[str, str] = {}

    # the launcher
    def launch(self, worker_name: str, life: int, num_threads: int) -> None:
        self.lives[worker_name] = life
        self.alive.add(worker_name)

    def exits(self) -> list[tuple[str, int]]:
        ended, self.ended = self.ended, []
        return ended

    def is_alive(self, worker_name: str) -> bool:
        return worker_name in self.alive

    def kill(self, worker_name: str) -> None:
        self.alive.discard(worker_name)

    # the panel
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
            beats[name] = Heartbeat(name, incarnation, status, "poll", 1, {}, error, silent, stuck)
        return beats

    def async_request(
        self, worker_name: str, command: str, /, timeout: float | None = None, **kwargs: Any
    ) -> Reply:
        self.sent.append((worker_name, command, kwargs))
        error = self.answers.get((worker_name, command))
        if command == "start" and error is None:
            self.status[worker_name] = WorkerStatus.RUNNING
        return Reply(error)

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

    def die(self, name: str, code: int = -9) -> None:
        self.alive.discard(name)
        self.ended.append((name, code))

    def commands(self, name: str) -> list[str]:
        return [command for worker, command, _ in self.sent if worker == name and command != "ping"]


NAMES = (TRAINER, "actor/0", "actor/1")


def make(max_restarts: int = 3, min_actors: int = 1) -> tuple[Controller, Stage]:
    stage = Stage()
    config = ExperimentConfig(trial_name="t", actors=ActorGroupConfig(count=2, min_actors=min_actors))
    views = [WorkerView(name, max_restarts, 1) for name in NAMES]
    controller = Controller(config, views, stage, stage, epoch=5, clock=lambda: stage.now)  # type: ignore[arg-type]
    controller.launch()
    return controller, stage


def turn(controller: Controller, stage: Stage, seconds: float = 1.0, steps: int = 4) -> None:
    for _ in range(steps):
        controller.step()
        stage.now += seconds / steps


def running(**options: int) -> tuple[Controller, Stage]:
    controller, stage = make(**options)
    for name in NAMES:
        stage.register(name)
    turn(controller, stage)
    assert {controller.workers[name].status for name in NAMES} == {WorkerStatus.RUNNING}
    return controller, stage


def test_nobody_starts_before_the_quorum_and_late_actors_join() -> None:
    controller, stage = make()
    stage.register("actor/0")
    turn(controller, stage)
    assert stage.commands("actor/0") == ["configure"] and controller.phase is Phase.STARTING
    stage.register(TRAINER)
    turn(controller, stage)
    assert stage.commands("actor/0") == stage.commands(TRAINER) == ["configure", "start"]
    assert controller.phase is Phase.TRAINING
    stage.register("actor/1")
    turn(controller, stage)
    assert stage.commands("actor/1") == ["configure", "start"]


def test_each_worker_gets_its_own_config_only() -> None:
    _, stage = running()
    configs = {name: kwargs["config"] for name, command, kwargs in stage.sent if command == "configure"}
    assert configs["actor/1"]["index"] == 1 and "learning_rate" not in configs["actor/1"]
    assert configs[TRAINER]["epoch"] == 5 and "num_envs" not in configs[TRAINER]


def test_a_killed_actor_is_started_again_while_training_goes_on() -> None:
    controller, stage = running()
    stage.die("actor/0")
    turn(controller, stage)
    assert controller.workers["actor/0"].status is WorkerStatus.UNKNOWN and stage.lives["actor/0"] == 1
    assert controller.phase is Phase.TRAINING and controller.restarts == 1
    stage.register("actor/0")
    turn(controller, stage)
    assert controller.workers["actor/0"].status is WorkerStatus.RUNNING
    assert stage.commands("actor/0") == ["configure", "start"] * 2


def test_a_killed_trainer_gets_a_higher_epoch() -> None:
    controller, stage = running()
    stage.die(TRAINER)
    turn(controller, stage)
    stage.register(TRAINER)
    turn(controller, stage)
    epochs = [
        kwargs["config"]["epoch"]
        for name, command, kwargs in stage.sent
        if (name, command) == (TRAINER, "configure")
    ]
    assert epochs == [5, 6]


def test_an_actor_that_dies_again_and_again_is_given_up_and_the_trainer_is_told() -> None:
    controller, stage = running(max_restarts=1)
    for _ in range(2):
        stage.die("actor/1")
        turn(controller, stage, seconds=20)
        if stage.lives["actor/1"] == 1 and not controller.workers["actor/1"].given_up:
            stage.register("actor/1")
            turn(controller, stage, seconds=20)
    assert controller.workers["actor/1"].given_up
    assert (TRAINER, "reconfigure", {"batches_per_update": 1, "gone": "actor/1.1"}) in stage.sent
    assert controller.step() is None


def test_the_run_fails_when_too_few_actors_are_left() -> None:
    controller, stage = running(max_restarts=0, min_actors=2)
    stage.errors["actor/1"] = "Traceback ... ValueError: no such level"
    stage.die("actor/1", code=1)
    verdict = controller.step()
    assert verdict is not None and verdict.status is WorkerStatus.ERROR and verdict.exit_code == 1
    assert "actor/1" in verdict.reason and "no such level" in verdict.reason


def test_quick_deaths_are_started_again_ever_later_and_then_not_at_all() -> None:
    controller, stage = running(max_restarts=1000)
    launches = []
    for _ in range(60):
        if stage.is_alive("actor/0"):
            launches.append(stage.now)
            stage.die("actor/0", code=1)
        turn(controller, stage, seconds=0.5)
    gaps = [later - earlier for earlier, later in itertools.pairwise(launches)]
    assert gaps == sorted(gaps) and len(launches) <= 6
    assert controller.workers["actor/0"].given_up


@pytest.mark.parametrize("fault", ["silent_since", "stuck_since"])
def test_silent_and_stuck_workers_are_killed_and_replaced(fault: str) -> None:
    controller, stage = running()
    getattr(stage, fault)["actor/0"] = stage.now
    before = controller.restarts
    stage.now += 200.0
    turn(controller, stage)
    assert controller.restarts == before + 1 and stage.lives["actor/0"] == 1


def test_a_worker_that_never_registers_is_replaced() -> None:
    controller, stage = make()
    stage.register(TRAINER)
    stage.register("actor/0")
    turn(controller, stage)
    stage.now += 500.0
    turn(controller, stage)
    assert stage.lives["actor/1"] == 1 and controller.phase is Phase.TRAINING


def test_a_refused_config_is_told_with_its_reason() -> None:
    controller, stage = make(max_restarts=0)
    stage.answers[(TRAINER, "configure")] = RemoteError("hidden_sizes must be > 0", "ConfigError")
    for name in NAMES:
        stage.register(name)
    turn(controller, stage)
    stage.die(TRAINER, code=1)
    verdict = controller.step()
    assert verdict is not None and "hidden_sizes must be > 0" in verdict.reason


def test_training_ends_with_an_evaluation_and_a_verdict() -> None:
    controller, stage = running()
    stage.status[TRAINER] = WorkerStatus.COMPLETED
    turn(controller, stage)
    assert controller.phase is Phase.EVALUATING and stage.alive == {EVALUATOR}
    order = [name for name, command, _ in stage.sent if command == "exit"]
    assert order[-1] == TRAINER  # producers end first
    stage.register(EVALUATOR)
    turn(controller, stage)
    stage.status[EVALUATOR] = WorkerStatus.COMPLETED
    verdict = controller.step()
    assert verdict is not None and verdict.exit_code == 0


def test_stop_ends_everybody_also_those_not_connected_yet() -> None:
    controller, stage = make()
    stage.register("actor/0")
    turn(controller, stage)
    controller.stop()
    assert not stage.alive and "exit" in stage.commands("actor/0")


def test_a_kept_alive_worker_hears_from_the_controller() -> None:
    controller, stage = running()
    stage.now += 30.0
    turn(controller, stage)
    pinged = {name for name, command, _ in stage.sent if command == "ping"}
    assert pinged == set(NAMES)
