"""A function over the rows of arrays in parallel: on all cores, in parts that fit into a processor's cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

PART_VALUES = 2**18  # few enough for a cache, enough that Python's lock hardly matters


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="parallel")


def in_parallel(function: Callable[..., tuple[np.ndarray, ...]], *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """function(rows of each array) -> arrays [rows, ...], over all R rows of `arrays` [R, ...]; its results, joined."""
    step = max(1, PART_VALUES * len(arrays[0]) // arrays[0].size)
    if step >= len(arrays[0]):
        return function(*arrays)
    parts = [[array[start : start + step] for array in arrays] for start in range(0, len(arrays[0]), step)]
    results = _workers().map(lambda part: function(*part), parts)
    return tuple(np.concatenate(each) for each in zip(*results, strict=True))


def groups_last(values: np.ndarray) -> np.ndarray:
    """[R, G, size] -> float32 [size, R, G]: what is done to a group is then done to long rows, several times faster."""
    return np.ascontiguousarray(np.moveaxis(values, -1, 0), np.float32)
