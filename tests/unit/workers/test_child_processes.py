"""A host's child processes: started with their share of GPUs and threads, watched, ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hpc_marl.workers.child_processes import ChildProcesses, visible_gpus

SLEEPER = "import os, time, json; print(json.dumps(dict(os.environ)), flush=True); time.sleep(600)"


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    return tmp_path / "exp" / "trial"


@pytest.fixture
def sleepers(
    run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ChildProcesses]:
    """Children that print their environment and sleep; they have four GPUs to share."""
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!{sys.executable}\n{SLEEPER}\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    processes = ChildProcesses(run_directory, ["4", "5", "6", "7"])
    yield processes
    processes.close()


def wait_for_exit(processes: ChildProcesses, name: str) -> int:
    deadline = time.monotonic() + 60
    while (code := processes.children[name].exit_code) is None:
        assert time.monotonic() < deadline, "the process did not end"
        time.sleep(0.02)
    return code


def gpus_of(processes: ChildProcesses, name: str) -> dict[int, float]:
    return processes.children[name].gpus


def test_a_worker_without_a_run_says_so_in_its_log_and_exits_1(run_directory: Path) -> None:
    processes = ChildProcesses(run_directory)
    processes.launch("actor/0", life=3, num_threads=1)
    assert wait_for_exit(processes, "actor/0") == 1
    assert processes.running() == [] and processes.children["actor/0"].life == 3
    assert "holds no run" in (run_directory / "logs" / "actor" / "0.3.log").read_text()


def test_killed_processes_are_reaped(sleepers: ChildProcesses) -> None:
    for name in ("actor/0", "actor/1"):
        sleepers.launch(name, life=0, num_threads=1)
    pids = {name: child.process.pid for name, child in sleepers.children.items()}
    assert os.getsid(pids["actor/0"]) == pids["actor/0"]  # Ctrl-C in our terminal does not reach it
    os.kill(pids["actor/1"], signal.SIGKILL)
    sleepers.kill("actor/0")
    assert wait_for_exit(sleepers, "actor/1") == -signal.SIGKILL
    assert not any(psutil.pid_exists(pid) for pid in pids.values())


def test_processes_are_asked_to_end_then_waited_for(sleepers: ChildProcesses) -> None:
    sleepers.launch("actor/0", life=0, num_threads=1)
    sleepers.launch("actor/1", life=0, num_threads=1)
    sleepers.terminate(["actor/0"])
    assert wait_for_exit(sleepers, "actor/0") == -signal.SIGTERM
    assert sleepers.wait(0.05) == ["actor/1"]
    sleepers.terminate(["actor/0", "actor/1"])
    assert sleepers.wait(30) == []


def test_a_new_life_takes_the_place_of_the_one_before(sleepers: ChildProcesses, run_directory: Path) -> None:
    sleepers.launch("actor/0", life=0, num_threads=1)
    before = sleepers.children["actor/0"].process
    sleepers.launch("actor/0", life=1, num_threads=3)
    assert before.returncode == -signal.SIGKILL and sleepers.running() == ["actor/0"]
    log = run_directory / "logs" / "actor" / "0.1.log"
    deadline = time.monotonic() + 30
    while not log.read_text().endswith("}\n"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    environment = json.loads(log.read_text())
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert environment["CUDA_VISIBLE_DEVICES"] == "", "it asked for no GPU"


def test_whole_gpus_are_for_one_worker_each(sleepers: ChildProcesses) -> None:
    sleepers.launch("trainer/0", 0, 1, gpus=1.0)
    sleepers.launch("trainer/1", 0, 1, gpus=2.0)
    assert gpus_of(sleepers, "trainer/0") == {0: 1.0} and gpus_of(sleepers, "trainer/1") == {1: 1.0, 2: 1.0}
    sleepers.kill("trainer/0")
    sleepers.launch("policy/0", 0, 1, gpus=1.0)
    assert gpus_of(sleepers, "policy/0") == {0: 1.0}, "what a dead one had is free again"


def test_shares_fill_a_gpu_before_they_take_another(sleepers: ChildProcesses) -> None:
    sleepers.launch("trainer/0", 0, 1, gpus=1.0)
    for index, gpus in enumerate((0.5, 0.25, 0.5, 0.25)):
        sleepers.launch(f"policy/{index}", 0, 1, gpus=gpus)
    assert [list(gpus_of(sleepers, f"policy/{index}")) for index in range(4)] == [[1], [1], [2], [1]]


def test_where_there_are_too_few_the_emptiest_is_shared(
    run_directory: Path, sleepers: ChildProcesses
) -> None:
    sleepers.launch("trainer/0", 0, 1, gpus=4.0)
    sleepers.launch("policy/0", 0, 1, gpus=0.5)
    sleepers.launch("policy/1", 0, 1, gpus=0.5)
    assert list(gpus_of(sleepers, "policy/0")) == [0] and list(gpus_of(sleepers, "policy/1")) == [1]


def test_the_visible_gpus_are_those_that_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() is None
    for given, found in (
        ("", []),
        ("0, 2", ["0", "2"]),
        ("GPU-1f,GPU-2a", ["GPU-1f", "GPU-2a"]),
        ("NoDevFiles", []),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert visible_gpus() == found


def test_children_end_when_their_parent_does(run_directory: Path) -> None:
    """Also when it is killed: a worker asks the kernel for a signal."""
    program = (
        "import os, subprocess, sys, time\n"
        "from hpc_marl.workers.process_identity import die_with_parent\n"
        "child = 'import os, sys, time; from hpc_marl.workers.process_identity import die_with_parent;"
        "print(die_with_parent(int(sys.argv[1])), flush=True); time.sleep(600)'\n"
        "subprocess.Popen([sys.executable, '-c', child, str(os.getpid())], start_new_session=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "True\n"
    (child,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs([child], timeout=30)
    assert alive == []
