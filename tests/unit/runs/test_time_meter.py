"""Only the time of training counts, and of every worker only what passes between two looks at the same life."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.control.worker_view import WorkerView
from hpc_marl.runs.time_meter import TimeMeter
from hpc_marl.trials.time_record import read_time_record


class Run:
    """Workers whose clocks and metrics a test turns on."""

    def __init__(self, path: Path) -> None:
        self.directory = RunDirectory(path, "exp", "trial")
        self.directory.create()
        self.now = 1000.0
        self.meter = self.take_over()
        self.workers = {
            name: WorkerView(name, 3, 1, status=WorkerStatus.RUNNING)
            for name in ("trainer/0", "actor/0", "actor/1")
        }
        self.paused = False

    def take_over(self, run_uuid: str = "u") -> TimeMeter:
        """Return the meter of another controller."""
        return TimeMeter(self.directory, run_uuid, clock=lambda: self.now)

    def say(self, worker_name: str, **metrics: float) -> None:
        """A heartbeat."""
        self.workers[worker_name].metrics = metrics

    def look(self, after_s: float = 0.0) -> None:
        """Pass time, then look."""
        self.now += after_s
        self.meter.look(self.workers, is_paused=self.paused, elapsed_s=self.now - 1000.0)

    def seconds(self, kind: str) -> dict[str, float]:
        """Return what was added up."""
        return self.meter.record.kinds[kind].seconds if kind in self.meter.record.kinds else {}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    made.say("trainer/0", time_learn_s=1.0, time_wait_data_s=9.0, policy_version=1, env_steps=100, cpu_s=1.0)
    made.say("actor/0", time_env_s=2.0, time_wait_parameters_s=8.0, cpu_s=2.0)
    yield made


def trained(run: Run, seconds: float, *, env: float) -> None:
    """Let everybody work on."""
    trainer, actor = run.workers["trainer/0"].metrics, run.workers["actor/0"].metrics
    run.say(
        "trainer/0",
        **{
            **trainer,
            "time_learn_s": trainer["time_learn_s"] + seconds,
            "policy_version": trainer["policy_version"] + 10,
            "env_steps": trainer["env_steps"] + 1000,
            "cpu_s": trainer["cpu_s"] + seconds,
            "device_s": trainer.get("device_s", 0.0) + seconds / 2,
        },
    )
    run.say("actor/0", **{**actor, "time_env_s": actor["time_env_s"] + env})
    run.look(seconds)


def test_what_came_before_the_first_update_does_not_count(run: Run):
    run.say("trainer/0", time_learn_s=0.0, time_wait_data_s=9.0)
    run.look(6.0)
    run.say("trainer/0", time_learn_s=1.0, time_wait_data_s=9.0, policy_version=1, env_steps=100, cpu_s=1.0)
    run.look(1.0)
    trained(run, 2.0, env=1.5)
    record = run.meter.record
    assert (record.startup_s, record.training_s, record.updates, record.env_steps) == (7.0, 2.0, 10, 1000)
    assert run.seconds("trainer") == {"learn": 2.0, "wait_data": 0.0}
    assert run.seconds("actor") == {"env": 1.5, "wait_parameters": 0.0}
    assert record.kinds["trainer"].device_s == 1.0 and record.kinds["actor"].device_s == 0.0
    assert record.kinds["trainer"].cpu_s == 2.0 and record.kinds["actor"].workers == 1


def test_a_pause_does_not_count(run: Run):
    run.look()
    trained(run, 1.0, env=1.0)
    run.paused = True
    trained(run, 50.0, env=50.0)
    run.paused = False
    run.look()
    trained(run, 2.0, env=2.0)
    assert run.seconds("actor")["env"] == 3.0 and run.meter.record.training_s == 3.0


def test_the_lives_of_an_actor_add_up(run: Run):
    run.look()
    trained(run, 1.0, env=1.0)
    run.workers["actor/0"].status = WorkerStatus.LOST
    run.look(1.0)
    run.workers["actor/0"].status = WorkerStatus.RUNNING
    run.look(1.0)  # it is the new life that runs, but has not said anything yet
    run.say("actor/0", time_env_s=0.5, time_wait_parameters_s=3.0)
    run.look(1.0)
    trained(run, 2.0, env=2.0)
    assert run.seconds("actor") == {"env": 3.0, "wait_parameters": 0.0}
    assert run.meter.record.kinds["actor"].workers == 1


def test_a_trainer_that_is_started_again_counts_from_its_next_update_on(run: Run):
    run.look()
    trained(run, 1.0, env=1.0)
    run.workers["trainer/0"].status = WorkerStatus.LOST
    run.look(1.0)
    run.workers["trainer/0"].status = WorkerStatus.RUNNING
    run.say("actor/0", time_env_s=3.0, time_wait_parameters_s=20.0)
    run.look(10.0)  # what the life before said is still there
    run.say("trainer/0", time_learn_s=0.1, time_wait_data_s=0.0, policy_version=8, env_steps=900, cpu_s=1.0)
    run.look(1.0)
    trained(run, 2.0, env=2.0)
    assert run.meter.record.training_s == 3.0 and run.meter.record.updates == 20
    assert run.seconds("trainer")["learn"] == 3.0
    assert run.seconds("actor")["wait_parameters"] == 0.0


def test_workers_of_a_kind_are_summed_up(run: Run):
    run.say("actor/1", time_env_s=1.0, time_wait_parameters_s=0.0)
    run.look()
    run.say("actor/1", time_env_s=4.0, time_wait_parameters_s=1.0)
    trained(run, 4.0, env=4.0)
    assert run.seconds("actor") == {"env": 7.0, "wait_parameters": 1.0}
    assert run.meter.record.kinds["actor"].workers == 2


def test_a_controller_that_takes_over_goes_on(run: Run):
    run.look(5.0)
    trained(run, 1.0, env=1.0)
    run.meter.write()
    run.meter = run.take_over()
    run.look(3.0)
    trained(run, 2.0, env=2.0)
    record = run.meter.record
    assert run.seconds("actor")["env"] == 3.0 and (record.startup_s, record.training_s) == (5.0, 3.0)
    assert run.take_over("of another launch").record.training_s == 0.0


def test_the_record_is_written_now_and_then(run: Run):
    run.look()
    assert read_time_record(run.directory) is None
    trained(run, 61.0, env=1.0)
    assert read_time_record(run.directory, "u") == run.meter.record


def test_a_disk_that_refuses_costs_only_the_figures(run: Run, caplog: pytest.LogCaptureFixture):
    run.directory.time_use_file.mkdir()
    run.meter.write()
    assert "was not written" in caplog.text


def test_workers_without_a_stopwatch_do_not_appear(run: Run):
    run.workers["scout/0"] = WorkerView("scout/0", 3, 1, status=WorkerStatus.RUNNING, metrics={"seen": 1.0})
    run.look()
    run.say("scout/0", seen=2.0)
    trained(run, 1.0, env=1.0)
    assert set(run.meter.record.kinds) == {"trainer", "actor"}
