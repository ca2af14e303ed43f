"""Tables and short texts for terminals and pipes alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hpc_marl.views.display import number_text


def text_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()
) -> list[str]:
    """Return the lines of a table; columns in which no row has anything are left out.

    Args:
        header: names of the columns.
        rows: one text per column each.
        right: names of the columns to align to the right.

    >>> text_table(["trial", "steps", "note"], [["a", "1", ""], ["bb", "23", ""]], right=["steps"])
    ['trial  steps', 'a          1', 'bb        23']
    """
    cells = [list(map(str, row)) for row in rows]
    shown = [i for i in range(len(header)) if any(row[i] for row in cells)]
    widths = {i: max(len(header[i]), *(len(row[i]) for row in cells)) for i in shown}
    to_right = set(right)

    def line(texts: Sequence[str]) -> str:
        parts = [
            texts[i].rjust(widths[i]) if header[i] in to_right else texts[i].ljust(widths[i]) for i in shown
        ]
        return "  ".join(parts).rstrip()

    return [line(texts) for texts in (header, *cells)] if shown else []


def age_text(seconds: float) -> str:
    """Return how long ago something was, in its largest unit.

    >>> age_text(12.3), age_text(600), age_text(7300), age_text(200_000)
    ('12 s', '10 min', '2 h', '2 d')
    """
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def optional_number(value: float | None) -> str:
    """Return a return as `number_text` does, and `-` where there is none."""
    return "-" if value is None else number_text(value)


def index_ranges(indices: Iterable[int]) -> str:
    """Return numbers as ranges.

    >>> index_ranges([3, 0, 1, 2, 7])
    '0-3,7'
    """
    ranges: list[list[int]] = []
    for index in sorted(set(indices)):
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def listed(names: Sequence[str], limit: int) -> str:
    """Return the first few names, and how many more there are.

    >>> listed(["a", "b", "c"], 2)
    'a, b, +1'
    """
    more = [f"+{len(names) - limit}"] if len(names) > limit else []
    return ", ".join([*names[:limit], *more])
