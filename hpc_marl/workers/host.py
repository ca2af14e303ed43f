"""The host worker: one Slurm task (or one process of the local executor) that starts the workers of its slot.

    controller --launch, kill--> host --subprocess--> actor/3, actor/4 ...
               <--heartbeats: what runs here in which life, where, with how much CPU, memory and time left--

A host decides nothing: the controller compares what runs with what should. It ends with its job: on SIGUSR2 (Slurm's
notice before a time limit or a preemption) and on SIGTERM its workers save and end first; after SIGUSR2 it asks Slurm
to run the job again. The first slot's host starts a controller, the *deputy*, when nobody drives the run.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from typing import Any

from hpc_marl.base import names
from hpc_marl.base.launch_record import read_launch_record
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.control.worker_base import PollResult, Worker, WorkerServer
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.errors import HpcMarlError
from hpc_marl.workers.child_processes import ChildProcesses, Inheritance, visible_gpus
from hpc_marl.workers.host_usage import HostUsage
from hpc_marl.workers.slurm_task import SlurmTask

_log = logging.getLogger(__name__)

TAKEOVER_SILENCE_S = 15.0
"""The first slot's host starts a deputy after so long without a word from a controller."""
_DEPUTY_PAUSE_S = 10.0  # between two deputies, should one fail at once
_TERMINATE_WAIT_S = 60.0
_ORPHAN_KILL_S = 10.0
_USAGE_INTERVAL_S = 15.0
_WATCH_INTERVAL_S = 0.1
# Between two looks whether somebody else fills the slot: of actors there are many, and they harm nobody.
_NAME_INTERVAL_S = {True: 3.0, False: 30.0}


