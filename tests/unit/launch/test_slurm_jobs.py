"""SlurmJobs against fake commands: what it submits, remembers, asks, believes and cancels."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from hpc_marl.base.jobs import JobReport, JobState
from hpc_marl.base.launch_record import read_launch_record
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ExperimentConfig
from hpc_marl.errors import LaunchError
from hpc_marl.launch import make_plan
from hpc_marl.launch.slurm_commands import user_name
from hpc_marl.launch.slurm_jobs import SlurmJobs
from tests.unit.launch.slurm_fakes import Clock, FakeSlurm, experiment, make_run, poll_until

ME = user_name()
CORE, ACTORS = f"{ME}|lab.seed1.core", f"{ME}|lab.seed1.actors"
BUSY = (
    "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1"
)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "runs")


class Session:
    """Makes SlurmJobs on one clock and closes them."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.clock = Clock()
        self.made: list[SlurmJobs] = []

    def jobs(self, config: ExperimentConfig | None = None, core_dependency: str = "") -> SlurmJobs:
        config = config or experiment()
        jobs = SlurmJobs(
            config,
            make_plan(config),
            self.run,
            core_dependency=core_dependency,
            clock=self.clock,
            sleep=self.clock.sleep,
        )
        self.made.append(jobs)
        return jobs

    def ask(self, jobs: SlurmJobs, after_s: float = 60.0) -> None:
        """Let the interval pass, and one question be asked and answered."""
        self.clock.now += after_s
        watch = jobs._watch
        before = watch._asked_at
        poll_until(jobs.poll, lambda: watch._asked_at > before and watch._command is None)

    def states(self, jobs: SlurmJobs) -> dict[int, str]:
        slots = [slot.index for job in jobs.plan.jobs for slot in job.slots]
        return {slot: report.state.value for slot in slots if (report := jobs.report(slot))}


@pytest.fixture
def session(run: RunDirectory) -> Iterator[Session]:
    session = Session(run)
    yield session
    for jobs in session.made:
        jobs.close()


def test_split_is_a_job_and_an_array_that_waits_for_it(slurm: FakeSlurm, session: Session) -> None:
    slurm.accepts(15, 16, 19)
    jobs = session.jobs()
    assert jobs.report(0) is None
    jobs.submit([0, 1, 2, 3])
    records = read_launch_record(session.run).jobs
    assert [(r.job_id, r.role, r.slots, r.is_array, r.script) for r in records] == [
        ("15", "core", [0], False, "jobs/15.sbatch"),
        ("16", "actors", [1, 2, 3], True, "jobs/16.sbatch"),
    ]
    script = (session.run.path / records[1].script).read_text()
    assert "#SBATCH --dependency=after:15\n#SBATCH --kill-on-invalid-dep=yes\n#SBATCH --array=0-2\n" in script
    assert sorted(path.name for path in session.run.job_scripts.iterdir()) == ["15.sbatch", "16.sbatch"]
    assert (session.run.logs / "jobs").is_dir()
    assert jobs.report(2) == JobReport("16_1", JobState.PENDING)
    jobs.submit([2])
    assert "dependency" not in (session.run.job_scripts / "19.sbatch").read_text()
    assert jobs.report(2) == JobReport("19_0", JobState.PENDING)


def test_actors_that_come_later_wait_for_no_core_that_runs(slurm: FakeSlurm, session: Session) -> None:
    slurm.accepts(15, 16)
    slurm.lists(f"15|RUNNING|None|gpu1|N/A|{CORE}")
    jobs = session.jobs(core_dependency="afterany:9")
    jobs.submit([0])
    assert "--dependency=afterany:9\n" in (session.run.job_scripts / "15.sbatch").read_text()
    session.ask(jobs)
    jobs.submit([1, 2, 3])
    assert "dependency" not in (session.run.job_scripts / "16.sbatch").read_text()


def test_a_larger_plan_gets_further_arrays(slurm: FakeSlurm, session: Session) -> None:
    slurm.accepts(15, 16, 17)
    jobs = session.jobs()
    jobs.submit(range(4))
    jobs.plan = make_plan(experiment(actors=10))
    jobs.submit([4, 5])
    assert read_launch_record(session.run).jobs[-1].slots == [4, 5]
    assert session.states(jobs) == dict.fromkeys(range(6), "PENDING")


