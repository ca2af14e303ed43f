"""What a controller costs a login node while it watches N workers: CPU of one core, memory, calls, file operations.

    a few processes play N workers and their hosts: sockets, names and heartbeats are real, the work is not
    one more process drives them as a session does; its CPU time and memory are read from outside, its calls are counted
    where they are begun, its file operations by the interpreter's audit events (open, list, link, rename, remove)

    python benchmarks/controller_footprint.py [--workers 10 100 1000] [--seconds 20] [--quick]

The limits to compare with: 1 % of a core and 200 MB, whatever the number of workers. Measured once the connections that
are not needed any more have been given up, which a controller does 20 s after its last call.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from measuring.comparisons import verdict
from measuring.reporting import machine_facts, markdown_table

from hpc_marl.base.jobs import JobReport, JobState
from hpc_marl.base.launch_record import read_launch_record
from hpc_marl.base.rpc import PendingReply, RpcChannel
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ActorGroupConfig, ExperimentConfig
from hpc_marl.control.heartbeat_relay import HeartbeatRelay, HostHeartbeats
from hpc_marl.control.worker_control import ZmqServer
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.launch import make_plan
from hpc_marl.runs.driver import Driver
from hpc_marl.runs.session import prepare, raise_descriptor_limit
from hpc_marl.trials.saved_config import read_config
from hpc_marl.views.display import PlainDisplay

LIMIT_CPU, LIMIT_MB = 0.01, 200
HEADER = (
    "workers",
    "hosts",
    "CPU of one core",
    "goal <= 1%",
    "CPU per worker",
    "memory",
    "goal <= 200 MB",
    "calls per worker and minute",
    "file operations per worker and minute",
    "all running after",
)
HOSTS_PER_PROCESS = 25
SETTLE_S = 25.0
FILE_EVENTS = frozenset(
    {
        "open",
        "os.listdir",
        "os.scandir",
        "os.link",
        "os.rename",
        "os.remove",
        "os.mkdir",
        "os.utime",
        "os.chmod",
    }
)


class StandIn:
    """A worker, or a host with its children, without any work.

    Args:
        context: of the process that plays it.
        name: of the worker or host.
        heartbeat_interval_s: of the run.
        host: of a worker.
        children: of a host.
    """

    def __init__(
        self,
        context: RunContext,
        name: str,
        heartbeat_interval_s: float,
        host: StandIn | None = None,
        children: str = "",
    ) -> None:
        mine = replace(context, incarnation=uuid.uuid4().hex)
        self.relay = HeartbeatRelay() if host is None else None
        self.server = ZmqServer(
            context.experiment_name,
            context.trial_name,
            name,
            context=mine,
            heartbeat_interval_s=heartbeat_interval_s,
            host=None if host is None else host.way,
            relay=self.relay,
        )
        self.server.report.metrics = {"children": children, "node": "node", "env_steps": 1}
        for command in ("configure", "reconfigure", "launch", "kill", "ping", "exit"):
            self.server.register_handler(command, self._agree)
        self.server.register_handler("start", self._start)

    @property
    def way(self) -> HostHeartbeats | None:
        """How the workers of this host give it their heartbeats."""
        assert self.relay is not None and self.server.heartbeat is not None
        return HostHeartbeats.of_this_process(self.relay.environment(self.server.heartbeat))

    def turn(self) -> None:
        """Answer what was asked."""
        self.server.handle_requests()
        self.server.report.progress += 1

    def _agree(self, **kwargs: Any) -> str:
        return "OK"

    def _start(self) -> str:
        self.server.set_status(WorkerStatus.RUNNING)
        return "RUNNING"


class EverythingRuns:
    """A job service whose jobs all run."""

    def __init__(self, plan: Any) -> None:
        self.plan = plan

    def submit(self, slots: Iterable[int]) -> None:
        """Nothing to submit."""

    def poll(self) -> None:
        """Nothing to ask."""

    def report(self, slot: int) -> JobReport | None:
        """Say that it runs."""
        return JobReport(f"1_{slot}", JobState.RUNNING, node="node")

    def cancel(self, slots: Iterable[int]) -> None:
        """Nothing to cancel."""

    def close(self) -> None:
        """Nothing to close."""


def play(directory: RunDirectory, slots: Sequence[int]) -> None:
    """Be the hosts of some slots and all their workers, as long as the parent lives."""
    raise_descriptor_limit()
    record, parent = read_launch_record(directory), os.getppid()
    places = {
        slot.index: slot.workers for job in make_plan(read_config(directory)).jobs for slot in job.slots
    }
    with RunContext.open(directory, record.run_uuid, interface=None) as context:
        players: list[StandIn] = []
        for index in slots:
            children = " ".join(f"{worker}:0:r" for worker in places[index])
            interval_s = record.heartbeat_interval_s
            host = StandIn(context, f"host/{index}", interval_s, children=children)
            players += [host, *(StandIn(context, worker, interval_s, host) for worker in places[index])]
        while os.getppid() == parent:
            for player in players:
                player.turn()
            time.sleep(0.1)


def drive(directory: RunDirectory) -> None:
    """Be the controller; say once when all workers run."""
    raise_descriptor_limit()
    started = time.monotonic()
    is_said = False
    counts = {"calls": 0, "file_operations": 0}

    def audit(event: str, arguments: object) -> None:
        counts["file_operations"] += event in FILE_EVENTS

    def submit(channel: RpcChannel, *arguments: Any) -> PendingReply:
        counts["calls"] += 1
        return begin(channel, *arguments)

    begin, RpcChannel.submit = RpcChannel.submit, submit  # type: ignore[method-assign]
    sys.addaudithook(audit)
    signal.signal(signal.SIGUSR1, lambda number, frame: print(json.dumps(counts), flush=True))

    def poll(driver: Driver) -> None:
        nonlocal is_said
        running = sum(worker.status is WorkerStatus.RUNNING for worker in driver.controller.workers.values())
        if not is_said and running == len(driver.controller.workers):
            is_said = True
            print(json.dumps({"running_after_s": round(time.monotonic() - started, 1)}), flush=True)

    config, record = read_config(directory), read_launch_record(directory)
    display = PlainDisplay(config.total_env_steps, io.StringIO())
    with Driver(
        config,
        directory,
        record,
        "session",
        display,
        make_jobs=lambda config, plan, directory: EverythingRuns(plan),
    ) as driver:
        driver.lease.acquire(0.0)
        driver.drive(poll)


def measure(num_workers: int, seconds: float, settle_s: float = SETTLE_S) -> tuple[str, ...]:
    """Return one row of the table."""
    with tempfile.TemporaryDirectory() as root:
        actors = ActorGroupConfig(count=num_workers - 1)
        config, directory, _ = prepare(ExperimentConfig(root=root, actors=actors))
        slots = [slot.index for job in make_plan(config).jobs for slot in job.slots]
        own = [sys.executable, __file__, "--run-dir", str(directory.path)]
        players = [
            subprocess.Popen([*own, "--play", *map(str, slots[i : i + HOSTS_PER_PROCESS])])
            for i in range(0, len(slots), HOSTS_PER_PROCESS)
        ]
        controller = subprocess.Popen([*own, "--drive"], stdout=subprocess.PIPE, text=True)
        try:
            assert controller.stdout is not None
            running_after_s = json.loads(controller.stdout.readline())["running_after_s"]
            time.sleep(settle_s)
            process = psutil.Process(controller.pid)
            counted_before = _counts(controller)
            before, at = process.cpu_times(), time.monotonic()
            time.sleep(seconds)
            after, elapsed = process.cpu_times(), time.monotonic() - at
            counted = _counts(controller)
            memory_mb = process.memory_info().rss / 2**20
        finally:
            for child in (controller, *players):
                child.kill()
                child.wait()
    cpu = (after.user + after.system - before.user - before.system) / elapsed
    rates = {name: 60 * (counted[name] - counted_before[name]) / elapsed / num_workers for name in counted}
    return (
        f"{num_workers:,}",
        f"{len(slots):,}",
        f"{cpu:.2%}",
        verdict(cpu, LIMIT_CPU),
        f"{cpu / num_workers:.4%}",
        f"{memory_mb:.0f} MB",
        verdict(memory_mb, LIMIT_MB),
        f"{rates['calls']:.2f}",
        f"{rates['file_operations']:.2f}",
        f"{running_after_s:g} s",
    )


def _counts(controller: subprocess.Popen[str]) -> dict[str, int]:
    controller.send_signal(signal.SIGUSR1)
    assert controller.stdout is not None
    counts: dict[str, int] = json.loads(controller.stdout.readline())
    return counts


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--seconds", type=float, default=20.0, help="of watching that are measured")
    parser.add_argument("--quick", action="store_true", help="ten workers, a few seconds")
    parser.add_argument("--run-dir", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--play", type=int, nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--drive", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play is not None:
        play(RunDirectory.at(options.run_dir), options.play)
    elif options.drive:
        drive(RunDirectory.at(options.run_dir))
    else:
        if options.quick:
            rows = [measure(10, 2.0, settle_s=1.0)]
        else:
            rows = [measure(number, options.seconds) for number in options.workers]
        print(machine_facts())
        print(markdown_table(HEADER, rows))


if __name__ == "__main__":
    main()
