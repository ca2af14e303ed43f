"""A table that fits a screen: on a narrow one, the columns that matter least are left out whole."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

_GAP = 2


def screen_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    *,
    width: int,
    right: Sequence[str] = (),
    expendable: Sequence[str] = (),
) -> Table:
    """Return a table of at most `width` columns of the terminal, one line per row.

    Args:
        header: names of the columns. Those in which no row has anything are left out.
        rows: one text per column each.
        width: of the screen.
        right: columns to align to the right.
        expendable: columns to leave out where the width does not suffice, the first one first.
    """
    widths = {
        name: max(cell_len(name), *(cell_len(_plain(row[i])) for row in rows))
        for i, name in enumerate(header)
        if any(_plain(row[i]) for row in rows)
    }
    for name in expendable:
        if sum(widths.values()) + _GAP * (len(widths) - 1) <= width:
            break
        widths.pop(name, None)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    for name in widths:
        table.add_column(
            name, no_wrap=True, overflow="ellipsis", justify="right" if name in right else "left"
        )
    shown = [i for i, name in enumerate(header) if name in widths]
    for row in rows:
        table.add_row(*(row[i] for i in shown))
    return table


def _plain(cell: str | Text) -> str:
    return cell.plain if isinstance(cell, Text) else cell
