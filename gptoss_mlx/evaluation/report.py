"""What an evaluation found, as JSON and as tables."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from ..errors import printable
from ..tables import print_table
from .needle import Find
from .prompts import PromptResults, Share, Wrong
from .text import TextResults

FORMAT = 2  # of the JSON


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of the engine that decide what it computes."""

    version: str
    """The version of gptoss-mlx."""
    device: str
    kernels: str | None
    kv_bits: int
    prefill_chunk: int


@dataclass(frozen=True)
class EvaluationReport:
    model: str
    """The folder's name, without the path to it."""
    recipe: str | None
    settings: EvaluationSettings
    finished: bool
    """False where the evaluation was interrupted: the results are then of what was done."""
    text: TextResults | None
    prompts: PromptResults | None
    held_out: PromptResults | None
    needle: list[Find]

    def as_json(self, show_wrong: bool) -> str:
        parts: dict[str, Any] = {"format": FORMAT} | asdict(self)
        for name, results in (("prompts", self.prompts), ("held_out", self.held_out)):
            if results:
                parts[name] = results.as_dict()
                if not show_wrong:
                    del parts[name]["wrong"]
        return json.dumps({name: value for name, value in parts.items() if value not in (None, [])}, indent=1)

    def print(self, show_wrong: bool) -> None:
        console = Console()
        made = f", {self.recipe}" if self.recipe else ""
        how = (
            f"{self.settings.device}, {self.settings.kernels} kernels"
            if self.settings.kernels
            else self.settings.device
        )
        console.print(
            Text(
                f"{printable(self.model)}{printable(made)}: {how}, {self.settings.kv_bits}-bit KV cache,"
                f" prefill of {self.settings.prefill_chunk} tokens at a time"
            )
        )
        if self.text:
            _print_text(console, self.text)
        for title, results in (("prompts", self.prompts), ("held-out prompts", self.held_out)):
            if results:
                _print_prompts(console, title, results, show_wrong)
        if self.needle:
            _print_needles(console, self.needle)


def _table(*headers: str) -> Table:
    """A table whose words are folded in a narrow terminal instead of being cut off."""
    return Table(*(Column(header, overflow="fold") for header in headers))


def _print_text(console: Console, results: TextResults) -> None:
    table = _table("next token", "")
    error = "" if results.standard_error is None else f" ± {results.standard_error:.4f}"
    table.add_row("perplexity", f"{results.perplexity:.4f}{error}")
    if found := results.divergence:
        table.add_row("KL divergence, mean", f"{found.kl_mean:.6f}")
        table.add_row("KL divergence, 99th percentile", f"{found.kl_p99:.6f}")
        table.add_row("the same likeliest token", f"{100 * found.same_top:.2f} %")
    print_table(table, console)
    windows = f"{results.windows:,}" + (f" of {results.of_windows:,}" if results.windows < results.of_windows else "")
    each = f"{windows} window{'s' if results.of_windows > 1 else ''} of {results.window:,} tokens"
    tokens = f"{results.tokens:,} token{'s' if results.tokens > 1 else ''}"
    console.print(Text(f"{tokens} of {printable(results.text)}: the second half of {each}, each read by itself"))
    if results.divergence:
        console.print(Text(f"divergence from {printable(results.divergence.reference)}, in nats"))


def _print_prompts(console: Console, title: str, results: PromptResults, show_wrong: bool) -> None:
    thresholds = any(part.threshold is not None for part in results.parts)
    table = _table(title, "right", "", "95 % interval", *(["required"] if thresholds else []))
    for part in results.parts:
        table.add_row(*_share(part))
    table.add_section()
    table.add_row(*_share(results.all))
    print_table(table, console)
    console.print(Text("exact match of greedy answers; the interval is Wilson's"))
    if show_wrong:
        for wrong in results.wrong:
            console.print(Text(_wrong(wrong)))


def _share(share: Share) -> list[str | Text]:
    low, high = share.interval
    cells: list[str | Text] = [
        Text("in all" if share.name is None else printable(share.name)),
        f"{share.right} of {share.total}",
        f"{100 * share.share:.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f} %",
    ]
    if share.threshold is not None:
        cells.append(f"{100 * share.threshold:.0f} %{', missed' if share.missed else ''}")
    return cells


def _wrong(wrong: Wrong) -> str:
    where = wrong.name if wrong.part is None else f"{wrong.name}, {wrong.part}"
    said = wrong.reply["calls"] or wrong.reply["answer"]
    stop = wrong.reply["stop"]
    ended = "" if stop in ("return", "call") else ", and did not stop"
    return printable(f"{where}: answered {said!r}{ended}; expected {wrong.expected!r}")


def _print_needles(console: Console, finds: list[Find]) -> None:
    table = _table("context", "position", "needle", "answer")
    for find in finds:
        table.add_row(
            f"{find.prompt_tokens:,} of {find.context:,} tokens",
            f"{100 * find.position:.0f} %",
            f"{find.code} {'found' if find.found else 'not found'}",
            Text(printable(find.answer.strip())),
        )
    print_table(table, console)
    found = sum(find.found for find in finds)
    console.print(Text(f"{found} of {len(finds)} found; the position is the share of the text before the needle"))
