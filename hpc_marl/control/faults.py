"""Faults: what becomes of workers that have ended, and of those whose place will not come.

ended --budget left--> relaunched, all trainers together under a new epoch
      --an actor, enough others--> the run goes on without it
      --else--> the verdict
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hpc_marl.config import ExperimentConfig, sample_trainer
from hpc_marl.control.interfaces import WorkerControlPanel
from hpc_marl.control.verdict import Verdict
from hpc_marl.control.worker_state import Event, FaultDecision, WorkerStatus, fault_decision
from hpc_marl.control.worker_view import Launcher, WorkerView


class Faults:
    """Decides and carries out what is done about workers that are gone.

    Args:
        config: the experiment.
        workers: of the run, by name; the controller's own mapping.
        panel: how to speak to them.
        launcher: how to start and end their processes.
        launch: begins a new life of a worker.
        feed: hands a fact to the state machine.
        say: takes sentences for the display.
        grant: makes a new epoch known before its trainers start.
        epoch: the trainers' right to write.
        clock: monotonic seconds.

    Attributes:
        epoch: the trainers' newest right to write.
        restarts: processes launched again.
        verdict: once the run cannot go on.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        workers: Mapping[str, WorkerView],
        panel: WorkerControlPanel,
        launcher: Launcher,
        *,
        launch: Callable[[WorkerView], None],
        feed: Callable[[WorkerView, Event], None],
        say: Callable[[str], None],
        grant: Callable[[int], None],
        epoch: int,
        clock: Callable[[], float],
    ) -> None:
        self.epoch, self.restarts = epoch, 0
        self.verdict: Verdict | None = None
        self._config, self._workers, self._panel, self._launcher = config, workers, panel, launcher
        self._launch, self._feed, self._say, self._grant = launch, feed, say, grant
        self._clock = clock

    def decide(self, worker: WorkerView) -> None:
        """Choose between another life, going on without the worker, and the end of the run."""
        if worker.relaunch_s is not None or not worker.is_wanted:
            return
        self._panel.disconnect(worker.name)
        worker.end_life()
        reason = in_short(worker.last_error)
        ended = f"{worker.name} {worker.status.value}{': ' + reason if reason else ''}"
        # Who was told to end, by a signal or by losing its place, has not failed.
        excused = bool(worker.displaced) or worker.status is WorkerStatus.INTERRUPTED
        decision = FaultDecision.RESPAWN
        if not excused:
            decision = fault_decision(
                worker.kind,
                restarts=worker.max_restarts - worker.restarts_left,
                max_restarts=worker.max_restarts,
                live_actors=self._num_live_actors(),
                min_actors=self._config.actors.min_actors,
            )
        if decision is FaultDecision.RESPAWN:
            worker.schedule_relaunch(self._clock(), displaced=excused)
            if not worker.displaced:  # a lost place is told once, not for each of its workers
                self._say(f"{ended}; it is started again")
            self._restart_fellows(worker)
        elif decision is FaultDecision.CONTINUE_WITHOUT:
            self._say(f"{ended}; training goes on without it")
            self._feed(worker, Event.GIVEN_UP)
            self._require_actors()
        else:
            self.verdict = Verdict(WorkerStatus.ERROR, f"{ended}; the run cannot go on without it")

    def _restart_fellows(self, worker: WorkerView) -> None:
        """Trainers share every update: where one ends, all go on together from the last checkpoint."""
        if worker.kind != "trainer":
            return
        for fellow in self._trainers():
            if fellow.relaunch_s is not None:
                continue
            self._launcher.interrupt(fellow.name)
            fellow.last_error = f"restarts with {worker.name}"
            if fellow.status is WorkerStatus.COMPLETED:
                # A little earlier than the others: that counts no more.
                self._panel.disconnect(fellow.name)
                fellow.end_life()
                fellow.schedule_relaunch(self._clock(), displaced=True)
            else:
                self._feed(fellow, Event.PROCESS_INTERRUPTED)

    def relaunch_due(self) -> None:
        """Launch again whoever it is time for."""
        trainers = self._trainers()
        for worker in self._workers.values():
            is_due = worker.is_wanted and worker.relaunch_s is not None and self.verdict is None
            if not is_due or not self._may_relaunch(worker):
                continue
            if worker.kind != "trainer":
                self._relaunch(worker)
            elif all(self._may_relaunch(trainer) for trainer in trainers):
                self.epoch += 1
                self._grant(self.epoch)
                for trainer in trainers:
                    self._relaunch(trainer)

    def _may_relaunch(self, worker: WorkerView) -> bool:
        """Whether it is time to, and the process before is gone."""
        now = self._clock()
        if worker.relaunch_s is None or now < worker.relaunch_s:
            return False
        if self._launcher.is_alive(worker.name):
            if now < worker.relaunch_s + self._config.control.stop_timeout_s:
                return False
            self._launcher.kill(worker.name)
        return True

    def _relaunch(self, worker: WorkerView) -> None:
        self.restarts += 1
        worker.last_error = worker.displaced = ""
        self._launch(worker)
        self._feed(worker, Event.RESPAWNED)

    def give_up_hopeless(self) -> None:
        """See who waits for a place that will not come."""
        if self.verdict is not None:
            return
        for worker in self._workers.values():
            if (
                not worker.is_wanted
                or worker.incarnation
                or not (why := self._launcher.hopeless(worker.name))
            ):
                continue
            if worker.kind == "actor" and self._num_possible_actors() >= self._config.actors.min_actors:
                worker.given_up = True
                self._say(f"{worker.name}: {why}; training goes on without it")
                self._require_actors()
            else:
                self.verdict = Verdict(WorkerStatus.ERROR, f"{worker.name}: {why}")

    def _require_actors(self) -> None:
        """End the run where a trainer has nobody left to learn from: all others would wait for it for ever."""
        actors = [
            worker.index for worker in self._workers.values() if worker.kind == "actor" and worker.is_wanted
        ]
        for trainer in self._trainers():
            if not any(sample_trainer(self._config, index) == trainer.name for index in actors):
                self.verdict = Verdict(WorkerStatus.ERROR, f"{trainer.name} has no actor left to learn from")

    def _num_live_actors(self) -> int:
        return sum(worker.is_live for worker in self._workers.values() if worker.kind == "actor")

    def _num_possible_actors(self) -> int:
        """Return how many work, or may do so once their places are there."""
        actors = [worker for worker in self._workers.values() if worker.kind == "actor" and worker.is_wanted]
        return sum(bool(actor.incarnation) or not self._launcher.hopeless(actor.name) for actor in actors)

    def _trainers(self) -> list[WorkerView]:
        return [worker for worker in self._workers.values() if worker.kind == "trainer"]


def in_short(error: str) -> str:
    """Return the last line of a traceback: the whole of it is in the worker's log, and in `hpc-marl logs`."""
    lines = [line for line in error.strip().splitlines() if line.strip()]
    return f"{lines[-1].strip()} (hpc-marl logs shows the traceback)" if len(lines) > 1 else error.strip()
