"""`setting`: a dataclass field that knows its meaning, unit and range."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Constraint:
    """What a value of one field must satisfy, and how to say so.

    Attributes:
        doc: one sentence, shown by `hpc-marl train --help`.
        unit: physical or counting unit, "" where there is none.
        low: smallest allowed value.
        high: largest allowed value.
        exclusive_low: `low` itself is not allowed.
    """

    doc: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    exclusive_low: bool = False

    def violation(self, value: Any) -> str | None:
        """Return what would be right where `value` is out of range, else None."""
        numbers = value if isinstance(value, (tuple, list)) else (value,)
        for number in numbers:
            if not isinstance(number, (int, float)) or isinstance(number, bool):
                continue
            too_low = self.low is not None and (
                number < self.low or (self.exclusive_low and number == self.low)
            )
            too_high = self.high is not None and number > self.high
            is_nan = isinstance(number, float) and math.isnan(number)
            if is_nan or too_low or too_high:
                return self.range_text()
        return None

    def range_text(self) -> str:
        """Return the range as a person writes it: `> 0`, `0 .. 1`, `>= 1`."""
        if self.low is None and self.high is None:
            return "any number but NaN"
        if self.high is None:
            return f"{'>' if self.exclusive_low else '>='} {self.low}"
        if self.low is None:
            return f"<= {self.high}"
        return f"{'above ' if self.exclusive_low else ''}{self.low} .. {self.high}"


def setting(
    default: Any,
    doc: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    exclusive_low: bool = False,
) -> Any:
    """Declare a config field: its default, meaning, unit and range in their only home.

    Raises:
        ValueError: the default itself is out of range.
    """
    constraint = Constraint(doc, unit, low, high, exclusive_low)
    if (expected := constraint.violation(default)) is not None:
        raise ValueError(f"default {default!r} must be {expected}")
    metadata = {"constraint": constraint}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def constraint_of(metadata: Mapping[str, Any]) -> Constraint:
    """Return a field's constraint; a field declared without `setting` has none."""
    found = metadata.get("constraint")
    return found if isinstance(found, Constraint) else Constraint("")
