"""A function over the rows of a matrix, a piece that fits into a processor's cache at a time, on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

VALUES = 2**18  # of a piece: few enough for a cache, enough that Python's lock hardly matters


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="pieces")


def in_pieces(function: Callable[..., tuple[np.ndarray, ...]], *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """function(rows of each array) -> arrays [rows, ...], over all R rows of `arrays` [R, ...]; its results, joined."""
    step = max(1, VALUES * len(arrays[0]) // arrays[0].size)
    if step >= len(arrays[0]):
        return function(*arrays)
    parts = [[array[start : start + step] for array in arrays] for start in range(0, len(arrays[0]), step)]
    results = _workers().map(lambda part: function(*part), parts)
    return tuple(np.concatenate(each) for each in zip(*results, strict=True))


def groups_last(values: np.ndarray) -> np.ndarray:
    """[R, G, size] -> float32 [size, R, G]: what is done to a group is then done to long rows, several times faster."""
    return np.ascontiguousarray(np.moveaxis(values, -1, 0), np.float32)


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