def test_heterogeneous_jobs_have_components(slurm: FakeSlurm, session: Session) -> None:
    slurm.accepts(21)
    slurm.lists(
        f"21+0|RUNNING|None|gpu1|N/A|{CORE}",
        f"21+1|RUNNING|None|cpu[1-2]|N/A|{ACTORS}",
    )
    jobs = session.jobs(experiment("hetjob"))
    jobs.submit(range(4))
    records = read_launch_record(session.run).jobs
    assert [(r.job_id, r.role, r.slots) for r in records] == [
        ("21+0", "core", [0]),
        ("21+1", "actors", [1, 2, 3]),
    ]
    session.ask(jobs)
    assert jobs.report(0) == JobReport("21+0", JobState.RUNNING, node="gpu1")
    assert jobs.report(3) == JobReport("21+1", JobState.RUNNING, node="cpu[1-2]")
    jobs.cancel([1, 2, 3])
    jobs.cancel(range(4))
    assert slurm.calls("scancel") == ["21+1", "21"]


def test_every_slot_of_a_job_of_nodes_has_its_node(slurm: FakeSlurm, session: Session) -> None:
    slurm.accepts(20)
    slurm.lists(f"20|RUNNING|None|gpu[1-2]|N/A|{CORE}")
    jobs = session.jobs(experiment("packed", trainers=2, nodes=2))
    jobs.submit([0, 1])
    session.ask(jobs)
    assert [report.node for slot in (0, 1) if (report := jobs.report(slot))] == ["gpu1", "gpu2"]


def test_large_arrays_are_split(slurm: FakeSlurm, session: Session) -> None:
    slurm.says("scontrol", "echo 'MaxArraySize            = 2'")
    slurm.accepts(15, 16, 17)
    jobs = session.jobs()
    jobs.submit(range(4))
    jobs.submit([])
    assert [record.slots for record in read_launch_record(session.run).jobs] == [[0], [1, 2], [3]]
    assert slurm.calls("scontrol") == ["show config"]


