"""Steering from a login shell, against a controller that only answers; cancelling where none does."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpc_marl.cli import main
from hpc_marl.errors import ConfigError, WorkerError
from tests.unit.cli.planted_runs import FakeController, job, plant, plant_verdict


def raising(error: Exception) -> Callable[..., Any]:
    def handler(**kwargs: Any) -> Any:
        raise error

    return handler


@pytest.mark.parametrize(
    ("arguments", "call", "said"),
    [
        (["pause"], ("pause", {}), "foraging/seed0 pauses; go on by `hpc-marl resume foraging/seed0`"),
        (["resume"], ("resume", {}), "foraging/seed0 goes on"),
        (["checkpoint"], ("checkpoint", {}), "/somewhere/checkpoints/000040"),
        (["scale", "actors=16"], ("scale", {"actors": 16}), "foraging/seed0 scales to 16 actors"),
    ],
)
def test_a_command_reaches_the_controller_and_is_confirmed(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    call: tuple[str, dict[str, Any]],
    said: str,
):
    directory = plant(tmp_path)
    command, *rest = arguments
    with FakeController(
        directory, **{command: lambda **kwargs: "/somewhere/checkpoints/000040"}
    ) as controller:
        assert main([command, "foraging", *rest, "--root", str(tmp_path)]) == 0
    assert controller.calls == [call]
    out, err = capsys.readouterr()
    assert out.startswith(said) and out.count("\n") == 1
    assert err == ""


@pytest.mark.parametrize("setting", ["actors=0", "actors=-3", "actors=many", "16", "trainers=2"])
def test_scale_takes_actors_only(tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str):
    directory = plant(tmp_path)
    with FakeController(directory, scale=lambda actors: None) as controller:
        assert main(["scale", "foraging", setting, "--root", str(tmp_path)]) == 2
    assert controller.calls == []
    assert "expected actors=N" in capsys.readouterr().err


def test_a_refusal_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    directory = plant(tmp_path)
    handlers = {
        "scale": raising(ConfigError("actors=16 is out of range; expected 1 to 8")),
        "pause": raising(WorkerError("the run is evaluating")),
    }
    with FakeController(directory, **handlers):
        assert main(["scale", "foraging", "actors=16", "--root", str(tmp_path)]) == 2
        assert capsys.readouterr().err == "error: actors=16 is out of range; expected 1 to 8\n"
        assert main(["pause", "foraging", "--root", str(tmp_path)]) == 1
        assert capsys.readouterr().err == "error: the controller could not pause: the run is evaluating\n"


@pytest.mark.parametrize(("status", "code"), [("INTERRUPTED", 0), ("COMPLETED", 0), ("ERROR", 1)])
@pytest.mark.parametrize("command", ["stop", "cancel"])
def test_ending_waits_for_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, status: str, code: int
):
    directory = plant(tmp_path)

    def end() -> None:
        plant_verdict(directory, status, "ended from a shell")

    with FakeController(directory, **{command: end}):
        assert main([command, "foraging", "--root", str(tmp_path)]) == code
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "foraging/seed0 stops" if command == "stop" else "foraging/seed0 is being cancelled"
    )
    assert last == f"foraging/seed0 has ended {status}: ended from a shell"


def test_ending_does_not_wait_for_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    directory = plant(tmp_path)
    with FakeController(directory, stop=lambda: None):
        assert main(["stop", "foraging", "--root", str(tmp_path), "--timeout", "0"]) == 1
    assert "has not ended within 0 s" in capsys.readouterr().err


def test_a_run_that_ended_cannot_be_steered(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plant(tmp_path, verdict="COMPLETED", is_open=False, jobs=[job()])
    for command in ("pause", "stop", "cancel"):
        assert main([command, "foraging", "--root", str(tmp_path)]) == 1
        assert "it has ended COMPLETED: as planted" in capsys.readouterr().err


@pytest.fixture
def scancel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a scancel on the PATH that writes its arguments to the returned file."""
    log, program = tmp_path / "scancel.log", tmp_path / "bin" / "scancel"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return log


JOBS = [job("101"), job("102", "actors", [1, 2]), job("103+0", "core", [3]), job("103+1", "actors", [4])]


def test_jobs_of_a_run_that_nobody_drives_are_cancelled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scancel: Path
):
    plant(tmp_path, jobs=JOBS)
    assert main(["cancel", "foraging", "--root", str(tmp_path), "--yes"]) == 0
    assert scancel.read_text() == "--quiet 101 102 103\n"
    assert capsys.readouterr().out == "foraging/seed0: cancelled jobs 101, 102, 103\n"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("typed", ["y\n", "n\n", ""])
def test_a_person_is_asked_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scancel: Path,
    typed: str,
):
    plant(tmp_path, jobs=JOBS)
    monkeypatch.setattr("sys.stdin", _Terminal(typed))
    assert main(["cancel", "foraging", "--root", str(tmp_path)]) == (0 if typed == "y\n" else 1)
    assert scancel.exists() == (typed == "y\n")
    assert "cancel jobs 101, 102, 103 by scancel? [y/N]" in capsys.readouterr().err


def test_without_a_person_nothing_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scancel: Path
):
    plant(tmp_path, jobs=JOBS)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["cancel", "foraging", "--root", str(tmp_path)]) == 1
    assert "`hpc-marl cancel foraging/seed0 --yes` cancels 101, 102, 103" in capsys.readouterr().err
    assert not scancel.exists()


def test_what_scancel_says_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scancel: Path
):
    plant(tmp_path, jobs=JOBS)
    program = tmp_path / "bin" / "scancel"
    program.write_text("#!/bin/sh\necho slurmctld is down >&2\nexit 1\n")
    assert main(["cancel", "foraging", "--root", str(tmp_path), "--yes"]) == 1
    assert "`scancel --quiet 101 102 103` failed (1): slurmctld is down" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["cancel", "foraging", "--root", str(tmp_path), "--yes"]) == 1
    assert "there is no scancel on this machine" in capsys.readouterr().err


def test_there_may_be_nothing_to_cancel(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plant(tmp_path, jobs=[job("local-1")])
    assert main(["cancel", "foraging", "--root", str(tmp_path), "--yes"]) == 1
    assert "launch.json lists no jobs to cancel" in capsys.readouterr().err
