"""What the tests of faults have in common: paced runs, jobs that are in the way, and what must be true afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from tests.slurm.lab_runs import ENDLESS, SlurmLab, SlurmRun

PACED = (
    ENDLESS,
    "env.make._target_=tests.slurm.paced_env.PacedGame",
    "actors.per_task=1",
    "control.orphan_grace_s=10",
    "trainer.checkpoint_interval_s=2",
    "evaluation.episodes=4",
)
"""About 800 env_steps/s of each actor, in updates of about 100 env_steps of each."""
_UPDATE_STEPS = 100
"""Of one actor: eight environments, sixteen steps of each, a fifth of which only begin an episode."""
SLOW_S = 300.0
"""For what takes Slurm tens of seconds: to notice a dead node, to start a requeued job."""


def processes(run: SlurmRun) -> list[str]:
    """Return the command lines of all processes of the run's jobs, on all hosts."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        is_ours = "--run-dir" in words and any(str(run.root) in word for word in words)
        if is_ours and "python" in words[0] and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(f"{process.pid}: {' '.join(words[1:])}")
    return found


def stop_and_check(run: SlurmRun) -> dict[str, Any]:
    """End an endless run by command; return its verdict. Nothing of it may be left, and its books must balance."""
    run.cli("stop", run.name)
    verdict = run.finish()
    assert verdict["status"] == "INTERRUPTED", f"{verdict}{run.story()}"
    run.assert_ledger_balances()
    run.wait_until(lambda: not processes(run))
    return verdict


def assert_no_step_back(run: SlurmRun, lost_updates: int = 0) -> None:
    """Check that no row of metrics repeats or skips an update.

    Args:
        run: the run.
        lost_updates: rows that may go back, as after a trainer that died without saving what it had learned last.
    """
    rows = run.metrics()
    back = [
        (before["policy_version"], after["policy_version"], before["env_steps"], after["env_steps"])
        for before, after in pairwise(rows)
        if after["policy_version"] != before["policy_version"] + 1
        or after["env_steps"] <= before["env_steps"]
    ]
    assert len(back) <= (1 if lost_updates else 0), back
    for version, next_version, _, _ in back:
        assert version - lost_updates < next_version <= version, back


@contextmanager
def busy_nodes(lab: SlurmLab, *options: str) -> Iterator[str]:
    """Keep nodes busy by a job that does nothing: `sbatch OPTIONS`; yields its id."""
    done = lab.run("sbatch", "--parsable", "--output=/dev/null", *options, "--wrap=exec sleep 600")
    assert done.returncode == 0, done.stderr
    job_id = done.stdout.strip()
    try:
        yield job_id
    finally:
        lab.run("scancel", job_id)


def wait_for_state(lab: SlurmLab, job_id: str, state: str) -> None:
    """Wait until a job is in a state."""
    deadline = time.monotonic() + 120.0
    while time.monotonic() < deadline:
        if lab.run("squeue", "-h", "-j", job_id, "-o", "%T").stdout.split()[:1] == [state]:
            return
        time.sleep(0.3)
    raise AssertionError(f"job {job_id} is not {state}")


def actors_at_work(run: SlurmRun) -> int:
    """Return from how many actors the newest updates came; 0 while the last three do not agree."""
    steps = [int(row["env_steps"]) for row in run.metrics()[-4:]]
    counts = {round((after - before) / _UPDATE_STEPS) for before, after in pairwise(steps)}
    return counts.pop() if len(counts) == 1 and len(steps) == 4 else 0


class Stopwatch:
    """Prints how long things took, for the report."""

    def __init__(self, title: str) -> None:
        self._title, self._started_s = title, time.monotonic()

    def lap(self, what: str) -> float:
        """Print the seconds since the last lap."""
        now = time.monotonic()
        seconds, self._started_s = now - self._started_s, now
        print(f"[{self._title}] {seconds:6.1f} s  {what}", flush=True)
        return seconds


def checkpoints(directory: Path) -> Sequence[Path]:
    """Return the finished checkpoints."""
    return sorted(directory.glob("checkpoints/step-*.e*"))
