"""Figures on a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import printable
from . import tables
from .figures import Figures
from .tables import TextTable


def print_table(figures: Figures, console: Console | None = None) -> None:
    """Print what was measured to standard output, or to `console`, with a line for all that disturbed it."""
    console = console or Console()
    print_lines(console, tables.heading(figures))
    if speeds := tables.speeds(figures):
        print_text_table(console, speeds)
        print_lines(console, tables.limit_line(figures))
    for make in (tables.tokens, tables.experts, tables.start, tables.memory, tables.profile):
        if table := make(figures):
            print_text_table(console, table)
    print_lines(console, tables.warnings(figures), "yellow")


def print_text_table(console: Console, table: TextTable) -> None:
    """Each cell as plain text: no markup, and no control characters."""
    shown = Table(title=Text(printable(table.title)), title_justify="left")
    for index, name in enumerate(table.columns):
        justify = "right" if index and table.numbers else "left"
        # In a narrow terminal a cell is folded: half a number would be another one.
        shown.add_column(Text(name), justify=justify, no_wrap=not index, overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    console.print(shown)


def print_lines(console: Console, lines: Iterable[str], style: str = "") -> None:
    for line in lines:
        console.print(Text(printable(line), style))
