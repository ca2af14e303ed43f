"""The scripts of benchmarks/, for tests."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


def load(name: str) -> Any:
    """Import a script or one of its helpers; the fixture of conftest.py makes them importable."""
    return importlib.import_module(name)
