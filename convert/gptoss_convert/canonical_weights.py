"""The weights of gpt-oss as a conversion handles them, whatever file and layout they come from.

Canonical: MLX-LM's names; the experts' gate, up and down apart; a weight is either plain numbers (BF16, or F16 or F32,
in which fine-tunes are saved too) or MXFP4. Nothing is read before it is asked for, and then a range of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gptoss_mlx.model.bf16 import as_f32, f32_to_bf16

from .errors import ConvertError
from .mxfp4 import BLOCK, NOT_A_NUMBER, dequantized

SIGNLESS, TOO_LARGE = np.uint16(0x7FFF), np.uint16((127 + 60) << 7)  # BF16: all but the sign; 2^60
TOO_LARGE_FLOAT = np.float32(2.0**60)


@dataclass(frozen=True)
class Rows:
    """A tensor, or a part of one, whose rows (along the first axis) are read from its file on demand."""

    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]
    """Rows start..stop."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        return self.read(start, stop)

    def between(self, start: int, stop: int) -> Rows:
        """Only rows start..stop."""
        return Rows((stop - start, *self.shape[1:]), lambda a, b: self.read(start + a, start + b))

    def part(self, cut: Callable[[np.ndarray], np.ndarray], *shape: int) -> Rows:
        """`cut` of any rows, [rows, *shape]."""
        return Rows((len(self), *shape), lambda start, stop: cut(self.read(start, stop)))


@dataclass(frozen=True)
class Plain:
    """A tensor of plain numbers in the dtype of its file: F16, F32, or BF16 as bits in uint16."""

    name: str
    values: Rows

    def read(self, rows: slice) -> np.ndarray:
        """uint16 [rows, ...]: BF16, to which F16 and F32 are rounded.

        Raises ConvertError for NaN, infinity and huge values.
        """
        stored = self._checked(rows)
        return stored if stored.dtype == np.uint16 else f32_to_bf16(stored)

    def as_f32(self, rows: slice) -> np.ndarray:
        """The values as they are stored, in float32, which holds them all."""
        return as_f32(self._checked(rows))

    def _checked(self, rows: slice) -> np.ndarray:
        """uint16 or float32."""
        stored = self.values[rows]
        if stored.dtype == np.uint16:
            wrong = (stored & SIGNLESS >= TOO_LARGE).any()
        else:
            stored = stored.astype(np.float32)
            wrong = not (np.abs(stored) < TOO_LARGE_FLOAT).all()
        if wrong:
            raise ConvertError(
                f"{self.name} has values that are not a number, or not below 2^60: the source is corrupt"
            )
        return stored

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) >= 2 and self.name.endswith(".weight")


@dataclass(frozen=True)
class Blocks:
    """A weight of stacked experts in MXFP4: blocks uint8 [E, rows, n, 16], scales uint8 [E, rows, n]."""

    module: str
    blocks: Rows
    scales: Rows

    def read(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Blocks and scales of these experts. Raises ConvertError for a scale that is not a number."""
        blocks, scales = self.blocks[rows], self.scales[rows]
        if (scales == NOT_A_NUMBER).any():
            raise ConvertError(f"{self.module} has a scale that is not a number (E8M0 255): the source is corrupt")
        return blocks, scales

    def as_f32(self, rows: slice) -> np.ndarray:
        """float32 [experts, rows, columns]."""
        return dequantized(*self.read(rows))

    @property
    def name(self) -> str:
        return f"{self.module}.weight"

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.scales.shape[:2], self.scales.shape[2] * BLOCK)

    is_matrix = True
