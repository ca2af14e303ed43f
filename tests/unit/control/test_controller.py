"""The controller's decisions, with workers, clock and processes that the test plays."""

from __future__ import annotations

import itertools

import pytest

from hpc_marl.control.controller import EVALUATOR, TRAINER, Phase
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.errors import RemoteError
from tests.unit.control.stage import NAMES, make, running, turn


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
    assert controller.phase is Phase.TRAINING and controller.faults.restarts == 1
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


def test_a_trainer_whose_settings_are_wrong_is_not_started_again() -> None:
    controller, stage = running(max_restarts=1000)
    stage.errors[TRAINER] = "Traceback ...\nConfigError: images are seen; use policy=nature_cnn"
    stage.fail_for_good.add(TRAINER)
    stage.status[TRAINER] = WorkerStatus.ERROR
    verdict = controller.step()
    assert verdict is not None and verdict.status is WorkerStatus.ERROR
    assert TRAINER in verdict.reason and "use policy=nature_cnn" in verdict.reason
    assert stage.lives[TRAINER] == 0


def test_an_actor_whose_settings_are_wrong_is_given_up_while_others_are_enough() -> None:
    controller, stage = running(max_restarts=1000)
    for index in (0, 1):
        stage.errors[f"actor/{index}"] = "Traceback ...\nConfigError: no such environment"
        stage.fail_for_good.add(f"actor/{index}")
    stage.status["actor/1"] = WorkerStatus.ERROR
    assert controller.step() is None and controller.workers["actor/1"].given_up
    stage.status["actor/0"] = WorkerStatus.ERROR
    verdict = controller.step()
    assert verdict is not None and "actor/0" in verdict.reason and "no such environment" in verdict.reason
    assert stage.lives["actor/0"] == stage.lives["actor/1"] == 0


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
    before = controller.faults.restarts
    stage.now += 200.0
    turn(controller, stage)
    assert controller.faults.restarts == before + 1 and stage.lives["actor/0"] == 1


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
