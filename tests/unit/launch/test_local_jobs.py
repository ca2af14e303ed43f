"""LocalJobs: processes of this machine queue for simulated nodes, and are cancelled, preempted and started again."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hpc_marl.base.jobs import JobService, JobState
from hpc_marl.base.launch_record import LaunchRecord, read_launch_record, write_launch_record
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ActorGroupConfig, ClusterConfig, ExperimentConfig, TrainerGroupConfig
from hpc_marl.errors import LaunchError
from hpc_marl.launch.local_jobs import LocalJobs
from hpc_marl.launch.plan import make_plan

# Says what it was given, then does as the file `orders` in its directory says: exit N, or hang for signals.
STAND_IN = """
import json, os, signal, subprocess, sys, time
slot, directory = sys.argv[1], sys.argv[2]
names = ("HPC_MARL_NODE", "HPC_MARL_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_ARRAY_TASK_ID", "CUDA_VISIBLE_DEVICES",
         "OMP_NUM_THREADS", "PYTHONUNBUFFERED")
behaviour = sys.argv[3]
if behaviour == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if behaviour == "parent":
    subprocess.Popen([sys.executable, "-c", "import time; print('child', flush=True); time.sleep(600)"],
                     start_new_session=True)
def note(number, frame):
    print("signal", signal.Signals(number).name, flush=True)
signal.signal(signal.SIGUSR2, note)
told = {name: os.environ.get(name) for name in names}
path = f"{directory}/told.{slot}"
with open(path + ".tmp", "a") as file:
    file.write(json.dumps(told))
os.replace(path + ".tmp", path)
print("ready", slot, flush=True)
while not os.path.exists(f"{directory}/exit.{slot}"):
    time.sleep(0.01)
