"""Training runs in the Slurm lab as a user sees them: sessions on the login node, jobs in the queue, a run directory.

    run = slurm_run.train("experiment=matrix_game")     a session on head; run.session
    run.wait_until(run.trained(5000))                   whatever the run directory shows
    run.cli("status", run.name), run.jobs()             commands on head; what squeue says of this test's jobs

Every test has an experiment name of its own, by which its jobs are told from all others in the lab.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.slurm.lab import CLUSTER, REPOSITORY, SlurmLab, run_to_end

__all__ = [
    "CLUSTER", "DEADLINE_S", "ENDLESS", "REPOSITORY", "SMALL", "QueuedJob", "Session", "SlurmLab", "SlurmRun",
    "run_to_end", "runs_in",
]  # fmt: skip
DEADLINE_S = 150.0
"""For whatever happens in seconds on a machine that has nothing else to do."""
SMALL = (
    "cluster=lab",
    "experiment=matrix_game",
    "total_env_steps=150_000",
    "control.heartbeat_interval_s=0.5",
    "cluster.query_interval_s=5",
    "cluster.time_limit=1:00:00",
)
"""A two-agent matrix game, learned in seconds; the queue is asked more often than a real site would like."""
ENDLESS = "total_env_steps=100_000_000"


@dataclass(frozen=True)
class QueuedJob:
    """A line of squeue: one job, or one element of a job array, that has not ended."""

    job_id: str
    """As other commands take it: `12`, `12_3`, `12+1`."""
    name: str
    state: str
    partition: str
    node: str
    reason: str


@dataclass
class Session:
    """A command that drives or watches a run from the login node."""

    process: subprocess.Popen[bytes]
    output_file: Path

    @property
    def pid(self) -> int:
        """Of the command itself, as this machine counts, not as the host does."""
        deadline = time.monotonic() + 30.0
        while time.monotonic() < deadline:
            with suppress(psutil.NoSuchProcess):
                if children := psutil.Process(self.process.pid).children():
                    return int(children[0].pid)
            time.sleep(0.02)
        raise AssertionError(f"the session has no process; it says: {self.output()}")

    def signal(self, number: int) -> None:
        """Send a signal to the command."""
        os.kill(self.pid, number)

    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        """Wait for its end; return the exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the session does not end; it says: {self.output()}") from None

    def output(self) -> str:
        """Return what it has printed so far."""
        return self.output_file.read_text(errors="replace")

    def end(self) -> None:
        """Kill it, if it still runs."""
        if not self.is_over():
            self.signal(signal.SIGKILL)
        self.process.wait()


