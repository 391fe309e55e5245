"""An inspection as tables, and a tensor's histogram as lines of a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptoss_mlx.errors import printable
from gptoss_mlx.memory.system import size_text
from gptoss_mlx.model.checkpoint import TensorInfo

from .fidelity import Difference, Fidelity
from .inspection import Inspection, Statistics, count_text, family_of, tensors_text

WIDTH = 50  # of the longest bar


def print_inspection(inspection: Inspection) -> None:
    table = Table("family", "weights", "per token", "size", "bits", "read", "stored as")
    for family in inspection.families:
        table.add_row(
            family.name,
            count_text(family.parameters),
            count_text(family.active),
            size_text(family.bytes),
            f"{family.bits_per_weight:.2f}",
            size_text(family.bytes_per_token),
            max(family.dtypes, key=family.dtypes.__getitem__),
        )
    table.add_section()
    parameters, size = inspection.total("parameters"), inspection.total("bytes")
    table.add_row(
        "in all",
        count_text(parameters),
        count_text(inspection.total("active")),
        size_text(size),
        f"{8 * size / parameters:.2f}",
        size_text(inspection.total("bytes_per_token")),
    )
    console = Console()
    console.print(printable(inspection.path), highlight=False, markup=False)
    console.print(table)
    shape = f"{inspection.layers} layers, {inspection.experts_per_token} of {inspection.experts} experts a token"
    console.print(f"{shape}, context {inspection.context:,}", highlight=False)
    console.print("bits: for each weight; per token, read: what decoding a token meets and reads", highlight=False)
    console.print(printable(f"license: {inspection.license or 'no LICENSE file'}"), highlight=False, markup=False)
    for dtype, names in inspection.to_round.items():
        line = f"{tensors_text(names)} in {dtype}: a conversion rounds to BF16 what its recipe leaves as it is"
        console.print(line, highlight=False, markup=False)
    if made := inspection.provenance:
        source = made.get("source") if isinstance(made.get("source"), dict) else {}
        text = f"converted with {made.get('recipe')} by {made.get('tool')} from {source.get('id')}"
        console.print(printable(f"{text}, revision {source.get('revision')}"), highlight=False, markup=False)
        rounded = made.get("rounded_to_bf16")
        for dtype, names in rounded.items() if isinstance(rounded, dict) else ():
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                line = printable(f"rounded to BF16: {tensors_text(names)} that the source has in {dtype}")
                console.print(line, highlight=False, markup=False)


def print_tensors(tensors: Mapping[str, TensorInfo]) -> None:
    table = Table("tensor", "family", "type", "shape", "size")
    for name, tensor in tensors.items():
        family = family_of(name) or "unknown"
        # Text, because in a string the table would look for markup.
        table.add_row(Text(printable(name)), family, tensor.dtype, str(list(tensor.shape)), size_text(tensor.nbytes))
    Console().print(table)


def print_statistics(found: Statistics) -> None:
    console = Console()

    def line(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    line(printable(f"{found.name}: {found.dtype} {list(found.shape)}"))
    line(f"least {found.least:.6g}, most {found.most:.6g}, mean {found.mean:.6g}, deviation {found.deviation:.6g}")
    if found.not_finite:
        line(f"{found.not_finite:,} values are not finite")
    tallest = max(*found.counts, 1)
    for left, right, count in zip(found.edges, found.edges[1:], found.counts, strict=False):
        bar = "#" * round(WIDTH * count / tallest)
        line(f"{left:>12.4g} .. {right:<12.4g} {bar:<{WIDTH}} {count:,}")


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
