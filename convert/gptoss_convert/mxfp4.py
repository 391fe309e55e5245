"""The MXFP4 block format: the published bytes -> MLX's, without touching a bit, or -> BF16 values.

A block is 32 values: 16 bytes of 4-bit codes, the low nibble first, and one scale byte s (E8M0) that means 2^(s - 127).
MLX packs the same codes in the same order, eight to a uint32, so a repack is a change of dtype.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

BLOCK = 32
NOT_A_NUMBER = 255  # the one E8M0 code that is no scale


def packed(blocks: np.ndarray) -> np.ndarray:
    """Blocks uint8 [..., n, 16] -> MLX's weight uint32 [..., 4 n]: the same bytes, contiguous."""
    return np.ascontiguousarray(blocks).reshape(*blocks.shape[:-2], -1).view("<u4")


def dequantized(blocks: np.ndarray, scales: np.ndarray) -> mx.array:
    """Blocks uint8 [..., n, 16] and scales uint8 [..., n] -> BF16 [..., 32 n], which is exact."""
    return mx.dequantize(mx.array(packed(blocks)), mx.array(scales), mode="mxfp4", dtype=mx.bfloat16)
