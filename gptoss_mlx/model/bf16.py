"""BF16 in NumPy, which does not have it: its bits as uint16, to and from float32."""

from __future__ import annotations

import numpy as np


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    """uint16 -> float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def as_f32(stored: np.ndarray) -> np.ndarray:
    """Numbers as a checkpoint has them, BF16 as uint16, in float32: an array of its own."""
    return bf16_to_f32(stored) if stored.dtype == np.uint16 else stored.astype(np.float32)


def f32_to_bf16(values: np.ndarray) -> np.ndarray:
    """Finite float32 -> the nearest BF16 as uint16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
