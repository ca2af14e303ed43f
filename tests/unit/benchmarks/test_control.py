"""The benchmarks of the control plane: their arithmetic, and their quick forms where these take a moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.benchmarks.scripts import BENCHMARKS, load


def test_ratios_are_taken_within_a_repeat_and_judged() -> None:
    comparisons = load("measuring.comparisons")
    rows = [
        comparisons.Comparison("ours", [1.0, 20.0, 3.0], [1.0, 10.0, 3.0], 1.2),
        comparisons.Comparison("slow", [2.0, 20.0, 6.0], [1.0, 10.0, 3.0], 1.2),
        comparisons.Comparison("peer", [1.0, 10.0, 3.0], [1.0, 10.0, 3.0]),
    ]
    lines = comparisons.comparison_table(rows, "of the peer").splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["ours", "3", "1 to 20", "1.00", "<= 1.2", "reached"]
    assert cells[1][-3:] == ["2.00", "<= 1.2", "missed"]
    assert cells[2][-3:] == ["1.00", "-", ""]


@pytest.mark.parametrize("script", ["rpc", "group_request", "name_service"])
def test_the_quick_forms_run(script: str, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "| median" in done.stdout and ("reached" in done.stdout or "missed" in done.stdout)


def test_start_up_reads_the_logs(tmp_path: Path) -> None:
    directory = load("hpc_marl.base.run_directory").RunDirectory(tmp_path, "exp", "trial")
    for name, text in {
        "actor/0.0.log": "2026-11-27 12:00:01,250 actor/0 INFO hpc_marl.workers: actor/0 pid 7 serves\n",
        "actor/1.0.log": "2026-11-27 12:00:02,500 actor/1 INFO hpc_marl.workers: actor/1 pid 8 serves\n",
        "controller.log": "2026-11-27 12:00:03,000 controller INFO training starts with 2 of 2 actors\n",
    }.items():
        path = directory.logs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = dict(load("start_up")._reached(directory))
    assert found["training starts"] - found["actors are up"] == pytest.approx(0.5)
    assert list(found) == ["actors are up", "training starts"]
