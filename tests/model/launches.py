"""Launches of kernels by MLX on a GPU, counted in a graph that was built here and never evaluated.

MLX builds the same graph for every device, but for its fast operations, which a CPU has no kernels for and which stand
as several: here one placeholder stands for each. What only describes memory launches nothing.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import pytest

# Primitives that describe memory anew, or that the CPU's scheduler has: no kernel is launched for them. A reshape
# launches one only where it copies.
VIEWS = {
    "AsStrided", "Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "Reshape", "Slice", "Squeeze", "StopGradient",
    "Transpose", "Unflatten", "View",
}  # fmt: skip
ON_CPU = {"gptoss_rows", "Contiguous"}  # the look-up of an embedding, and what lays out its ids for that


@contextmanager
def fast_operations() -> Iterator[None]:
    """MLX's fast operations as Metal has them: a kernel each."""

    def norm(x, weight, eps):
        return mx.depends(x, weight)

    def rope(x, *arguments, freqs, **options):
        return mx.depends(x, freqs)

    def dequantize(codes, scales, *arguments, dtype=None, group_size, bits, **options):
        wide = mx.broadcast_to(scales[..., :1], (*scales.shape[:-1], codes.shape[-1] * 32 // bits))
        return mx.depends(wide, codes).view(dtype or scales.dtype)

    def attention(query, key, value, *, scale, mask=None, sinks=None):
        return mx.depends(query, [key, value, sinks])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mx.fast, "rms_norm", norm)
        patch.setattr(mx.fast, "rope", rope)
        patch.setattr(mx, "dequantize", dequantize)
        patch.setattr(mx.fast, "scaled_dot_product_attention", attention)
        yield


def launches(output: mx.array) -> Counter[str]:
    """Primitive -> kernels that are launched for it on the way to `output`, which is not evaluated yet."""
    file = io.StringIO()
    mx.export_to_dot(file, output)
    graph = file.getvalue()
    primitives = dict(re.findall(r'{ (\d+) \[label ="(\w+)"', graph))
    results = Counter(
        re.findall(r'^(\d+) -> "\w+"$', graph, re.MULTILINE)
    )  # calls of a compiled function share one primitive
    inputs = Counter(re.findall(r'^"\w+" -> (\d+)$', graph, re.MULTILINE))
    counts: Counter[str] = Counter()
    for number, primitive in primitives.items():
        if primitive not in VIEWS | ON_CPU:
            if primitive == "Concatenate":
                counts[primitive] += inputs[number]  # each is copied
            else:
                counts[primitive] += results[number] if primitive.startswith("Compiled") else 1
    return counts
