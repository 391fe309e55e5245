"""A comparison with another runtime on a terminal, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io

from rich.console import Console

from ..errors import printable
from . import tables
from .figures import Spread
from .formats import markdown_table
from .peers import OURS, Comparison
from .report import print_lines, print_text_table
from .tables import TextTable


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print both sides' speeds and what differs to standard output, or to `console`, with a line for all that disturbed
    it."""
    console = console or Console()
    for table in _tables(comparison):
        print_text_table(console, table)
    print_lines(console, tables.warnings(comparison.ours), "yellow")


def comparison_as_markdown(comparison: Comparison) -> str:
    parts = [markdown_table(table) for table in (tables.machine(comparison.ours), *_tables(comparison))]
    parts += [f"- {line}" for line in tables.warnings(comparison.ours)]
    return "\n\n".join(parts) + "\n"


def comparison_as_csv(comparison: Comparison) -> str:
    """A line of names, with their units, and one for each pair of each point."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    speed = "tokens_per_second"
    writer.writerow(("kind", "tokens", "depth_tokens", "pair", f"our_{speed}", f"their_{speed}", "ratio", "peer"))
    for paired in comparison.speeds:
        for pair, values in enumerate(zip(paired.ours, paired.theirs, paired.ratios, strict=True), 1):
            writer.writerow((*paired.point, pair, *values, comparison.peer))
    return text.getvalue()


def _tables(comparison: Comparison) -> list[TextTable]:
    pairs, asked = len(comparison.speeds[0].ours), comparison.pairs_asked
    runs = f"{pairs} of {asked} pairs of runs" if pairs < asked else f"pairs of runs: {pairs}"
    faster = {"ours": OURS, "theirs": comparison.peer, None: "one pair cannot tell" if pairs == 1 else "not clear"}

    def median(values: list[float]) -> str:
        return tables.number(Spread.of(values).median)

    title = f"{comparison.ours.model.name}, tokens/s: {OURS} and {comparison.peer} {comparison.version}, {runs}"
    speeds = tables.as_table(
        printable(title),
        comparison.speeds,
        [
            ("what", lambda speed: speed.point.name),
            (OURS, lambda speed: median(speed.ours)),
            (comparison.peer, lambda speed: median(speed.theirs)),
            ("ratio", lambda speed: f"{Spread.of(speed.ratios).median:.2f}"),
            ("least-most", lambda speed: "{0.least:.2f}-{0.most:.2f}".format(Spread.of(speed.ratios))),
            ("faster", lambda speed: faster[speed.faster]),
        ],
    )
    differs = TextTable("What differs", ("what", OURS, comparison.peer), [*comparison.differs], numbers=False)
    return [speeds, differs]
