"""HostLauncher: workers started through the host processes that fill the slots of the plan.

    controller: launch(actor/3, life 1) --> wanted in slot 2
    job service: submit, queue reports  --> a host for slot 2, some time
    host/2 heartbeats: what runs        --> compared with what is wanted: launch, kill; exits are passed on

Everything is level-triggered: what is wanted is compared with what a host says, again and again, so that a lost message
or a new controller changes nothing. A host is lost once it was silent so long that its workers, which nobody spoke to
either, have ended by themselves; only then may their places be filled anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from hpc_marl.base.jobs import JobService, JobState
from hpc_marl.control.interfaces import Heartbeat, WorkerControlPanel
from hpc_marl.control.slot_jobs import Patience, SlotJobs
from hpc_marl.control.slot_view import Launch, SlotSpec, SlotView, parse_children
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.control.worker_view import ProcessExit
from hpc_marl.errors import HpcMarlError

_log = logging.getLogger(__name__)

_FIRST_PING_INTERVAL_S = 4.0
_ENDED = (WorkerStatus.COMPLETED, WorkerStatus.INTERRUPTED, WorkerStatus.ERROR)


class HostLauncher:
    """A `Launcher` over slots, hosts and jobs.

    Args:
        slots: the places of the plan.
        panel: how to speak to hosts; shared with the controller.
        jobs: who fills slots.
        patience: limits.
        say: takes sentences for the display.
        clock: monotonic seconds.

    Attributes:
        slots: by index.
        jobs: sees to what fills them.
    """

    def __init__(
        self,
        slots: Iterable[SlotSpec],
        panel: WorkerControlPanel,
        jobs: JobService,
        patience: Patience,
        *,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots = {spec.index: SlotView(spec) for spec in slots}
        self._panel, self._patience = panel, patience
        self.jobs = SlotJobs(self.slots, panel, jobs, patience, say=say, clock=clock)
        self._say, self._clock = say, clock
        self._slot_of = {name: spec.index for spec in self._specs() for name in spec.workers}
        self._exits: list[ProcessExit] = []
        self._core_seen_s = clock()
        self._closing = False
        self._ping_s: dict[str, float] = {}

    # ---- the Launcher's side -----------------------------------------------------------------------------------------

    def launch(self, worker_name: str, life: int, num_threads: int) -> None:
        """Want this life of a worker to run."""
        slot = self._place(worker_name)
        slot.wanted[worker_name] = Launch(life, num_threads, slot.spec.gpus.get(worker_name, 0.0))

    def adopt(self, worker_name: str) -> None:
        """Take the wanted life of a worker for one that another controller has started; if it is gone, that is told."""
        slot = self._place(worker_name)
        slot.wanted[worker_name] = slot.wanted[worker_name]._replace(is_adopted=True)

    def exits(self) -> list[ProcessExit]:
        """Return what ended by itself since the last call."""
        ended, self._exits = self._exits, []
        return ended

    def is_alive(self, worker_name: str) -> bool:
        """Whether its host says that it runs."""
        return self._place(worker_name).runs(worker_name)

    def is_reachable(self, worker_name: str) -> bool:
        """Whether its host was heard all the time lately; a worker's first word after a silence may come later."""
        slot = self._place(worker_name)
        return (
            slot.is_up and slot.heard is not None and self._clock() - slot.unheard_s > self._patience.rejoin_s
        )

    def waiting_for(self, worker_name: str) -> str:
        """Return what its start waits for."""
        slot = self._place(worker_name)
        if slot.is_up:
            return ""
        report = self.jobs.report(slot.spec.index)
        if report is None or report.state.is_final:
            return slot.lost or "submission"
        if report.state is JobState.PENDING:
            return report.reason or slot.lost or "pending"
        # A job that runs for the first time is as good as there: its host is only starting.
        return slot.lost

    def hopeless(self, worker_name: str) -> str:
        """Return why its slot will not be filled any more."""
        return self._place(worker_name).hopeless

    def expects_hosts(self) -> bool:
        """Whether a slot is to be filled."""
        return any(not s.is_up and not s.parked and not s.hopeless for s in self.slots.values())

    def kill(self, worker_name: str) -> None:
        """Want a worker to run no more; its host sees to it."""
        slot = self._place(worker_name)
        slot.wanted.pop(worker_name, None)
        self._reconcile(slot)

    def interrupt(self, worker_name: str) -> None:
        """Have a worker save and end; its exit is told as any other."""
        slot = self._place(worker_name)
        if slot.is_up:
            self._panel.async_request(
                slot.spec.host, "terminate", timeout=self._patience.request_s, worker_name=worker_name
            )

    def release_actors(self) -> None:
        """Give up the places where only actors are: nobody acts any more."""
        self.release([slot.spec.index for slot in self.slots.values() if slot.spec.role != "core"])

    # ---- slots -------------------------------------------------------------------------------------------------------

    def extend(self, specs: Iterable[SlotSpec]) -> None:
        """Take in slots, or workers of slots, that the plan has got meanwhile."""
        for spec in specs:
            known = self.slots.get(spec.index)
            if known is None:
                self.slots[spec.index] = SlotView(spec)
            else:
                known.spec, known.parked = spec, False
        self._slot_of = {name: spec.index for spec in self._specs() for name in spec.workers}

    def release(self, indices: Iterable[int]) -> None:
        """Give up slots that nobody needs for now: their hosts end, their pending jobs are cancelled."""
        given = [self.slots[index] for index in indices]
        for slot in given:
            slot.parked = True
            self._displace(slot, "its slot was given back")
            if slot.is_up:
                self._panel.async_request(slot.spec.host, "exit", timeout=self._patience.request_s)
        self.jobs.drop([slot for slot in given if not slot.is_up])

    def place_of(self, worker_name: str) -> SlotView:
        """Return the slot in which a worker runs."""
        return self._place(worker_name)

    def end_hosts(self, timeout_s: float, own: str = "") -> None:
        """Have all hosts end, and cancel what is left of the jobs; returns once no host is heard, or after the time.

        Args:
            timeout_s: to wait.
            own: the host under which this process runs: it waits for us, and its job must not be cancelled.
        """
        self._closing = True
        connected = [slot.spec.host for slot in self.slots.values() if slot.incarnation]
        if connected:
            self._panel.group_request("exit", worker_names=connected, timeout=min(timeout_s, 10.0))
        deadline = self._clock() + timeout_s
        others = [name for name in connected if name != own]
        while any(self._is_heard(name) for name in others) and self._clock() < deadline:
            time.sleep(0.05)
        if own:
            # A job is cancelled as a whole, so nothing of our own host's job may be.
            unit = next(slot.spec.unit for slot in self.slots.values() if slot.spec.host == own)
            left = [slot for slot in self.slots.values() if slot.spec.host not in connected]
            self.jobs.drop(slot for slot in left if slot.spec.index not in unit)
        else:
            # A job whose hosts have ended is ending too, and Slurm need not call it cancelled.
            beats = self._panel.heartbeats()
            for slot in self.slots.values():
                beat = beats.get(slot.spec.host)
                slot.ended = slot.ended or (beat is not None and beat.status in _ENDED)
            self.jobs.drop_all()

    # ---- one step ----------------------------------------------------------------------------------------------------

    def step(self, registered: Mapping[str, str], heartbeats: Mapping[str, Heartbeat]) -> None:
        """Take in hosts and their heartbeats, compare, and see to the jobs."""
        for slot in self.slots.values():
            self._take_host(slot, registered.get(slot.spec.host, ""), heartbeats.get(slot.spec.host))
            self._reconcile(slot)
            self._keep_alive(slot)
        self.jobs.poll()
        if not self._closing:
            self._see_to_core()
            self.jobs.fill()

    def _take_host(self, slot: SlotView, incarnation: str, beat: Heartbeat | None) -> None:
        if incarnation and incarnation != slot.incarnation:
            if slot.is_up:
                # The panel speaks to the new one already: nobody is to be disconnected.
                self._lose(slot, "its host process was replaced", for_good=False)
            slot.incarnation, slot.heard, slot.silent, slot.ended = incarnation, None, False, False
            slot.processes, slot.pending = {}, {}
            slot.seen_running_s, slot.lost, slot.unheard_s = None, "", -float("inf")
        if not slot.incarnation or beat is None or beat.incarnation != slot.incarnation:
            return
        if slot.silent:
            if beat.age_s > self._patience.heard_lately_s:
                return
            slot.silent = False
            self._say(f"{slot.spec.host} is heard again")
        before, slot.heard = slot.metric("node"), beat
        if beat.age_s >= self._patience.heard_lately_s:
            slot.unheard_s = self._clock()
        slot.processes = parse_children(str(beat.metrics.get("children", "")))
        if not before and slot.metric("node"):
            self._say(f"{slot.spec.host} is up on {slot.metric('node')}")
        if beat.status in _ENDED:
            slot.ended = True
            words = {"PREEMPTED": "its job was preempted", "TIMEOUT": "its job ran out of time"}
            self._lose(
                slot, words.get(str(slot.metric("ended")), f"its host process ended {beat.status.value}")
            )
        elif beat.age_s > self._patience.host_silence_s:
            self._lose(
                slot, f"its node {slot.metric('node', '?')} was silent for {beat.age_s:.0f} s", for_good=False
            )

    def _lose(self, slot: SlotView, why: str, for_good: bool = True) -> None:
        """The host is gone, and its workers with it; one that was only silent may be heard again, without workers."""
        self._pass_on_exits(slot)
        self._displace(slot, why)
        if not self._closing and not slot.parked:
            self._say(f"{slot.spec.host} is gone: {why}")
        slot.lost, slot.processes, slot.pending = why, {}, {}
        slot.silent = not for_good
        if for_good:
            self._panel.disconnect(slot.spec.host)
            slot.incarnation, slot.heard = "", None

    def _displace(self, slot: SlotView, why: str, only_missing: bool = False) -> None:
        """Tell that what is wanted in a slot does not run there any more."""
        for name, launch in list(slot.wanted.items()):
            process = slot.processes.get(name)
            if only_missing and not (launch.is_adopted and (process is None or process.life < launch.life)):
                continue
            if (name, launch.life) not in slot.told:
                slot.told.add((name, launch.life))
                self._exits.append(ProcessExit(name, -9, displaced=why))
            del slot.wanted[name]

    def _keep_alive(self, slot: SlotView) -> None:
        """Speak to a host now and then: it ends its workers when no controller does; the first starts a deputy soon."""
        name, now = slot.spec.host, self._clock()
        if not slot.is_up or now < self._ping_s.get(name, 0.0):
            return
        interval_s = self._patience.ping_interval_s
        self._ping_s[name] = now + (
            min(interval_s, _FIRST_PING_INTERVAL_S) if slot.spec.index == 0 else interval_s
        )
        self._panel.async_request(name, "ping", timeout=self._patience.request_s)

    def _reconcile(self, slot: SlotView) -> None:
        """Compare what runs in a slot with what should."""
        if not slot.is_up or slot.heard is None:
            return
        self._pass_on_exits(slot)
        if slot.metric("node"):  # a heartbeat without figures says nothing of processes
            self._displace(slot, "it was gone when this controller came", only_missing=True)
        for name, launch in slot.wanted.items():
            process = slot.processes.get(name)
            if (process is None or process.life < launch.life) and not launch.is_adopted:
                self._command(
                    slot, "launch", name, life=launch.life, num_threads=launch.num_threads, gpus=launch.gpus
                )
        for name, process in slot.processes.items():
            if process.code is None and name not in slot.wanted:
                self._command(slot, "kill", name)

    def _command(self, slot: SlotView, command: str, worker_name: str, **kwargs: object) -> None:
        """Send a command once; again only when its answer failed or the host does not show its effect."""
        key = f"{command} {worker_name} {kwargs.get('life', '')}"
        pending = slot.pending.get(key)
        if pending is not None:
            if not pending.done():
                return
            try:
                pending.result(timeout=0)
            except HpcMarlError as error:
                _log.warning("%s: %s: %s", slot.spec.host, key, error)
        slot.pending[key] = self._panel.async_request(
            slot.spec.host, command, timeout=self._patience.request_s, worker_name=worker_name, **kwargs
        )

    def _pass_on_exits(self, slot: SlotView) -> None:
        for name, process in slot.processes.items():
            wanted = slot.wanted.get(name)
            if process.code is None or wanted is None or (name, wanted.life) in slot.told:
                continue
            # A later life was begun by a controller that could not say so any more.
            if process.life >= wanted.life:
                slot.told.add((name, wanted.life))
                del slot.wanted[name]
                self._exits.append(ProcessExit(name, process.code))

    # ---- jobs --------------------------------------------------------------------------------------------------------

    def _see_to_core(self) -> None:
        """Send actors home when the core has been away for long; its return brings them back."""
        now = self._clock()
        core = [slot for slot in self.slots.values() if slot.spec.role == "core"]
        actors = [slot for slot in self.slots.values() if slot.spec.role != "core"]
        if any(slot.is_up for slot in core):
            self._core_seen_s = now
            for slot in actors:
                slot.parked = slot.parked and not slot.wanted
        elif now - self._core_seen_s > self._patience.core_away_s:
            up = [slot.spec.index for slot in actors if slot.is_up and not slot.parked]
            if up:
                self._say(
                    f"the core has been away for {now - self._core_seen_s:.0f} s: actors free their CPUs"
                )
                self.release(up)

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _specs(self) -> list[SlotSpec]:
        return [slot.spec for slot in self.slots.values()]

    def _place(self, worker_name: str) -> SlotView:
        index = self._slot_of.get(worker_name)
        return self.slots[min(self.slots) if index is None else index]

    def _is_heard(self, host: str) -> bool:
        beat = self._panel.heartbeats().get(host)
        return beat is not None and beat.status not in _ENDED and beat.age_s < self._patience.heard_lately_s
