"""Tables on a terminal. In a window that is too narrow for a table's words, each row is a list of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
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
    for row in _as_lists(table):
        console.print()
        console.print(row)
    console.print()


def _as_lists(table: Table) -> Iterator[Table]:
    """The rows, each as two columns: the headers, and its cells that are not empty."""
    from rich.table import Table

    for cells in zip(*(column.cells for column in table.columns), strict=True):
        row = Table.grid("", "", padding=(0, 2, 0, 0))
        row.columns[0].no_wrap = True
        row.columns[1].overflow = "fold"
        for column, cell in zip(table.columns, cells, strict=True):
            if str(cell):
                row.add_row(column.header, cell)
        yield row
