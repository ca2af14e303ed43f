"""Driver: one process drives a run: it holds the lease, steps the controller, answers commands, shows what happens.

    session (login node)   new run ------------------> Driver(adopt=None)   jobs are submitted
    attach (login node)    run without controller ---> Driver(adopt=state)  jobs and workers are taken over
    deputy (in a core job) the same

A driver that leaves (`Ending.DETACH`, `release`, a lost lease) stops nothing: the next one goes on from
state/controller.json, launch.json and what the workers say.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from hpc_marl.base import names
from hpc_marl.base.epoch_fence import read_epoch, write_epoch
from hpc_marl.base.jobs import JobService
from hpc_marl.base.launch_record import LaunchRecord
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ExperimentConfig
from hpc_marl.config.durations import duration_s
from hpc_marl.control.adoption import adopt, state_of
from hpc_marl.control.controller import TRAINER, Controller, Phase, Verdict
from hpc_marl.control.controller_state import (
    ControllerState,
    read_controller_state,
    write_controller_state,
    write_verdict,
)
from hpc_marl.control.host_launcher import HostLauncher
from hpc_marl.control.lease import ControllerLease
from hpc_marl.control.worker_control import ZmqServer, ZmqWorkerControl
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.errors import ConfigError
from hpc_marl.launch import Plan, make_plan
from hpc_marl.runs.interrupts import Ending
from hpc_marl.runs.run_parts import all_left, make_job_service, patience_of, slot_specs, views_of, with_actors
from hpc_marl.runs.snapshot import progress_of, snapshot_of
from hpc_marl.runs.time_meter import TimeMeter
from hpc_marl.views.display import Display, Progress

_STEP_INTERVAL_S = 0.1
_EAGER_INTERVAL_S = 0.005  # while workers come up, each of whose steps waits for one of ours
_EAGER_TIME_S = 30.0
_EAGER_SHARE = 0.25  # of a core, at most
_STEADY_INTERVAL_S = 0.5  # while all work: commands are answered at once all the same
_WORKERS_PER_STEP_S = 500.0  # many workers are looked at less often, so that a login node does not notice
_STATE_INTERVAL_S = 1.0
_STATE_MAX_AGE_S = 60.0
_MAX_EVENTS = 30
_HOSTS_END_S = 20.0


MakeJobs = Callable[[ExperimentConfig, Plan, RunDirectory], JobService]


@dataclass(frozen=True)
class Drive:
    """How driving ended.

    Attributes:
        verdict: how the run ended; None: it goes on without this process.
        progress: where it stood then.
        reason: why this process left, where the run goes on.
        last_act: to be done once everything is closed; it may end this process.
    """

    verdict: Verdict | None
    progress: Progress
    reason: str = ""
    last_act: Callable[[], None] = lambda: None


class Driver:
    """Drives one run until it ends or this process leaves; a context manager.

    Args:
        config: the experiment.
        directory: of the trial; launch.json and keys are there.
        record: the launch.
        kind: session or job; see `LeaseHolder`.
        display: shows progress and events.
        make_jobs: makes what fills slots.

    Raises:
        SecurityError: the keys cannot be trusted.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        directory: RunDirectory,
        record: LaunchRecord,
        kind: str,
        display: Display,
        *,
        make_jobs: MakeJobs = make_job_service,
    ) -> None:
        self._make_jobs = make_jobs
        self._directory, self._record, self._kind, self._display = directory, record, kind, display
        self._started_s = time.monotonic()
        self._events: deque[tuple[float, str]] = deque(maxlen=_MAX_EVENTS)
        self._ending: Ending | None = None
        self._ending_reason = ""
        self._written: ControllerState | None = None
        self._next_write_s = 0.0
        self._standing: list[tuple[WorkerStatus, bool, str]] = []
        self._changed_s = self._started_s
        self._stack = ExitStack()
        self._context = RunContext.open(
            directory, record.run_uuid, interface=record.interface, port_range=record.port_range
        )
        self._stack.callback(self._context.close)
        self.lease = ControllerLease(self._context, kind)
        self._time_meter = TimeMeter(directory, record.run_uuid)
        self.config = config

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *error: object) -> None:
        self.lease.release()
        self._stack.close()

    def drive(self, poll: Callable[[Driver], Ending | None]) -> Drive:
        """Drive the run; the lease must be held.

        Args:
            poll: called in every step; returns an ending where a signal or a person asks for one.
        """
        left = read_controller_state(self._directory, self._record.run_uuid)
        self._earlier_s = left.elapsed_s if left else 0.0
        if left is not None and left.actors:
            self.config = with_actors(self.config, left.actors)
        self._open(left)
        self.controller.launch()
        verdict: Verdict | None = None
        ending: Ending | None = None
        while verdict is None and ending in (None, Ending.GO_ON):
            began_s = time.thread_time()
            verdict = self.controller.step()
            self._say_events()
            self._display.update(self.progress())
            self._write_state()
            self._time_meter.look(
                self.controller.workers, is_paused=self.controller.is_paused, elapsed_s=self._elapsed_s
            )
            self._server.handle_requests(timeout=self._interval_s(time.thread_time() - began_s))
            ending = self._ending or poll(self) or self._budget_ending()
            if not self.lease.holds():
                return self._leave("another controller has taken over")
        if verdict is None and ending is Ending.DETACH:
            return self._leave(self._ending_reason or "detached")
        return self._finish(verdict, cancel=ending is Ending.CANCEL)

    def progress(self) -> Progress:
        """Return where the run stands."""
        return progress_of(self.controller, self._launcher, self.config, self._elapsed_s)

    def event(self, text: str) -> None:
        """Show and remember that something happened."""
        self._events.append((round(time.time(), 3), text))
        self._display.event(text)

    # -- opening -----------------------------------------------------------------------------------------------------

    def _open(self, left: ControllerState | None) -> None:
        config, record = self.config, self._record
        plan = make_plan(config)
        panel = self._panel = ZmqWorkerControl(
            config.experiment_name, record.trial_name, context=self._context, ignore=[names.CONTROLLER]
        )
        self._stack.callback(panel.close)
        self._jobs = self._make_jobs(config, plan, self._directory)
        self._stack.callback(self._jobs.close)
        self._launcher = HostLauncher(
            slot_specs(plan), panel, self._jobs, patience_of(config), say=self.event
        )
        self.controller = Controller(
            config,
            views_of(plan),
            panel,
            self._launcher,
            epoch=record.epoch,
            grant=lambda epoch: write_epoch(self._directory.epoch_file, epoch),
        )
        if left is not None:
            adopt(self.controller, left, granted=read_epoch(self._directory.epoch_file) or 0)
        server = self._server = ZmqServer(
            config.experiment_name,
            record.trial_name,
            names.CONTROLLER,
            context=self._context,
            heartbeat_interval_s=5.0,
        )
        self._stack.callback(server.close)
        handlers: dict[str, Callable[..., Any]] = {
            "status": self._handle_status,
            "pause": self._handle_pause,
            "resume": self._handle_resume,
            "scale": self._handle_scale,
            "checkpoint": self._handle_checkpoint,
            "stop": lambda: self._end(Ending.STOP, "stopped by command"),
            "cancel": lambda: self._end(Ending.CANCEL, "cancelled by command"),
            "release": lambda: self._end(Ending.DETACH, "somebody else takes over"),
        }
        for command, handler in handlers.items():
            server.register_handler(command, handler)

    # -- ending ------------------------------------------------------------------------------------------------------

    def _leave(self, reason: str) -> Drive:
        """Stop nothing; have the deputy take over at once where there may be one."""
        if self.lease.holds():
            self._write_state(now=True)
            self._time_meter.write()
            self.lease.release()
            if self._record.has_deputy and self._kind == "session" and self._ending is None:
                first = self._launcher.slots[min(self._launcher.slots)]
                if first.is_up:
                    self._panel.group_request("take_over", worker_names=[first.spec.host], timeout=5.0)
        self._say_events()
        return Drive(None, self.progress(), reason)

    def _finish(self, verdict: Verdict | None, cancel: bool) -> Drive:
        """End everything that belongs to the run, then say so on disk."""
        if verdict is None:
            reason = self._ending_reason or "stopped"
            verdict = Verdict(WorkerStatus.INTERRUPTED, reason)
            self.event(
                f"{reason}: {'all jobs are cancelled' if cancel else 'the trainer writes a checkpoint'}"
            )
        if cancel:
            # First on disk: the jobs to cancel may be this process's own.
            return self._cancel(verdict)
        self.controller.stop(verdict)
        progress = self.progress()
        own = self._launcher.slots[min(self._launcher.slots)].spec.host if self._kind == "job" else ""
        self._launcher.end_hosts(_HOSTS_END_S, own)
        self._time_meter.write()
        self._say_events()
        self._display.update(progress)
        # Before a state that says finished, which nobody could take over.
        write_verdict(self._directory, verdict)
        self._write_state(now=True)
        return Drive(verdict, progress)

    def _cancel(self, verdict: Verdict) -> Drive:
        progress = self.progress()
        self._write_state(now=True)
        self._time_meter.write()
        write_verdict(self._directory, verdict)
        slots = list(self._launcher.slots)
        if self._kind == "job":
            # One of the jobs is this process's own: it comes last, when keys and names are gone.
            return Drive(verdict, progress, last_act=lambda: self._jobs.cancel(slots))
        self._jobs.cancel(slots)
        return Drive(verdict, progress)

    def end(self, ending: Ending, reason: str) -> Ending:
        """Note why the run ends, for the verdict; return `ending`."""
        self._ending_reason = reason
        return ending

    def _budget_ending(self) -> Ending | None:
        total = self.config.cluster.total_time
        if total is not None and self._elapsed_s > duration_s(total):
            return self.end(Ending.STOP, f"cluster.total_time={total} is used up")
        return None

    # -- commands ----------------------------------------------------------------------------------------------------

    def _handle_status(self) -> dict[str, Any]:
        return snapshot_of(
            self.controller,
            self._launcher,
            self.config,
            kind=self._kind,
            age_s=round(time.monotonic() - self._started_s, 1),
            elapsed_s=round(self._elapsed_s, 1),
            verdict="",
            events=list(self._events),
        )

    def _handle_pause(self) -> str:
        self._require_training("pause")
        self.controller.pause()
        self.event("paused by command")
        return "paused"

    def _handle_resume(self) -> str:
        self._require_training("resume")
        self.controller.resume()
        self.event("resumed by command")
        return "resumed"

    def _handle_scale(self, actors: int) -> str:
        """Change the number of actors: new ones get jobs, those beyond leave and their places are given back."""
        self._require_training("scale")
        config = with_actors(self.config, actors)
        before, plan = self.config.actors.count, make_plan(config)
        if actors > before and config.cluster.placement != "split":
            raise ConfigError(
                f"with cluster.placement={config.cluster.placement} all places were asked for at the start: "
                f"actors may go down from {before}, not up; placement=split can grow"
            )
        self.config = config
        if actors > before:
            self._jobs.plan = plan
            self._launcher.extend(slot_specs(plan))
        leaving = set(self.controller.scale([view for view in views_of(plan) if view.kind == "actor"]))
        idle = [
            slot.spec.index
            for slot in self._launcher.slots.values()
            if slot.spec.role != "core" and leaving and all_left(slot.spec, self.controller)
        ]
        self._launcher.release(idle)
        self._write_state(now=True)
        return f"{actors} actors, before {before}"

    def _handle_checkpoint(self) -> str:
        self._require_training("checkpoint")
        return str(self._panel.request(TRAINER, "checkpoint", timeout=self.config.control.request_timeout_s))

    def _require_training(self, command: str) -> None:
        if self.controller.phase not in (Phase.STARTING, Phase.TRAINING):
            raise ConfigError(f"{command} does not fit: the run is {self.controller.phase.value}")

    def _end(self, ending: Ending, reason: str) -> str:
        self._ending, self._ending_reason = ending, reason
        return ending.value

    # -- inside ------------------------------------------------------------------------------------------------------

    @property
    def _elapsed_s(self) -> float:
        return self._earlier_s + time.monotonic() - self._started_s

    def _interval_s(self, step_s: float) -> float:
        """Return how long to wait before the next step, after one that took `step_s` seconds of this thread."""
        views = self.controller.workers.values()
        standing = [(view.status, view.configured, view.incarnation) for view in views]
        if standing != self._standing:
            self._standing, self._changed_s = standing, time.monotonic()
        is_training = self.controller.phase is Phase.TRAINING  # an evaluation is short, and has one worker
        if is_training and all(view.status is WorkerStatus.RUNNING or not view.is_wanted for view in views):
            return max(_STEADY_INTERVAL_S, len(views) / _WORKERS_PER_STEP_S)
        if time.monotonic() - self._changed_s < _EAGER_TIME_S:
            return max(_EAGER_INTERVAL_S, min(step_s / _EAGER_SHARE, _STEADY_INTERVAL_S))
        return max(_STEP_INTERVAL_S, len(views) / _WORKERS_PER_STEP_S)

    def _say_events(self) -> None:
        while self.controller.events:
            self.event(self.controller.events.popleft())

    def _write_state(self, now: bool = False) -> None:
        """Leave for a successor what it must know, whenever it has changed.

        New lives are written down at once: their processes are started in the next step, and no successor may take
        them for those before.
        """
        lives = {view.name: view.life for view in self.controller.workers.values()}
        now = now or self._written is None or self._written.lives != lives
        if not now and time.monotonic() < self._next_write_s:
            return
        self._next_write_s = time.monotonic() + _STATE_INTERVAL_S
        state = state_of(self.controller, self._record.run_uuid, round(self._elapsed_s, 1))
        before = self._written
        if before is not None and not now:
            aged_s = state.elapsed_s - before.elapsed_s
            if aged_s < _STATE_MAX_AGE_S and replace(before, elapsed_s=state.elapsed_s) == state:
                return
        try:
            write_controller_state(self._directory, state)
        except OSError as error:
            # A full or stalled disk must not end the run; the state is written with the next change.
            self.event(f"the controller's state was not written: {error}")
        else:
            self._written = state
