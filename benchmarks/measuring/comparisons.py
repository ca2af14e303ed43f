"""Tables that compare ways to do one thing: medians of repeats that took turns, ratios, goals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from measuring.reporting import in_words, markdown_table


@dataclass(frozen=True)
class Comparison:
    """One way.

    Attributes:
        what: its name.
        values: one of every repeat; small is good.
        peer: the values of what it is compared with in the same repeats.
        goal: the ratio to the peer must be at most this; None: no goal.
    """

    what: str
    values: Sequence[float]
    peer: Sequence[float]
    goal: float | None = None

    @property
    def ratio(self) -> float:
        """Median over repeats of own to peer's.

        >>> Comparison("ours", [1.0, 3.0, 2.0], [2.0, 3.0, 2.0]).ratio
        1.0
        """
        return statistics.median(own / other for own, other in zip(self.values, self.peer, strict=True))


def comparison_table(rows: Sequence[Comparison], ratio_name: str) -> str:
    """Return a markdown table of some ways."""
    header = ("what", "median", "lowest to highest", ratio_name, "goal", "")
    return markdown_table(header, [_cells(row) for row in rows])


def _cells(row: Comparison) -> tuple[str, ...]:
    goal = "-" if row.goal is None else f"<= {row.goal:g}"
    spread = f"{shown(min(row.values))} to {shown(max(row.values))}"
    return (
        row.what,
        shown(statistics.median(row.values)),
        spread,
        f"{row.ratio:.2f}",
        goal,
        verdict(row.ratio, row.goal),
    )


def verdict(value: float, goal: float | None) -> str:
    """Return whether a value that should be small is.

    >>> verdict(1.0, 1.2), verdict(1.3, 1.2), verdict(1.0, None)
    ('reached', 'missed', '')
    """
    return "" if goal is None else in_words(value <= goal)


def shown(value: float) -> str:
    """Return a number with three digits or more.

    >>> shown(1234.5), shown(1.2345), shown(0.012345)
    ('1,234', '1.23', '0.0123')
    """
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
