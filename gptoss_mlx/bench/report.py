"""Figures of a measurement as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ..memory import size_text
from .measure import Decode, Figures, Spread


def print_table(figures: Figures) -> None:
    table = Table("what", "median", "least", "most", title=f"{figures.model} ({figures.device}, MLX {figures.mlx})")

    def speed(name: str, spread: Spread) -> None:
        table.add_row(name, *(f"{value:.2f} tokens/s" for value in (spread.median, spread.least, spread.most)))

    table.add_row("load", f"{figures.load_seconds:.2f} s")
    table.add_row("load to first token", f"{figures.first_token_seconds:.2f} s")
    speed(f"prefill {figures.prompt}", figures.prefill_tokens_per_second)
    for decode in figures.decode:
        speed(f"decode {figures.generate} at {decode.depth}", decode.tokens_per_second)
        table.add_row("  reads", _reads(decode))
    if experts := figures.experts:
        table.add_row("experts in memory", f"{experts.hit_rate:.1%} of those needed")
        table.add_row("  read", f"{size_text(experts.bytes_read)}, {experts.stall_seconds:.1f} s of waiting")
    memory = {
        "anonymous": figures.anonymous_bytes,
        "mapped": figures.mapped_bytes,
        "at most": figures.peak_bytes,
        "planned": figures.planned_bytes,
    }
    for name, count in memory.items():
        table.add_row(f"memory, {name}", "not known" if count is None else size_text(count))
    Console().print(table)


def _reads(decode: Decode) -> str:
    rate = f"{decode.bytes_per_second / 1e9:.1f}"
    if decode.read_bandwidth is None:
        return f"{rate} GB/s"
    share = decode.bytes_per_second / decode.read_bandwidth
    return f"{rate} of {decode.read_bandwidth / 1e9:.1f} GB/s, {share:.0%}"
