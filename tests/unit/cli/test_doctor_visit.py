"""A doctor's visit with fake commands of Slurm: a probe that answers, those that do not, and what is cleaned up."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_marl.base.name_resolve_file import FileNameResolver
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ClusterConfig
from hpc_marl.launch.site_survey import SiteSurvey, parse_partitions
from hpc_marl.site import probe as doctor_probe
from hpc_marl.site import probe_jobs as doctor_jobs
from hpc_marl.site import visit as doctor_visit
from hpc_marl.site.doctor import scratch_directory
from hpc_marl.site.exchange import RUN_UUID, Exchange
from hpc_marl.site.findings import Report
from hpc_marl.site.probe_jobs import Kind
from hpc_marl.site.visit import Visit
from tests.unit.launch.site_texts import NODES, PARTITIONS
from tests.unit.launch.slurm_fakes import FakeSlurm

SURVEY = SiteSurvey({}, parse_partitions(PARTITIONS, NODES))
SITE = ClusterConfig(kind="slurm", interface="127.0.0.1", directives={"account": "marl"})
LONG = Kind("long", "core", "long", None, 0)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[RunDirectory]:
    with scratch_directory(tmp_path) as made:
        yield made


def row(state: str, reason: str = "None", node: str = "c01") -> str:
    return f"echo '7|{state}|{reason}|{node}|N/A|me|doctor'"


def visited(directory: RunDirectory, timeout_s: float = 30.0) -> str:
    """Make the visit and return the report."""
    output = io.StringIO()
    with Visit(SITE, SURVEY, directory, Report(output), timeout_s) as visit:
        visit.make([LONG])
    return output.getvalue()


def test_a_probe_and_the_login_node_try_each_other_out(slurm: FakeSlurm, directory: RunDirectory) -> None:
    slurm.accepts(7)
    slurm.says("squeue", row("RUNNING"), row("COMPLETED"))
    arguments = ["--run-dir", str(directory.path), "--name", "long", "--peers", "login", "--seconds", "60"]
    probe = threading.Thread(target=doctor_probe.main, args=([*arguments, "--interface", "127.0.0.1"],))
    probe.start()
    with FileNameResolver(directory.names(RUN_UUID)) as names:
        names.wait("facts/long", 60.0)
    report = visited(directory)
    probe.join(60.0)
    assert not probe.is_alive()
    for what in (
        "python long",
        "filesystem long",
        "limits long",
        "login -> long",
        "clock long",
        "long -> login",
    ):
        assert f"ok    {what:<20}" in report, report
    assert "names login<->long" in report and "fail" not in report
    script = next(directory.job_scripts.iterdir()).read_text()
    assert "#SBATCH --partition=long" in script and "#SBATCH --account=marl" in script
    assert f"-m hpc_marl.site.probe --run-dir {directory.path} --name long --peers login" in script
    assert slurm.calls("scancel") == ["7"]


def test_a_probe_whose_job_fails_is_explained(
    slurm: FakeSlurm, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_visit, "_LAST_LOOK_S", 0.1)
    slurm.accepts(7)
    slurm.says("squeue", row("FAILED"))
    output = directory.logs / "jobs" / "doctor.visit.core.7.out"
    output.write_text("/opt/bin/python: No module named hpc_marl\n")
    assert "the interpreter on c01 has no module hpc_marl" in visited(directory)


def test_a_node_that_does_not_see_the_directory_is_found(
    slurm: FakeSlurm, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_visit, "_LAST_LOOK_S", 0.1)
    slurm.accepts(7)
    slurm.says("squeue", row("FAILED"))
    slurm.says("srun", "exit 0")
    report = visited(directory)
    assert "fail  shared root long" in report
    assert "--account=marl" in slurm.calls("srun")[0], "that job needs the account too"


def test_a_job_that_stays_in_the_queue(slurm: FakeSlurm, directory: RunDirectory) -> None:
    slurm.accepts(7)
    slurm.says("squeue", row("PENDING", "Priority", ""), row("CANCELLED", node=""))
    assert "still pending after 0.1 s: Priority" in visited(directory, 0.1)
    assert slurm.calls("scancel") == ["7"]


def test_a_job_that_is_refused(slurm: FakeSlurm, directory: RunDirectory) -> None:
    slurm.says("sbatch", "echo 'sbatch: error: Invalid account' >&2; exit 1")
    report = visited(directory)
    assert "fail  probe long" in report and "Invalid account" in report
    assert slurm.calls("scancel")[0].endswith(f"--name={directory.experiment_name}.visit.core")


def test_an_interrupted_submission_is_cancelled_by_name(
    slurm: FakeSlurm, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_text: str, _folder: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor_jobs, "submit_script", interrupted)
    with pytest.raises(KeyboardInterrupt):
        visited(directory)
    assert slurm.calls("scancel")[0].endswith(f"--name={directory.experiment_name}.visit.core")


def test_an_interface_that_is_not_there_is_a_finding(directory: RunDirectory) -> None:
    with Exchange(directory, "login", "no-such-interface", ()) as login:
        assert "no-such-interface" in login.problem and login.hosts == ()
        assert login.reach("login").addresses == [], "it has published nothing"


def test_a_silent_address_is_told_from_one_that_answers(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpc_marl.site.exchange._CALL_TIMEOUT_S", 0.5)
    with (
        Exchange(directory, "login", "127.0.0.1", ()) as login,
        Exchange(directory, "cpu", "127.0.0.0/8", ()) as cpu,
    ):
        (answer,) = login.reach("cpu").addresses
        assert answer.answered and answer.port == cpu.port and abs(answer.clock_offset_s) < 60
        cpu._over.set()
        assert cpu._thread is not None
        cpu._thread.join()
        (silence,) = login.reach("cpu").addresses
        assert not silence.answered and "no reply" in silence.problem
