"""`hpc-marl report`: from files and accounts to figures, to advice, to text."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from hpc_marl.base.launch_record import JobRecord, LaunchRecord, write_launch_record
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.cli import main
from hpc_marl.config import (
    ActorGroupConfig,
    ExperimentConfig,
    PolicyGroupConfig,
    TrainerGroupConfig,
    to_dict,
)
from hpc_marl.launch.accounting import Accounting, parse_sacct
from hpc_marl.reports.efficiency import KindReport, Report, RoleReport, make_report
from hpc_marl.reports.efficiency_text import report_text, report_values
from hpc_marl.reports.sizing_advice import advise
from hpc_marl.reports.usage import HostLife, RunFacts, WorkerUse, gather_facts
from hpc_marl.trials.time_record import KindTime, TimeRecord

CONFIG = ExperimentConfig(
    trainer=TrainerGroupConfig(cpus=2, gpus=1.0, memory_mb=8000),
    actors=ActorGroupConfig(count=4, per_task=2, memory_mb=1000),
)
JOBS = (
    JobRecord(job_id="7", role="core", slots=[0], submitted="2026-01-02T00:00:00"),
    JobRecord(job_id="8", role="actors", slots=[1, 2], is_array=True, submitted="2026-01-02T00:00:00"),
)
NOON = 1_767_312_000.0
ACCOUNTS = """\
7|PREEMPTED|2026-01-02T00:00:00|2026-01-02T00:10:00|2026-01-02T00:20:00|600|00:00.000|1200||8000M|cpu=2,gres/gpu=1,mem=8000M,node=1
7.0|CANCELLED|2026-01-02T00:10:00|2026-01-02T00:10:00|2026-01-02T00:20:00|600|05:00.000|1200|1024000K||cpu=2,mem=8000M,node=1
7|COMPLETED|2026-01-02T00:20:00|2026-01-02T00:21:00|2026-01-02T00:51:00|1800|30:00.000|3600||8000M|cpu=2,gres/gpu=1,mem=8000M,node=1
8_0|COMPLETED|2026-01-02T00:00:00|2026-01-02T00:10:00|2026-01-02T00:40:00|1800|50:00.000|3600||2000M|cpu=2,mem=2000M,node=1
8_1|COMPLETED|2026-01-02T00:00:00|2026-01-02T00:30:00|2026-01-02T01:00:00|1800|50:00.000|3600||2000M|cpu=2,mem=2000M,node=1
"""


def life(slot: int, started: float = NOON, **changes: Any) -> HostLife:
    role = "core" if slot == 0 else "actors"
    return HostLife(
        **{"slot": slot, "role": role, "started": started, "seconds": 1000.0, "cpus": 2, **changes}
    )


def facts(**changes: Any) -> RunFacts:
    values: dict[str, Any] = {
        "name": "exp/seed1",
        "config": CONFIG,
        "jobs": JOBS,
        "lives": (),
        "accounting": Accounting(problem="there is no sacct here"),
        "worker_lives": {},
        "ledger": {},
        "checkpoint_times": (),
    }
    return RunFacts(**{**values, **changes})


def test_sacct_counts_first() -> None:
    lives = (
        life(
            0, gpus=1, gpu_percent_mean=20.0, cpu_s=100.0, max_rss_mb=700.0, seconds=600.0, ended="PREEMPTED"
        ),
        life(0, NOON + 700, gpus=1, gpu_percent_mean=50.0, seconds=1800.0, ended="DONE"),
    )
    report = make_report(facts(accounting=Accounting(parse_sacct(ACCOUNTS)), lives=lives))
    core, actors = report.roles
    assert (core.source, core.starts, core.ends) == ("sacct", 2, {"PREEMPTED": 1, "COMPLETED": 1})
    assert core.queue_wait_s == (600.0, 60.0) and core.run_s == (600.0, 1800.0)
    assert core.cpu_h == pytest.approx(4800 / 3600) and core.cpu_efficiency == pytest.approx(2100 / 4800)
    assert core.gpu_h == pytest.approx(2400 / 3600) and core.gpu_efficiency == pytest.approx(0.425)
    assert core.wasted_cpu_h == pytest.approx(2700 / 3600) and core.wasted_gpu_h == pytest.approx(
        0.3833, abs=1e-3
    )
    assert (core.peak_rss_mb, core.memory_mb) == (1000.0, 8000)
    assert (actors.slots, actors.starts, actors.queue_wait_s) == (2, 2, (600.0, 1800.0))
    assert (actors.cpu_efficiency, actors.memory_mb) == (pytest.approx(6000 / 7200), 2000)
    assert not report.accounting_problem


def test_without_sacct_own_measurements_do() -> None:
    submitted = datetime.fromisoformat(JOBS[0].submitted).timestamp()
    lives = (
        life(
            1, submitted + 30, cpu_s=900.0, workers={"actor/0": WorkerUse(900.0, 300.0, 950.0)}, ended="DONE"
        ),
        life(
            0,
            submitted + 90,
            cpu_s=500.0,
            max_rss_mb=700.0,
            workers={"trainer/0": WorkerUse(500.0, 600.0, 900.0)},
        ),
        life(0, submitted + 2000, seconds=10.0, ended="DONE"),
    )
    report = make_report(facts(lives=lives, worker_lives={"actor/0": 2, "actor/1": 1, "trainer/0": 1}))
    core, actors = report.roles
    assert core.source == actors.source == "own measurements"
    assert (core.queue_wait_s, actors.queue_wait_s) == ((90.0,), (30.0,))
    assert (core.starts, core.run_s, core.ends) == (2, (1000.0, 10.0), {"DONE": 1})
    assert actors.cpu_efficiency == pytest.approx(0.45) and actors.cpu_h == pytest.approx(2000 / 3600)
    trainer, actor = report.kinds
    assert (trainer.kind, trainer.cpus, trainer.restarts) == ("trainer", 2, 1)
    assert trainer.cpu_efficiency == pytest.approx(500 / 1800)
    assert (actor.count, actor.restarts, actor.cpu_efficiency) == (1, 3, pytest.approx(900 / 950))


@pytest.mark.parametrize(
    ("checkpoints", "lost_s", "is_bound"),
    [((NOON + 400.0, NOON + 900.0), 100.0, False), ((NOON + 5000.0,), 30.0, True)],
)
def test_lost_work_is_what_came_after_the_last_checkpoint(
    checkpoints: tuple[float, ...], lost_s: float, is_bound: bool
) -> None:
    lives = (life(0, ended="FAILED"), life(0, NOON + 2000, ended="DONE"), life(1, ended="FAILED"))
    core, actors = make_report(facts(lives=lives, checkpoint_times=checkpoints)).roles
    assert core.lost_h * 3600 == pytest.approx(lost_s) and core.lost_is_bound is is_bound
    assert actors.lost_h == 0.0


def test_a_host_that_was_killed_says_no_end_but_was_followed() -> None:
    report = make_report(facts(lives=(life(0), life(0, NOON + 2000))))
    assert report.roles[0].lost_h * 3600 == pytest.approx(CONFIG.trainer.checkpoint_interval_s)


def role(name: str = "core", **changes: Any) -> RoleReport:
    values: dict[str, Any] = {
        "role": name,
        "slots": 1,
        "starts": 1,
        "ends": {},
        "queue_wait_s": (),
        "run_s": (3600.0,),
        "cpu_h": 1.0,
        "cpu_efficiency": 0.9,
        "gpu_h": 0.0,
        "gpu_efficiency": None,
        "peak_rss_mb": 0.0,
        "memory_mb": None,
        "time_limit": "24:00:00",
        "lost_h": 0.0,
        "lost_is_bound": False,
        "source": "sacct",
    }
    return RoleReport(**{**values, **changes})


def kinds(trainer: float, actor: float) -> tuple[KindReport, ...]:
    return (
        KindReport("trainer", 1, 0, 2, trainer, 100.0, 10.0),
        KindReport("actor", 4, 0, 1, actor, 100.0, 10.0),
    )


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (Report("a/b", (role(),), kinds(0.25, 0.95)), "the trainer waits for samples; use more actors: actors.count=8"),
        (Report("a/b", (role(),), kinds(0.3, 0.3)), r"actors.count=8 actors.num_envs=8\), or actors.num_groups=2"),
        (Report("a/b", (role(),), kinds(0.95, 0.3)), r"fewer actors do \(actors.count=2\), or .* trainer.cpus=4"),
        (Report("a/b", (role(gpu_h=1.0, gpu_efficiency=0.2),), ()), "GPUs are used 20 %; .*trainer.gpus=0.5"),
        (Report("a/b", (role(memory_mb=8000, peak_rss_mb=1000.0),), ()), "1,500 MB would do"),
        (Report("a/b", (role(memory_mb=1000, peak_rss_mb=950.0),), ()), "raise memory_mb .* to 1,500 MB"),
        (
            Report("a/b", (role("actors", queue_wait_s=(9000.0,), run_s=(1800.0,)),), ()),
            "waited 2:30:00 .* for 30:00 of work; .*actors.time_limit=1:00:00 instead of 24:00:00",
        ),
        (Report("a/b", (role(lost_h=0.2),), ()), "20 % of the work .* trainer.checkpoint_interval_s=15"),
        (Report("a/b", (role(),), (), ledger={"produced": 100, "dropped (stale)": 20}), "20 % of the sample batches"),
    ],
)  # fmt: skip
def test_advice(report: Report, expected: str) -> None:
    [text] = advise(report, CONFIG)
    assert re.search(expected, text), text


def test_where_the_time_went_says_more_than_cpu_use() -> None:
    report = Report("a/b", (role(),), kinds(0.25, 0.95))
    times = TimeRecord(
        training_s=100.0,
        updates=100,
        kinds={
            "trainer": KindTime(1, {"learn": 90.0, "wait_data": 10.0}, 90.0),
            "actor": KindTime(4, {"env": 10.0, "wait_credit": 90.0}, 400.0),
        },
    )
    [text] = advise(report, CONFIG, times)
    assert text.startswith("the trainer: 90 % of its time goes to learning")
    times.updates = 0
    assert "use more actors" in advise(report, CONFIG, times)[0]


def test_a_run_of_the_right_size_gets_no_advice() -> None:
    good = role(gpu_h=1.0, gpu_efficiency=0.8, memory_mb=1000, peak_rss_mb=600.0, queue_wait_s=(60.0,))
    report = Report("a/b", (good,), kinds(0.8, 0.9), ledger={"produced": 100, "consumed": 99})
    assert advise(report, CONFIG) == () and advise(report, None) == ()
    assert "nothing to change" in report_text(report)
    assert advise(Report("a/b", (), kinds(0.7, 0.7)), replace(CONFIG, policies=PolicyGroupConfig())) == ()


def test_the_text_says_where_its_figures_come_from() -> None:
    report = make_report(
        facts(accounting=Accounting(parse_sacct(ACCOUNTS)), ledger={"produced": 7, "consumed": 7})
    )
    text = report_text(report)
    for part in (
        "exp/seed1\n",
        "05:30 (max 10:00)",
        "1 PREEMPTED, 1 COMPLETED",
        "1,000 MB of 8,000 MB",
        "sample batches:  7 produced, 7 consumed",
        "from sacct: starts, ends",
    ):
        assert part in text
    text = report_text(make_report(facts(lives=(life(0), life(1)))))
    assert "own measurements: all of core and actors (there is no sacct here)" in text and "None" not in text
    assert json.loads(json.dumps(report_values(report)))["roles"][0]["wasted_cpu_h"] > 0
    assert report_text(Report("a/b", (), ()))


def plant(directory: RunDirectory) -> None:
    directory.create()
    record = LaunchRecord(
        experiment_name=directory.experiment_name,
        trial_name=directory.trial_name,
        run_uuid="0" * 32,
        epoch=1,
        interface=None,
        heartbeat_interval_s=0.5,
        orphan_grace_s=30.0,
        jobs=[*JOBS[:1], JobRecord(job_id="local-2", role="actors", slots=[1], is_array=True)],
    )
    write_launch_record(directory, record)
    directory.config_file.write_text(json.dumps(to_dict(CONFIG)))
    directory.usage.mkdir()
    # fmt: off
    usage = {"slot": 0, "role": "core", "started": NOON, "seconds": 60.0, "cpus": 2, "gpus": 0, "cpu_s": 30.0,
             "node": "node0", "job_id": "7", "restarts": 0, "max_rss_mb": 12.0, "gpu_percent_mean": None,
             "ended": "DONE", "workers": {"trainer/0": {"cpu_s": 30.0, "max_rss_mb": 12.0, "seconds": 59.0}}}
    # fmt: on
    (directory.usage / "host-0.aa.json").write_text(json.dumps(usage))
    (directory.usage / "host-1.bb.json").write_text('{"slot": 1, "torn')
    directory.ledger_file.write_text('{"produced": 9, "consumed": 8, "dropped": {"stale": 1, "torn": 0}}')
    directory.controller_file.write_text('{"phase": "finished", "lives": {"trainer/0": 2}}')
    (directory.checkpoints / "step-000010.e0001").mkdir()
    os.utime(directory.checkpoints / "step-000010.e0001", (NOON, NOON))


def test_the_command_reads_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = RunDirectory(tmp_path, "exp", "seed1")
    plant(directory)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = gather_facts(directory)
    assert found.config == CONFIG and found.checkpoint_times == (NOON,)
    assert found.ledger == {"produced": 9, "consumed": 8, "dropped (stale)": 1}
    assert main(["report", "exp/seed1", "--root", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "(there is no sacct here)" in text and "9 produced, 8 consumed, 1 dropped (stale)" in text
    assert main(["report", "exp", "--root", str(tmp_path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["kinds"][0]["restarts"] == 2 and values["roles"][0]["ends"] == {"DONE": 1}
    assert main(["report", "other", "--root", str(tmp_path)]) == 2
    assert "exp/seed1" in capsys.readouterr().err


def test_a_config_in_yaml_or_of_another_version_is_no_obstacle(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, "exp", "seed1")
    plant(directory)
    directory.config_file.write_text("seed: 5\nactors: {count: 3}\n")
    config = gather_facts(directory).config
    assert config and (config.seed, config.actors.count) == (5, 3)
    for text in ("no_such_setting: 1\n", "a: [", "text"):
        directory.config_file.write_text(text)
        assert gather_facts(directory).config is None
    directory.config_file.unlink()
    found = gather_facts(directory)
    assert found.config is found.plan is None and make_report(found).roles
