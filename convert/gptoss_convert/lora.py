"""What a LoRA adapter adds to the canonical weights: scale * left @ right, of low rank.

Knows neither in which files and names an adapter comes (`adapters`), nor what becomes of merged weights (`pipeline`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from gptoss_mlx.files import sha256
from gptoss_mlx.model.bf16 import as_f32

from .canonical_weights import Blocks, Plain
from .errors import ConvertError

TOO_LARGE = 2.0**60  # as in a source


class AdapterError(ConvertError):
    """An adapter that cannot be merged into this model; the message names the tensor or the setting."""


@dataclass(frozen=True)
class LowRank:
    """scale * left @ right, which is added to a matrix [rows, columns].

    left [rows, rank] and right [rank, columns] are views of the file: float32, float16, or BF16 as its bits.
    """

    scale: float
    left: np.ndarray
    right: np.ndarray

    def product(self, rows: slice = slice(None)) -> np.ndarray:
        """float32 [rows, columns]."""
        return (self.scale * as_f32(self.left[rows])) @ as_f32(self.right)


@dataclass
class WeightDelta:
    """What an adapter does to one canonical weight."""

    added: dict[int, LowRank] = field(default_factory=dict)
    """Number of an expert -> what is added to its matrix; a weight that is one matrix is expert 0."""
    base: np.ndarray | None = None
    """A view of the matrix to add to, where the adapter brings its own."""


class Adapter:
    """An adapter that fits the model."""

    def __init__(self, files: Iterable[Path], deltas: Mapping[str, WeightDelta]):
        """`files` hold it; `deltas` are by canonical module."""
        self._files, self._deltas = tuple(files), deltas

    @property
    def modules(self) -> tuple[str, ...]:
        """The canonical modules whose weights the adapter changes."""
        return tuple(self._deltas)

    @cached_property
    def sha256(self) -> dict[str, str]:
        """File name -> SHA-256, of the two files that make the adapter."""
        return {path.name: sha256(path) for path in self._files}

    def changes(self, item: Plain | Blocks) -> bool:
        return item.module in self._deltas

    def merged(self, item: Plain | Blocks, rows: slice) -> np.ndarray:
        """A weight that it changes -> float32 [rows, columns], or [experts, rows, columns] of stacked experts.

        `rows` are of the weight's first axis: a matrix's rows, or experts. Takes memory for twice the result. Raises
        AdapterError for NaN, infinity and huge values.
        """
        delta = self._deltas[item.module]
        values = item.as_f32(rows) if delta.base is None else as_f32(delta.base[rows])
        with np.errstate(over="ignore", invalid="ignore"):
            if values.ndim == 2:
                values += delta.added[0].product(rows)
            else:
                for expert, part in zip(range(item.shape[0])[rows], values, strict=True):
                    if expert in delta.added:
                        part += delta.added[expert].product()
        if not (values.max() < TOO_LARGE and values.min() > -TOO_LARGE):
            raise AdapterError(f"{item.module} with the adapter has values that are not a number, or not below 2^60")
        return values


@dataclass(frozen=True)
class Merged:
    """A weight that an adapter changes."""

    item: Plain | Blocks
    adapter: Adapter

    def as_f32(self, rows: slice) -> np.ndarray:
        """float32 [rows, ...]. Raises ConvertError for NaN, infinity and huge values."""
        return self.adapter.merged(self.item, rows)

    @property
    def name(self) -> str:
        return self.item.name

    @property
    def module(self) -> str:
        return self.item.module

    @property
    def shape(self) -> tuple[int, ...]:
        return self.item.shape

    is_matrix = True
