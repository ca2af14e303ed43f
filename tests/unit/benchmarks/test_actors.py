"""The benchmarks of the actor: the step's in its quick form, the memory's on this process."""

from __future__ import annotations

import os

import pytest

from tests.unit.benchmarks.scripts import load


def rows_of(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_a_quick_look_at_the_actors_step(capsys: pytest.CaptureFixture[str]) -> None:
    actor_step = load("actor_step")
    actor_step.main(["--quick"])
    rows = rows_of(capsys.readouterr().out)
    assert rows[0] == list(actor_step.STEP_HEADER)
    step = dict(zip(rows[0], rows[2], strict=True))
    assert step["environments"] == "32"
    assert all(float(step[part]) > 0 for part in ("us per agent step", "inference", "write", "limit"))
    assert sum(row[0].startswith("PettingZoo") for row in rows) == 3
    assert [row[1] for row in rows if row[0].startswith("CartPole")] == ["256", "1024"]


def test_memory_is_read_and_judged() -> None:
    actor_memory = load("actor_memory")
    mine = actor_memory.memory_of(os.getpid())
    assert 0 < mine.pss <= mine.resident and 0 < mine.own <= mine.resident
    small, large = actor_memory.Memory(60.0, 30.0, 80.0, False), actor_memory.Memory(180.0, 90.0, 240.0, True)
    row = dict(zip(actor_memory.HEADER, actor_memory.cells("both", [small, large]), strict=True))
    assert (row["PSS"], row["torch"], row["of the goal"], row["in words"]) == (
        "120",
        "loaded",
        "1.00",
        "missed",
    )
    assert actor_memory.cells("small", [small])[-1] == "reached"
