"""The report of `hpc-marl doctor`: one line per finding, with what to do where something is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TextIO

_WHAT_WIDTH = 20


class Level(str, Enum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Line:
    """One finding.

    Attributes:
        level: how it ended.
        what: what was looked at, in a word or two.
        detail: what was found.
        remedy: what to do about it; "" where all is well.
    """

    level: Level
    what: str
    detail: str
    remedy: str = ""

    def text(self) -> str:
        """Return it as printed."""
        row = f"{self.level.value:<4}  {self.what:<{_WHAT_WIDTH}}  {self.detail}"
        indent = "\n" + " " * (_WHAT_WIDTH + 8)
        return row.replace("\n", indent) + (f"{indent}-> {self.remedy}" if self.remedy else "")


def ok(what: str, detail: str) -> Line:
    """Return a line that says that all is well."""
    return Line(Level.OK, what, detail)


def warn(what: str, detail: str, remedy: str) -> Line:
    """Return a line about what may do harm."""
    return Line(Level.WARN, what, detail, remedy)


def fail(what: str, detail: str, remedy: str) -> Line:
    """Return a line about what keeps runs from working."""
    return Line(Level.FAIL, what, detail, remedy)


class Report:
    """Prints lines as they are found, and counts them.

    Args:
        output: where to.
    """

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._counts = dict.fromkeys(Level, 0)

    def add(self, lines: Line | Iterable[Line]) -> None:
        """Print one or several lines."""
        for line in [lines] if isinstance(lines, Line) else lines:
            self._counts[line.level] += 1
            self._output.write(line.text() + "\n")
        self._output.flush()

    @property
    def has_failed(self) -> bool:
        """Whether anything keeps runs from working."""
        return self._counts[Level.FAIL] > 0

    def summary(self) -> str:
        """Return the last line."""
        counts = ", ".join(f"{count} {level.value}" for level, count in self._counts.items())
        verdict = "runs would fail here" if self.has_failed else "ready for runs"
        return f"{counts}: {verdict}"
