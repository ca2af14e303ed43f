"""The display: what it says, how seldom, and that it leaves the terminal as it was."""

from __future__ import annotations

import dataclasses
import io
import threading

import pytest
from rich.console import Console

from hpc_marl.views.display import (
    LiveDisplay,
    PlainDisplay,
    Progress,
    clock_text,
    make_display,
    progress_line,
    worker_states,
)

PROGRESS = Progress(
    env_steps=930_000,
    env_steps_per_s=10_482.3,
    agent_steps_per_s=20_964.6,
    return_mean=0.93412,
    policy_lag=0.25,
    policy_version=226,
    workers={"actor/0": "RUNNING", "actor/1": "RUNNING", "trainer/0": "RUNNING"},
    restarts=0,
    elapsed_s=92.4,
    eta_s=56.7,
)
FIGURES = [
    "62%",
    "930,000",
    "1,500,000",
    "0.934",
    "10,482",
    "20,965",
    "0.2",
    "226",
    "01:32",
    "00:57",
    "actor",
    "2/2 running",
]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_says_everything():
    line = progress_line(PROGRESS, 1_500_000)
    assert [figure for figure in FIGURES if figure not in line] == []
    assert "\n" not in line and "restarts" not in line
    assert "3 restarts" in progress_line(dataclasses.replace(PROGRESS, restarts=3), 1_500_000)


def test_what_is_not_known_yet_is_a_dash():
    fresh = dataclasses.replace(PROGRESS, env_steps=0, return_mean=None, eta_s=None, workers={})
    assert "return -" in progress_line(fresh, 10) and "ETA -" in progress_line(fresh, 10)


def test_workers_are_counted_by_kind():
    workers = {f"actor/{i}": "RUNNING" if i == 3 else "LOST" for i in range(4)} | {"trainer/0": "READY"}
    assert worker_states(workers) == ["actor 1/4 running, 3 lost", "trainer 1/1 ready"]
    assert clock_text(3599.9) == "1:00:00"


def test_without_a_terminal_there_is_a_line_every_few_seconds():
    stream, clock = io.StringIO(), Clock()
    display = make_display(1_500_000, stream, clock=clock)
    assert isinstance(display, PlainDisplay)
    for tenth in range(101):
        clock.now = 100.0 + tenth / 10
        display.update(dataclasses.replace(PROGRESS, elapsed_s=tenth / 10))
    display.event("actor/1 was killed; started again")
    display.update(dataclasses.replace(PROGRESS, elapsed_s=11.0))
    display.close()
    display.close()
    lines = stream.getvalue().splitlines()
    assert [line[:7] for line in lines] == ["[00:00]", "[00:05]", "[00:10]", "[00:10]", "[00:11]"]
    assert lines[3].endswith("actor/1 was killed; started again")


@pytest.mark.parametrize(("term", "kind"), [("xterm", LiveDisplay), ("dumb", PlainDisplay)])
def test_a_terminal_gets_the_live_panel(monkeypatch: pytest.MonkeyPatch, term: str, kind: type):
    monkeypatch.setenv("TERM", term)
    stream = Terminal()
    display = make_display(1_500_000, stream, title="lbf_mappo/seed1")
    display.update(PROGRESS)
    display.close()
    assert isinstance(display, kind)
    assert ("\x1b[?25l" in stream.getvalue()) == (kind is LiveDisplay)
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h"), (
        "the cursor came back"
    )


def test_the_live_panel_shows_the_same_and_the_last_events():
    threads_before = threading.enumerate()
    clock = Clock()
    console = Console(file=io.StringIO(), force_terminal=True, width=110, color_system=None)
    display = LiveDisplay(1_500_000, console.file, title="lbf_mappo/seed1", console=console, clock=clock)
    for number in range(6):
        display.event(f"event [{number}]")
    display.update(PROGRESS)
    clock.now += 1
    display.update(dataclasses.replace(PROGRESS, workers={**PROGRESS.workers, "actor/2": "LOST"}, restarts=1))
    display.close()
    display.close()
    assert isinstance(console.file, io.StringIO)
    last = console.file.getvalue().split("\x1b[2K")[-1]
    for part in (
        "lbf_mappo/seed1",
        *FIGURES[:-1],
        "2/3 running, 1 lost",
        "restarts 1",
        "event [2]",
        "event [5]",
    ):
        assert part in last
    assert "event [1]" not in last
    # Others may have left daemon threads of theirs in this process: only new ones are ours.
    assert [thread for thread in threading.enumerate() if thread not in threads_before] == []


def test_updates_between_two_pictures_are_only_remembered():
    clock = Clock()
    console = Console(file=io.StringIO(), force_terminal=True, width=110)
    display = LiveDisplay(1_500_000, console.file, console=console, clock=clock)
    display.update(PROGRESS)
    assert isinstance(console.file, io.StringIO)
    drawn = len(console.file.getvalue())
    for _ in range(100):
        clock.now += 0.001
        display.update(PROGRESS)
    assert len(console.file.getvalue()) == drawn
    display.close()
