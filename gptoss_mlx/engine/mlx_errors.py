"""What goes wrong inside MLX and reaches a user, in words for users: memory or the GPU that fails, for example.

MLX raises RuntimeErrors, often long after the operation that failed, and only their text tells them apart. Its sources:
mlx/backend/metal/allocator.cpp and device.cpp, mlx/backend/cuda/allocator.cpp and utils.cpp, mlx/io/load.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import mlx.core as mx

from ..errors import GptOssError

GPU_OUT_OF_MEMORY = re.compile(
    r"\[malloc\] Unable to allocate|\[metal::malloc\] Attempting to allocate"
    r"|\[METAL\] Command buffer execution failed: .*(Insufficient Memory|OutOfMemory)"
    r"|cu\w+\(.*\) failed: out of memory"
)
GPU_FAILED = re.compile(r"\[METAL\]|\[metal::|\[Event::Event\]|Failed to load the .*metallib|cu\w+\(.*\) failed")
# In whole sentences, by how MLX's text begins.
OTHERS = {
    # Weights that are not mapped are read when they are first used.
    "[read]": "a file of the model can no longer be read: check its folder with `gptoss-mlx verify`",
    # What is not evaluated yet belongs to the thread that made it, and its streams.
    "There is no Stream(": "the model was loaded in another thread: load it in the thread that uses it",
}


class OutOfMemory(GptOssError):
    """The memory, or the GPU's part of it, does not suffice for what was computed."""

    def __init__(self, what: str = "out of memory"):
        super().__init__(
            f"{what}: give a smaller --memory or --context, close other programs, or convert with a smaller recipe"
        )


class GpuFailed(GptOssError):
    """The GPU stopped, or cannot be used: a driver's or MLX's error, in its own words."""

    def __init__(self, words: str):
        super().__init__(
            f"the GPU failed: {' '.join(words.split()).rstrip('.')}: try again; if it fails again, report it with what"
            " `gptoss-mlx doctor --self-test` prints"
        )


def for_user(error: BaseException) -> GptOssError | None:
    """What to raise instead of an error from a computation; None for one that is no user's affair."""
    if isinstance(error, MemoryError):
        return OutOfMemory()
    text = str(error) if isinstance(error, RuntimeError) else ""
    if GPU_OUT_OF_MEMORY.match(text):
        return OutOfMemory("the GPU is out of memory")
    if GPU_FAILED.match(text):
        return GpuFailed(text)
    return next((GptOssError(sentence) for beginning, sentence in OTHERS.items() if text.startswith(beginning)), None)


@contextmanager
def mlx_errors() -> Iterator[None]:
    """Inside, and in a function that this decorates, such errors become GptOssErrors, OutOfMemory for example. What
    was being computed is lost."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = for_user(error)
        if known is None:
            raise
        _forget_errors()
        raise known from error


def _forget_errors() -> None:
    """Wait for all that is scheduled. Every stream that waited for what failed keeps the error for whoever uses it
    next, once."""
    for device in (mx.cpu, mx.gpu):
        with suppress(RuntimeError, ValueError):  # the error, or there is no GPU
            mx.synchronize(device)
