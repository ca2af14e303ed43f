"""`hpc-marl status` and `list`: by the controller's word, and by the files where none answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hpc_marl.cli import main
from hpc_marl.trials.trial_files import trial_facts
from hpc_marl.views.status_text import snapshot_text
from tests.unit.cli.planted_runs import FakeController, job, plant, snapshot, this_host

ROW: dict[str, Any] = {
    "time_s": 10.0,
    "env_steps": 500,
    "policy_version": 5,
    "policy_lag": 0.5,
    "num_episodes": 2,
    "episode_return": 0.25,
    "env_steps_per_s": 50.0,
}


def test_status_shows_the_controllers_snapshot(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    directory = plant(tmp_path)
    with FakeController(directory, status=lambda: snapshot(pending=1)):
        assert main(["status", "foraging/seed0", "--root", str(tmp_path)]) == 0
        text = capsys.readouterr().out
        assert main(["status", "foraging", "--root", str(tmp_path), "--json"]) == 0
    assert text.startswith("foraging/seed0: training, 42% done\n")
    for part in (
        "process 4242 on head (session)",
        "420 of 1,000 env_steps in 01:00, ETA 05:12",
        "12,346 env_steps/s",
        "version 40, lag 1.2",
        "8 queued",
        "2 RUNNING, 1 PENDING",
        "1 Resources",
        "102_0-1",
        "2026-11-03 14:00:00",
        "event 29",
    ):
        assert part in text, part
    assert json.loads(capsys.readouterr().out) == snapshot(pending=1)


def test_a_thousand_workers_fit_one_screen():
    big = snapshot(1000, per_slot=2, pending=20)
    for worker in big["workers"][100:200]:
        worker["status"], worker["last_error"] = "LOST", "silent for 60 s\nand more " + "x" * 500
    for slot in big["slots"][::3]:
        slot["reason"] = f"Reason{slot['slot']}"
    lines = snapshot_text(big).splitlines()
    assert len(lines) <= 48
    assert max(map(len, lines)) <= 160
    assert "  and 96 more that failed; see `hpc-marl logs`" in lines


def test_a_snapshot_of_another_version_is_shown_as_far_as_it_goes():
    assert "?: " not in snapshot_text({"experiment_name": "a", "trial_name": "b", "phase": "training"})


def test_without_a_controller_the_files_speak(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plant(tmp_path, rows=[ROW], phase="training", jobs=[job(), job("102", "actors", [1, 2])])
    assert main(["status", "foraging", "--root", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "foraging/seed0: running, by its files: no controller drives foraging/seed0" in text
    assert "jobs 101, 102 may still run; take over by `hpc-marl attach foraging/seed0`" in text
    for part in ("500 of 1,000 env_steps in 00:10", "return         0.250", "102 (actors, 2 slots)"):
        assert part in text, part
    assert main(["status", "foraging", "--root", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["source"], found["state"], found["progress"]["env_steps"]) == ("files", "running", 500)


def test_a_run_that_ended_shows_its_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plant(tmp_path, rows=[ROW], verdict="INTERRUPTED", is_open=False)
    assert main(["status", "foraging", "--root", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "interrupted, by its files: no controller drives foraging/seed0: it has ended INTERRUPTED" in text


def test_a_sweep_is_a_table_of_its_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plant(tmp_path, "sweep/done", rows=[ROW | {"env_steps": 1000}], verdict="COMPLETED", launched=3)
    evaluation = {"return_mean": 0.5, "return_interval_95": [0.4, 0.6], "episodes": 10, "env_steps": 1000}
    (tmp_path / "sweep" / "done" / "evaluation.json").write_text(json.dumps(evaluation))
    plant(tmp_path, "sweep/failed", verdict="ERROR", launched=2)
    plant(tmp_path, "sweep/waiting", phase="starting", jobs=[job("103")], launched=1)
    (tmp_path / "sweep" / "broken").mkdir()
    (tmp_path / "sweep" / "broken" / "launch.json").write_text("{}")
    assert main(["status", "sweep", "--root", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    title, header, *rows = out.splitlines()
    assert title == "sweep: 3 trials: 1 pending, 1 completed, 1 failed"
    assert header.split()[:2] == ["trial", "state"]
    assert rows[0].split()[:6] == ["done", "completed", "1,000", "100%", "0.250", "0.500"]
    assert rows[1].split()[:3] == ["failed", "failed", "0"]
    assert "103" in rows[2]
    assert err.startswith("warning: ") and "broken" in err
    assert main(["status", "sweep", "--root", str(tmp_path), "--json"]) == 0
    assert [one["state"] for one in json.loads(capsys.readouterr().out)] == ["completed", "failed", "pending"]


def test_list_has_every_trial_newest_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plant(tmp_path, "old/a", launched=time.time() - 7200, rows=())
    plant(tmp_path, "new/b", rows=[ROW])
    assert main(["list", "--root", str(tmp_path)]) == 0
    _, first, second, counts = capsys.readouterr().out.splitlines()
    assert first.split()[:5] == ["new/b", "running", "500", "50%", "0.250"]
    assert second.split() == ["old/a", "pending", "0", "0%", "-", "2", "h"]
    assert counts == "2 experiments, 2 trials: 1 running, 1 pending"
    assert main(["list", "--root", str(tmp_path / "old" / "a")]) == 0
    assert "no runs below" in capsys.readouterr().out
    assert main(["list", "--root", str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize(
    ("planted", "state"),
    [
        ({"verdict": "COMPLETED"}, "completed"),
        ({"verdict": "INTERRUPTED"}, "interrupted"),
        ({"verdict": "ERROR"}, "failed"),
        ({"phase": "starting", "rows": [ROW]}, "pending"),
        ({}, "pending"),
        ({"rows": [ROW]}, "running"),
        ({"rows": [ROW], "launched": 4e9}, "pending"),
        ({"phase": "evaluating"}, "running"),
        ({"is_open": False}, "interrupted"),
        ({"host": this_host(), "rows": [ROW]}, "interrupted"),
        ({"host": this_host(), "rows": [ROW], "jobs": [job()]}, "running"),
        ({"host": this_host(), "rows": [ROW], "jobs": [job("local-1")]}, "interrupted"),
    ],
    ids=str,
)
def test_the_state_follows_from_the_files(tmp_path: Path, planted: dict[str, Any], state: str):
    assert trial_facts(plant(tmp_path, **planted)).state == state


def test_the_return_is_that_of_recent_episodes(tmp_path: Path):
    rows = [ROW | {"env_steps": i, "num_episodes": 50, "episode_return": float(i)} for i in range(1000)]
    directory = plant(tmp_path, rows=[*rows, {"env_steps": 1000}])
    facts = trial_facts(directory)
    assert (facts.env_steps, facts.return_mean) == (1000, (996 + 997 + 998 + 999) / 4)
    with (directory.metrics / "metrics.jsonl").open("a") as file:
        file.write('{"env_steps": 20')
    assert trial_facts(directory).env_steps == 1000, "a torn line is passed over"


def test_age_is_that_of_the_newest_file(tmp_path: Path):
    directory = plant(tmp_path, rows=[ROW], launched=time.time() - 5000)
    os.utime(directory.metrics / "metrics.jsonl", (time.time() - 3000,) * 2)
    assert 2990 < trial_facts(directory).age_s < 3100


def test_an_unknown_trial_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plant(tmp_path)
    for command in ("status", "logs", "top", "pause", "resume", "checkpoint", "stop", "cancel"):
        assert main([command, "forage", "--root", str(tmp_path)]) == 2, command
        assert "did you mean 'foraging'" in capsys.readouterr().err


LISTS_IMPORTS = """
import sys
from hpc_marl.cli import main
code = main(sys.argv[2:])
heavy = set(sys.argv[1].split(",")) & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["status", "sweep"], "torch,hydra,matplotlib,zmq,numpy,rich"),
        (["list"], "torch,hydra,matplotlib,zmq,numpy,rich"),
        (["logs", "sweep/a"], "torch,hydra,matplotlib,zmq,numpy,rich"),
        (["status", "sweep/a"], "torch,hydra,matplotlib,rich"),
        (["top", "--help"], "torch,hydra,matplotlib"),
        (["pause", "--help"], "torch,hydra,matplotlib,rich"),
    ],
)
def test_the_commands_import_little(tmp_path: Path, arguments: list[str], heavy: str):
    for name in ("sweep/a", "sweep/b"):
        directory = plant(tmp_path, name, is_open=False)
        (directory.logs / "controller.log").write_text("2026-01-01 00:00:00,000 controller INFO hello\n")
    command = [sys.executable, "-c", LISTS_IMPORTS, heavy, *arguments]
    environment = {**os.environ, "HPC_MARL_ROOT": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
