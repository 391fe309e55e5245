"""A recipe and the canonical weights -> what a converted folder holds of them: tensors, their arrays, config.json.

Knows the forms in which a weight can be stored; how a form is computed is `mxfp4`'s and `affine`'s, and how tensors lie
in files the `writer`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_mlx.model.bf16 import f32_to_bf16
from gptoss_mlx.model.checkpoint import FLOATS
from gptoss_mlx.model.config import ModelConfig, Quantization
from gptoss_mlx.model.weights import JOINED

from . import affine, mxfp4
from .canonical_weights import Blocks, Plain
from .errors import ConvertError
from .recipes import MXFP4, Recipe
from .sources import Unit, Weight
from .writer import SHARD_LIMIT, Planned, Writer

CHUNK = 2**23  # weights per step: one published expert; large enough for full speed, small enough to forget
# Fields of a source's config.json that do not hold for the result, or repeat what `ModelConfig.published` writes.
DROPPED_FIELDS = (
    "quantization",
    "quantization_config",
    "quantize_activations",
    "model_file",
    "text_config",
    "dtype",
    "rope_parameters",
    "num_experts",
    "swiglu_alpha",
)


def quantization_of(item: Weight, recipe: Recipe) -> Quantization | None:
    """How the recipe stores a canonical weight; None leaves it in BF16."""
    return recipe.of(item.module) if item.is_matrix else None


def rounded_to_bf16(units: Sequence[Unit], recipe: Recipe) -> dict[str, list[str]]:
    """Weights in F16 or F32 that the recipe does not quantize: dtype -> names."""
    others = [dtype for dtype in FLOATS if dtype != "BF16"]
    items = {dtype: [item for unit in units if dtype in unit.dtypes for item in unit.weights] for dtype in others}
    names = {dtype: [each.name for each in items[dtype] if quantization_of(each, recipe) is None] for dtype in others}
    return {dtype: names[dtype] for dtype in others if names[dtype]}


def planned_of(item: Weight, recipe: Recipe) -> list[Planned]:
    """The tensors that a canonical weight becomes."""
    q = quantization_of(item, recipe)
    if q is None:
        return [Planned(item.name, "BF16", item.shape)]
    *rows, columns = item.shape
    if columns % q.group_size:
        raise ConvertError(f"{item.module} has {columns} columns, which do not divide into groups of {q.group_size}")
    groups = (*rows, columns // q.group_size)
    weight = Planned(f"{item.module}.weight", "U32", (*rows, columns * q.bits // 32))
    if q.mode == "mxfp4":
        return [weight, Planned(f"{item.module}.scales", "U8", groups)]
    return [weight, *(Planned(f"{item.module}.{part}", "BF16", groups) for part in ("scales", "biases"))]


def writer_of(
    folder: Path,
    weights: Iterable[Weight],
    recipe: Recipe,
    *,
    limit: int = SHARD_LIMIT,
    on_shard: Callable[[Path], None] = lambda path: None,
) -> Writer:
    """A writer of the tensors that canonical weights become; `limit` and `on_shard` are `Writer`'s."""
    return Writer(
        folder,
        in_runs([tensor for item in weights for tensor in planned_of(item, recipe)]),
        # The embedding is read row by row on the CPU and must not be mapped into a GPU beside the rest.
        alone=lambda name: name.startswith("model.embed_tokens."),
        limit=limit,
        on_shard=on_shard,
    )


def in_runs(tensors: Iterable[Planned]) -> list[list[Planned]]:
    """The tensors, in their order, but for parts of `JOINED` modules: the weights of such modules follow each other in
    a run, and so do their scales, and their biases, so that a loader can take each run for one tensor."""
    runs: dict[str, dict[int, Planned]] = {}
    for tensor in tensors:
        module, _, part = tensor.name.rpartition(".")
        path, _, last = module.rpartition(".")
        joined = next((modules for modules in JOINED if last in modules), (last,))
        runs.setdefault(f"{path}.{joined[0]}.{part}", {})[joined.index(last)] = tensor
    return [[run[place] for place in sorted(run)] for run in runs.values()]


def converted(item: Weight, recipe: Recipe, importance: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, ...]]:
    """The arrays of those tensors, a range of rows at a time: only that range is ever in memory.

    `importance` float32 [columns], or [experts, columns], is what `affine.quantized` takes.
    """
    q = quantization_of(item, recipe)
    count = max(1, CHUNK // math.prod(item.shape[1:]))
    for start in range(0, item.shape[0], count):
        rows = slice(start, start + count)
        if isinstance(item, Blocks) and q == MXFP4:
            blocks, scales = item.read(rows)
            yield mxfp4.packed(blocks), scales
        elif isinstance(item, Plain) and q is None:
            yield (item.read(rows),)
        elif importance is not None and importance.ndim == 2:
            yield _stored(item.as_f32(rows), q, importance[rows])
        else:
            yield _stored(item.as_f32(rows), q, importance)


def _stored(values: np.ndarray, q: Quantization | None, importance: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """float32 [..., n] -> the arrays of its stored form."""
    if q is None:
        return (f32_to_bf16(values),)
    if q.mode == "mxfp4":
        return mxfp4.quantized(values)
    if importance is None or importance.ndim == 1:
        return affine.quantized(values, q.group_size, q.bits, importance)
    experts = [affine.quantized(v, q.group_size, q.bits, i) for v, i in zip(values, importance, strict=True)]
    return tuple(map(np.stack, zip(*experts, strict=True)))


def converted_config(raw_config: Mapping[str, Any], weights: Iterable[Weight], recipe: Recipe) -> dict[str, Any]:
    """A published config.json with MLX-LM's quantization entry: a default, and the modules that differ from it.

    Fields are written as the published ones are, however the source spells them: MLX-LM replaces a missing field by its
    default.
    """
    default = recipe.default
    used = {item.module: quantization_of(item, recipe) for item in weights}
    modules = {module: asdict(q) for module, q in used.items() if q not in (None, default)}
    kept = {name: value for name, value in raw_config.items() if name not in DROPPED_FIELDS}
    config = kept | ModelConfig.from_dict(raw_config).published() | {"torch_dtype": "bfloat16"}
    return config if default is None else config | {"quantization": asdict(default) | modules}