def test_sbatch_sees_nothing_of_a_job_around_it(
    slurm: FakeSlurm, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_CPU_BIND", "SBATCH_PARTITION", "SRUN_DEBUG", "PMI_RANK", "PMIX_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/site.conf")
    monkeypatch.setenv("MY_OWN", "kept")
    slurm.accepts(15)
    session.jobs().submit([0])
    seen = slurm.environment("sbatch")
    assert [name for name in seen if name.startswith(("SLURM", "SBATCH", "SRUN", "PMI"))] == ["SLURM_CONF"]
    assert seen["MY_OWN"] == "kept"


def test_a_refusal_is_told_in_sbatchs_words(
    slurm: FakeSlurm, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "sbatch: error: Batch job submission failed: Invalid account"
    slurm.says("sbatch", "echo 'Submitted batch job 15'", f"echo '{words}' >&2; exit 1")
    jobs = session.jobs()
    with pytest.raises(LaunchError, match=words):
        jobs.submit(range(4))
    assert [record.job_id for record in read_launch_record(session.run).jobs] == ["15"]
    assert [path.name for path in session.run.job_scripts.iterdir()] == ["15.sbatch"]
    assert jobs.report(1) is None and session.clock.slept == []
    assert capsys.readouterr().err == ""


def test_an_answer_without_an_id_is_a_refusal(slurm: FakeSlurm, session: Session) -> None:
    slurm.says("sbatch", "echo 'all is well'")
    with pytest.raises(LaunchError, match="all is well"):
        session.jobs().submit([0])


def test_a_busy_slurm_is_asked_again(slurm: FakeSlurm, session: Session) -> None:
    slurm.says("sbatch", BUSY, BUSY, "echo 'Submitted batch job 15'")
    jobs = session.jobs()
    jobs.submit([0])
    assert session.clock.slept == [2.0, 5.0] and jobs.report(0) == JobReport("15", JobState.PENDING)
    slurm.says("sbatch", BUSY)
    with pytest.raises(LaunchError, match="Socket timed out"):
        jobs.submit([1])
    assert len(slurm.calls("sbatch")) == 3 + 4


def test_what_was_accepted_all_the_same_is_not_submitted_twice(slurm: FakeSlurm, session: Session) -> None:
    now = datetime.now().isoformat(timespec="seconds")
    slurm.says("sbatch", BUSY)
    slurm.says("squeue", f"echo '15|{now}|lab.seed1.core'; echo '16|{now}|other'")
    jobs = session.jobs()
    jobs.submit([0])
    assert jobs.report(0) == JobReport("15", JobState.PENDING) and len(slurm.calls("sbatch")) == 1
    assert "--slots 0" in (session.run.job_scripts / "15.sbatch").read_text()


def test_without_sbatch_it_says_so(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="no sbatch on PATH"):
        session.jobs().submit([0])


def test_one_question_an_interval(slurm: FakeSlurm, session: Session) -> None:
    slurm.accepts(15, 16)
    slurm.lists(
        f"15|RUNNING|None|gpu1|2026-01-01T10:00:00|{CORE}",
        f"16_0|PENDING|Resources||2026-01-01T12:00:00|{ACTORS}",
        f"16_1|COMPLETING|None|cpu2|2026-01-01T10:00:00|{ACTORS}",
        f"16_2|TIMEOUT|None|cpu2|2026-01-01T10:00:00|{ACTORS}",
        "99|RUNNING|None|cpu2|2026-01-01T10:00:00|lab|another",
    )
    jobs = session.jobs()
    jobs.submit(range(4))
    jobs.poll()
    assert slurm.calls("squeue") == []  # slurmctld is given three seconds
    session.ask(jobs, 3.0)
    assert [jobs.report(slot) for slot in range(4)] == [
        JobReport("15", JobState.RUNNING, node="gpu1"),
        JobReport("16_0", JobState.PENDING, "Resources", "", "2026-01-01T12:00:00"),
        JobReport("16_1", JobState.RUNNING, node="cpu2"),
        JobReport("16_2", JobState.TIMEOUT, node="cpu2"),
    ]
    session.clock.now += 59.0
    jobs.poll()
    assert len(slurm.calls("squeue")) == 1
    session.ask(jobs, 1.0)
    assert slurm.calls("squeue") == [f"-h -r -t all -u {ME} -o %i|%T|%r|%N|%S|%u|%j"] * 2


def test_nothing_is_asked_about_jobs_that_have_ended(slurm: FakeSlurm, session: Session) -> None:
    slurm.accepts(15)
    slurm.lists(f"15|COMPLETED|None|gpu1|N/A|{CORE}")
    jobs = session.jobs()
    jobs.submit([0])
    session.ask(jobs)
    session.clock.now += 600
    jobs.poll()
    jobs.poll()
    assert session.states(jobs) == {0: "COMPLETED"} and len(slurm.calls("squeue")) == 1


def test_a_silent_queue_changes_nothing_and_a_strict_one_is_asked_less(
    slurm: FakeSlurm, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    slurm.accepts(15)
    slurm.says(
        "squeue",
        f"echo '15|RUNNING|None|gpu1|N/A|{CORE}'",
        "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1",
        "echo 'error: RPC rate limit exceeded' >&2; exit 1",
        "",
    )
    jobs = session.jobs()
    jobs.submit([0])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            session.ask(jobs)
    assert "Unable to contact" in caplog.text and "rate limit" in caplog.text
    assert session.states(jobs) == {0: "RUNNING"}
    session.clock.now += 119.0
    jobs.poll()
    assert len(slurm.calls("squeue")) == 3
    session.ask(jobs, 1.0)
    session.ask(jobs, 60.0)  # it answered, so the interval is what it was
    assert session.states(jobs) == {0: "RUNNING"}


def test_a_command_that_hangs_is_killed(
    slurm: FakeSlurm, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    slurm.accepts(15)
    slurm.says("squeue", "exec sleep 1000")
    jobs = session.jobs()
    jobs.submit([0])
    session.clock.now += 60
    jobs.poll()
    jobs.poll()
    assert "timed out" not in caplog.text
    session.clock.now += 31
    jobs.poll()
    assert "squeue timed out" in caplog.text and session.states(jobs) == {0: "PENDING"}


def test_without_squeue_nothing_is_known(
    slurm: FakeSlurm, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    slurm.accepts(15)
    jobs = session.jobs()
    jobs.submit([0])
    (slurm.bin / "squeue").chmod(0o644)
    session.ask(jobs)
    assert "squeue:" in caplog.text and session.states(jobs) == {0: "PENDING"}


def test_sacct_has_the_last_word_on_a_job_that_squeue_dropped(slurm: FakeSlurm, session: Session) -> None:
    slurm.accepts(15, 16)
    slurm.lists(f"16_0|RUNNING|None|cpu1|N/A|{ACTORS}")
    slurm.says(
        "sacct",
        f"echo '15|OUT_OF_MEMORY|gpu1|{CORE}'; echo '16_1|RUNNING|cpu1|{ACTORS}';"
        f"echo '16_2|COMPLETED|cpu1|{ME}|another'",
    )
    jobs = session.jobs()
    jobs.submit(range(4))
    session.ask(jobs)
    session.ask(jobs)
    assert set(session.states(jobs).values()) == {"PENDING", "RUNNING"} and slurm.calls("sacct") == []
    session.ask(jobs)
    assert session.states(jobs) == {0: "FAILED", 1: "RUNNING", 2: "FORGOTTEN", 3: "FORGOTTEN"}
    assert slurm.calls("sacct") == ["-n -P -X -o JobID,State,NodeList,User,JobName -j 15,16"]
    assert len(slurm.calls("squeue")) == 2  # sacct took the place of the third


def test_a_sacct_that_does_not_work_is_asked_once(slurm: FakeSlurm, session: Session) -> None:
    slurm.accepts(15, 16)
    slurm.says("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    jobs = session.jobs()
    jobs.submit([0])
    for _ in range(3):
        session.ask(jobs)
    assert session.states(jobs) == {0: "FORGOTTEN"}
    jobs.submit([0])
    for _ in range(2):
        session.ask(jobs)
    assert session.states(jobs) == {0: "FORGOTTEN"} and len(slurm.calls("sacct")) == 1


def test_a_job_that_slurm_holds_after_a_failed_start_has_failed(slurm: FakeSlurm, session: Session) -> None:
    slurm.accepts(15, 16)
    actor = f"16_0|RUNNING|None|cpu1|N/A|{ACTORS}"
    slurm.lists(f"15|PENDING|launch failed requeued held|(null)|N/A|{CORE}", actor)
    jobs = session.jobs()
    jobs.submit([0, 1])
    session.ask(jobs)
    assert session.states(jobs) == {0: "FAILED", 1: "RUNNING"} and slurm.calls("scancel") == ["15"]
    # It is we who have cancelled it, which a person would have meant otherwise.
    slurm.lists(f"15|CANCELLED|None|(null)|N/A|{CORE}", actor)
    session.ask(jobs)
    assert session.states(jobs) == {0: "FAILED", 1: "RUNNING"} and slurm.calls("scancel") == ["15"]


def test_an_id_that_another_job_has_is_not_ours(slurm: FakeSlurm, session: Session) -> None:
    slurm.accepts(15)
    slurm.lists(f"15|RUNNING|None|gpu1|N/A|{ME}|lab.seed2.core")
    jobs = session.jobs()
    jobs.submit([0])
    session.ask(jobs)
    jobs.cancel([0])
    assert session.states(jobs) == {0: "FORGOTTEN"} and slurm.calls("scancel") == []


def test_a_site_that_names_jobs_itself(slurm: FakeSlurm, session: Session) -> None:
    slurm.accepts(15)
    slurm.lists(f"15|RUNNING|None|gpu1|N/A|{ME}|job")
    jobs = session.jobs(experiment(directives={"job-name": None}))
    jobs.submit([0])
    session.ask(jobs)
    assert session.states(jobs) == {0: "RUNNING"}


def test_an_answer_from_before_a_submission_does_not_count(slurm: FakeSlurm, session: Session) -> None:
    slurm.accepts(15, 16)
    slurm.lists(f"15|RUNNING|None|gpu1|N/A|{CORE}")
    jobs = session.jobs()
    jobs.submit([0])
    session.clock.now += 60
    jobs.poll()  # asks
    jobs.submit([1])
    poll_until(jobs.poll, lambda: session.states(jobs)[0] == "RUNNING")
    assert jobs._watch._jobs["16_0"].misses == 0


def test_another_controller_takes_over(slurm: FakeSlurm, session: Session) -> None:
    slurm.accepts(15, 16, 19)
    first = session.jobs()
    first.submit(range(4))
    first.submit([3])
    slurm.lists(
        f"15|RUNNING|None|gpu1|N/A|{CORE}",
        f"16_0|RUNNING|None|cpu1|N/A|{ACTORS}",
        f"16_2|CANCELLED|None|cpu1|N/A|{ACTORS}",
        f"19_0|RUNNING|None|cpu3|N/A|{ACTORS}",
    )
    second = session.jobs()
    session.ask(second, 0.0)
    assert second.report(0) == JobReport("15", JobState.RUNNING, node="gpu1")
    assert second.report(3) == JobReport("19_0", JobState.RUNNING, node="cpu3")


def test_cancelling_is_one_command(
    slurm: FakeSlurm, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    slurm.accepts(15, 16)
    slurm.says(
        "scancel",
        "echo 'scancel: error: Socket timed out on send/recv operation' >&2; exit 1",
        "echo 'scancel: error: Kill job error on job id 16: already completing' >&2; exit 1",
        "",
    )
    jobs = session.jobs()
    jobs.submit(range(4))
    jobs.cancel([1, 3])
    assert slurm.calls("scancel") == ["16_0 16_2"] * 2 and session.clock.slept == [2.0]
    assert "already completing" in caplog.text
    jobs.cancel([0, 1, 2, 3, 17])
    jobs.cancel([17])
    assert slurm.calls("scancel")[2:] == ["15 16"]
