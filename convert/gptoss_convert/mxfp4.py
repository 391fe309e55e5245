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


def quantized(values: mx.array) -> tuple[np.ndarray, np.ndarray]:
    """BF16 [..., 32 n] -> weight uint32 [..., 4 n] and scales uint8 [..., n].

    Of the two powers of two that bring a block's largest magnitude to 4..8, where it is cut to 6, and to 2..4, each
    block gets the one with the smaller squared error. Values that come from MXFP4 keep their value.
    """
    *rows, columns = values.shape
    flat = values.reshape(-1, columns)
    step = max(1, PIECE // columns)
    parts = [_quantized_rows(flat[start : start + step]) for start in range(0, len(flat), step)]
    weight, scales = (np.concatenate(part) for part in zip(*parts, strict=True))
    return weight.reshape(*rows, -1), scales.reshape(*rows, -1)


PIECE = 2**18  # values that are quantized at a time: what they become on the way stays in a processor's cache


def _quantized_rows(values: mx.array) -> tuple[np.ndarray, np.ndarray]:
    blocks = values.astype(mx.float32).reshape(len(values), -1, BLOCK)
    largest = mx.abs(blocks).max(axis=-1, keepdims=True)
    # FP4's largest value is 6 = 1.5 * 2^2. E8M0 has exponents from -127 to 127.
    exponent = mx.floor(mx.log2(mx.maximum(largest, 2.0**-120))) - 2
    (codes, error), (other_codes, other_error) = (_coded(blocks, e) for e in (exponent, exponent + 1))
    better = other_error < error
    codes = mx.where(better, other_codes, codes).reshape(len(values), -1, 8)
    weight = (codes << (4 * mx.arange(8, dtype=mx.uint32))).sum(axis=-1)
    scales = exponent.squeeze(-1) + 127 + better.squeeze(-1)
    return np.array(weight.astype(mx.uint32)), np.array(scales.astype(mx.uint8))


def _coded(blocks: mx.array, exponent: mx.array) -> tuple[mx.array, mx.array]:
    """The nearest codes, uint32, with a scale of 2^exponent, and the squared error of each block."""
    scaled = blocks * _power_of_two(-exponent)
    magnitude = mx.minimum(mx.abs(scaled), 6)
    # Steps of a half up to 2, of 1 up to 4, of 2 up to 6; rounding to even is rounding to an even code.
    step = mx.where(magnitude < 2, 0.5, mx.where(magnitude < 4, 1.0, 2.0))
    near = mx.round(magnitude / step) * step
    code = mx.where(near < 2, 2 * near, mx.where(near < 4, near + 2, near / 2 + 4)) + mx.where(scaled < 0, 8, 0)
    error = ((near - mx.abs(scaled)) * _power_of_two(exponent)).square().sum(axis=-1, keepdims=True)
    return code.astype(mx.uint32), error


def _power_of_two(exponent: mx.array) -> mx.array:
    """2^exponent for whole exponents from -126 to 127, exactly."""
    return ((exponent + 127).astype(mx.uint32) << 23).view(mx.float32)
