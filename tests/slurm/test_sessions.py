"""Sessions on the login node come and go, Slurm's controller too: the run does not mind."""

from __future__ import annotations

import signal
import time
from typing import Any

import psutil
import pytest

from tests.slurm import faulty_runs
from tests.slurm.faulty_runs import processes, stop_and_check
from tests.slurm.lab_runs import Session, SlurmRun
from tests.slurm.terminal import CTRL_C, Terminal

pytestmark = pytest.mark.slurm

# Workers wait for a controller as long as they do by default: one that was killed is not followed in seconds.
PACED = (*faulty_runs.PACED, "control.orphan_grace_s=60")
AWAY_S = 120.0
GOES_ON = "goes on without this session"
MENU = "Your choice"


def start(run: SlurmRun, *overrides: str) -> None:
    """Start a run that lasts, and wait until it trains."""
    run.train(*PACED, *overrides)
    run.wait_until(run.trained(1))


def wait_for_controller(run: SlurmRun, kind: str, but: dict[str, Any] | None = None) -> dict[str, Any]:
    """Wait until a controller of this kind, and not `but`, drives and training goes on; return who it is."""
    pid = (but or {}).get("pid")
    run.wait_until(lambda: (now := run.controller()).get("kind") == kind and now["pid"] != pid)
    run.wait_until(run.trained_further())
    return run.controller()


def wait_for_text(run: SlurmRun, session: Session, text: str, times: int = 1) -> None:
    """Wait until a session has printed something so many times."""
    run.wait_until(lambda: session.output().count(text) >= times)


def assert_undisturbed(run: SlurmRun) -> None:
    """Check that no worker was started again."""
    assert set(run.lives().values()) == {0}, run.story()
    assert run.snapshot()["restarts"] == 0


def test_the_run_outlives_its_sessions(slurm_run: SlurmRun) -> None:
    run = slurm_run
    start(run)
    run.session.signal(signal.SIGKILL)
    deputy = wait_for_controller(run, "job")
    # From the login node again: the deputy hands over; whoever comes second only watches.
    first = run.start("attach", run.name)
    attached = wait_for_controller(run, "session")
    assert attached["host"] == "head" != deputy["host"]
    second = run.start("attach", run.name)
    wait_for_text(run, second, "watching only")
    second.signal(signal.SIGINT)
    assert second.wait() == 0
    assert run.controller()["pid"] == attached["pid"] and not first.is_over()
    # The first one's connection is lost.
    first.signal(signal.SIGHUP)
    assert first.wait() == 0 and GOES_ON in first.output()
    wait_for_controller(run, "job")
    # --take-over takes the run from a session, which then leaves.
    first = run.start("attach", run.name)
    attached = wait_for_controller(run, "session")
    second = run.start("attach", "--take-over", run.name)
    assert first.wait() == 0 and GOES_ON in first.output()
    wait_for_controller(run, "session", but=attached)
    assert_undisturbed(run)
    stop_and_check(run)
    assert second.wait() == 130


def test_ctrl_c_asks_what_it_means(slurm_run: SlurmRun) -> None:
    run = slurm_run
    with Terminal(run, "train", *run.settings(*PACED)) as terminal:
        run.wait_until(run.trained(1))
        terminal.type(CTRL_C)
        wait_for_text(run, terminal.session, MENU)
        terminal.type(b"\r")
        run.wait_until(run.trained_further(5000))
        assert not terminal.session.is_over()
        terminal.type(CTRL_C)
        wait_for_text(run, terminal.session, MENU, times=2)
        terminal.type(CTRL_C)
        assert terminal.session.wait() == 0 and GOES_ON in terminal.session.output()
    wait_for_controller(run, "job")
    with Terminal(run, "attach", run.name) as terminal:
        wait_for_controller(run, "session")
        terminal.type(CTRL_C)
        wait_for_text(run, terminal.session, MENU)
        terminal.type(b"d\r")
        assert terminal.session.wait() == 0 and GOES_ON in terminal.session.output()
    wait_for_controller(run, "job")
    assert_undisturbed(run)
    with Terminal(run, "attach", run.name) as terminal:
        wait_for_controller(run, "session")
        terminal.type(CTRL_C)
        wait_for_text(run, terminal.session, MENU)
        terminal.type(b"s\r")
        assert terminal.session.wait() == 130
    assert run.finish()["status"] == "INTERRUPTED"
    run.assert_ledger_balances()
    assert not processes(run)


def test_slurmctld_may_be_away(slurm_run: SlurmRun) -> None:
    run = slurm_run
    start(run, "cluster.on_interrupt=stop")
    controller = psutil.Process(run.session.pid)
    run.lab.control("ctld", "stop")
    try:
        before = run.env_steps()
        cpu_s, began = sum(controller.cpu_times()[:2]), time.monotonic()
        time.sleep(AWAY_S)
        percent = 100 * (sum(controller.cpu_times()[:2]) - cpu_s) / (time.monotonic() - began)
        trained = run.env_steps() - before
    finally:
        run.lab.control("ctld", "start")
    rss_mb = controller.memory_info().rss / 2**20
    print(f"the session takes {percent:.2f} % of a CPU and {rss_mb:.0f} MB")
    assert trained > 5000 and rss_mb < 200 and percent < 5
    run.wait_until(lambda: len(run.jobs()) == 3 and all(job.state == "RUNNING" for job in run.jobs()))
    assert_undisturbed(run)
    run.session.signal(signal.SIGINT)
    assert run.session.wait() == 130
    assert run.finish()["status"] == "INTERRUPTED"
    run.assert_ledger_balances()


def test_jobs_that_slurmctld_forgot_are_replaced(slurm_run: SlurmRun) -> None:
    run = slurm_run.train(*faulty_runs.PACED)
    run.wait_until(lambda: any(job.state == "RUNNING" for job in run.jobs()), interval_s=0.0)
    # Nothing is saved yet: the core job runs on and is held in the queue, the actors' array is not known any more.
    run.lab.control("ctld", "kill")
    run.lab.control("ctld", "start")
    run.wait_until(run.trained(1))
    print(f"submitted in all: {run.job_ids()}")
    run.wait_until(lambda: sorted(job.state for job in run.jobs()) == ["RUNNING"] * 3)
    stop_and_check(run)
    assert run.session.wait() == 130


def test_a_core_job_that_is_cancelled_by_hand_ends_the_run(slurm_run: SlurmRun) -> None:
    run = slurm_run
    start(run)
    run.lab.run("scancel", *run.job_ids("core"))
    assert run.session.wait() == 1
    verdict = run.finish()
    assert verdict["status"] == "ERROR" and "was cancelled" in verdict["reason"], verdict
    run.wait_until(lambda: not processes(run))


def test_actors_that_are_left_alone_end_by_themselves(slurm_run: SlurmRun) -> None:
    run = slurm_run
    start(run, "cluster.actor_grace_s=20")
    run.session.signal(signal.SIGKILL)
    run.lab.run("scancel", *run.job_ids("core"))
    run.wait_until(run.no_jobs, interval_s=1.0)
    assert {host["ended"] for host in run.usage() if host["role"] == "actors"} == {"ORPHANED"}
    assert run.wait_until(lambda: not processes(run))
