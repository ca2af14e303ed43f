"""Markdown tables, and the facts about a machine without which no figure means anything."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("hpc-marl", "torch", "numpy", "gymnasium", "lbforaging", "stable-baselines3")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table that can also be read as it is.

    >>> print(markdown_table(["seed", "return"], [["1", "0.98"]]))
    | seed | return |
    | ---- | ------ |
    | 1    | 0.98   |
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def in_words(is_reached: bool) -> str:
    """Return what tables say of a goal."""
    return "reached" if is_reached else "missed"


def machine_facts() -> str:
    """Return one line: processor, cores, load, versions."""
    packages = [f"{name} {found}" for name in _PACKAGES if (found := _version(name))]
    cores = len(os.sched_getaffinity(0))
    load = f"load {os.getloadavg()[0]:.1f}"
    return ", ".join([_processor(), f"{cores} cores", load, f"Python {platform.python_version()}", *packages])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text("utf-8"))
    return found.group(1) if found else platform.machine()
