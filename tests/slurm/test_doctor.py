"""`hpc-marl doctor` in the lab: green as it is, and each planted fault is found, named and answered."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.running_lab import RunningLab, running_lab

__all__ = ["running_lab"]

pytestmark = pytest.mark.slurm

PINNED = (
    "trainer.device=cuda",
    "cluster.core_directives={nodelist: gpu2}",
    "cluster.actor_directives={nodelist: cpu4}",
)


def doctor(lab: RunningLab, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Let the doctor look at the lab; whatever it finds, it leaves nothing behind."""
    found = lab.hpc_marl("doctor", "cluster=lab", f"cluster.shared_root={lab.directory}", *arguments)
    assert not [path for path in lab.directory.iterdir() if path.name.startswith("doctor-")]
    assert not [name for name in lab.job_names() if name.startswith("doctor-")]
    return found


def found_of(done: subprocess.CompletedProcess[str], level: str) -> dict[str, str]:
    """Return what was found at a level: what -> detail and remedy."""
    assert done.stderr == "", done.stderr
    blocks = re.split(r"\n(?=\S)", done.stdout)
    rows = [re.match(r"(ok|warn|fail) {2,4}(.*?) {2,}(.*)", block, re.DOTALL) for block in blocks]
    return {row[2].strip(): row[3] for row in rows if row and row[1] == level}


def test_the_lab_is_well(running_lab: RunningLab) -> None:
    done = doctor(running_lab)
    assert done.returncode == 0, done.stdout + done.stderr
    assert found_of(done, "fail") == {}
    assert set(found_of(done, "warn")) == {"GPU gpu"}, "its GPUs are fake"
    well = found_of(done, "ok")
    for what in (
        "controller", "partition cpu", "partition gpu", "sbatch core", "sbatch actors", "time limit core",
        "python cpu", "python gpu", "login -> cpu", "login -> gpu", "cpu -> gpu", "gpu -> cpu", "clock cpu",
        "names login<->cpu", "names login<->gpu", "limits gpu", "space", "sacct", "accounts",
    ):  # fmt: skip
        assert what in well, done.stdout
    assert re.match(r"10\.77\.0\.1\d:\d+ answers in \d+\.\d ms", well["login -> cpu"])


def test_an_interface_by_ports_of_a_range(running_lab: RunningLab) -> None:
    done = doctor(running_lab, "cluster.interface=eth0", "cluster.port_range=[50123,50124]")
    assert done.returncode == 0, done.stdout
    ports = re.findall(r"-> \w+ .*?:(\d+) answers", done.stdout)
    assert len(ports) == 6 and set(ports) <= {"50123", "50124"}


@pytest.mark.parametrize(
    ("override", "what", "said"),
    [
        ("cluster.cpu_partition=nope", "partition nope", "there is no such partition; there are: cpu,"),
        ("cluster.gpu_partition=cpu", "partition cpu", "its nodes have no GPUs"),
        ("cluster.shared_root=/tmp", "shared root cpu", "is not the one that this machine sees"),
        ("cluster.python=/no/such/python", "python cpu", "does not start on cpu"),
        ("cluster.interface=127.0.0.1", "login -> cpu", "no answer at 127.0.0.1:"),
        ("cluster.time_limit=30-00:00:00", "time limit core", "cpu allows 7-00:00:00"),
        ("cluster.directives={qos: nope}", "sbatch core", "Invalid qos specification"),
        ("cluster.directives={account: nope}", "accounts", "account nope is not yours"),
    ],
)
def test_a_wrong_profile_is_found(running_lab: RunningLab, override: str, what: str, said: str) -> None:
    done = doctor(running_lab, override)
    assert done.returncode == 1
    failed = found_of(done, "fail")
    assert said in failed.get(what, ""), done.stdout
    assert all("-> " in text for text in failed.values()), "each has a remedy"


def test_another_environment_on_the_nodes_is_found(running_lab: RunningLab) -> None:
    package = running_lab.directory / "other" / "numpy-0.1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.1\n")
    python = running_lab.directory / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={package.parent} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = doctor(running_lab, f"cluster.python={python}", "cluster.gpu_partition=null")
    assert done.returncode == 1
    assert "numpy 0.1 (here " in found_of(done, "fail")["python cpu"]


def test_nodes_that_do_not_reach_each_other_are_found(running_lab: RunningLab) -> None:
    running_lab.cut("cpu4", "gpu2")
    try:
        done = doctor(running_lab, *PINNED)
    finally:
        running_lab.uncut("cpu4", "gpu2")
    assert done.returncode == 1
    assert set(found_of(done, "fail")) == {"cpu -> gpu", "gpu -> cpu"}, done.stdout
    assert {"login -> cpu", "login -> gpu"} <= set(found_of(done, "ok"))


def test_a_job_that_does_not_start_is_told_with_its_reason(running_lab: RunningLab) -> None:
    done = doctor(running_lab, "--timeout", "5", "cluster.directives={begin: now+1hour}")
    assert done.returncode == 1
    failed = found_of(done, "fail")
    assert set(failed) == {"queue cpu", "queue gpu"}
    assert "BeginTime" in failed["queue cpu"] and "--timeout SECONDS" in failed["queue cpu"]


def test_a_site_without_sacct_is_told_what_is_lost(running_lab: RunningLab, tmp_path: Path) -> None:
    sacct = running_lab.directory / "bin" / "sacct"
    sacct.parent.mkdir()
    sacct.write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
    sacct.chmod(0o755)
    script = f'PATH={sacct.parent}:$PATH exec {sys.executable} -m hpc_marl.cli doctor "$@"'
    done = running_lab.run(
        "sh", "-c", script, "sh", "cluster=lab", f"cluster.shared_root={running_lab.directory}"
    )
    assert done.returncode == 0, done.stdout
    assert "disabled" in found_of(done, "warn")["sacct"]


def test_an_interrupted_visit_leaves_no_jobs(running_lab: RunningLab) -> None:
    # `timeout` sends the signal to the whole group, as a terminal does.
    done = running_lab.run(
        "timeout", "--signal=INT", "5", sys.executable, "-m", "hpc_marl.cli", "doctor", "cluster=lab",
        f"cluster.shared_root={running_lab.directory}", "cluster.directives={begin: now+1hour}",
    )  # fmt: skip
    assert "interrupted; the jobs are cancelled" in done.stderr
    assert not list(running_lab.directory.iterdir())
    assert not [name for name in running_lab.job_names() if name.startswith("doctor-")]
