"""A doctor's visit: submit the probes, wait for them, and have all machines try each other out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TypeVar

import msgspec

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ClusterConfig
from hpc_marl.errors import ConfigError, LaunchError, NameWaitTimeoutError
from hpc_marl.launch.site_survey import SiteSurvey
from hpc_marl.site import node_checks as doctor_nodes
from hpc_marl.site.exchange import LOGIN, NUM_PINGS, Exchange, Pong, Reach
from hpc_marl.site.findings import Report, fail, warn
from hpc_marl.site.machine_facts import GpuFacts, NodeFacts, gather_facts, over_quota
from hpc_marl.site.probe_jobs import Kind, ProbeJobs
from hpc_marl.site.shared_directories import seen_on_a_node

_TICK_S = 1.0
# From the start of a job to the first word of its probe: an environment on a slow filesystem takes its time.
_START_S = 120.0
_ANSWER_S = 60.0
_LAST_LOOK_S = 5.0

Message = TypeVar("Message", bound=msgspec.Struct)


@dataclass
class _Probe:
    """A probe on its way.

    Attributes:
        kind: where it runs.
        facts: what its node is like; None until it has said so.
        offset_s: its clock minus this one's; None where it is not known.
    """

    kind: Kind
    facts: NodeFacts | None = None
    offset_s: float | None = field(default=None)


class Visit:
    """One visit. Use it as a context: leaving it cancels the jobs, however it is left.

    Args:
        cluster: the site.
        survey: what Slurm says of it.
        directory: of the visit, with keys.
        report: gets the lines.
        timeout_s: how long jobs may wait in the queue.
    """

    def __init__(
        self,
        cluster: ClusterConfig,
        survey: SiteSurvey,
        directory: RunDirectory,
        report: Report,
        timeout_s: float,
    ) -> None:
        self._cluster = cluster
        self._survey = survey
        self._directory = directory
        self._report = report
        self._timeout_s = timeout_s
        self._jobs = ProbeJobs(cluster, directory, timeout_s)
        # A null interface means on a Slurm site: all addresses but loopback.
        self._exchange = Exchange(directory, LOGIN, cluster.interface or "all", cluster.port_range)
        self._login = gather_facts(
            directory.path, self._exchange.hosts, self._exchange.port, self._exchange.problem
        )

    def __enter__(self) -> Visit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._jobs.cancel()
        finally:
            self._exchange.close()

    def make(self, kinds: Sequence[Kind]) -> None:
        """Submit a probe to each kind of node, examine those that come, and report."""
        self._report.add(
            doctor_nodes.storage_lines(self._login, LOGIN, str(self._directory.path.parent.parent))
        )
        self._report.add(
            doctor_nodes.space_lines(self._login, str(self._directory.path.parent.parent), over_quota())
        )
        if self._exchange.problem:
            self._report.add(
                warn(
                    "network login",
                    self._exchange.problem,
                    "use a network (10.1.0.0/16) as cluster.interface, or controller=job",
                )
            )
        self._exchange.tell(f"facts/{LOGIN}", self._login)
        names = [kind.name for kind in kinds]
        probes = [
            probe
            for kind in kinds
            if (probe := self._submitted(kind, [name for name in names if name != kind.name]))
        ]
        arrived = self._arrivals(probes)
        if len(arrived) == 1 and (twin := self._twin(arrived[0])):
            arrived += self._arrivals([twin])
        arrived.sort(
            key=lambda probe: names.index(probe.kind.name) if probe.kind.name in names else len(names)
        )
        for probe in arrived:
            self._examine(probe)
        self._between(arrived)
        self._exchange.tell("bye")

    def _submitted(self, kind: Kind, peers: Sequence[str], exclude: str = "") -> _Probe | None:
        partition = self._survey.partition(kind.partition)
        longest_s = partition.max_time_s if partition else float("inf")
        try:
            self._jobs.submit(kind, peers, exclude, longest_s)
        except (LaunchError, ConfigError) as error:
            self._report.add(
                fail(f"probe {kind.name}", str(error), "see cluster.directives and the partition")
            )
            return None
        return _Probe(kind)

    def _twin(self, probe: _Probe) -> _Probe | None:
        """Submit a second probe of the only kind, on another node, so that two nodes can be tried."""
        partition = self._survey.partition(probe.kind.partition)
        node = probe.facts.node if probe.facts else ""
        if partition is None or not node or sum(one.is_available for one in partition.nodes) < 2:
            return None
        return self._submitted(replace(probe.kind, name=f"{probe.kind.name}-2nd"), [probe.kind.name], node)

    def _arrivals(self, probes: Sequence[_Probe]) -> list[_Probe]:
        """Wait for the probes' first words; report those that do not come, and return the others."""
        waiting = {probe.kind.name: probe for probe in probes}
        arrived = []
        deadline = time.monotonic() + self._timeout_s
        started: dict[str, float] = {}
        while waiting:
            for name, probe in list(waiting.items()):
                probe.facts = self._heard(f"facts/{name}", NodeFacts, _TICK_S / len(waiting))
                if probe.facts is not None:
                    arrived.append(waiting.pop(name))
                    continue
                row = self._jobs.row(name)
                is_over = row is None or (row.state is not None and row.state.is_final)
                if row is not None and row.nodes:
                    started.setdefault(name, time.monotonic())
                if is_over and (row is not None or time.monotonic() > deadline):
                    self._report_silence(waiting.pop(name))
                elif time.monotonic() > started.get(name, float("inf")) + _START_S or (
                    name not in started and time.monotonic() > deadline
                ):
                    self._report.add(doctor_nodes.waiting_line(name, row, self._timeout_s))
                    del waiting[name]
        return arrived

    def _report_silence(self, probe: _Probe) -> None:
        """Find out why a probe whose job is over never said anything."""
        name = probe.kind.name
        # What it said last may be a moment late to be seen here.
        probe.facts = self._heard(f"facts/{name}", NodeFacts, _LAST_LOOK_S)
        output = self._jobs.output_of(name)
        seen = None
        if not output:
            needed = {
                key: str(value)
                for key, value in self._cluster.directives.items()
                if key in ("account", "qos")
            }
            try:
                found = seen_on_a_node([self._directory.path], probe.kind.partition, needed)
                seen = bool(found)
            except LaunchError:
                seen = None
        path = str(self._directory.path.parent.parent)
        self._report.add(doctor_nodes.silence_line(name, self._jobs.row(name), output, seen, path))

    def _examine(self, probe: _Probe) -> None:
        """Report all about one node and its ways to and from here."""
        name, facts = probe.kind.name, probe.facts
        if facts is None:
            return
        report, base = self._report, str(self._directory.path.parent.parent)
        report.add(doctor_nodes.python_line(f"{name}", facts, self._login))
        report.add(doctor_nodes.storage_lines(facts, name, base))
        report.add(doctor_nodes.limits_line(name, facts))
        self._measure(probe, facts)
        gpus = self._heard(f"gpu/{name}", GpuFacts, _ANSWER_S)
        if gpus is not None:
            report.add(doctor_nodes.gpu_lines(name, probe.kind.gpus, gpus))
        back = self._heard(f"reach/{name}/{LOGIN}", Reach, _ANSWER_S)
        if back is not None:
            report.add(doctor_nodes.reach_line(name, LOGIN, back, self._login, needed=False))

    def _measure(self, probe: _Probe, facts: NodeFacts) -> None:
        """Report which address answers here, the clock, and how long names take."""
        name = probe.kind.name
        there = self._exchange.reach(name)
        self._report.add(doctor_nodes.reach_line(LOGIN, name, there, facts, needed=True))
        answers = [one for one in there.addresses if one.answered]
        if answers:
            best = min(answers, key=lambda one: one.round_trip_s)
            probe.offset_s = best.clock_offset_s
            self._report.add(doctor_nodes.clock_line(name, best.clock_offset_s, best.round_trip_s / 2))
        there_s, round_trips_s = [], []
        for number in range(NUM_PINGS):
            added, begun = time.time(), time.monotonic()
            self._exchange.tell(f"ping/{name}/{number}")
            pong = self._heard(f"pong/{name}/{number}", Pong, _ANSWER_S)
            if pong is None:
                break
            there_s.append(pong.seen - added)
            round_trips_s.append(time.monotonic() - begun)
        if not round_trips_s:
            remedy = "cluster.shared_root must be on a filesystem on which nodes see each other's files"
            self._report.add(fail(f"names login<->{name}", f"no answer within {_ANSWER_S:g} s", remedy))
            return
        self._report.add(doctor_nodes.visibility_line(name, there_s, round_trips_s, probe.offset_s))

    def _between(self, probes: Sequence[_Probe]) -> None:
        """Report the ways from node to node."""
        names = [probe.kind.name for probe in probes]
        for source in probes:
            for target in probes:
                if source is target or target.facts is None or source.facts is None:
                    continue
                if (
                    names.index(source.kind.name) < names.index(target.kind.name)
                    and "2nd" in target.kind.name
                ):
                    continue  # the first of two of one kind did not know of the second
                if source.facts.node == target.facts.node:
                    what = f"{source.kind.name} -> {target.kind.name}"
                    detail = f"both probes came to {source.facts.node}: not tested between nodes"
                    self._report.add(warn(what, detail, "repeat it when other nodes are free"))
                    continue
                reach = self._heard(f"reach/{source.kind.name}/{target.kind.name}", Reach, _ANSWER_S)
                if reach is not None:
                    self._report.add(
                        doctor_nodes.reach_line(
                            source.kind.name, target.kind.name, reach, target.facts, needed=True
                        )
                    )

    def _heard(self, key: str, kind: type[Message], timeout_s: float) -> Message | None:
        try:
            return msgspec.json.decode(self._exchange.hear(key, timeout_s), type=kind)
        except NameWaitTimeoutError:
            return None
