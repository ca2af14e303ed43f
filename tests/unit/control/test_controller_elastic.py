"""Workers whose places come and go: several trainers, lost places, scaling, pauses, a controller that takes over."""

from __future__ import annotations

import pytest

from hpc_marl.control.adoption import adopt, state_of
from hpc_marl.control.controller import EVALUATOR, TRAINER, Controller, Phase
from hpc_marl.control.controller_state import ControllerState
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.control.worker_view import WorkerView
from hpc_marl.errors import RpcTimeoutError
from tests.unit.control.stage import NAMES, Stage, make, running, turn

TWO_TRAINERS = (TRAINER, "trainer/1", "actor/0", "actor/1")
FOUR_ACTORS = (TRAINER, "actor/0", "actor/1", "actor/2", "actor/3")
LOST = "its job was preempted"


def actors(*indices: int) -> list[WorkerView]:
    return [WorkerView(f"actor/{index}", 3, 1) for index in indices]


# -- several trainers --------------------------------------------------------------------------------------------------


def test_trainers_restart_together_and_the_new_epoch_is_granted_first() -> None:
    controller, stage = running(names=TWO_TRAINERS)
    assert stage.log[0] == "epoch 5"
    stage.log.clear()
    stage.die("trainer/1")
    turn(controller, stage)
    assert stage.interrupted == [TRAINER]
    assert stage.log == [], "nobody is launched while the other still saves"
    stage.die(TRAINER, code=75)
    turn(controller, stage)
    assert stage.log == ["epoch 6", "trainer/0 life 1", "trainer/1 life 1"]
    assert controller.workers[TRAINER].restarts == 0 and controller.workers["trainer/1"].restarts == 1
    for name in (TRAINER, "trainer/1"):
        stage.register(name)
    turn(controller, stage)
    for name in (TRAINER, "trainer/1"):
        assert [kwargs["config"]["epoch"] for kwargs in stage.sent_to(name, "configure")] == [5, 6]
        assert controller.workers[name].status is WorkerStatus.RUNNING


def test_a_trainers_figures_stay_until_its_next_life_has_some() -> None:
    controller, stage = running()
    stage.metrics[TRAINER] = {"env_steps": 7}
    turn(controller, stage)
    stage.metrics.clear()
    stage.die(TRAINER)
    turn(controller, stage)
    stage.register(TRAINER)
    turn(controller, stage)
    assert controller.workers[TRAINER].metrics == {"env_steps": 7}
    stage.metrics[TRAINER] = {"env_steps": 5}
    turn(controller, stage)
    assert controller.workers[TRAINER].metrics == {"env_steps": 5}


def test_a_trainer_that_does_not_end_with_its_fellow_is_killed() -> None:
    controller, stage = running(names=TWO_TRAINERS)
    stage.die("trainer/1")
    turn(controller, stage, seconds=60, steps=60)
    assert stage.lives == {TRAINER: 1, "trainer/1": 1, "actor/0": 0, "actor/1": 0}
    assert controller.faults.epoch == 6


def test_a_trainer_that_was_done_before_its_fellow_died_takes_part_again() -> None:
    controller, stage = running(names=TWO_TRAINERS)
    stage.status["trainer/1"] = WorkerStatus.COMPLETED
    turn(controller, stage)
    assert controller.workers["trainer/1"].status is WorkerStatus.COMPLETED
    stage.die(TRAINER)
    turn(controller, stage)
    stage.die("trainer/1", code=0)
    turn(controller, stage)
    assert stage.log[-3:] == ["epoch 6", "trainer/0 life 1", "trainer/1 life 1"]
    for name in (TRAINER, "trainer/1"):
        stage.register(name)
    turn(controller, stage)
    assert controller.workers["trainer/1"].status is WorkerStatus.RUNNING


# -- places ------------------------------------------------------------------------------------------------------------


def test_a_lost_place_costs_no_restart() -> None:
    controller, stage = running(max_restarts=0)
    for _ in range(7):
        stage.die("actor/0", displaced=LOST)
        turn(controller, stage)
        stage.register("actor/0")
        turn(controller, stage)
    assert stage.lives["actor/0"] == 7 and controller.workers["actor/0"].restarts == 0
    assert controller.workers["actor/0"].status is WorkerStatus.RUNNING
    assert not any("actor/0" in text for text in controller.events), (
        "the launcher tells it once for the place"
    )


def test_an_actor_whose_place_is_away_does_not_count_until_it_is_back() -> None:
    controller, stage = running()
    stage.die("actor/1", displaced=LOST)
    stage.waiting["actor/1"] = LOST
    turn(controller, stage)
    assert stage.sent_to(TRAINER, "reconfigure") == [{"batches_per_update": 1, "gone": "actor/1.0"}]
    stage.appear("actor/1")
    turn(controller, stage)
    assert stage.sent_to(TRAINER, "reconfigure")[1:] == [{"batches_per_update": 2, "gone": ""}]


