#!/usr/bin/env python3
"""Error and speed of the converter's affine quantization, compared with MLX's: `python examples/quantization_error.py`.

The weights are normally distributed, in groups of 64. Errors are root mean squares, divided by the error of MLX with
scales and biases in FP32, and in BF16 as folders store them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from gptoss_convert import affine
from gptoss_mlx import kernels
from gptoss_mlx.model.bf16 import bf16_to_f32

ROWS, COLUMNS, GROUP = 2048, 2880, 64
ROUNDS = 3


def converter_error(values: np.ndarray, bits: int) -> float:
    weight, *parts = affine.quantized(values, GROUP, bits)
    return _rms(values - affine.dequantized(weight, *map(bf16_to_f32, parts), GROUP, bits))


def mlx_error(values: np.ndarray, bits: int, dtype: mx.Dtype) -> float:
    parts = mx.quantize(mx.array(values).astype(dtype), group_size=GROUP, bits=bits)
    weight, scales, biases = parts[0], *(part.astype(mx.float32) for part in parts[1:])
    return _rms(values - np.array(mx.dequantize(weight, scales, biases, group_size=GROUP, bits=bits)))


def nanoseconds(values: np.ndarray, quantize: Callable[[], object]) -> float:
    """Time for each weight: the shortest of ROUNDS runs."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        quantize()
        seconds.append(time.perf_counter() - started)
    return 1e9 * min(seconds) / values.size


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def main() -> None:
    values = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), dtype=np.float32)
    print("bits  error / MLX's, FP32  BF16")
    for bits in (2, 3, 4, 5, 6, 8):
        error = converter_error(values, bits)
        fp32, bf16 = (error / mlx_error(values, bits, dtype) for dtype in (mx.float32, mx.bfloat16))
        print(f"{bits:4}  {fp32:21.3f}  {bf16:.3f}")
    print(f"converter       {nanoseconds(values, lambda: affine.quantized(values, GROUP, 4)):.1f} ns a weight")
    with kernels.off():
        print(f"without kernels {nanoseconds(values, lambda: affine.quantized(values, GROUP, 4)):.1f} ns a weight")
    array = mx.array(values)
    print(f"mx.quantize     {nanoseconds(values, lambda: mx.eval(mx.quantize(array, GROUP, 4))):.1f} ns a weight")


if __name__ == "__main__":
    main()
