"""Tests of the benchmarks import them as they are run: from their own directory."""

from __future__ import annotations

import pytest

from tests.unit.benchmarks.scripts import BENCHMARKS


@pytest.fixture(autouse=True)
def as_scripts_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make benchmarks/ importable, as it is for a script that lies there."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
