"""A comparison with another runtime on a terminal, as CSV and as Markdown."""

from __future__ import annotations

from rich.console import Console

from . import tables
from .figures import Spread
from .formats import csv_text, markdown_items, markdown_table
from .peers import OURS, Comparison
from .report import print_lines, print_text_table
from .tables import TextTable

LEGEND = f"ratio: median (least-most); won: pairs in which {OURS} was faster"


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print both sides' speeds and what differs to standard output, or to `console`, with a line for all that disturbed
    it."""
    console = console or Console()
    print_text_table(console, _speeds(comparison))
    print_lines(console, [LEGEND])
    print_text_table(console, _differences(comparison))
    print_lines(console, tables.warnings(comparison.ours), "yellow")


def comparison_as_markdown(comparison: Comparison) -> str:
    parts = [tables.machine(comparison.ours), _speeds(comparison), _differences(comparison)]
    lines = [LEGEND, *tables.warnings(comparison.ours)]
    return "\n\n".join([*map(markdown_table, parts), *markdown_items(lines)]) + "\n"


def comparison_as_csv(comparison: Comparison) -> str:
    """A line of names, with their units, and one for each pair of each point."""
    speed = "tokens_per_second"
    names = ("kind", "tokens", "depth_tokens", "pair", f"our_{speed}", f"their_{speed}", "ratio", "peer")
    rows = [
        (*paired.point, pair, *values, comparison.peer)
        for paired in comparison.speeds
        for pair, values in enumerate(zip(paired.ours, paired.theirs, paired.ratios, strict=True), 1)
    ]
    return csv_text([names, *rows])


def _speeds(comparison: Comparison) -> TextTable:
    pairs, asked = len(comparison.speeds[0].ours), comparison.pairs_asked
    runs = f"{pairs} of {asked} pairs of runs" if pairs < asked else f"pairs of runs: {pairs}"

    def median(values: list[float]) -> str:
        return tables.number(Spread.of(values).median)

    return TextTable(
        f"{comparison.ours.model.name}, tokens/s: {OURS} and {comparison.peer} {comparison.version}, {runs}",
        ("what", OURS, comparison.peer, "ratio", "won"),
        [
            (
                speed.point.name,
                median(speed.ours),
                median(speed.theirs),
                tables.median_and_span(Spread.of(speed.ratios)),
                f"{speed.won} of {pairs}",
            )
            for speed in comparison.speeds
        ],
    )


def _differences(comparison: Comparison) -> TextTable:
    return TextTable("What differs", ("what", OURS, comparison.peer), [*comparison.differs], numbers=False)
