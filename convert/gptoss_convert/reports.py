"""Inspections and comparisons as tables in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptoss_mlx.errors import printable
from gptoss_mlx.memory.system import size_text
from gptoss_mlx.model.safetensors import TensorInfo
from gptoss_mlx.tables import print_table

from .fidelity import Fidelity, TensorDifference
from .inspection import Inspection, Statistics, count_text, group_of, tensors_text

BAR_WIDTH = 50  # characters of a histogram's longest bar
BESIDE_BAR = 42  # characters of its line for the numbers


def print_inspection(inspection: Inspection) -> None:
    table = Table("group", "weights", "per token", "size", "bits", "read", "stored as")
    for group in inspection.groups:
        table.add_row(
            group.name,
            count_text(group.parameters),
            count_text(group.active),
            size_text(group.bytes),
            f"{group.bits_per_weight:.2f}",
            size_text(group.bytes_per_token),
            group.main_dtype,
        )
    table.add_section()
    table.add_row(
        "in all",
        count_text(inspection.total("parameters")),
        count_text(inspection.total("active")),
        size_text(inspection.total("bytes")),
        f"{inspection.bits_per_weight:.2f}",
        size_text(inspection.total("bytes_per_token")),
    )
    _print_line(inspection.path)
    print_table(table)
    shape = f"{inspection.layers} layers, {inspection.experts_per_token} of {inspection.experts} experts a token"
    _print_line(f"{shape}, context {inspection.context:,}")
    _print_line("bits: for each weight; per token: weights used for one token; read: their bytes")
    _print_line(f"license: {inspection.license or 'no LICENSE file'}")
    for dtype, names in inspection.to_round.items():
        _print_line(f"{tensors_text(names)} in {dtype}: a conversion rounds to BF16 those that it does not quantize")
    for line in _provenance_lines(inspection.provenance or {}):
        _print_line(line)


def _provenance_lines(made: Mapping[str, Any]) -> Iterator[str]:
    """Where a folder came from, as far as provenance.json has what belongs there."""
    if not made:
        return
    source = made.get("source")
    source = source if isinstance(source, dict) else {}
    text = f"converted with {made.get('recipe')} by {made.get('tool')} from {source.get('id')}"
    yield f"{text}, revision {source.get('revision')}"
    rounded = made.get("rounded_to_bf16")
    for dtype, names in rounded.items() if isinstance(rounded, dict) else ():
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            yield f"rounded to BF16: {tensors_text(names)} that the source has in {dtype}"


def print_tensors(tensors: Mapping[str, TensorInfo]) -> None:
    table = Table("tensor", "group", "type", "shape", "size")
    for name, tensor in tensors.items():
        group = group_of(name) or "unknown"
        # Text, because in a string the table would look for markup.
        table.add_row(Text(printable(name)), group, tensor.dtype, str(list(tensor.shape)), size_text(tensor.nbytes))
    print_table(table)


def print_statistics(found: Statistics) -> None:
    _print_line(f"{found.name}: {found.dtype} {list(found.shape)}")
    extremes = f"min {found.least:.6g}, max {found.most:.6g}"
    _print_line(f"{extremes}, mean {found.mean:.6g}, standard deviation {found.deviation:.6g}")
    if found.not_finite:
        _print_line(f"{found.not_finite:,} values are not finite")
    tallest, width = max(*found.counts, 1), max(min(BAR_WIDTH, Console().width - BESIDE_BAR), 0)
    for left, right, count in zip(found.edges, found.edges[1:], found.counts, strict=False):
        bar = "#" * round(width * count / tallest)
        _print_line(f"{left:>12.4g} .. {right:<12.4g} {bar:<{width}} {count:,}")


def print_fidelity(fidelity: Fidelity) -> None:
    """What a comparison found: the errors of each tensor group, and of the predictions."""
    table = Table("group", "bit-exact", "relative error", "largest error", "worst tensor")
    for group in fidelity.groups:
        exact = f"{group.exact_tensors} of {group.tensors}"
        table.add_row(group.name, exact, *_errors(group), "" if group.exact else _place(group.worst))
    print_table(table)
    found = fidelity.predictions
    table = Table("next token", "source", "model")
    table.add_row("perplexity", f"{found.source_perplexity:.4f}", f"{found.model_perplexity:.4f}")
    table.add_row("KL divergence, mean", "", f"{found.kl_mean:.6f}")
    table.add_row("KL divergence, 99th percentile", "", f"{found.kl_p99:.6f}")
    table.add_row("the same likeliest token", "", f"{100 * found.same_top:.2f} %")
    print_table(table)
    _print_line(f"on {found.tokens:,} tokens of text, both networks in FP32; KL in nats")


def print_differences(fidelity: Fidelity) -> None:
    table = Table("tensor", "relative error", "largest error")
    table.columns[0].overflow = "fold"
    for tensor in fidelity.tensors:
        table.add_row(tensor.name.removeprefix("model."), *_errors(tensor))
    print_table(table)


def _errors(difference: TensorDifference) -> tuple[str, str]:
    return ("none", "") if difference.exact else (f"{difference.relative:.5f}", f"{difference.largest:.3g}")


def _place(name: str) -> str:
    """Where a tensor is, within its group."""
    *path, module = name.removesuffix(".weight").split(".")
    return f"{module}, layer {path[2]}" if "layers" in path else module


def _print_line(text: str) -> None:
    Console().print(printable(text), highlight=False, markup=False)
