"""SlotJobs: submitting what fills slots, again where a job ended early, within a budget and with pauses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hpc_marl.base.jobs import JobReport, JobService, JobState
from hpc_marl.control.interfaces import WorkerControlPanel
from hpc_marl.control.slot_view import SlotView
from hpc_marl.errors import LaunchError, QueueBusyError

_RESUBMIT_PAUSE_S = (0.0, 10.0, 60.0, 300.0)


@dataclass(frozen=True)
class Patience:
    """How long the launcher waits for what.

    Attributes:
        host_silence_s: a host that was silent for longer is lost; above the workers' own orphan grace.
        ping_interval_s: how often a host is spoken to; well below the grace of its workers.
        registration_s: from a job's start to its host's first word.
        request_s: for a host's answer to one command.
        max_resubmissions: of one slot.
        core_away_s: actors are sent home when no core host was there for so long.
        heard_lately_s: a host heard within this time is reachable; a few heartbeat intervals.
        rejoin_s: after the network was away, a worker may be heard so much later than its host.
    """

    host_silence_s: float
    ping_interval_s: float
    registration_s: float
    request_s: float
    max_resubmissions: int
    core_away_s: float
    heard_lately_s: float = 5.0
    rejoin_s: float = 15.0


class SlotJobs:
    """Sees to the jobs of slots.

    Args:
        slots: by index; the launcher's own mapping.
        panel: how to speak to hosts.
        jobs: who fills slots.
        patience: limits.
        say: takes sentences for the display.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        slots: Mapping[int, SlotView],
        panel: WorkerControlPanel,
        jobs: JobService,
        patience: Patience,
        *,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots, self._panel, self._jobs, self._patience = slots, panel, jobs, patience
        self._say, self._clock = say, clock

    def report(self, index: int) -> JobReport | None:
        """Return what the queue says of a slot's job."""
        return self._jobs.report(index)

    def poll(self) -> None:
        """Ask the queue if it is time to."""
        self._jobs.poll()

    def fill(self) -> None:
        """Submit what is to be filled and has no job, or none any more."""
        due: list[int] = []
        for unit in dict.fromkeys(slot.spec.unit for slot in self._slots.values()):
            slots = [self._slots[index] for index in unit]
            if all(slot.parked or not slot.wanted for slot in slots) or any(slot.hopeless for slot in slots):
                continue
            if self._needs_job(slots):
                due += unit
        if due:
            self._submit(due)

    def _needs_job(self, slots: Sequence[SlotView]) -> bool:
        """Whether the job of a unit has to be submitted (again) now."""
        report = self._jobs.report(slots[0].spec.index)
        up = [slot for slot in slots if slot.is_up]
        if report is None:
            return not up and self._may_submit(slots, "")
        if report.state is JobState.FORGOTTEN and up:
            self._vacate(up, f"the queue does not know its job {report.job_id} any more")
            return False
        if up:
            return False
        if report.state is JobState.RUNNING:
            return self._is_overdue(slots, report)
        slots[0].seen_running_s = None
        if report.state is JobState.CANCELLED and not slots[0].dropped:
            for slot in slots:
                slot.hopeless = f"its job {report.job_id} was cancelled"
            return False
        return report.state.is_final and self._may_submit(
            slots, f"its job {report.job_id} {report.state.value}"
        )

    def _is_overdue(self, slots: Sequence[SlotView], report: JobReport) -> bool:
        """A job runs, but no host has registered: its node may be broken, or its environment wrong."""
        now = self._clock()
        first = slots[0]
        if first.seen_running_s is None:
            first.seen_running_s = now
        if now - first.seen_running_s < self._patience.registration_s:
            return False
        self._say(
            f"{first.spec.host} did not register within {self._patience.registration_s:g} s although its job "
            f"{report.job_id} runs on {report.node}: see logs/jobs; the job is cancelled"
        )
        first.seen_running_s = None
        self.drop(slots)
        return self._may_submit(slots, "no host process registered")

    def _may_submit(self, slots: Sequence[SlotView], why: str) -> bool:
        """Whether the budget and the pause between two submissions allow another one."""
        now = self._clock()
        if slots[0].submissions > self._patience.max_resubmissions:
            for slot in slots:
                slot.hopeless = f"{why or 'no job'}, and it was submitted {slot.submissions} times already"
            return False
        if slots[0].resubmit_s == 0.0:
            pause = _RESUBMIT_PAUSE_S[min(slots[0].submissions, len(_RESUBMIT_PAUSE_S) - 1)]
            slots[0].resubmit_s = now + pause
            if why:
                self._say(f"{slots[0].spec.host}: {why}; it is submitted again")
        return now >= slots[0].resubmit_s

    def _submit(self, indices: Sequence[int]) -> None:
        for index in indices:
            slot = self._slots[index]
            slot.resubmit_s, slot.dropped = 0.0, False
            slot.submissions += 1
        try:
            self._jobs.submit(indices)
        except LaunchError as error:
            self._say(f"submission failed: {error}")
            for index in indices:
                slot = self._slots[index]
                slot.resubmit_s = self._clock() + _RESUBMIT_PAUSE_S[min(slot.submissions, 3)]
                # One that never was accepted is wrong in itself; later a limit may be reached for a while.
                was_never_taken = self._jobs.report(index) is None and not isinstance(error, QueueBusyError)
                if was_never_taken or slot.submissions > self._patience.max_resubmissions:
                    slot.hopeless = f"its job was refused: {error}"

    def _vacate(self, slots: Sequence[SlotView], why: str) -> None:
        """Have hosts save and go."""
        for slot in slots:
            if "exit" not in slot.pending:
                self._say(f"{slot.spec.host}: {why}; its processes end, and it is submitted anew")
                slot.pending["exit"] = self._panel.async_request(
                    slot.spec.host, "interrupt", timeout=self._patience.request_s
                )

    def drop(self, slots: Iterable[SlotView]) -> None:
        """Cancel the jobs of slots."""
        dropped = list(slots)
        for slot in dropped:
            slot.dropped = True
        if dropped:
            self._jobs.cancel([slot.spec.index for slot in dropped])

    def drop_all(self) -> None:
        """Cancel whatever is left of the jobs, except those whose hosts have ended."""
        left = [
            slot
            for index, slot in self._slots.items()
            if not slot.ended
            and (report := self._jobs.report(index)) is not None
            and not report.state.is_final
        ]
        self.drop(left)
