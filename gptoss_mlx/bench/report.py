"""Results, changes since a baseline, and comparisons with other runtimes, on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import printable
from . import tables
from .baseline import SpeedChange, changes_table
from .comparison import LEGEND, Comparison, differences_table, speeds_table
from .results import Results
from .tables import TextTable


def print_results(results: Results, console: Console | None = None) -> None:
    """Print what was measured to standard output, or to `console`, with a line for all that disturbed it."""
    console = console or Console()
    print_lines(console, tables.heading(results))
    if speeds := tables.speeds(results):
        print_table(console, speeds)
        print_lines(console, tables.limit_line(results))
    for make in (tables.tokens, tables.experts, tables.start, tables.memory, tables.profile):
        print_table(console, make(results))
    print_lines(console, tables.warnings(results), "yellow")


def print_changes(
    changes: Sequence[SpeedChange], differences: Sequence[str] = (), console: Console | None = None
) -> None:
    """Print what has changed since a baseline, with a line for each speed that is below and for each of
    `baseline.setting_differences`."""
    console = console or Console()
    print_table(console, changes_table(changes))
    print_lines(console, ["ratio: now over then; memory: the same of its bandwidth, measured beside each"])
    slower = [f"slower: {each.name}, {each.ratio:.3f} of the baseline" for each in changes if each.below]
    print_lines(console, slower, "red")
    print_lines(console, [f"changed: {difference}" for difference in differences], "yellow")


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print both sides' speeds and how they differ, with a line for all that disturbed the comparison."""
    console = console or Console()
    print_table(console, speeds_table(comparison))
    print_lines(console, [LEGEND])
    print_table(console, differences_table(comparison))
    print_lines(console, tables.warnings(comparison.ours), "yellow")


def print_table(console: Console, table: TextTable | None) -> None:
    """Print each cell as plain text: no markup, and no control characters."""
    if table is None:
        return
    shown = Table(title=Text(printable(table.title)), title_justify="left")
    for index, name in enumerate(table.columns):
        # In a narrow terminal a cell is folded: half a number would be another one.
        shown.add_column(
            Text(name), justify="right" if index and table.numbers else "left", no_wrap=not index, overflow="fold"
        )
    for row in table.rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    console.print(shown)


def print_lines(console: Console, lines: Iterable[str], style: str = "") -> None:
    for line in lines:
        console.print(Text(printable(line), style))
