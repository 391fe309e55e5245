"""A comparison as tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .fidelity import Difference, Fidelity


def print_fidelity(fidelity: Fidelity) -> None:
    table = Table("family", "bit-exact", "relative", "largest", "worst")
    for family in fidelity.families:
        exact = f"{family.exact_tensors} of {family.tensors}"
        table.add_row(family.name, exact, *_errors(family), "" if family.exact else _place(family.worst))
    console = Console()
    console.print(table)
    console.print("relative, largest: the errors of the stored weights", highlight=False)
    found = fidelity.predictions
    table = Table("next token", "source", "model")
    table.add_row("perplexity", f"{found.source_perplexity:.4f}", f"{found.model_perplexity:.4f}")
    table.add_row("KL divergence, mean", "", f"{found.kl_mean:.6f}")
    table.add_row("KL divergence, 99th percentile", "", f"{found.kl_p99:.6f}")
    table.add_row("the same likeliest token", "", f"{100 * found.same_top:.2f} %")
    console.print(table)
    console.print(f"of {found.tokens:,} tokens of text, both networks in FP32; KL in nats", highlight=False)


def print_differences(fidelity: Fidelity) -> None:
    table = Table("tensor", "relative error", "largest error")
    table.columns[0].overflow = "fold"
    for tensor in fidelity.tensors:
        table.add_row(tensor.name.removeprefix("model."), *_errors(tensor))
    Console().print(table)


def _errors(difference: Difference) -> tuple[str, str]:
    return ("none", "") if difference.exact else (f"{difference.relative:.5f}", f"{difference.largest:.3g}")


def _place(name: str) -> str:
    """Where a tensor is, within its family."""
    *path, module = name.removesuffix(".weight").split(".")
    return f"{module}, layer {path[2]}" if "layers" in path else module
