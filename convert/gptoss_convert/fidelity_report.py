"""A comparison as tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .fidelity import Difference, Fidelity
from .inspection import family_of


def print_fidelity(fidelity: Fidelity) -> None:
    table = Table("family", "tensors", "bit-exact", "relative error", "largest error", "worst tensor")
    for family in fidelity.families:
        worst = "" if family.exact else family.worst
        exact = str(family.exact_tensors) if family.exact_tensors < family.tensors else "all"
        table.add_row(family.name, str(family.tensors), exact, *_errors(family), worst)
    found = fidelity.predictions
    console = Console()
    console.print(f"{fidelity.model}, converted from {fidelity.source}", highlight=False, markup=False)
    console.print(table)
    table = Table("next token", "source", "model")
    table.add_row("perplexity", f"{found.source_perplexity:.4f}", f"{found.model_perplexity:.4f}")
    table.add_row("KL divergence, mean", "", f"{found.kl_mean:.6f}")
    table.add_row("KL divergence, 99th percentile", "", f"{found.kl_p99:.6f}")
    table.add_row("the same likeliest token", "", f"{100 * found.same_top:.2f} %")
    console.print(table)
    console.print(f"of {found.tokens:,} tokens of text, both networks in FP32; KL in nats", highlight=False)


def print_differences(fidelity: Fidelity) -> None:
    table = Table("tensor", "family", "relative error", "largest error")
    for tensor in fidelity.tensors:
        table.add_row(tensor.name, family_of(tensor.name), *_errors(tensor))
    Console().print(table)


def _errors(difference: Difference) -> tuple[str, str]:
    if difference.exact:
        return "bit-exact", ""
    return f"{difference.relative:.5f}", f"{difference.largest:.3g}"
