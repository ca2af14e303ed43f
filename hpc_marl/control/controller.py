"""The controller: connects to workers as they come up, configures, starts, watches, replaces and stops them.

    launch -> register -> configure -> (quorum) start -> heartbeats ... trainer COMPLETED -> stop -> evaluate -> verdict
                 ^                                            |
                 +------ relaunch <- fault_decision <- exit, silence, hang, error

`step()` never blocks and is called a few times a second; all waiting is the caller's. Everything that is decided is
decided by the pure machine in `worker_state`; this module only feeds it facts and carries out its actions.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from hpc_marl.config import ExperimentConfig, assignment
from hpc_marl.control.worker_base import WorkerControlPanel
from hpc_marl.control.worker_state import (
    Action,
    Event,
    FaultDecision,
    WorkerStatus,
    exit_event,
    fault_decision,
    heartbeat_event,
    transition,
)
from hpc_marl.control.worker_view import Launcher, WorkerView
from hpc_marl.errors import HpcMarlError

_log = logging.getLogger(__name__)

TRAINER = "trainer/0"
EVALUATOR = "evaluator/0"
_REFRESH_INTERVAL_S = 0.2  # listing the names of 1000 workers takes a tenth of a second
_ENDED = (WorkerStatus.COMPLETED, WorkerStatus.INTERRUPTED, WorkerStatus.ERROR, WorkerStatus.LOST)


class Phase(str, Enum):
    """Where the run stands."""

    STARTING = "starting"
    TRAINING = "training"
    EVALUATING = "evaluating"
    FINISHED = "finished"


@dataclass(frozen=True)
class Verdict:
    """How a run ended.

    Attributes:
        status: COMPLETED, INTERRUPTED or ERROR.
        reason: one sentence for the person who started it.
        exit_code: 0, 130 (interrupted) or 1.
    """

    status: WorkerStatus
    reason: str

    @property
    def exit_code(self) -> int:
        """The process's exit code."""
        return {WorkerStatus.COMPLETED: 0, WorkerStatus.INTERRUPTED: 130}.get(self.status, 1)


