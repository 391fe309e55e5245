"""The MXFP4 block format: the published bytes -> MLX's, without touching a bit, or -> float32 values.

A block is 32 values: 16 bytes of 4-bit codes, the low nibble first, and one scale byte s (E8M0) that means 2^(s - 127).
MLX packs the same codes in the same order, eight to a uint32, so a repack is a change of dtype.
"""

from __future__ import annotations

import numpy as np

from .arrays import groups_last, in_parallel

BLOCK = 32
NOT_A_NUMBER = 255  # the one E8M0 code that is no scale
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)  # by code; 8 more is the negative
CODE_OF_HALVES = np.array([0, 1, 2, 3, 4, 0, 5, 0, 6, 0, 0, 0, 7], np.uint8)  # value * 2 -> code
_SIGNED = np.concatenate([FP4, -FP4])
# Byte -> the two values of its nibbles, and E8M0 code -> its scale.
_PAIRS = np.stack([np.tile(_SIGNED, 16), np.repeat(_SIGNED, 16)], axis=-1).view(np.uint64)[:, 0]
_SCALES = np.exp2(np.arange(255, dtype=np.float64) - 127).astype(np.float32)


def packed(blocks: np.ndarray) -> np.ndarray:
    """Blocks uint8 [..., n, 16] -> MLX's weight uint32 [..., 4 n]: the same bytes, contiguous."""
    return np.ascontiguousarray(blocks).reshape(*blocks.shape[:-2], -1).view("<u4")


def dequantized(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Blocks uint8 [..., n, 16] and scales uint8 [..., n], none 255 -> float32 [..., 32 n], exactly."""
    *rows, count, _ = blocks.shape

    def dequantize_rows(blocks: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray]:
        values = _PAIRS[blocks].view(np.float32)
        values *= _SCALES[scales][..., None]
        return (values.reshape(len(values), -1),)

    (values,) = in_parallel(dequantize_rows, blocks.reshape(-1, count, BLOCK // 2), scales.reshape(-1, count))
    return values.reshape(*rows, -1)


def quantized(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [..., 32 n] -> weight uint32 [..., 4 n] and scales uint8 [..., n].

    Values are finite and below 2^60. Of the two powers of two that bring a block's largest magnitude to 4..8, where it
    is cut to 6, and to 2..4, each block gets the one with the smaller squared error. Values that come from MXFP4 keep
    their value.
    """
    *rows, columns = values.shape
    weight, scales = in_parallel(_quantized_rows, values.reshape(-1, columns))
    return weight.reshape(*rows, -1), scales.reshape(*rows, -1)


def _quantized_rows(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [R, 32 n] -> weight [R, 4 n] and scales [R, n]."""
    blocks = groups_last(values.reshape(len(values), -1, BLOCK))
    magnitudes = np.abs(blocks)
    largest = np.maximum(magnitudes.max(axis=0), np.float32(2.0**-120))
    # FP4's largest value is 6 = 1.5 * 2^2. E8M0 has exponents from -127 to 127.
    exponent = (largest.view(np.uint32) >> 23).astype(np.int32) - 127 - 2
    (halves, error), (other_halves, other_error) = (_rounded(magnitudes, e) for e in (exponent, exponent + 1))
    better = 4 * other_error < error
    np.copyto(halves, other_halves, where=better)
    codes = CODE_OF_HALVES[halves] | (blocks < 0).view(np.uint8) << 3
    data = codes[0::2] | codes[1::2] << 4
    weight = np.ascontiguousarray(np.moveaxis(data, 0, -1)).reshape(len(values), -1).view("<u4")
    return weight, (exponent + 127 + better).astype(np.uint8)


def _rounded(magnitudes: np.ndarray, exponent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest values of FP4, uint8, in halves of 2^exponent, and each block's squared error in that unit."""
    scaled = magnitudes * _power_of_two(-exponent)
    near = np.minimum(scaled, np.float32(6))
    # Steps of a half up to 2, of 1 up to 4, of 2 up to 6; rounding to even is rounding to an even code.
    step = np.where(near < 2, np.float32(0.5), np.where(near < 4, np.float32(1), np.float32(2)))
    near /= step
    np.rint(near, out=near)
    near *= step
    scaled -= near
    return (near + near).astype(np.uint8), np.einsum("irn,irn->rn", scaled, scaled)


def _power_of_two(exponent: np.ndarray) -> np.ndarray:
    """2^exponent for whole exponents from -126 to 127, exactly, as float32."""
    return ((exponent + 127).astype(np.uint32) << 23).view(np.float32)
