"""The host: it starts, ends and reports the workers of its slot, ends with its job, and starts a deputy."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hpc_marl.base.launch_record import JobRecord, LaunchRecord, write_launch_record
from hpc_marl.base.name_resolve_memory import MemoryNameResolver
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.workers import host
from hpc_marl.workers.host import HostWorker
from tests.unit.control.control_fakes import PATIENCE_S, QueueServer, eventually, running

# A worker saves on SIGTERM and then exits 75, unless it is deaf; a deputy says that it was there, and ends.
STAND_IN = """#!/bin/sh
case "$*" in
*hpc_marl.deputy*) echo "$@" >> "{directory}/deputy"; exit 0 ;;
*deaf/*) trap '' TERM ;;
*) trap 'exit 75' TERM ;;
esac
echo ready
while true; do sleep 0.02; done
"""


class Slot:
    """A host in a thread of this process."""

    def __init__(self, path: Path, slot: int, **record: Any) -> None:
        self.path = path
        self.directory = RunDirectory(path, "exp", "trial")
        self.directory.create()
        jobs = [
            JobRecord(job_id="7", role="core", slots=[0]),
            JobRecord(job_id="8", role="actors", slots=[1]),
        ]
        settings = {"orphan_grace_s": 60.0, "host_grace_s": 60.0, "heartbeat_interval_s": 0.1, **record}
        write_launch_record(
            self.directory,
            LaunchRecord(
                experiment_name="exp",
                trial_name="trial",
                run_uuid="0" * 32,
                epoch=1,
                interface=None,
                jobs=jobs,
                **settings,
            ),
        )
        self.server = QueueServer(f"host/{slot}")
        self.context = RunContext("exp", "trial", MemoryNameResolver(), cast(Any, None))
        self.worker = HostWorker(self.server, self.context, self.directory)

    def children(self) -> str:
        return str(self.server.report.metrics.get("children", ""))

    def see(self, children: str) -> None:
        """Wait until the host says that just this runs, or ran."""
        eventually(self.children, lambda text: text == children)

    def launch(self, name: str, life: int = 0) -> None:
        self.server.call("launch", worker_name=name, life=life, num_threads=1, gpus=0.0)
        kind, index = name.split("/")
        log = self.directory.logs / kind / f"{index}.{life}.log"
        eventually(lambda: log.read_text() if log.exists() else "", lambda text: "ready" in text)

    def usage(self) -> dict[str, Any]:
        (path,) = self.directory.usage.glob("host-*.json")
        content: dict[str, Any] = json.loads(path.read_text())
        return content

    def deputies(self) -> int:
        path = self.path / "deputy"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def wait_for_end(self) -> WorkerStatus:
        return eventually(lambda: self.worker.status, lambda status: status is not WorkerStatus.READY)


MakeSlot = Callable[..., Slot]


@pytest.fixture
def make_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeSlot]:
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN.format(directory=tmp_path))
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = signal.getsignal(signal.SIGUSR2)
    yield lambda slot=1, **record: Slot(tmp_path, slot, **record)
    signal.signal(signal.SIGUSR2, before)


def test_workers_are_started_and_ended_by_command_and_reported(make_slot: MakeSlot) -> None:
    slot = make_slot()
    with running(slot.worker):
        slot.launch("actor/0")
        slot.launch("actor/1")
        slot.see("actor/0:0:r actor/1:0:r")
        pid = slot.worker._processes.children["actor/0"].process.pid
        slot.launch("actor/0")
        assert slot.worker._processes.children["actor/0"].process.pid == pid, "it was started already"
        slot.launch("actor/0", life=1)
        slot.see("actor/1:0:r actor/0:1:r")
        slot.server.call("kill", worker_name="actor/1")
        slot.see("actor/1:0:-9 actor/0:1:r")
        slot.server.call("terminate", worker_name="actor/0")
        slot.see("actor/1:0:-9 actor/0:1:75")
        slot.server.call("terminate", worker_name="actor/9")
        assert slot.server.call("exit") == "COMPLETED"


def test_heartbeats_say_where_it_is_and_what_is_used(
    make_slot: MakeSlot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPC_MARL_JOB_ID", "local-2_0")
    monkeypatch.setenv("HPC_MARL_NODE", "node1")
    slot = make_slot()
    with running(slot.worker):
        slot.launch("actor/0")
        metrics = eventually(lambda: slot.server.report.metrics, lambda found: "rss/actor/0" in found)
    assert (metrics["node"], metrics["job_id"], metrics["time_left_s"]) == ("node1", "local-2_0", -1.0)
    assert float(metrics["rss/actor/0"]) > 0 and "cpu/actor/0" in metrics and "cpu_percent" in metrics


def test_the_usage_file_tells_how_it_ended(make_slot: MakeSlot) -> None:
    slot = make_slot()
    with running(slot.worker):
        slot.launch("actor/0")
        eventually(lambda: slot.server.report.metrics, lambda found: "rss/actor/0" in found)
        eventually(lambda: list(slot.directory.usage.glob("host-*.json")), bool)
        assert slot.usage()["ended"] == ""
        slot.server.call("exit")
    usage = slot.usage()
    assert usage["ended"] == "DONE" and usage["slot"] == 1 and usage["role"] == "actors"
    assert set(usage) >= {
        "slot", "role", "node", "job_id", "started", "seconds", "cpus", "gpus", "cpu_s", "max_rss_mb",
        "gpu_percent_mean", "ended", "workers",
    }  # fmt: skip
    assert set(usage["workers"]["actor/0"]) == {"cpu_s", "max_rss_mb", "seconds"}
    (path,) = slot.directory.usage.glob("host-*.json")
    assert path.name == f"host-1.{slot.context.incarnation}.json"


def test_a_notice_of_the_queue_has_workers_save_and_the_job_run_again(
    make_slot: MakeSlot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "812")
    slot = make_slot()
    with running(slot.worker):
        slot.launch("actor/0")
        os.kill(os.getpid(), signal.SIGUSR2)
        assert slot.wait_for_end() is WorkerStatus.INTERRUPTED
    assert slot.server.report.metrics["ended"] == "PREEMPTED" and slot.children() == "actor/0:0:75"
    assert slot.usage()["ended"] == "PREEMPTED" and (tmp_path / "told").read_text() == "requeue 812\n"


def test_a_job_near_its_time_limit_ends_without_a_notice(
    make_slot: MakeSlot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPC_MARL_JOB_ID", "local-1")
    monkeypatch.setenv("HPC_MARL_TIME_LIMIT_S", "10")
    monkeypatch.setenv("HPC_MARL_SIGNAL_LEAD_S", "20")
    slot = make_slot()
    with running(slot.worker):
        assert slot.wait_for_end() is WorkerStatus.INTERRUPTED
    assert slot.usage()["ended"] == "TIMEOUT"


@pytest.mark.parametrize("has_notice", [True, False])
def test_a_host_whose_slot_another_fills_ends_and_leaves_the_job_alone(
    make_slot: MakeSlot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_notice: bool
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "812")
    monkeypatch.setattr(host, "_NAME_INTERVAL_S", dict.fromkeys((True, False), 60.0 if has_notice else 0.1))
    slot = make_slot()
    with running(slot.worker):
        slot.launch("actor/0")
        monkeypatch.setattr(RunContext, "lookup", lambda self, key: SimpleNamespace(incarnation="another"))
        if has_notice:
            os.kill(os.getpid(), signal.SIGUSR2)
        assert slot.wait_for_end() is WorkerStatus.INTERRUPTED
    assert slot.usage()["ended"] == ("PREEMPTED" if has_notice else "ORPHANED")
    assert slot.children() == "actor/0:0:75" and not (tmp_path / "told").exists()


def test_what_does_not_end_in_time_is_killed(make_slot: MakeSlot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_TERMINATE_WAIT_S", 0.1)
    slot = make_slot()
    with running(slot.worker):
        slot.launch("deaf/0")
        slot.server.call("exit")
    assert slot.children() == "deaf/0:0:-9"


def test_workers_end_when_nobody_drives_them_and_the_host_later(
    make_slot: MakeSlot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_ORPHAN_KILL_S", 0.5)
    slot = make_slot(orphan_grace_s=0.4, host_grace_s=4.0)
    with running(slot.worker):
        for name in ("actor/0", "deaf/0"):
            slot.launch(name)
        slot.see("actor/0:0:75 deaf/0:0:-9")
        assert slot.worker.status is WorkerStatus.READY
        assert slot.wait_for_end() is WorkerStatus.INTERRUPTED
    assert slot.usage()["ended"] == "ORPHANED"


# -- the deputy --------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "TAKEOVER_SILENCE_S", 0.3)


def test_the_first_host_starts_a_deputy_when_nobody_drives(make_slot: MakeSlot, impatience: None) -> None:
    slot = make_slot(0, has_deputy=True)
    with running(slot.worker):
        eventually(slot.deputies, lambda count: count == 1)
    assert str(slot.directory.path) in (slot.path / "deputy").read_text()


def test_a_deputy_drives_from_the_start_with_controller_job(make_slot: MakeSlot) -> None:
    slot = make_slot(0, has_deputy=True, controller="job")
    with running(slot.worker):
        eventually(slot.deputies, lambda count: count == 1)


def test_a_deputy_takes_over_at_once_when_it_is_told_to(make_slot: MakeSlot) -> None:
    slot = make_slot(0, has_deputy=True)
    with running(slot.worker):
        slot.server.call("ping")
        slot.server.call("take_over")
        eventually(slot.deputies, lambda count: count == 1)


@pytest.mark.parametrize(
    ("number", "record", "is_over"),
    [(0, {"has_deputy": True}, True), (1, {"has_deputy": True}, False), (0, {"has_deputy": False}, False)],
)
def test_no_deputy_where_none_is_needed(
    make_slot: MakeSlot, impatience: None, number: int, record: dict[str, Any], is_over: bool
) -> None:
    slot = make_slot(number, host_grace_s=1.0, **record)
    if is_over:
        slot.directory.verdict_file.write_text("{}")
    with running(slot.worker) as thread:
        thread.join(PATIENCE_S)
    assert slot.deputies() == 0 and slot.worker.status is WorkerStatus.INTERRUPTED
