"""The controller: connects to workers as they come up, configures, starts, watches, replaces and stops them.

    launch -> register -> configure -> (quorum) start -> heartbeats ... trainer COMPLETED -> stop -> evaluate -> verdict
                 ^                                            |
                 +------ relaunch <- fault_decision <- exit, silence, hang, error, place lost

`step()` never blocks and is called a few times a second; all waiting is the caller's. Everything that is decided is
decided by the pure machine in `worker_state`; this module only feeds it facts and carries out its actions. One that
takes a run over (`adoption`) begins with what the one before left, and asks the workers for the rest.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from hpc_marl.config import ExperimentConfig, assignment
from hpc_marl.control.faults import Faults, in_short
from hpc_marl.control.interfaces import Heartbeat
from hpc_marl.control.membership import Membership
from hpc_marl.control.roll_call import RollCall
from hpc_marl.control.verdict import Phase, Verdict
from hpc_marl.control.worker_base import WorkerControlPanel
from hpc_marl.control.worker_state import (
    Action,
    Event,
    WorkerStatus,
    exit_event,
    heartbeat_event,
    transition,
)
from hpc_marl.control.worker_view import (
    EVALUATOR,
    TRAINER,
    Launcher,
    ProcessExit,
    WorkerView,
    evaluator_view,
)
from hpc_marl.errors import HpcMarlError, RpcTimeoutError

__all__ = ["EVALUATOR", "TRAINER", "Controller", "Phase", "Verdict"]

_log = logging.getLogger(__name__)


class Controller:
    """Drives the workers of one run.

    Args:
        config: the experiment.
        workers: one view of every worker that trains, not yet launched.
        panel: how to speak to them.
        launcher: how to start and end their processes.
        epoch: the trainers' right to write in their first life; grows with every further one.
        grant: makes a new epoch known before its trainers start, which ends the rights of the one before.
        clock: monotonic seconds.

    Attributes:
        workers: what is known of every worker, by name.
        phase: where the run stands.
        is_paused: whether the user has paused the run.
        num_actors: actors that are wanted.
        faults: what was done about workers that were gone: epoch, restarts.
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
        grant: Callable[[int], None] = lambda epoch: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.workers = {worker.name: worker for worker in workers}
        self.phase = Phase.STARTING
        self.is_paused = False
        self.events: deque[str] = deque(maxlen=1000)
        self._config, self._panel, self._launcher, self._clock = config, panel, launcher, clock
        self._grant = grant
        self.num_actors = sum(worker.kind == "actor" for worker in self.workers.values())
        self._membership = Membership(config, panel, launcher)
        self.faults = Faults(
            config,
            self.workers,
            panel,
            launcher,
            launch=self._launch,
            feed=self._feed,
            say=self._say,
            grant=grant,
            epoch=epoch,
            clock=clock,
        )
        self._verdict: Verdict | None = None
        self._roll_call = RollCall(panel, launcher, config.control.connect_timeout_s, clock)
        self._actions: dict[Action, Callable[[WorkerView], None]] = {
            Action.SEND_CONFIGURE: self._send_configure,
            Action.SEND_START: WorkerView.take_configured,
            Action.END_PROCESS: self._end_process,
            Action.DECIDE_FAULT: self._decide_fault,
            Action.CHECK_RUN: self._check_run,
            Action.FORGET: WorkerView.give_up,
        }

    def launch(self) -> None:
        """Launch every worker, or take over those that another controller has launched."""
        self._grant(self.faults.epoch)
        if self.phase is Phase.EVALUATING:
            self._launcher.release_actors()
        for worker in list(self.workers.values()):
            if worker.is_wanted:
                adopted = worker.adopted
                self._launch(worker)
                worker.adopted = adopted
                if adopted:
                    self._launcher.adopt(worker.name)

    def step(self) -> Verdict | None:
        """Take in what happened and do what is due; return the verdict once the run is over."""
        self._observe()  # before exits: a last heartbeat says why
        self._take_exits()
        self._take_replies()
        self.faults.relaunch_due()
        self._start_due()
        self._membership.update(self.workers)
        self.faults.give_up_hopeless()
        return self._verdict or self.faults.verdict

    def pause(self) -> None:
        """Have everybody stand still after what they are at; `resume` goes on."""
        self.is_paused = True
        self._tell_started("pause")

    def resume(self) -> None:
        """Go on after `pause`."""
        self.is_paused = False
        self._tell_started("start")

    def scale(self, actors: Iterable[WorkerView]) -> list[str]:
        """Have exactly these actors take part: those that are new start, others leave after what they are at.

        Args:
            actors: a view of each, not yet launched; of one that takes part already it is ignored.

        Returns:
            the actors that leave.
        """
        wanted = {actor.name: actor for actor in actors}
        leaving = [
            w for w in self.workers.values() if w.kind == "actor" and w.is_wanted and w.name not in wanted
        ]
        for worker in leaving:
            worker.drained = True
            if worker.incarnation:
                self._tell(worker, "exit")
            else:
                self._launcher.kill(worker.name)
        for name, fresh in wanted.items():
            known = self.workers.get(name)
            if known is not None and known.is_wanted:
                continue
            if known is not None:
                fresh.life = known.life + 1
                self._panel.disconnect(name)  # the life before may still be closing files
            self.workers[name] = fresh
            self._launch(fresh)
        self.num_actors = len(wanted)
        self._say(f"{len(wanted)} actors are wanted now")
        return [worker.name for worker in leaving]

    def stop(self, verdict: Verdict | None = None) -> None:
        """Ask every worker to exit, producers first, and kill those that do not in time.

        The trainer writes a checkpoint on its way out. Blocks up to two stop timeouts.
        """
        self.phase = Phase.FINISHED
        if verdict is not None:
            self._verdict = verdict
        last = [name for name in self.workers if self.workers[name].kind == "trainer"]
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

    def _observe(self) -> None:
        """Take in names and heartbeats; names are looked for only while somebody is awaited."""
        registered = self._roll_call.registered(self.workers.values())
        beats = self._panel.heartbeats()
        self._launcher.step(registered, beats)
        self._take_registrations(registered)
        self._take_heartbeats(beats)

    def _take_exits(self) -> None:
        for exit_ in self._launcher.exits():
            if (worker := self.workers.get(exit_.worker_name)) is not None:
                self._take_exit(worker, exit_)

    def _take_exit(self, worker: WorkerView, exit_: ProcessExit) -> None:
        worker.displaced = exit_.displaced
        if exit_.code:
            worker.last_error = exit_.displaced or worker.last_error or exit_.text
        self._feed(worker, exit_event(exit_.code))

    def _take_registrations(self, registered: Mapping[str, str]) -> None:
        """Connect to workers whose name entry is new.

        A worker that was killed before it was connected leaves an entry behind that looks new; so this goes on until
        everybody has answered.
        """
        for name, incarnation in registered.items():
            worker = self.workers.get(name)
            if worker is None or worker.relaunch_s is not None or not worker.is_wanted:
                continue
            if incarnation != worker.incarnation:
                worker.incarnation = incarnation
                self._feed(worker, Event.REGISTERED)
        for worker in self._roll_call.overdue(self.workers.values()):
            self._feed(worker, Event.HEARTBEAT_LOST)

    def _take_heartbeats(self, beats: Mapping[str, Heartbeat]) -> None:
        control = self._config.control
        for name, beat in beats.items():
            worker = self.workers.get(name)
            if worker is None or beat.incarnation != worker.incarnation or not worker.incarnation:
                continue
            worker.metrics = beat.metrics or worker.metrics
            if beat.error:
                worker.last_error, worker.fails_for_good = beat.error, beat.fails_for_good
            self._feed(worker, heartbeat_event(beat.status))
            if beat.age_s > control.heartbeat_timeout_s:
                # Where its host is silent too, the network is to blame: wait whether they come back.
                if self._launcher.is_reachable(name):
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
                answer = reply.result(timeout=0)
            except HpcMarlError as error:
                # The process's exit or its silence says whether it lives; what it answered says why it failed.
                worker.last_error = str(error)
                self._say(f"{worker.name} did not {command}: {in_short(worker.last_error)}")
                if isinstance(error, RpcTimeoutError):
                    self._ask_again(worker, command)
                continue
            if command == "status":
                self._take_adopted(worker, answer)
            else:
                self._feed(worker, Event.CONFIGURED if command == "configure" else Event.STARTED)

    def _ask_again(self, worker: WorkerView, command: str) -> None:
        """A slow worker, or a slow network: it may have done what it was told nevertheless."""
        if command == "start":
            worker.started = False
        elif worker.is_live:
            worker.adopted = True
            self._send_configure(worker)

    def _take_adopted(self, worker: WorkerView, answer: Mapping[str, object]) -> None:
        """A worker of the controller before says how far it is."""
        worker.adopted = False
        if answer["configured"]:
            worker.configured = True
            worker.started = answer["status"] != WorkerStatus.READY.value
        else:
            self._send_configure(worker)

    # ---- actions --------------------------------------------------------------------------------------------------

    def _launch(self, worker: WorkerView) -> None:
        worker.begin_life(self._clock())
        self._launcher.launch(worker.name, worker.life, worker.num_threads)

    def _end_process(self, worker: WorkerView) -> None:
        # One that said itself that it ends is still closing files; it has until it is launched again.
        if worker.status not in (WorkerStatus.ERROR, WorkerStatus.INTERRUPTED):
            self._launcher.kill(worker.name)

    def _send_configure(self, worker: WorkerView) -> None:
        if worker.adopted:
            self._send(worker, "status")
            return
        views = self.workers.values()
        actors = len(self._membership.counted(views))
        config = assignment(
            self._config, worker.name, epoch=self.faults.epoch, life=worker.life, num_actors=max(actors, 1)
        )
        if worker.kind == "trainer":
            config["batches_per_update"] = self._membership.share(worker, views)
        self._send(worker, "configure", config=config)

    def _send(self, worker: WorkerView, command: str, **kwargs: object) -> None:
        timeout = self._config.control.request_timeout_s
        worker.pending = (command, self._panel.async_request(worker.name, command, timeout=timeout, **kwargs))

    def _tell(self, worker: WorkerView, command: str) -> None:
        """Send a command whose answer does not matter."""
        self._panel.async_request(worker.name, command, timeout=self._config.control.request_timeout_s)

    def _tell_started(self, command: str) -> None:
        for worker in self.workers.values():
            if worker.started and worker.is_live:
                self._tell(worker, command)

    def _start_due(self) -> None:
        """Start configured workers; nobody before the quorum is there."""
        if self.phase is Phase.STARTING:
            actors = [w for w in self.workers.values() if w.kind == "actor" and w.is_wanted]
            needed = [worker for worker in self.workers.values() if worker.kind != "actor"]
            configured = sum(worker.configured for worker in actors)
            if not all(worker.configured for worker in needed) or configured < self._config.actors.min_actors:
                return
            self.phase = Phase.TRAINING
            self._say(f"training starts with {configured} of {len(actors)} actors")
        if self.is_paused:
            return
        for worker in self.workers.values():
            if worker.configured and not worker.started and worker.pending is None and worker.is_live:
                worker.started = True
                self._send(worker, "start")

    def _decide_fault(self, worker: WorkerView) -> None:
        if self.phase is Phase.FINISHED:
            self._say(f"{worker.name} {worker.status.value} while stopping: {worker.last_error}")
        else:
            self.faults.decide(worker)

    def _check_run(self, worker: WorkerView) -> None:
        """The trainer's end ends training; the evaluator's end ends the run."""
        if worker.name == TRAINER and self.phase is Phase.TRAINING:
            self._evaluate()
        elif worker.name == EVALUATOR:
            self._verdict = Verdict(WorkerStatus.COMPLETED, "training and evaluation are complete")

    def _evaluate(self) -> None:
        self._say("training is complete; evaluating")
        self.stop()
        for worker in self.workers.values():
            worker.drained = True
        self._launcher.release_actors()
        self.phase = Phase.EVALUATING
        self.workers[EVALUATOR] = evaluator = evaluator_view()
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
            self._observe()
            time.sleep(0.02)
        self._take_exits()
        for name in names:
            if name in connected and self._launcher.is_alive(name):
                self._say(f"{name} did not exit within {control.stop_timeout_s:g} s and was killed")
            self._launcher.kill(name)  # also one that is only about to be started
            self._panel.disconnect(name)

    def _say(self, text: str) -> None:
        _log.info("%s", text)
        self.events.append(text)
