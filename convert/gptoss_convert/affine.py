"""Affine quantization, MLX's format, by least squares: value = scale * code + bias for each group along a row.

MLX's own rounding takes scale and bias from a group's smallest and largest value. Here they start from that range,
whole and a tenth narrower, and two things follow in turns: the nearest codes, and the line with the smallest squared
error for these codes, rounded to BF16 as it is stored. The best line is kept. Knows nothing about files or recipes.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType

import numpy as np

from gptoss_mlx.kernels import native
from gptoss_mlx.model.bf16 import bf16_to_f32, f32_to_bf16

from .arrays import groups_last, in_parallel

# Bits -> shares of the range to start from, and how often the line follows its codes. With many codes, cutting the
# range costs more than finer steps give.
EFFORT = {bits: ((1.0, 0.9), 2) if bits <= 4 else ((1.0,), 1) for bits in (2, 3, 4, 5, 6, 8)}
TINY = np.float32(1e-30)  # a scale for groups of one value


def quantized(
    values: np.ndarray, group_size: int, bits: int, importance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float32 [..., n] -> weight uint32 [..., n * bits / 32], scales and biases uint16 [..., n / group_size].

    The last two are BF16. Values are finite and below 2^60. `importance` float32 [n], positive, weighs the squared
    error of each column.
    """
    *rows, columns = values.shape
    if importance is not None:
        # What counts is the ratio within a group; so no sum overflows.
        importance = importance.reshape(-1, group_size)
        importance = (importance / importance.mean(axis=-1, keepdims=True)).astype(np.float32)
    fit = partial(_fitted_by_kernel, kernels) if (kernels := native()) else _fitted_by_numpy

    def quantize_rows(part: np.ndarray) -> tuple[np.ndarray, ...]:
        codes, scales, biases = fit(part.reshape(len(part), -1, group_size), bits, importance)
        return packed(codes.reshape(part.shape), bits), f32_to_bf16(scales), f32_to_bf16(biases)

    parts = in_parallel(quantize_rows, values.reshape(-1, columns))
    weight, scales, biases = (part.reshape(*rows, -1) for part in parts)
    return weight, scales, biases


def _fitted_by_kernel(
    kernels: ModuleType, groups: np.ndarray, bits: int, importance: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_fitted_by_numpy`, ten times as fast."""
    shares, rounds = EFFORT[bits]
    groups = np.ascontiguousarray(groups)
    codes = np.empty(groups.shape, np.uint8)
    scales, biases = (np.empty(groups.shape[:2], np.float32) for _ in range(2))
    flat = groups.reshape(-1, groups.shape[-1])
    kernels.fit_affine(
        flat, importance, bits, shares, rounds, codes.reshape(flat.shape), scales.ravel(), biases.ravel()
    )
    return codes, scales, biases


def _fitted_by_numpy(
    groups: np.ndarray, bits: int, importance: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float32 [R, G, size] -> codes uint8 of the same shape, scales and biases float32 [R, G]; importance [G, size]."""
    codes, scales, biases = fitted(
        groups_last(groups), bits, None if importance is None else groups_last(importance[None])
    )
    return np.moveaxis(codes, 0, -1), scales, biases


def fitted(
    values: np.ndarray, bits: int, importance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float32 [size, R, G] -> codes uint8 of the same shape, scales and biases float32 [R, G], which BF16 can hold.

    With `importance` float32 [size, 1, G], whose mean in each group is 1, the weighted error counts.
    """
    size = np.float32(len(values))

    def weighed(x: np.ndarray) -> np.ndarray:
        return x if importance is None else x * importance

    def mean(x: np.ndarray) -> np.ndarray:
        return x.sum(axis=0) / size

    def product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The mean of x * y."""
        return np.einsum("irg,irg->rg", x, y) / size

    steps = np.float32(2**bits - 1)
    shares, rounds = EFFORT[bits]
    low, high = values.min(axis=0), values.max(axis=0)
    center = mean(weighed(values))
    from_center = values - center
    from_center_weighed = weighed(from_center)
    spread = product(from_center, from_center_weighed)
    smallest = np.full_like(center, np.inf)
    best_scale, best_bias = np.empty_like(center), np.empty_like(center)
    codes = np.empty_like(values)
    for share in map(np.float32, shares):
        scale = np.maximum((high - low) * share / steps, TINY)
        bias = low + (high - low) * (1 - share) / 2
        for turn in range(rounds + 1):
            _nearest(values, scale, bias, steps, out=codes)
            codes_weighed = weighed(codes)
            middle = mean(codes_weighed)
            slope = product(codes, from_center_weighed)
            width = product(codes, codes_weighed) - middle * middle
            if turn:
                error = spread + scale * (scale * width - 2 * slope) + (center - bias - scale * middle) ** 2
                better = error < smallest
                for kept, new in ((smallest, error), (best_scale, scale), (best_bias, bias)):
                    np.copyto(kept, new, where=better)
            if turn < rounds:
                straight = np.divide(slope, width, out=np.zeros_like(scale), where=width > 0)
                scale = bf16_to_f32(f32_to_bf16(np.where(straight > 0, straight, scale)))
                bias = bf16_to_f32(f32_to_bf16(center - scale * middle))
    _nearest(values, best_scale, best_bias, steps, out=codes)
    return codes.astype(np.uint8), best_scale, best_bias


def _nearest(values: np.ndarray, scale: np.ndarray, bias: np.ndarray, steps: np.float32, out: np.ndarray) -> None:
    np.subtract(values, bias, out=out)
    np.multiply(out, 1 / scale, out=out)
    np.rint(out, out=out)
    np.clip(out, 0, steps, out=out)


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 [R, n] -> uint32 [R, n * bits / 32]: one stream of bits for each row, the lowest first."""
    if bits == 4:
        data = codes[:, 0::2] | codes[:, 1::2] << 4
    elif bits == 8:
        data = codes
    else:
        stream = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
        data = np.packbits(stream.reshape(len(codes), -1), axis=-1, bitorder="little")
    return np.ascontiguousarray(data).view("<u4")


def dequantized(weight: np.ndarray, scales: np.ndarray, biases: np.ndarray, group_size: int, bits: int) -> np.ndarray:
    """Weight uint32 [..., n * bits / 32], scales and biases float32 [..., n / group_size] -> float32 [..., n]."""
    *rows, groups = scales.shape

    @np.errstate(over="ignore", invalid="ignore")  # scales of a corrupt file: the caller sees what comes out
    def dequantize_rows(data: np.ndarray, scales: np.ndarray, biases: np.ndarray) -> tuple[np.ndarray]:
        values = unpacked(data, bits).reshape(len(data), groups, group_size).astype(np.float32)
        values *= scales[..., None]
        values += biases[..., None]
        return (values.reshape(len(values), -1),)

    data = weight.reshape(-1, weight.shape[-1]).view(np.uint8)
    (values,) = in_parallel(dequantize_rows, data, scales.reshape(-1, groups), biases.reshape(-1, groups))
    return values.reshape(*rows, -1)


def unpacked(data: np.ndarray, bits: int) -> np.ndarray:
    """Bytes uint8 [R, n * bits / 8] of such a stream -> codes uint8 [R, n]."""
    if bits == 8:
        return data
    if bits == 4:
        return np.stack([data & 15, data >> 4], axis=-1).reshape(len(data), -1)
    stream = np.unpackbits(data, axis=-1, bitorder="little").reshape(len(data), -1, bits)
    return np.packbits(stream, axis=-1, bitorder="little")[..., 0]
