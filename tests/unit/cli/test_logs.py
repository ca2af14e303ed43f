"""`hpc-marl logs`: which files, in which order, what is added, and the first traceback."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.cli import main
from hpc_marl.views.log_files import find_log_files, tail_of, time_of
from hpc_marl.views.log_follow import LogFollower
from hpc_marl.views.log_traceback import first_traceback
from tests.unit.cli.planted_runs import plant, plant_log, plant_verdict

TRACEBACK = """\
Traceback (most recent call last):
  File "env.py", line 1, in step
    inner()
KeyError: 'food'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "actor.py", line 2, in poll
    step()
RuntimeError: the environment broke
"""


def stamp(second: int, worker: str, text: str, day: str = "2026-01-31") -> str:
    return f"{day} 12:00:{second:02d},500 {worker} INFO {text}\n"


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = plant(tmp_path)
    plant_log(directory, "trainer/0.0.log", stamp(1, "trainer/0", "one") + stamp(5, "trainer/0", "five"))
    plant_log(
        directory,
        "actor/3.0.log",
        "a warning without time\n" + stamp(2, "actor/3", "two") + TRACEBACK + stamp(4, "actor/3", "four"),
    )
    plant_log(directory, "actor/3.1.log", stamp(6, "actor/3", "six"))
    plant_log(
        directory, "jobs/actors-102_4.out", "slurmstepd: *** JOB 102 CANCELLED AT 2026-01-31T12:00:03 ***\n"
    )
    plant_log(directory, "jobs/core-101.out", "srun: hello\n" + stamp(3, "host/0", "three"))
    plant_log(directory, "controller.log", stamp(0, "controller", "zero") + stamp(7, "controller", "seven"))
    plant_log(directory, "trainer/.0.0.log.swp", "not a log\n")
    return directory


def logs(directory: RunDirectory, *arguments: str) -> int:
    return main(["logs", str(directory.path), *arguments])


def test_lines_of_all_files_are_merged_by_time(directory: RunDirectory, capsys: pytest.CaptureFixture[str]):
    assert logs(directory) == 0
    lines = capsys.readouterr().out.split("\n\nfirst traceback")[0].splitlines()
    words = [line.split()[-1] for line in lines if " INFO " in line]
    assert words == ["zero", "one", "two", "three", "four", "five", "six", "seven"]
    assert lines[2].startswith("actor/3    a warning without time"), "as early as the first line with a time"
    begin = next(i for i, line in enumerate(lines) if "Traceback" in line)
    assert [line[len("actor/3    ") :] for line in lines[begin : begin + 11]] == TRACEBACK.splitlines()
    assert lines[begin + 11].startswith("job/102_4  slurmstepd")


@pytest.mark.parametrize(
    ("selections", "workers"),
    [
        (["actor"], ["actor/3", "actor/3"]),
        (["actor/3", "controller"], ["actor/3", "actor/3", "controller"]),
        (["job"], ["job/101", "job/102_4"]),
        (["job/102"], ["job/102_4"]),
        (["job/102_4"], ["job/102_4"]),
        (["trainer/1"], []),
        (["act"], []),
    ],
    ids=str,
)
def test_a_selection_is_a_kind_or_a_worker(
    directory: RunDirectory, selections: list[str], workers: list[str]
):
    assert [file.worker for file in find_log_files(directory.logs, selections)] == workers


def test_paths_grep_and_number_of_lines(directory: RunDirectory, capsys: pytest.CaptureFixture[str]):
    assert logs(directory, "actor", "--paths") == 0
    assert capsys.readouterr().out == f"{directory.logs}/actor/3.0.log\n{directory.logs}/actor/3.1.log\n"
    assert logs(directory, "-n", "2", "trainer", "controller") == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["five", "seven"]
    assert logs(directory, "--grep", "t(wo|hree)$", "actor", "job") == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "actor/3 2026-01-31 12:00:02,500 actor/3 INFO two",
        "job/101 2026-01-31 12:00:03,500 host/0 INFO three",
        "",
    ]
    assert logs(directory, "-n", "0", "trainer") == 0
    assert capsys.readouterr().out == ""


def test_wrong_arguments_list_what_there_is(directory: RunDirectory, capsys: pytest.CaptureFixture[str]):
    assert logs(directory, "actr") == 2
    text = capsys.readouterr().err
    assert (
        "no logs of actr" in text and "there are: actor/3, controller, job/101, job/102_4, trainer/0" in text
    )
    assert logs(directory, "actr", "-f") == 2
    assert logs(directory, "actor/9") == 2
    assert logs(directory, "--grep", "(") == 2
    assert "--grep '(' is not a regular expression" in capsys.readouterr().err


def test_the_tail_of_a_long_file_is_found_without_reading_all(directory: RunDirectory):
    text = "".join(stamp(i % 60, "actor/7", f"line {i} {'x' * 100}") for i in range(5000))
    plant_log(directory, "actor/7.0.log", text)
    (file,) = find_log_files(directory.logs, ["actor/7"])
    tail = tail_of(file, 700)
    assert [line.text for line in tail.lines] == text.splitlines()[-700:]
    assert tail.size == len(text)
    assert len(tail_of(file, 10_000).lines) == 5000
    assert len(tail_of(file, 10_000, re.compile("line 49.. x")).lines) == 100
    file.path.unlink()
    assert tail_of(file, 10).lines == ()


@pytest.mark.parametrize(
    ("line", "at"),
    [
        ("2026-01-31 12:00:00,123 actor/3 INFO ready", "2026-01-31 12:00:00.123"),
        ("[2026-01-31T12:00:00.5] error", "2026-01-31 12:00:00.5"),
        ("3: 2026-01-31 12:00:00 labelled by srun", "2026-01-31 12:00:00"),
        (
            "slurmstepd-cpu1: error: *** JOB 5 ON cpu1 CANCELLED AT 2026-01-31T12:00:00 ***",
            "2026-01-31 12:00:00",
        ),
        ("loaded the data of 2026-01-31 12:00:00", ""),
        ("12:00:00", ""),
    ],
)
def test_the_time_of_a_line(line: str, at: str):
    assert time_of(line) == at


# ---- following ----------------------------------------------------------------------------------------------------


def polled(follower: LogFollower) -> list[str]:
    return [f"{line.worker}: {line.text.split()[-1]}" for line in follower.poll()]


def test_following_sees_new_lines_files_lives_and_rotations(tmp_path: Path):
    directory = plant(tmp_path)
    path = plant_log(directory, "actor/0.0.log", stamp(0, "actor/0", "shown"))
    follower = LogFollower(directory.logs, ["actor"])
    (file,) = find_log_files(directory.logs)
    follower.begin_after(file, tail_of(file, 10))
    assert polled(follower) == []

    with path.open("a") as log:
        log.write(stamp(3, "actor/0", "three") + "half a ")
    plant_log(directory, "actor/1.0.log", stamp(2, "actor/1", "two"))
    plant_log(directory, "trainer/0.0.log", stamp(1, "trainer/0", "unasked"))
    assert polled(follower) == ["actor/1: two", "actor/0: three"]

    with path.open("a") as log:
        log.write("line\n")
    plant_log(directory, "actor/0.1.log", stamp(4, "actor/0", "again"))
    assert polled(follower) == ["actor/0: line", "actor/0: again"]

    path.write_text(stamp(5, "actor/0", "truncated"))
    assert polled(follower) == ["actor/0: truncated"]
    path.rename(path.with_suffix(".old"))
    path.write_text("".join(stamp(6, "actor/0", f"rotated{i}") for i in range(3)))
    assert polled(follower) == [f"actor/0: rotated{i}" for i in range(3)]
    path.unlink()
    assert polled(follower) == []


def test_many_files_are_asked_less_often(tmp_path: Path):
    directory = plant(tmp_path)
    follower = LogFollower(directory.logs)
    follower.poll()
    few_s = follower.interval_s
    for index in range(1000):
        plant_log(directory, f"actor/{index}.0.log", "x\n")
    follower.poll()
    assert follower.interval_s > few_s


class _Output(io.StringIO):
    """Standard output that does something once a text was written to it."""

    def __init__(self, after: str, action: Callable[[], None]) -> None:
        super().__init__()
        self._after, self._action, self._done = after, action, threading.Event()

    def writelines(self, lines: object) -> None:
        super().writelines(lines)  # type: ignore[arg-type]
        if not self._done.is_set() and self._after in self.getvalue():
            self._done.set()
            self._action()


def test_following_ends_with_the_run_and_shows_the_traceback(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
):
    def more() -> None:
        plant_log(directory, "actor/8.0.log", stamp(9, "actor/8", "added"))
        plant_verdict(directory, "ERROR")

    output = _Output("seven", more)
    monkeypatch.setattr("sys.stdout", output)
    assert logs(directory, "-f") == 0
    text = output.getvalue()
    assert text.index("seven") < text.index("added") < text.index("first traceback: actor/3 ")


def test_ctrl_c_ends_following(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch):
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LogFollower, "poll", lambda self: interrupt())
    assert logs(directory, "-f", "trainer") == 0


# ---- the first traceback -----------------------------------------------------------------------------------------


def test_the_first_traceback_is_shown_with_its_place(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
):
    plant_log(
        directory,
        "trainer/0.1.log",
        stamp(8, "trainer/0", "x") + "Traceback (most recent call last):\n  x\nE: y\n",
    )
    directory.usage.mkdir()
    for started, node, job_id in ((0, "cpu1", "102_1"), (1e9, "cpu2", "102_2"), (9e9, "cpu3", "102_3")):
        usage = {"slot": 3, "node": node, "job_id": job_id, "started": started, "workers": {"actor/3": {}}}
        (directory.usage / f"host-3.{node}.json").write_text(json.dumps(usage))
    (directory.usage / "host-4.torn.json").write_text("{")
    assert logs(directory, "-n", "1") == 0
    shown = capsys.readouterr().out.partition("\n\n")[2]
    title, *lines = shown.splitlines()
    assert title == (
        f"first traceback: actor/3 on cpu2 in job 102_2 at 2026-01-31 12:00:02, {directory.logs}/actor/3.0.log"
    )
    assert lines == [f"  {line}" for line in TRACEBACK.splitlines()]


def test_a_job_file_names_its_job_and_loses_its_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    directory = plant(tmp_path)
    plant_log(directory, "jobs/core-101.out", "".join(f"2: {line}\n" for line in TRACEBACK.splitlines()))
    assert logs(directory, "job") == 0
    shown = capsys.readouterr().out.partition("\n\n")[2].splitlines()
    assert shown[0].startswith("first traceback: job/101 in job 101 at ")
    assert shown[-1] == "  RuntimeError: the environment broke"


def test_a_long_traceback_keeps_its_beginning_and_its_exception(tmp_path: Path):
    directory = plant(tmp_path)
    deep = "".join(f"  File x, line {i}\n    call()\n" for i in range(100))
    plant_log(
        directory,
        "actor/0.0.log",
        "x" * 5_000_000 + "\nTraceback (most recent call last):\n" + deep + "E: y\n",
    )
    found = first_traceback(find_log_files(directory.logs))
    assert found is not None
    assert (found.lines[0], found.lines[-1]) == ("Traceback (most recent call last):", "E: y")
    assert len(found.lines) == 41


def test_no_traceback_is_nothing_to_show(tmp_path: Path):
    directory = plant(tmp_path)
    plant_log(directory, "actor/0.0.log", stamp(0, "actor/0", "fine"))
    assert first_traceback(find_log_files(directory.logs)) is None


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_colour_per_worker(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch):
    output = _Terminal()
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert logs(directory, "trainer", "controller") == 0
    prefixes = [line.partition(" 2026")[0] for line in output.getvalue().splitlines()]
    assert len(set(prefixes)) == 2
    assert all(prefix.startswith("\x1b[38;5;") and prefix.endswith("\x1b[0m") for prefix in prefixes)