class HostWorker(Worker):
    """Runs the workers of one slot."""

    def __init__(
        self,
        server: WorkerServer,
        context: RunContext,
        run_directory: RunDirectory,
        *,
        orphan_grace_s: float | None = None,
        inheritance: Inheritance | None = None,
    ) -> None:
        record = read_launch_record(run_directory)
        super().__init__(server, orphan_grace_s=record.host_grace_s)
        self._context, self._directory, self._record = context, run_directory, record
        self._task = SlurmTask.of_this_process()
        self._processes = ChildProcesses(run_directory.path, visible_gpus(), inheritance)
        slot = self._slot = int(self.name.partition("/")[2])
        self._may_have_deputy = record.has_deputy and slot == 0
        self._deputy: subprocess.Popen[bytes] | None = None
        self._next_deputy_s = time.monotonic()
        self._notified = False
        self._reported = ""
        self._ended = ""
        self._next_watch_s = self._next_usage_s = 0.0
        self._next_name_s = time.monotonic() + _NAME_INTERVAL_S[slot == 0]
        self._usage = HostUsage(
            run_directory,
            run_uuid=record.run_uuid,
            slot=slot,
            role=record.role_of(slot),
            incarnation=context.incarnation,
            task=self._task,
            processes=self._processes,
        )
        server.register_handler("launch", self.launch)
        server.register_handler("kill", self.kill)
        server.register_handler("terminate", self.terminate)
        server.register_handler("take_over", self.take_over)
        if self._task.job_id:
            signal.signal(signal.SIGUSR2, self._note_notice)

    @property
    def had_deputy(self) -> bool:
        """Whether it has started a controller."""
        return self._deputy is not None

    # -- commands ----------------------------------------------------------------------------------------------------

    def launch(self, worker_name: str, life: int, num_threads: int, gpus: float) -> None:
        """RPC command: start this life of a worker, in place of an earlier one; nothing if it was started already."""
        known = self._processes.children.get(worker_name)
        if known is None or known.life < life:
            _log.info("%s starts, life %d", worker_name, life)
            self._processes.launch(worker_name, life, num_threads, gpus)
            self._report_now()

    def kill(self, worker_name: str) -> None:
        """RPC command: make sure that no process of this worker runs here."""
        self._processes.kill(worker_name)

    def terminate(self, worker_name: str) -> None:
        """RPC command: have a worker save and end."""
        if worker_name in self._processes.running():
            self._processes.terminate([worker_name])

    def take_over(self) -> None:
        """RPC command: the controller leaves; start a deputy now."""
        self._next_deputy_s = time.monotonic()
        self._start_deputy()

    # -- the worker's hooks ------------------------------------------------------------------------------------------

    def _configure(self, config: dict[str, Any]) -> None:
        """A host has nothing to configure."""

    def _poll(self) -> PollResult:
        return PollResult(idle=True)

    def _look_around(self, silence_s: float) -> None:
        now = time.monotonic()
        if now < self._next_watch_s:
            return
        self._next_watch_s = now + _WATCH_INTERVAL_S
        if self._children_text() != self._reported:
            self._report_now()
        if now >= self._next_usage_s:
            self._next_usage_s = now + _USAGE_INTERVAL_S
            self._usage.write()
        if self._notified or self._task.ends_soon():
            self._ended = self._task.reason_to_end()
            self.request_exit()
        elif now >= self._next_name_s:
            self._next_name_s = now + _NAME_INTERVAL_S[self._slot == 0]
            if self._is_replaced():
                self._ended = "ORPHANED"
                self.request_exit()
        self._end_orphans(silence_s - self._record.orphan_grace_s)
        impatient = self._record.controller == "job" and not self._was_spoken_to
        if self._may_have_deputy and (impatient or silence_s > TAKEOVER_SILENCE_S):
            self._start_deputy()

    def _metrics(self) -> dict[str, float | int | str]:
        self._reported = self._children_text()
        return {
            "children": self._reported,
            "node": self._task.node,
            "job_id": self._task.job_id,
            "restarts": self._task.restarts,
            "time_left_s": self._task.time_left_s(),
            "ended": self._ended,
            **self._usage.metrics(),
        }

    def _on_exit(self, status: WorkerStatus) -> None:
        # Trainers and policy workers save; what does not end in time would be killed by Slurm anyway.
        running = self._processes.running()
        self._processes.terminate(running)
        if late := self._processes.wait(_TERMINATE_WAIT_S):
            _log.warning("killed after %g s: %s", _TERMINATE_WAIT_S, ", ".join(late))
        self._processes.close()
        self._end_deputy(is_over=status is WorkerStatus.COMPLETED)
        orphaned = status is WorkerStatus.INTERRUPTED and not self._ended and not self._exit_requested
        default = {WorkerStatus.COMPLETED: "DONE", WorkerStatus.ERROR: "FAILED"}.get(status, "PREEMPTED")
        self._usage.write(ended=self._ended or ("ORPHANED" if orphaned else default))
        # The job of one that was replaced has been requeued already, and its id is the successor's as well.
        if self._ended in ("PREEMPTED", "TIMEOUT") and not self._is_replaced():
            self._task.requeue()

    def _end_deputy(self, is_over: bool) -> None:
        """Let a deputy that has ended the run write its summary; the job's end would kill it. Else it must go."""
        if self._deputy is None:
            return
        if not is_over:
            self._deputy.terminate()
        try:
            self._deputy.wait(_TERMINATE_WAIT_S)
        except subprocess.TimeoutExpired:
            self._deputy.kill()
            self._deputy.wait()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _children_text(self) -> str:
        """Return what runs here, or ran: `actor/3:0:r actor/4:1:-9` = worker, life, running or exit code."""
        return " ".join(
            f"{name}:{child.life}:{'r' if child.exit_code is None else child.exit_code}"
            for name, child in self._processes.children.items()
        )

    def _end_orphans(self, late_s: float) -> None:
        """End the workers when nobody drives them: somebody else may have been started in their place by now.

        Args:
            late_s: since they should have heard from a controller at the latest.
        """
        if late_s < 0 or not (running := self._processes.running()):
            return
        if late_s < 3 * _WATCH_INTERVAL_S:
            _log.warning("no word from a controller: %s end", ", ".join(running))
            self._processes.terminate(running)
        elif late_s > _ORPHAN_KILL_S:
            self._processes.close()

    def _is_replaced(self) -> bool:
        """Whether another process fills this slot: Slurm starts the job of a node that it does not hear elsewhere."""
        context = self._context
        try:
            record = context.lookup(names.worker(context.experiment_name, context.trial_name, self.name))
        except HpcMarlError as error:
            _log.warning("cannot look up the own name now: %s", error)
            return False
        if record is None or record.incarnation == context.incarnation:
            return False
        _log.warning("another process fills this slot now: this one ends")
        return True

    def _note_notice(self, signal_number: int, frame: object) -> None:
        self._notified = True

    def _start_deputy(self) -> None:
        running = self._deputy is not None and self._deputy.poll() is None
        if running or time.monotonic() < self._next_deputy_s or self._directory.verdict_file.exists():
            return
        self._next_deputy_s = time.monotonic() + _DEPUTY_PAUSE_S
        _log.info("nobody drives the run: starting a controller here")
        # Slurm does not always see to it that what a dead host leaves behind ends too.
        options = ["--run-dir", str(self._directory.path), "--parent", str(os.getpid())]
        command = [sys.executable, "-m", "hpc_marl.deputy", *options]
        with open(self._directory.logs / "controller.out", "ab") as log:
            self._deputy = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            )