class Controller:
    """Drives the workers of one run.

    Args:
        config: the experiment.
        workers: one view of every worker that trains, not yet launched.
        panel: how to speak to them.
        launcher: how to start and end their processes.
        epoch: the trainer's right to write in its first life; grows with every further one.
        clock: monotonic seconds.

    Attributes:
        workers: what is known of every worker, by name.
        phase: where the run stands.
        restarts: processes launched again.
        events: sentences about what happened, for the display; the oldest are forgotten.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        workers: Iterable[WorkerView],
        panel: WorkerControlPanel,
        launcher: Launcher,
        *,
        epoch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.workers = {worker.name: worker for worker in workers}
        self.phase = Phase.STARTING
        self.restarts = 0
        self.events: deque[str] = deque(maxlen=1000)
        self._config, self._panel, self._launcher, self._clock = config, panel, launcher, clock
        self._epoch = epoch
        self._verdict: Verdict | None = None
        self._next_keepalive_s = 0.0
        self._next_refresh_s = 0.0
        self._actions: dict[Action, Callable[[WorkerView], None]] = {
            Action.SEND_CONFIGURE: self._send_configure,
            Action.SEND_START: self._mark_configured,
            Action.END_PROCESS: self._end_process,
            Action.DECIDE_FAULT: self._decide_fault,
            Action.CHECK_RUN: self._check_run,
            Action.FORGET: self._forget,
        }

    def launch(self) -> None:
        """Launch every worker."""
        for worker in self.workers.values():
            self._launch(worker)

    def step(self) -> Verdict | None:
        """Take in what happened and do what is due; return the verdict once the run is over."""
        self._take_registrations()
        self._take_heartbeats()  # before exits: a last heartbeat says why
        self._take_exits()
        self._take_replies()
        self._relaunch_due()
        self._start_due()
        self._keep_alive()
        return self._verdict

    def stop(self, verdict: Verdict | None = None) -> None:
        """Ask every worker to exit, producers first, and kill those that do not in time.

        The trainer writes a checkpoint on its way out. Blocks up to two stop timeouts.
        """
        self.phase = Phase.FINISHED
        if verdict is not None:
            self._verdict = verdict
        last = [name for name in self.workers if name == TRAINER]
        first = [name for name in self.workers if name not in last]
        for names in (first, last):
            self._exit_and_wait(names)

    # ---- facts ----------------------------------------------------------------------------------------------------

    def _feed(self, worker: WorkerView, event: Event) -> None:
        """Hand a fact to the state machine and carry out its actions."""
        before = worker.status
        worker.status, actions = transition(worker.status, event)
        if worker.status is not before:
            _log.info("%s: %s -> %s (%s)", worker.name, before.value, worker.status.value, event.value)
        for action in actions:
            self._actions[action](worker)

    def _take_exits(self) -> None:
        for name, code in self._launcher.exits():
            if (worker := self.workers.get(name)) is not None:
                if code:
                    worker.last_error = worker.last_error or _exit_text(code)
                self._feed(worker, exit_event(code))

    def _take_registrations(self) -> None:
        """Connect to workers whose name entry is new; only while somebody is expected.

        A worker that was killed before it was connected leaves an entry behind that looks new; so this goes on until
        everybody has answered.
        """
        if all(worker.configured or worker.given_up for worker in self.workers.values()):
            return
        if self._clock() < self._next_refresh_s:
            return
        self._next_refresh_s = self._clock() + _REFRESH_INTERVAL_S
        for name, incarnation in self._panel.refresh().items():
            worker = self.workers.get(name)
            if worker is None or worker.relaunch_s is not None or worker.given_up:
                continue
            if incarnation != worker.incarnation:
                worker.incarnation = incarnation
                self._feed(worker, Event.REGISTERED)
        for worker in self.workers.values():
            waited = self._clock() - worker.launched_s
            expected = (
                worker.status is WorkerStatus.UNKNOWN and worker.relaunch_s is None and not worker.incarnation
            )
            if expected and waited > self._config.control.connect_timeout_s:
                worker.last_error = f"did not register within {waited:.0f} s"
                self._feed(worker, Event.HEARTBEAT_LOST)

    def _take_heartbeats(self) -> None:
        control = self._config.control
        for name, beat in self._panel.heartbeats().items():
            worker = self.workers.get(name)
            if worker is None or beat.incarnation != worker.incarnation or not worker.incarnation:
                continue
            worker.metrics = beat.metrics
            if beat.error:
                worker.last_error = beat.error
            self._feed(worker, heartbeat_event(beat.status))
            if beat.age_s > control.heartbeat_timeout_s:
                worker.last_error = f"silent for {beat.age_s:.0f} s"
                self._feed(worker, Event.HEARTBEAT_LOST)
            elif worker.is_live and beat.progress_age_s > control.hang_timeout_s:
                worker.last_error = f"its loop stood still for {beat.progress_age_s:.0f} s"
                self._feed(worker, Event.HUNG)

    def _take_replies(self) -> None:
        for worker in self.workers.values():
            if worker.pending is None or not worker.pending[1].done():
                continue
            (command, reply), worker.pending = worker.pending, None
            try:
                reply.result(timeout=0)
            except HpcMarlError as error:
                # The process's exit or its silence says whether it lives; what it answered says why it failed.
                worker.last_error = str(error)
                self._say(f"{worker.name} did not {command}: {error}")
                continue
            self._feed(worker, Event.CONFIGURED if command == "configure" else Event.STARTED)

    # ---- actions --------------------------------------------------------------------------------------------------

    def _launch(self, worker: WorkerView) -> None:
        worker.begin_life(self._clock())
        self._launcher.launch(worker.name, worker.life, worker.num_threads)

    def _end_process(self, worker: WorkerView) -> None:
        # One that said itself that it ends is still closing files; it has until it is launched again.
        if worker.status not in (WorkerStatus.ERROR, WorkerStatus.INTERRUPTED):
            self._launcher.kill(worker.name)

    def _send_configure(self, worker: WorkerView) -> None:
        config = assignment(
            self._config, worker.name, epoch=self._epoch, life=worker.life, num_actors=self._num_actors()
        )
        self._send(worker, "configure", config=config)

    def _mark_configured(self, worker: WorkerView) -> None:
        worker.configured = True

    def _send(self, worker: WorkerView, command: str, **kwargs: object) -> None:
        timeout = self._config.control.request_timeout_s
        worker.pending = (command, self._panel.async_request(worker.name, command, timeout=timeout, **kwargs))

    def _start_due(self) -> None:
        """Start configured workers; nobody before the quorum is there."""
        if self.phase is Phase.STARTING:
            actors = [worker for worker in self.workers.values() if worker.kind == "actor"]
            needed = [worker for worker in self.workers.values() if worker.kind != "actor"]
            configured = sum(worker.configured for worker in actors)
            if not all(worker.configured for worker in needed) or configured < self._config.actors.min_actors:
                return
            self.phase = Phase.TRAINING
            self._say(f"training starts with {configured} of {len(actors)} actors")
        for worker in self.workers.values():
            if worker.configured and not worker.started and worker.pending is None and worker.is_live:
                worker.started = True
                self._send(worker, "start")

    def _decide_fault(self, worker: WorkerView) -> None:
        if self.phase is Phase.FINISHED:
            self._say(f"{worker.name} {worker.status.value} while stopping: {worker.last_error}")
            return
        if worker.relaunch_s is not None:
            return
        self._panel.disconnect(worker.name)
        worker.end_life()
        decision = fault_decision(
            worker.kind,
            restarts=worker.max_restarts - worker.restarts_left,
            max_restarts=worker.max_restarts,
            live_actors=sum(other.is_live for other in self.workers.values() if other.kind == "actor"),
            min_actors=self._config.actors.min_actors,
        )
        ended = f"{worker.name} {worker.status.value}{': ' + worker.last_error if worker.last_error else ''}"
        if decision is FaultDecision.RESPAWN:
            worker.schedule_relaunch(self._clock())
            self._say(f"{ended}; it is started again")
        elif decision is FaultDecision.CONTINUE_WITHOUT:
            self._say(f"{ended}; training goes on without it")
            self._feed(worker, Event.GIVEN_UP)
        else:
            self._verdict = Verdict(WorkerStatus.ERROR, f"{ended}; the run cannot go on without it")

    def _relaunch_due(self) -> None:
        now = self._clock()
        for worker in self.workers.values():
            if worker.relaunch_s is None or now < worker.relaunch_s or self._verdict is not None:
                continue
            if self._launcher.is_alive(worker.name):
                if now < worker.relaunch_s + self._config.control.stop_timeout_s:
                    continue
                self._launcher.kill(worker.name)
            self.restarts += 1
            worker.last_error = ""
            if worker.name == TRAINER:
                self._epoch += 1
            self._launch(worker)
            self._feed(worker, Event.RESPAWNED)

    def _forget(self, worker: WorkerView) -> None:
        worker.given_up = True
        if worker.kind == "actor" and self.workers[TRAINER].is_live:
            batches = (
                self._config.trainer.batches_per_update or self._num_actors() * self._config.actors.num_groups
            )
            self._panel.async_request(
                TRAINER, "reconfigure", batches_per_update=batches, gone=worker.last_incarnation
            )

    def _num_actors(self) -> int:
        return sum(worker.kind == "actor" and not worker.given_up for worker in self.workers.values())

    def _check_run(self, worker: WorkerView) -> None:
        """The trainer's end ends training; the evaluator's end ends the run."""
        if worker.name == TRAINER and self.phase is Phase.TRAINING:
            self._evaluate()
        elif worker.name == EVALUATOR:
            self._verdict = Verdict(WorkerStatus.COMPLETED, "training and evaluation are complete")

    def _evaluate(self) -> None:
        self._say("training is complete; evaluating")
        self.stop()
        self.phase = Phase.EVALUATING
        evaluator = WorkerView(EVALUATOR, max_restarts=2, num_threads=1)
        self.workers[EVALUATOR] = evaluator
        self._launch(evaluator)

    def _exit_and_wait(self, names: list[str]) -> None:
        control = self._config.control
        connected = [
            name for name in names if self.workers[name].incarnation and self._launcher.is_alive(name)
        ]
        if connected:
            self._panel.group_request("exit", worker_names=connected, timeout=control.stop_timeout_s)
        deadline = self._clock() + control.stop_timeout_s
        while any(self._launcher.is_alive(name) for name in connected) and self._clock() < deadline:
            self._take_heartbeats()
            time.sleep(0.02)
        self._take_exits()
        for name in names:
            if self._launcher.is_alive(name):
                if name in connected:
                    self._say(f"{name} did not exit within {control.stop_timeout_s:g} s and was killed")
                self._launcher.kill(name)
            self._panel.disconnect(name)

    def _keep_alive(self) -> None:
        """Speak to every worker now and then: they end themselves when no controller does."""
        if self._clock() < self._next_keepalive_s:
            return
        self._next_keepalive_s = self._clock() + self._config.control.orphan_grace_s / 4
        for worker in self.workers.values():
            if worker.incarnation and worker.pending is None and worker.status not in _ENDED:
                self._panel.async_request(worker.name, "ping", timeout=self._config.control.request_timeout_s)

    def _say(self, text: str) -> None:
        _log.info("%s", text)
        self.events.append(text)


def _exit_text(code: int) -> str:
    if code == -9:
        return "killed by signal 9 (SIGKILL); if nobody did, the system ran out of memory"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