@dataclass
class SlurmRun:
    """The runs of one test: its directory, sessions and jobs.

    Attributes:
        lab: where.
        home: directory of the test, as this machine sees it.
        experiment: experiment_name of every run of this test.
        sessions: commands that were started, newest last.
        variables: further environment of everything that is started on the login node.
        hosts_home: `home` as the hosts see it; None: alike.
    """

    lab: SlurmLab
    home: Path
    experiment: str
    sessions: list[Session] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    hosts_home: Path | None = None

    # -- commands on the login node ----------------------------------------------------------------------------------

    def train(self, *overrides: str, small: bool = True) -> SlurmRun:
        """Start `hpc-marl train` on the login node, with a small experiment unless told otherwise."""
        self.start("train", *self.settings(*overrides, small=small))
        return self

    def settings(self, *overrides: str, small: bool = True) -> list[str]:
        """Return the overrides that make a run one of this test's."""
        given = [*(SMALL if small else ()), f"experiment_name={self.experiment}", f"root={self.hosts_root}"]
        return [*given, *overrides]

    def start(self, *arguments: str, terminal: int | None = None) -> Session:
        """Start `hpc-marl ARGUMENTS` on the login node in the background.

        Args:
            arguments: of the command.
            terminal: descriptor of a terminal, which becomes the command's own; None: it has none.
        """
        output_file = self.home / f"session{len(self.sessions)}.out"
        command = [sys.executable, "-m", "hpc_marl.cli", *arguments]
        if terminal is not None:
            command = ["setsid", "--ctty", *command]
        with open(output_file, "wb") as file:
            process = subprocess.Popen(
                self.lab.command(*command),
                env=self.environment,
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL if terminal is None else terminal,
                stdout=file if terminal is None else terminal,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.sessions.append(Session(process, output_file))
        return self.sessions[-1]

    def cli(self, *arguments: str, timeout_s: int = 120, check: bool = True) -> str:
        """Run `hpc-marl ARGUMENTS` on the login node to its end; return what it printed."""
        done = self.lab.run(
            sys.executable,
            "-m",
            "hpc_marl.cli",
            *arguments,
            timeout_s=timeout_s,
            environment=self.environment,
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}{self.story()}"
        return done.stdout + done.stderr

    @property
    def environment(self) -> dict[str, str]:
        """Of the commands on the login node."""
        return self.lab.environment | {"HPC_MARL_ROOT": str(self.hosts_root)} | self.variables

    @property
    def session(self) -> Session:
        """The newest session."""
        return self.sessions[-1]

    # -- the run directory -------------------------------------------------------------------------------------------

    @property
    def root(self) -> Path:
        """Directory of all runs of this test."""
        return self.home / "runs"

    @property
    def hosts_root(self) -> Path:
        """The same, as the hosts see it."""
        return (self.hosts_home or self.home) / "runs"

    @property
    def directory(self) -> Path:
        """The newest trial's directory. Raises ValueError while there is none."""
        found = self.root.glob("*/*/launch.json")
        return max(found, key=lambda path: path.stat().st_mtime).parent

    @property
    def name(self) -> str:
        """EXPERIMENT/TRIAL of the newest trial."""
        return f"{self.experiment}/{self.directory.name}"

    def state(self, name: str) -> Any:
        """Return a JSON file of the run directory, None while there is none."""
        try:
            return json.loads((self.directory / name).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def state_of(self, trial: str, name: str) -> Any:
        """Return a JSON file of a trial's directory, which must be there."""
        return json.loads((self.root / self.experiment / trial / name).read_text())

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows written so far."""
        try:
            lines = (self.directory / "metrics" / "metrics.jsonl").read_text().splitlines()
        except (FileNotFoundError, ValueError):
            return []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def env_steps(self) -> int:
        """Return how far training is, as far as written."""
        rows = self.metrics()
        return int(rows[-1]["env_steps"]) if rows else 0

    def trained(self, env_steps: int) -> Callable[[], bool]:
        """Return a condition: that much has been learned from."""
        return lambda: self.env_steps() >= env_steps

    def trained_further(self, env_steps: int = 1) -> Callable[[], bool]:
        """Return a condition: so much more than now has been learned from."""
        return self.trained(self.env_steps() + env_steps)

    def verdicts(self) -> dict[str, str]:
        """Return how all trials ended that have: trial name -> COMPLETED, INTERRUPTED or ERROR."""
        files = self.root.glob("*/*/state/verdict.json")
        return {path.parts[-3]: json.loads(path.read_text())["status"] for path in files}

    def verdict(self) -> dict[str, Any] | None:
        """Return how the newest trial ended, None while it has not."""
        found: dict[str, Any] | None = self.state("state/verdict.json")
        return found

    def snapshot(self) -> dict[str, Any]:
        """Return what `hpc-marl status --json` prints, {} while no controller answers."""
        text = self.cli("status", self.name, "--json", check=False)
        try:
            found: dict[str, Any] = json.loads(text)
        except ValueError:
            return {}
        return found if "controller" in found else {}

    def controller(self) -> dict[str, Any]:
        """Return host, pid and kind (session, job) of whoever drives; {} while nobody answers."""
        found: dict[str, Any] = self.snapshot().get("controller", {})
        return found

    def driven_by(self, kind: str) -> Callable[[], bool]:
        """Return a condition: a controller of this kind (session, job) answers."""
        return lambda: self.controller().get("kind") == kind

    def usage(self) -> list[dict[str, Any]]:
        """Return what the host processes measured: state/usage/*.json."""
        return [
            json.loads(path.read_text()) for path in sorted((self.directory / "state/usage").glob("*.json"))
        ]

    def lives(self) -> dict[str, int]:
        """Return the life of every worker: above 0 where it was started again."""
        found = self.state("state/controller.json")
        return dict(found["lives"]) if found else {}

    # -- the queue ---------------------------------------------------------------------------------------------------

    def jobs(self) -> list[QueuedJob]:
        """Return this test's jobs that wait, run or are ending."""
        done = self.lab.run("squeue", "--noheader", "--array", "--format=%i|%j|%T|%P|%N|%r")
        if done.returncode != 0:
            return [QueuedJob("", "squeue does not answer", "", "", "", done.stderr)]
        rows = [QueuedJob(*line.split("|", 5)) for line in done.stdout.splitlines() if line.count("|") >= 5]
        return [row for row in rows if row.name.startswith(f"{self.experiment}.")]

    def no_jobs(self) -> bool:
        """Whether none of this test's jobs is left."""
        return not self.jobs()

    def job_ids(self, role: str = "") -> list[str]:
        """Return the ids of all submissions of the newest trial: core, actors; "" for both."""
        record = self.state("launch.json") or {"jobs": []}
        return [job["job_id"] for job in record["jobs"] if role in ("", job["role"])]

    def sacct(self, job_id: str, columns: str = "JobID,JobName,State,NodeList") -> list[list[str]]:
        """Return what the accounting says of a job's allocations."""
        done = self.lab.run("sacct", "-X", "-n", "-P", "-D", "-j", job_id, "-o", columns)
        return [line.split("|") for line in done.stdout.splitlines()]

    def show_job(self, job_id: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`; {} where Slurm knows it no more."""
        text = self.lab.run("scontrol", "--oneliner", "show", "job", job_id).stdout
        return dict(re.findall(r"(\w+)=(\S*)", text.partition("\n")[0]))

    def pid_of(self, worker: str) -> int | None:
        """Return the process, as this machine counts, of a worker or host in this test's jobs; None while none."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if (
                worker in words
                and any(str(self.hosts_root) in word for word in words)
                and "python" in words[0]
            ):
                return int(process.pid)
        return None

    # -- waiting -----------------------------------------------------------------------------------------------------

    def wait_until(
        self, condition: Callable[[], Any], timeout_s: float = DEADLINE_S, interval_s: float = 0.2
    ) -> Any:
        """Return the condition's first true value, while the time lasts."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(interval_s)
        raise AssertionError(f"waited {timeout_s:g} s in vain{self.story()}")

    def finish(self, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """Wait for the newest trial's end and for all jobs to be gone; return the verdict."""
        verdict: dict[str, Any] = self.wait_until(self.verdict, timeout_s)
        self.wait_until(self.no_jobs, interval_s=1.0)
        return verdict

    def finish_well(self, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """The same, and the end must be a good one: all trained, evaluated, every batch accounted for."""
        verdict = self.finish(timeout_s)
        assert verdict["status"] == "COMPLETED" and verdict["exit_code"] == 0, f"{verdict}{self.story()}"
        self.assert_ledger_balances()
        assert (self.directory / "evaluation.json").exists()
        return verdict

    def assert_ledger_balances(self) -> None:
        """Check that every batch was consumed or dropped, once."""
        ledger = self.state("state/ledger.json")
        assert ledger["in_flight"] == 0, ledger
        assert ledger["produced"] == ledger["consumed"] + sum(ledger["dropped"].values()), ledger
        assert ledger["produced_env_steps"] == ledger["consumed_env_steps"] + ledger["dropped_env_steps"]
        assert ledger["consumed_env_steps"] == self.env_steps()

    def story(self) -> str:
        """Return what is known, for failures: sessions, queue, ends of all logs."""
        parts = [f"--- {one.output_file.name}\n{one.output()[-3000:]}" for one in self.sessions]
        parts.append("--- squeue\n" + "\n".join(map(str, self.jobs())))
        logs = [*self.root.rglob("*.log"), *self.root.rglob("*.out")]
        parts += [f"--- {path}\n{path.read_text(errors='replace')[-2500:]}" for path in sorted(logs)]
        return "\n" + "\n".join(parts)

    def end(self) -> None:
        """Leave nothing: no session, no job, no process of a job."""
        for session in self.sessions:
            session.end()
        deadline = time.monotonic() + 60.0
        while (jobs := self.jobs()) and time.monotonic() < deadline:
            # At once, without the time that jobs have to save; what starts meanwhile in the next round.
            ids = [job.job_id for job in jobs if job.job_id]
            self.lab.run("scancel", "--signal=KILL", "--full", *ids)
            self.lab.run("scancel", *ids)
            time.sleep(0.5)
        assert not jobs, f"jobs are left: {jobs}"


def runs_in(lab: SlurmLab, home: Path | None = None, hosts_home: Path | None = None) -> Iterator[SlurmRun]:
    """Yield a test's SlurmRun, then clean up; its files stay if $KEEP_LAB_RUNS is set.

    Args:
        lab: where.
        home: directory of the test; None: one below `lab.shared`.
        hosts_home: the same, as the hosts see it; None: alike.
    """
    name = f"t{uuid.uuid4().hex[:8]}"
    home = home or lab.shared / "tests" / name
    home.mkdir(parents=True)
    run = SlurmRun(lab, home, name, hosts_home=hosts_home)
    try:
        yield run
    finally:
        run.end()
    if not os.environ.get("KEEP_LAB_RUNS"):
        shutil.rmtree(home, ignore_errors=True)
