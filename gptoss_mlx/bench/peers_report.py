"""A comparison with another runtime as a table, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import re

from .figures import Spread
from .peers import OURS, Comparison, PairedSpeed


def print_comparison(comparison: Comparison) -> None:
    """On standard output, as a table and what differs below it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("tokens/s", OURS, comparison.peer, "ratio", "of single pairs", "", title=Text(_title(comparison)))
    for column in table.columns[1:5]:
        column.justify = "right"
    for speed in comparison.speeds:
        table.add_row(*_cells(comparison, speed))
    console = Console()
    console.print(table)
    for line in (_pairs(comparison), "what differs:", *(f"- {line}" for line in comparison.differs)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def comparison_as_csv(comparison: Comparison) -> str:
    """A line for each pair of each point."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("kind", "tokens", "depth", "pair", "ours", "theirs", "ratio", "peer", "version"))
    for speed in comparison.speeds:
        for pair, both in enumerate(zip(speed.ours, speed.theirs, speed.ratios, strict=True), 1):
            writer.writerow((*speed.point, pair, *both, comparison.peer, comparison.peer_version))
    return file.getvalue()


def comparison_as_markdown(comparison: Comparison) -> str:
    head = ("tokens/s", OURS, comparison.peer, "ratio", "of single pairs", "")
    rows = [head, ("---", "---:", "---:", "---:", "---:", "---")]
    rows += [_cells(comparison, speed) for speed in comparison.speeds]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    differs = "\n".join(f"- {_escaped(line)}" for line in comparison.differs)
    return f"{_escaped(_title(comparison))}\n\n{table}\n\n{_pairs(comparison)}\n\nWhat differs:\n\n{differs}\n"


def _title(comparison: Comparison) -> str:
    sides = f"{OURS} {comparison.version} and {comparison.peer} {comparison.peer_version}"
    return f"{comparison.model}: {sides} on {comparison.machine}"


def _cells(comparison: Comparison, speed: PairedSpeed) -> tuple[str, ...]:
    ratio = Spread.of(speed.ratios)
    verdicts = {"ours": f"{OURS} is faster", "theirs": f"{comparison.peer} is faster", None: "no clear difference"}
    return (
        speed.point.name,
        *(f"{Spread.of(side).median:,.2f}" for side in (speed.ours, speed.theirs)),
        f"{ratio.median:.2f}",
        f"{ratio.least:.2f} to {ratio.most:.2f}",
        verdicts[speed.faster],
    )


def _pairs(comparison: Comparison) -> str:
    of = "" if comparison.finished else f" of {comparison.pairs_asked}"
    runs = f"{comparison.pairs}{of} pairs of runs, in turns; medians, and the least and the most of single pairs"
    alone = "; one pair shows no difference" if comparison.pairs == 1 else ""
    load = f"; load average before {comparison.load_average:.1f}"
    busy = ": other programs ran, so do not rely on this" if comparison.load_average > 1 else ""
    return f"{runs}{alone}{load}{busy}"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&~$])", r"\\\1", text)