def test_silence_of_workers_whose_host_is_silent_too_is_no_loss() -> None:
    controller, stage = running()
    stage.silent_since["actor/0"] = stage.now
    stage.unreachable.add("actor/0")
    stage.now += 200.0
    turn(controller, stage)
    assert controller.workers["actor/0"].status is WorkerStatus.RUNNING and stage.lives["actor/0"] == 0
    stage.unreachable.clear()
    turn(controller, stage)
    assert stage.lives["actor/0"] == 1


def test_the_time_in_the_queue_and_of_a_host_that_starts_is_not_the_workers() -> None:
    controller, stage = make()
    stage.waiting["actor/1"] = "Resources"
    stage.unreachable.add("actor/0")
    stage.register(TRAINER)
    stage.now += 10_000.0
    turn(controller, stage)
    assert stage.lives["actor/0"] == stage.lives["actor/1"] == 0


def test_an_actor_without_hope_is_given_up_while_others_may_come() -> None:
    controller, stage = make(min_actors=2, names=FOUR_ACTORS)
    stage.hopeless_places["actor/3"] = "its job 7 was cancelled"
    turn(controller, stage)
    assert controller.workers["actor/3"].given_up and controller.step() is None
    stage.hopeless_places |= dict.fromkeys(("actor/1", "actor/2"), "its job 8 was cancelled")
    verdict = None
    for _ in range(3):
        verdict = verdict or controller.step()
    assert verdict is not None and verdict.status is WorkerStatus.ERROR
    assert "its job 8 was cancelled" in verdict.reason


def test_a_core_without_hope_ends_the_run() -> None:
    controller, stage = make()
    stage.hopeless_places[TRAINER] = "its job 1 was cancelled"
    verdict = controller.step()
    assert verdict is not None and verdict.exit_code == 1
    assert verdict.reason == "trainer/0: its job 1 was cancelled"


def test_a_worker_that_is_there_outlives_the_hope_for_its_place() -> None:
    controller, stage = running()
    stage.hopeless_places[TRAINER] = "its job 1 was cancelled"
    turn(controller, stage)
    assert controller.step() is None


def test_an_actor_that_waits_for_its_next_life_gets_none_once_training_is_complete() -> None:
    controller, stage = running()
    stage.die("actor/0", code=1)
    controller.workers["actor/0"].quick_ends = 3  # it has to wait before it is launched again
    controller.step()
    stage.status[TRAINER] = WorkerStatus.COMPLETED
    turn(controller, stage, seconds=20)
    assert controller.phase is Phase.EVALUATING and stage.lives["actor/0"] == 0
    assert stage.num_actor_releases == 1


# -- commands ----------------------------------------------------------------------------------------------------------


def test_scaling_up_and_down() -> None:
    controller, stage = running()
    assert controller.scale(actors(0, 1, 2)) == []
    assert stage.lives["actor/2"] == 0 and controller.num_actors == 3
    stage.register("actor/2")
    turn(controller, stage)
    assert stage.commands("actor/2") == ["configure", "start"]
    assert {"batches_per_update": 3, "gone": ""} in stage.sent_to(TRAINER, "reconfigure")

    assert controller.scale(actors(0)) == ["actor/1", "actor/2"]
    assert stage.commands("actor/1")[-1] == "exit"
    stage.die("actor/1", code=0)
    stage.die("actor/2", code=0)
    turn(controller, stage)
    gone = {kwargs["gone"] for kwargs in stage.sent_to(TRAINER, "reconfigure")}
    assert {"actor/1.0", "actor/2.0"} <= gone and controller.faults.restarts == 0

    controller.scale(actors(0, 1))
    turn(controller, stage)
    assert stage.lives["actor/1"] == 1
    assert stage.commands("actor/1").count("configure") == 1, "the life before is not taken for the new one"
    stage.register("actor/1")
    turn(controller, stage)
    assert controller.workers["actor/1"].status is WorkerStatus.RUNNING


def test_an_actor_that_is_not_there_yet_leaves_without_a_word() -> None:
    controller, stage = make()
    stage.register(TRAINER)
    stage.register("actor/0")
    turn(controller, stage)
    assert controller.scale(actors(0)) == ["actor/1"]
    assert "actor/1" not in stage.alive and stage.commands("actor/1") == []


