"""What MLX does slowly on a CPU, done at the speed of memory: products, attention and whole halves of a layer, in C++.

`native()` is the compiled module, or None where it is not built, does not fit the MLX that is installed, or is switched
off; everything then runs on MLX's own operations. Three variables of the environment decide:

GPTOSS_MLX_KERNELS=0             off
GPTOSS_MLX_THREADS=N             threads; as many as there are fast cores otherwise
GPTOSS_MLX_INSTRUCTIONS=NAME     an instruction set that is not the best, to compare

The sources are in `native/`; what the network uses of them is in `layers`; why they may be missing, `building` knows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType

from ..errors import GptOssError, printable

# Memory that is read to measure its bandwidth: many times a cache, or what a tight budget has room for.
BANDWIDTH_BYTES = 512 * 2**20
MIN_BANDWIDTH_BYTES = 64 * 2**20

_switched_off = False


def native() -> ModuleType | None:
    """The compiled kernels, if they are to be used."""
    return None if _switched_off or _obstacle() else _load()


def why_not_native() -> str | None:
    """The reason why the compiled kernels are not used, if they are not; it can follow on "the kernels are"."""
    if _switched_off:
        return "switched off"
    return _obstacle() and _obstacle().reason


def how_to_have_native() -> str | None:
    """What to do so that they can be used, as a sentence."""
    return _obstacle() and _obstacle().remedy


def compiled() -> ModuleType:
    """The compiled module, whether or not it is to be used. Raises ImportError where there is none."""
    import_module("mlx.core")  # brings the library that the kernels are linked to
    return import_module("._native", __package__)


@contextmanager
def off() -> Iterator[None]:
    """What is loaded within this runs on MLX's own operations."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


def set_threads(count: int) -> None:
    """How many threads the kernels use from now on. Without kernels it has no effect: MLX does not divide its work."""
    if native():
        native().set_threads(count)


def read_bandwidth(room: int = BANDWIDTH_BYTES) -> float | None:
    """Bytes per second that the kernels' threads read, of memory that has `room` bytes free; None without kernels."""
    size = max(MIN_BANDWIDTH_BYTES, min(room, BANDWIDTH_BYTES))
    return native().read_bandwidth(size) if native() else None


def product_rates() -> tuple[float, float] | None:
    """Operations per second that the kernels' threads make at most, of bytes and of FP32: a multiplication and an
    addition are two. None without kernels."""
    return (native().byte_product_rate(), native().float_product_rate()) if native() else None


@dataclass(frozen=True)
class _Obstacle:
    reason: str
    remedy: str


def _obstacle() -> _Obstacle | None:
    if os.environ.get("GPTOSS_MLX_KERNELS") == "0":
        return _Obstacle("switched off by GPTOSS_MLX_KERNELS=0", "unset it to have them")
    return _unusable()


@cache
def _unusable() -> _Obstacle | None:
    from . import building

    try:
        module = _load()
    except ModuleNotFoundError:
        return _Obstacle(building.why_not_built(), building.how_to_build())
    except ImportError as error:
        return _Obstacle(f"not loadable: {printable(str(error))}", building.installing_again())
    if module.mlx_version != module.built_for_mlx:
        reason = f"built for MLX {module.built_for_mlx}, and this is MLX {module.mlx_version}"
        return _Obstacle(reason, f"install MLX {module.built_for_mlx}")
    return None


@cache
def _load() -> ModuleType:
    """The module, set up as the environment says."""
    _native = compiled()
    if instructions := os.environ.get("GPTOSS_MLX_INSTRUCTIONS"):
        try:
            _native.use_kernels(instructions)
        except ValueError:
            known = ", ".join(_native.available_kernels())
            raise GptOssError(f"GPTOSS_MLX_INSTRUCTIONS is {instructions!r}; this machine has {known}") from None
    if threads := os.environ.get("GPTOSS_MLX_THREADS"):
        try:
            _native.set_threads(int(threads))
        except ValueError:
            raise GptOssError(f"GPTOSS_MLX_THREADS is {threads!r}, not a whole number from 1 to 1024") from None
    return _native
