"""Tables on a terminal. In a window that is too narrow for a table's words, each row is a list under its first cell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

NARROW = 60  # columns: in a wider window, rich folds words
ENDLESS = 10**4  # columns


def print_table(table: Table, console: Console | None = None) -> None:
    """Print to standard output, or to `console`."""
    from rich.console import Console
    from rich.measure import Measurement

    console = console or Console()
    needed = Measurement.get(console, console.options.update_width(ENDLESS), table).minimum
    if console.width >= NARROW or needed <= console.width:
        console.print(table)
        return
    if table.title:
        console.print(table.title)
    console.print(table.columns[0].header)
    for first, others in _as_lists(table):
        console.print()
        console.print(first, highlight=False)
        console.print(others)
    console.print()


def _as_lists(table: Table) -> Iterator[tuple[RenderableType, RenderableType]]:
    """Of each row, its first cell, and the others that are not empty, below each other beside their headers."""
    from rich.padding import Padding
    from rich.table import Table

    _, *columns = table.columns
    for first, *cells in zip(*(column.cells for column in table.columns), strict=True):
        others = Table.grid("", "", padding=(0, 2, 0, 0))
        others.columns[0].min_width = max(len(str(column.header)) for column in columns)
        others.columns[1].overflow = "fold"
        for column, cell in zip(columns, cells, strict=True):
            if str(cell):
                others.add_row(column.header, cell)
        yield first, Padding(others, (0, 0, 0, 2))
