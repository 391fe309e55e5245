"""Figures of a measurement as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .measure import Figures, Spread


def print_table(figures: Figures) -> None:
    table = Table("what", "median", "least", "most", title=f"{figures.model} ({figures.device}, MLX {figures.mlx})")

    def speed(name: str, spread: Spread) -> None:
        table.add_row(name, *(f"{value:.2f} tokens/s" for value in (spread.median, spread.least, spread.most)))

    table.add_row("load", f"{figures.load_seconds:.2f} s", "", "")
    table.add_row("load to first token", f"{figures.first_token_seconds:.2f} s", "", "")
    speed(f"prefill {figures.prompt}", figures.prefill_tokens_per_second)
    speed(f"decode {figures.decode}", figures.decode_tokens_per_second)
    for name, count in (("anonymous", figures.peak_anonymous_bytes), ("mapped", figures.peak_mapped_bytes)):
        table.add_row(f"memory, {name}", "not known" if count is None else f"{count / 1e6:.1f} MB", "", "")
    Console().print(table)
