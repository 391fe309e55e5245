"""A report on a terminal: plain text in each cell and line, no markup and no control characters."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import printable
from ..tables import print_table
from .tables import Report, TextTable


def print_report(report: Report, console: Console | None = None) -> None:
    """Print to standard output, or to `console`."""
    console = console or Console()
    for line in report.heading:
        console.print(Text(printable(line)))
    for table in report.tables:
        if table.rows and not table.detail:
            print_table(_table(table), console)
            if table.note:
                console.print(Text(printable(table.note)))
    for line in report.warnings:
        console.print(Text(printable(line), "yellow"))


def _table(table: TextTable) -> Table:
    shown = Table(title=Text(printable(table.title)), title_justify="left")
    for index, name in enumerate(table.columns):
        # In a narrow terminal a cell is folded: half a number would be another one.
        shown.add_column(
            Text(name), justify="right" if index and table.numbers else "left", no_wrap=not index, overflow="fold"
        )
    for row in table.rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    return shown
