"""`hpc-marl top`: frames are pure functions of snapshots; watching survives controllers and ends with the run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hpc_marl.cli import main
from hpc_marl.commands.top import frames, watch
from hpc_marl.errors import NoControllerError
from hpc_marl.views.snapshot_view import kind_views, work_rates
from hpc_marl.views.top_view import render
from tests.unit.cli.planted_runs import FakeController, plant, plant_verdict, snapshot


def drawn(found: dict[str, Any], width: int = 140, height: int = 30, **kwargs: Any) -> list[str]:
    """Return the lines of a frame on a screen of that size."""
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(render(found, width=width, height=height, **kwargs))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_a_small_run_is_shown_slot_by_slot():
    before, after = snapshot(elapsed_s=50), snapshot(pending=1, elapsed_s=60)
    lines = drawn(after, rates=work_rates(before, after))
    assert cells(lines[0]) == ["foraging/seed0", "training", "controller session on head"]
    assert lines[1].startswith(" 42%") and lines[1].endswith("420/1,000 env_steps  01:00  ETA 05:12")
    assert cells(lines[2])[:6] == [
        "return 0.876",
        "env_steps/s 12,346",
        "agent_steps/s 24,691",
        "lag 1.2",
        "queue 8",
        "dropped 2",
    ]
    trainer, policy, actor = map(cells, lines[5:8])
    assert trainer[:4] == ["trainer", "1/1 running", "gpu1", "12,346 env_steps/s"]
    assert policy == [
        "policy",
        "1/1 running",
        "gpu1",
        "100 rows/s",
        "1.0",
        "95",
        "33",
        "200 MB",
        "0",
        "1:00:00",
    ]
    assert actor[:5] == ["actor", "2/3 running, 1 pending", "1 Resources", "cpu1, cpu2", "20 env_steps/s"]
    slots = list(map(cells, lines[10:14]))
    assert [slot[2] for slot in slots] == ["101", "102_0", "102_1", "102_2"]
    assert slots[3][3:6] == ["PENDING", "Resources", "2026-11-03 14:00:00"]
    assert lines[-1].endswith("event 29")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (140, 50), (60, 12)])
@pytest.mark.parametrize("scattered", [False, True])
def test_a_thousand_workers_fit_every_screen(width: int, height: int, scattered: bool):
    big = snapshot(1000, per_slot=2, pending=20)
    if scattered:
        for slot in big["slots"]:
            slot["reason"] = f"Reason{slot['slot']}"
        for worker in big["workers"][::5]:
            worker["status"], worker["last_error"] = "LOST", "silent\nfor a long time " + "x" * 500
    lines = drawn(big, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert any(line.startswith("actor") and "/1000" in line for line in lines)


def test_jobs_of_a_large_run_are_shown_by_job():
    lines = drawn(snapshot(1000, per_slot=2, pending=20))
    (running, waiting) = (cells(line) for line in lines if line.startswith("actors"))
    assert running[:5] == ["actors", "480 slots", "102_0-479", "RUNNING", "cpu1, cpu2, +478"]
    assert waiting[:4] == ["actors", "20 slots", "102_480-499", "PENDING"]


def test_a_narrow_screen_leaves_out_what_matters_least():
    header = cells(drawn(snapshot(), 70)[4])
    assert header[:3] == ["workers", "states", "rate"]
    assert not {"nodes", "restarts", "lag"} & set(header)


def test_what_is_not_known_is_left_out():
    lines = drawn({"experiment_name": "a", "trial_name": "b", "phase": "starting"}, note="no answer")
    assert cells(lines[0])[-1] == "no answer"
    assert len(lines) < 8


def test_rates_count_only_what_one_life_did():
    before, after = snapshot(2, elapsed_s=50), snapshot(3, elapsed_s=60)
    assert work_rates(before, after) == {"policy": 100.0, "actor": 20.0}, "the third is new"
    after["workers"][2]["life"] = 1
    assert work_rates(before, after)["actor"] == 10.0
    assert work_rates(after, before) == {}, "another controller's clock"
    kinds = {view.kind: view for view in kind_views(after)}
    assert (kinds["actor"].restarts, kinds["actor"].rate, kinds["policy"].policy_lag) == (1, "", 1.0)


def test_without_a_terminal_one_frame_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    directory = plant(tmp_path)
    with FakeController(directory, status=snapshot) as controller:
        assert main(["top", "foraging", "--root", str(tmp_path)]) == 0
    assert len(controller.calls) == 1
    assert "actor    3/3 running" in capsys.readouterr().out
    assert main(["top", "foraging", "--root", str(tmp_path)]) == 1
    assert "take over by `hpc-marl attach foraging/seed0`" in capsys.readouterr().err


def test_frames_go_on_with_the_next_controller_and_end_with_the_run(tmp_path: Path):
    directory = plant(tmp_path)
    clock = iter(range(100))
    coming = frames(directory, timeout_s=0.5)
    with FakeController(directory, status=lambda: snapshot(elapsed_s=10.0 * next(clock))):
        assert next(coming).rates == {}
        assert next(coming).rates == {"policy": 100.0, "actor": 30.0}
    frame = next(coming)
    assert "`hpc-marl attach foraging/seed0`" in frame.note
    assert frame.snapshot["progress"]["elapsed_s"] == 10.0, "the last that was seen"
    with FakeController(directory, status=snapshot):
        assert next(frame for frame in coming if not frame.note).snapshot == snapshot()
    plant_verdict(directory, "COMPLETED")
    assert list(coming) == []


def test_without_a_controller_there_is_no_frame(tmp_path: Path):
    with pytest.raises(NoControllerError):
        next(frames(plant(tmp_path)))


def test_watching_leaves_the_last_frame_and_the_verdict(tmp_path: Path):
    directory = plant(tmp_path)
    verdicts = iter(["", "", "COMPLETED: all done"])

    def status() -> dict[str, Any]:
        found = snapshot() | {"verdict": next(verdicts)}
        if found["verdict"]:
            plant_verdict(directory, "COMPLETED", "all done")
        return found

    console = Console(file=io.StringIO(), width=100, height=30, force_terminal=True, color_system=None)
    with FakeController(directory, status=status) as controller:
        watch(directory, console, interval_s=0.0)
    assert len(controller.calls) == 3
    assert isinstance(console.file, io.StringIO)
    last = console.file.getvalue().rpartition("\x1b[?1049l")[2]
    assert "foraging/seed0  training  COMPLETED: all done" in last
    assert last.splitlines()[-1] == "foraging/seed0 has ended COMPLETED: all done"
