"""Tables on a terminal. In a window that is too narrow for a table's words, each row is a list under its first cell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.measure import Measurement
    from rich.table import Column, Table

NARROW = 60  # columns of a window: a wider one has words of FOLDED characters in columns whose words may be folded
FOLDED = 20
ENDLESS = 10**4  # columns


def print_table(table: Table, console: Console | None = None) -> None:
    """Print to standard output, or to `console`."""
    from rich.console import Console
    from rich.measure import Measurement

    console = console or Console()
    widths = [_width(column, console) for column in table.columns]
    whole = Measurement.get(console, console.options.update_width(ENDLESS), table).maximum
    spare = console.width - whole + sum(each.span for each in widths)
    if spare >= 0:
        # Short lines stay whole. rich would take from the widest columns, and cut words in them.
        by_span = sorted(zip(table.columns, widths, strict=True), key=lambda each: each[1].span)
        for number, (column, width) in enumerate(by_span):
            more = min(width.span, spare // (len(by_span) - number))
            column.width = width.minimum + more
            spare -= more
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


def _width(column: Column, console: Console) -> Measurement:
    """What the words of a column need, and what its lines would."""
    from rich.measure import Measurement, measure_renderables

    endless = console.options.update_width(ENDLESS)
    found = measure_renderables(console, endless, [column.header, *column.cells])
    if column.no_wrap:
        return Measurement(found.maximum, found.maximum)
    folds = column.overflow == "fold" and console.width >= NARROW
    return Measurement(min(found.minimum, FOLDED), found.maximum) if folds else found


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
