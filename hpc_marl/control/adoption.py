"""Taking a run over: what one controller leaves for the next, and how that one begins with it."""

from __future__ import annotations

from hpc_marl.control.controller import Controller, Phase
from hpc_marl.control.controller_state import ControllerState
from hpc_marl.control.worker_view import EVALUATOR, evaluator_view


def state_of(controller: Controller, run_uuid: str, elapsed_s: float) -> ControllerState:
    """Return what a successor of this controller must know."""
    views = controller.workers.values()
    return ControllerState(
        run_uuid=run_uuid,
        phase=controller.phase.value,
        epoch=controller.faults.epoch,
        actors=controller.num_actors,
        lives={worker.name: worker.life for worker in views},
        restarts={worker.name: worker.restarts for worker in views if worker.restarts},
        given_up=[worker.name for worker in views if worker.given_up],
        elapsed_s=elapsed_s,
        is_paused=controller.is_paused,
    )


def adopt(controller: Controller, left: ControllerState, granted: int = 0) -> None:
    """Have a controller that has launched nobody yet go on where the one before stopped.

    Its `launch` then takes over the lives that run, and asks each worker how far it is.

    Args:
        controller: the new one.
        left: what the one before wrote last.
        granted: the trainers' newest epoch, which the one before may have had no time to write down.
    """
    controller.phase, controller.is_paused = Phase(left.phase), left.is_paused
    controller.faults.epoch = max(left.epoch, granted)
    if controller.phase is Phase.EVALUATING:
        controller.workers[EVALUATOR] = evaluator_view()
    for name, worker in controller.workers.items():
        worker.adopted = name in left.lives
        worker.life, worker.restarts = left.lives.get(name, 0), left.restarts.get(name, 0)
        worker.given_up = name in left.given_up
        if controller.phase is Phase.EVALUATING and name != EVALUATOR:
            worker.drained = True