def test_pause_and_resume_also_for_those_who_join_meanwhile() -> None:
    controller, stage = make()
    for name in (TRAINER, "actor/0"):
        stage.register(name)
    turn(controller, stage)
    controller.pause()
    stage.register("actor/1")
    turn(controller, stage)
    assert stage.commands("actor/0") == ["configure", "start", "pause"]
    assert stage.commands("actor/1") == ["configure"]
    controller.resume()
    turn(controller, stage)
    assert stage.commands("actor/0")[-1] == "start" and stage.commands("actor/1") == ["configure", "start"]
    assert {controller.workers[name].status for name in NAMES} == {WorkerStatus.RUNNING}


@pytest.mark.parametrize("command", ["configure", "start"])
def test_a_worker_that_does_not_answer_in_time_is_asked_again(command: str) -> None:
    controller, stage = make()
    stage.answers[("actor/0", command)] = RpcTimeoutError("no answer within 60 s")
    for name in NAMES:
        stage.register(name)
    turn(controller, stage)
    del stage.answers[("actor/0", command)]
    turn(controller, stage)
    assert controller.workers["actor/0"].status is WorkerStatus.RUNNING


# -- adoption ----------------------------------------------------------------------------------------------------------


def left_by(controller: Controller) -> ControllerState:
    return state_of(controller, "0" * 32, elapsed_s=100.0)


def adopting(left: ControllerState, before: Stage, granted: int = 0) -> tuple[Controller, Stage]:
    """Return a controller that takes over what is on another one's stage."""

    def prepare(controller: Controller, stage: Stage) -> None:
        for attribute in ("alive", "registered", "status", "configured"):
            setattr(stage, attribute, getattr(before, attribute))
        adopt(controller, left, granted)

    return make(prepare=prepare)


def test_a_run_that_trains_is_taken_over_without_a_word_to_those_who_work() -> None:
    first, stage = running()
    stage.die("actor/1", code=1)
    turn(first, stage)
    stage.register("actor/1")
    turn(first, stage)
    second, stage = adopting(left_by(first), stage)
    assert stage.lives == {TRAINER: 0, "actor/0": 0, "actor/1": 1} and stage.log[0] == "epoch 5"
    turn(second, stage)
    assert second.phase is Phase.TRAINING and stage.adopted == list(NAMES)
    assert {second.workers[name].status for name in NAMES} == {WorkerStatus.RUNNING}
    assert second.workers["actor/1"].restarts == 1
    assert [stage.commands(name) for name in NAMES] == [["status", "reconfigure"], ["status"], ["status"]]


def test_who_was_not_configured_before_the_change_is_configured_after_it() -> None:
    first, stage = make()
    stage.register(TRAINER)
    stage.register("actor/0")
    turn(first, stage)
    stage.register("actor/1")  # nobody has seen it yet
    second, stage = adopting(left_by(first), stage)
    turn(second, stage)
    assert stage.commands("actor/1") == ["status", "configure", "start"]
    assert {second.workers[name].status for name in NAMES} == {WorkerStatus.RUNNING}


def test_an_evaluation_is_taken_over_and_a_pause_too() -> None:
    first, stage = running()
    first.pause()
    left = left_by(first)
    second, stage = adopting(left, stage)
    turn(second, stage)
    assert second.is_paused and "start" not in stage.commands("actor/0")
    second.resume()
    turn(second, stage)
    stage.status[TRAINER] = WorkerStatus.COMPLETED
    turn(second, stage)
    assert second.phase is Phase.EVALUATING
    stage.register(EVALUATOR)
    turn(second, stage)

    third, stage = adopting(left_by(second), stage)
    assert stage.log == ["epoch 5", "evaluator/0 life 0"] and stage.num_actor_releases == 1
    turn(third, stage)
    assert stage.commands(EVALUATOR) == ["status"]
    stage.status[EVALUATOR] = WorkerStatus.COMPLETED
    verdict = third.step()
    assert verdict is not None and verdict.exit_code == 0


def test_a_training_that_ended_while_nobody_looked_goes_on_with_the_evaluation() -> None:
    first, stage = running()
    left = left_by(first)
    stage.status[TRAINER] = WorkerStatus.COMPLETED
    second, stage = adopting(left, stage)
    turn(second, stage)
    assert second.phase is Phase.EVALUATING


def test_an_epoch_that_was_granted_but_not_written_down_is_not_granted_again() -> None:
    first, stage = running()
    second, stage = adopting(left_by(first), stage, granted=8)
    assert stage.log[0] == "epoch 8"
    turn(second, stage)
    stage.die(TRAINER)
    turn(second, stage)
    assert "epoch 9" in stage.log


def test_actors_that_were_given_up_stay_so() -> None:
    first, stage = running(max_restarts=0)
    stage.die("actor/1", code=1)
    turn(first, stage)
    left = left_by(first)
    assert left.given_up == ["actor/1"]
    second, stage = adopting(left, stage)
    assert set(stage.lives) == {TRAINER, "actor/0"} and second.workers["actor/1"].given_up
