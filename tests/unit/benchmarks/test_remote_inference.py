"""The benchmark of remote inference: its ratios, and that its quick form measures something."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.unit.benchmarks.scripts import BENCHMARKS


@pytest.mark.parametrize(("goal", "words"), [(0.5, "reached"), (0.7, "missed"), (None, "-")])
def test_ratios_are_taken_within_a_repeat(goal, words):
    from remote_inference import HEADER, Series

    reference = Series("inline", None, None, rates=[100.0, 200.0, 400.0])
    ours = Series("shared memory", None, reference, goal, rates=[60.0, 100.0, 300.0])
    assert reference.cells()[3:] == ["1.00", "-", "-", "the reference"]
    wanted = "-" if goal is None else f">= {goal:.2f}"
    assert ours.cells() == ["shared memory", "100", "60 to 300", "0.60", "0.50 to 0.75", wanted, words]
    assert len(ours.cells()) == len(HEADER)


def test_the_quick_form_prints_both_tables():
    command = [sys.executable, str(BENCHMARKS / "remote_inference.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    rows = [line for line in done.stdout.splitlines() if line.startswith("| 32 ") or "groups" in line]
    assert len(rows) == 7 and not done.stderr.startswith("Traceback")
