"""The two factors of each weight in an adapter's file -> low-rank additions, checked against the model's shapes.

Knows what all layouts of adapters share; their names and settings are `peft_adapters`' and `adapters`'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from reprlib import repr as shown
from typing import Any, TypeVar

import numpy as np

from gptoss_mlx.model.checkpoint import FLOATS, Checkpoint
from gptoss_mlx.model.config import ModelConfig

from .layouts import expert_parts, plain_tensors
from .lora import AdapterError, LowRank

PART_VALUES = 2**22  # of a tensor that is checked, at a time
Known = TypeVar("Known")


@dataclass(frozen=True)
class FactorForm:
    """How two factors of one kind of weight are stored: the meaning of their axes, and how they give left and right."""

    a: tuple[str, ...]
    b: tuple[str, ...]
    sides: Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
    """a, b, the number of experts -> left, right: views."""


@dataclass(frozen=True)
class Pair:
    """The names of a weight's two factors, and the path that they share."""

    path: str
    a: str
    b: str


def pairs_of(names: Iterable[str], prefix: str, halves: tuple[tuple[str, str], ...]) -> list[Pair]:
    """Pair the factors, which are called `prefix` + path + one of `halves`. Raises AdapterError for any other name, and
    for half a pair."""
    names = dict.fromkeys(names)
    pairs: dict[Pair, None] = {}
    for name in names:
        both = next((both for both in halves if name.endswith(both)), None)
        if both is None or not name.startswith(prefix):
            raise AdapterError(f"{name!r} is not a tensor of a plain LoRA adapter, and only those can be merged")
        stem = next(name.removesuffix(half) for half in both if name.endswith(half))
        pairs[Pair(stem.removeprefix(prefix), *(stem + half for half in both))] = None
    for pair in pairs:
        for name, other in ((pair.a, pair.b), (pair.b, pair.a)):
            if name not in names:
                raise AdapterError(f"{other!r} lacks its other half, {name!r}: the adapter is incomplete")
    return list(pairs)


def low_ranks_of(
    tensors: Checkpoint, pair: Pair, form: FactorForm, shape: tuple[int, ...], rank: int, scale: float
) -> list[LowRank]:
    """What the two tensors, checked against the weight's shape, add to each expert, or to the one matrix."""
    sizes = sizes_of(shape, rank)
    a, b = (
        checked_tensor(tensors, name, tuple(sizes[axis] for axis in axes))
        for name, axes in ((pair.a, form.a), (pair.b, form.b))
    )
    left, right = form.sides(a, b, sizes["experts"])
    if left.ndim == 2:
        return [LowRank(scale, left, right)]
    return [LowRank(scale, *sides) for sides in zip(left, right, strict=True)]


def sizes_of(shape: tuple[int, ...], rank: int) -> dict[str, int]:
    """Axis of a factor -> its size, for a weight [rows, columns] or [experts, rows, columns]."""
    *experts, rows, columns = shape
    count = experts[0] if experts else 1
    return {"experts": count, "rows": rows, "columns": columns, "rank": rank, "ranks": rank * count}


def checked_tensor(tensors: Checkpoint, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A view of the tensor, if it is finite numbers of this shape."""
    tensor = tensors.tensors[name]
    if tensor.dtype not in FLOATS:
        raise AdapterError(f"{name!r} is {tensor.dtype}, not one of {', '.join(FLOATS)}")
    if tensor.shape != shape:
        raise AdapterError(f"{name!r} is {list(tensor.shape)}, and model and settings ask for {list(shape)}")
    view = tensors.view(name)
    values = view.reshape(-1)
    if not all(_are_finite(values[start : start + PART_VALUES]) for start in range(0, values.size, PART_VALUES)):
        raise AdapterError(f"{name!r} has values that are not a number: the training failed, or the file is damaged")
    return view


def _are_finite(values: np.ndarray) -> bool:
    finite = (values & 0x7FFF) < 0x7F80 if values.dtype == np.uint16 else np.isfinite(values)
    return bool(finite.all())


def published_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Module of the published checkpoint -> shape of its weight: [rows, columns] or [experts, rows, columns]."""
    weights: dict[str, tuple[int, ...]] = {}
    for name, (_, shape) in plain_tensors(config).items():
        if len(shape) == 3:
            experts, inputs, outputs = shape
            weights[name] = (experts, outputs, inputs)
        elif len(shape) == 2 and name.endswith(".weight"):
            weights[name.removesuffix(".weight")] = shape
    return weights


def canonical_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The same with the experts' gate and up apart."""
    return {
        part: (*shape[:-2], len(range(shape[-2])[rows]), shape[-1])
        for module, shape in published_shapes(config).items()
        for part, rows in expert_parts(module)
    }


def known_weight(weights: Mapping[str, Known], path: str, name: str) -> Known:
    """The entry of a path. Raises AdapterError, for the tensor `name`, where the model has no such weight."""
    if path not in weights:
        raise AdapterError(f"{name!r} changes what this model does not have: it is an adapter of another model")
    return weights[path]


def number_of(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e9 < value < 1e9:
        raise AdapterError(f"{name} is {shown(value)}, not a number")
    return float(value)


def rank_of(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise AdapterError(f"{name} is {shown(value)}, not a rank")
    return value