sys.exit(int(open(f"{directory}/exit.{slot}").read() or 0))
"""


class Trial:
    """A trial whose hosts are stand-ins; `now` is the clock of its LocalJobs."""

    def __init__(self, path: Path, behaviour: str = "", **changes: Any) -> None:
        self.path = path
        self.now = 0.0
        self.directory = RunDirectory(path, "exp", "seed1")
        self.directory.create()
        write_launch_record(
            self.directory,
            LaunchRecord(
                experiment_name="exp",
                trial_name="seed1",
                run_uuid="0" * 32,
                epoch=1,
                interface=None,
                heartbeat_interval_s=0.5,
                orphan_grace_s=30.0,
            ),
        )
        self.config = ExperimentConfig(**{"experiment_name": "exp", "trial_name": "seed1", **changes})
        (path / "stand_in.py").write_text(STAND_IN)
        program = [sys.executable, str(path / "stand_in.py")]
        self.jobs = LocalJobs(
            self.config,
            make_plan(self.config),
            self.directory,
            command=lambda slot: [*program, str(slot), str(path), behaviour],
            clock=lambda: self.now,
        )

    def state(self, slot: int) -> JobState | None:
        report = self.jobs.report(slot)
        return report.state if report else None

    def told(self, slot: int) -> dict[str, str | None]:
        """Wait for what the process of a slot was given; forget it, so that the next start can be told apart."""
        path = self.path / f"told.{slot}"
        self.wait(path.exists)
        told: dict[str, str | None] = json.loads(path.read_text())
        path.unlink()
        return told

    def exit(self, slot: int, code: int = 0) -> None:
        (self.path / f"exit.{slot}").write_text(str(code))

    def output(self, name: str) -> str:
        return (self.directory.logs / "jobs" / f"exp.seed1.{name}.out").read_text()

    def wait(self, until: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not until():
            assert time.monotonic() < deadline, "waited in vain"
            self.jobs.poll()
            time.sleep(0.01)

    def wait_for(self, slot: int, state: JobState) -> None:
        self.wait(lambda: self.state(slot) is state)


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Callable[..., Trial]]:
    made: list[Trial] = []

    def make(behaviour: str = "", **changes: Any) -> Trial:
        made.append(Trial(tmp_path, behaviour, **changes))
        return made[-1]

    yield make
    for one in made:
        one.jobs.close()


def actors(count: int, **changes: Any) -> ActorGroupConfig:
    return ActorGroupConfig(**{"count": count, "per_task": 1, **changes})


def test_slots_become_processes_and_records(
    trial: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    run = trial(actors=actors(2))
    service: JobService = run.jobs
    assert service.report(0) is None
    service.submit([0, 1, 2])
    told = run.told(2)
    assert told["HPC_MARL_NODE"] == "node0" and told["HPC_MARL_JOB_ID"] == "local-2_1"
    assert told["OMP_NUM_THREADS"] == "1" and told["PYTHONUNBUFFERED"] == "1"
    assert told["SLURM_RESTART_COUNT"] is None and told["SLURM_ARRAY_TASK_ID"] is None
    run.told(0), run.told(1)
    reports = [service.report(slot) for slot in range(3)]
    assert [report.job_id for report in reports if report] == ["local-1", "local-2_0", "local-2_1"]
    assert all(report and report.state is JobState.RUNNING and report.node == "node0" for report in reports)
    record = read_launch_record(run.directory)
    assert [(job.job_id, job.role, job.slots, job.is_array) for job in record.jobs] == [
        ("local-1", "core", [0], False),
        ("local-2", "actors", [1, 2], True),
    ]
    assert all(job.submitted for job in record.jobs)
    assert "ready 1" in run.output("actors.local-2_0")
    pid = run.jobs.pids()[0]
    assert os.getsid(pid) == pid
    run.exit(0), run.exit(1, 3)
    run.wait_for(0, JobState.COMPLETED)
    run.wait_for(1, JobState.FAILED)
    assert run.state(2) is JobState.RUNNING and set(run.jobs.pids()) == {2}


def test_the_default_command_is_the_host(tmp_path: Path) -> None:
    run = Trial(tmp_path, "")
    jobs = LocalJobs(run.config, make_plan(run.config), run.directory)
    jobs.submit([0])
    [pid] = jobs.pids().values()
    command = psutil.Process(pid).cmdline()
    jobs.close()
    expected = [sys.executable, "-m", "hpc_marl.workers", "host", "--run-dir", str(run.directory.path)]
    assert command == [*expected, "--slots", "0"]
    assert not jobs.pids() and jobs.report(0).state is JobState.CANCELLED  # type: ignore[union-attr]


def test_jobs_wait_for_free_cpus_in_order(trial: Callable[..., Trial]) -> None:
    run = trial(
        actors=actors(3, cpus=2), trainer=TrainerGroupConfig(cpus=2), cluster=ClusterConfig(node_cpus=4)
    )
    run.jobs.submit(range(4))
    assert [run.state(slot) for slot in range(4)] == [JobState.RUNNING] * 2 + [JobState.PENDING] * 2
    waiting = run.jobs.report(2)
    assert waiting and (waiting.reason, waiting.node) == ("Resources", "")
    run.exit(1)
    run.wait_for(2, JobState.RUNNING)
    assert run.state(3) is JobState.PENDING
    run.jobs.cancel([3])
    assert run.state(3) is JobState.CANCELLED
    run.exit(0)
    run.wait_for(0, JobState.COMPLETED)
    assert run.state(3) is JobState.CANCELLED


def test_core_slots_are_on_nodes_of_their_own_with_gpus_of_their_own(
    trial: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    run = trial(
        trainer=TrainerGroupConfig(count=2, gpus=1.0),
        actors=actors(2),
        cluster=ClusterConfig(nodes=2, node_gpus=2, core_nodes=2),
    )
    run.jobs.submit([0, 1, 2])
    told = [run.told(slot) for slot in range(3)]
    assert [(one["HPC_MARL_NODE"], one["CUDA_VISIBLE_DEVICES"]) for one in told] == [
        ("node0", "4"),
        ("node1", "6"),
        ("node0", ""),
    ]
    assert [one["HPC_MARL_JOB_ID"] for one in told] == ["local-1", "local-1", "local-2_0"]
    # As with srun --kill-on-bad-exit, one failed task ends the core job, and with it the other task.
    run.exit(1, 1)
    run.wait_for(0, JobState.FAILED)
    assert run.state(1) is JobState.FAILED and run.state(2) is JobState.RUNNING


def test_what_can_never_fit_is_refused_and_leaves_nothing(trial: Callable[..., Trial]) -> None:
    run = trial(
        trainer=TrainerGroupConfig(count=2), cluster=ClusterConfig(nodes=2, node_cpus=1, core_nodes=2)
    )
    run.jobs.plan = make_plan(ExperimentConfig(trainer=TrainerGroupConfig(cpus=2)))
    with pytest.raises(LaunchError, match=r"1 x 2 CPUs can never start: .* 2 simulated nodes of 1 CPUs each"):
        run.jobs.submit([0])
    assert run.jobs.report(0) is None and read_launch_record(run.directory).jobs == []
    with pytest.raises(LaunchError, match="no slot 9; it has slots"):
        run.jobs.submit([9])


def test_a_heterogeneous_job_starts_together(trial: Callable[..., Trial]) -> None:
    run = trial(actors=actors(2), cluster=ClusterConfig(placement="hetjob", node_cpus=3, nodes=1))
    run.jobs.submit([0, 1, 2])
    told = [run.told(slot)["HPC_MARL_JOB_ID"] for slot in range(3)]
    assert told == ["local-1+0", "local-1+1", "local-1+1"]
    run.exit(1, 1)
    run.wait_for(1, JobState.FAILED)
    assert run.state(0) is run.state(2) is JobState.RUNNING
    run.jobs.submit([1])
    report = run.jobs.report(1)
    assert report and report.job_id == "local-2"


def test_a_filled_slot_is_not_filled_twice_and_a_larger_plan_has_more(trial: Callable[..., Trial]) -> None:
    run = trial(actors=actors(1))
    run.jobs.submit([0, 1])
    with pytest.raises(LaunchError, match="slot 1 is filled by job local-2_0"):
        run.jobs.submit([1])
    run.jobs.plan = make_plan(ExperimentConfig(actors=actors(2)))
    run.jobs.submit([2])
    report = run.jobs.report(2)
    assert report and (report.job_id, report.state) == ("local-3_0", JobState.RUNNING)


def test_who_does_not_listen_is_killed_by_a_later_poll(trial: Callable[..., Trial]) -> None:
    run = trial("deaf", actors=actors(1))
    run.jobs.submit([0, 1])
    run.told(0), run.told(1)
    run.jobs.cancel([0])
    run.jobs.poll()
    run.now = 4.0
    run.jobs.cancel([0])  # does not begin the count anew
    assert run.state(0) is JobState.RUNNING
    run.now = 6.0
    run.wait_for(0, JobState.CANCELLED)
    assert run.state(1) is JobState.RUNNING
    (run.path / "told.0").unlink(missing_ok=True)
    run.jobs.submit([0])
    report = run.jobs.report(0)
    assert report and report.job_id == "local-3"
    os.kill(run.jobs.pids()[1], signal.SIGKILL)
    run.wait_for(1, JobState.FAILED)
    os.kill(run.jobs.pids()[0], signal.SIGKILL)


def test_a_preempted_job_is_warned_ended_and_started_again(trial: Callable[..., Trial]) -> None:
    run = trial(actors=actors(1), cluster=ClusterConfig(node_cpus=2))
    run.jobs.submit([0, 1])
    run.told(0), run.told(1)
    run.jobs.preempt(0, grace_s=20.0, hold_s=30.0)
    run.wait(lambda: "signal SIGUSR2" in run.output("core.local-1"))
    assert run.state(0) is JobState.RUNNING
    run.now = 20.0
    run.wait_for(0, JobState.PENDING)
    report = run.jobs.report(0)
    assert report and (report.reason, report.node, report.job_id) == ("BeginTime", "", "local-1")
    run.now = 31.0
    run.wait_for(0, JobState.RUNNING)
    told = run.told(0)
    assert (told["SLURM_RESTART_COUNT"], told["HPC_MARL_JOB_ID"]) == ("1", "local-1")
    assert run.output("core.local-1").count("ready 0") == 2
    run.jobs.preempt(0, grace_s=20.0)
    run.jobs.cancel([0])
    run.wait_for(0, JobState.CANCELLED)
    run.jobs.preempt(0)
    assert run.state(0) is JobState.CANCELLED


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_nothing_outlives_its_host(trial: Callable[..., Trial], how: str) -> None:
    run = trial("parent", actors=actors(1))
    run.jobs.submit([0])
    run.told(0)
    host = psutil.Process(run.jobs.pids()[0])
    run.wait(lambda: "child" in run.output("core.local-1"))
    [child] = host.children()
    if how == "killed":
        host.kill()
        run.wait_for(0, JobState.FAILED)
    else:
        run.jobs.close()
        assert run.state(0) is JobState.CANCELLED
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_later_controller_counts_on_and_a_command_that_is_not_there_fails(tmp_path: Path) -> None:
    run = Trial(tmp_path)
    first = LocalJobs(
        run.config, make_plan(run.config), run.directory, command=lambda _: ["/no/such/program"]
    )
    first.submit([0])
    first.poll()
    report = first.report(0)
    assert report and (report.job_id, report.state) == ("local-1", JobState.FAILED)
    second = LocalJobs(run.config, make_plan(run.config), run.directory, command=lambda _: ["true"])
    second.submit([0])
    second.close()
    report = second.report(0)
    assert report and report.job_id == "local-2"
