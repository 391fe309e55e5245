"""Products, attention and MoE blocks in C++, which run on a CPU at the speed of memory where MLX is slow.

`native()` is the compiled module, or None if it is not built, does not fit the installed MLX, or is switched off: then
everything runs on MLX's own operations. Three environment variables decide:

GPTOSS_MLX_KERNELS=0             off
GPTOSS_MLX_THREADS=N             number of threads; the default is the number of fast cores
GPTOSS_MLX_INSTRUCTIONS=NAME     another instruction set than the best, to compare

The sources are in `native/`. `building` explains why a build is missing; `model.native_layers` uses the module.
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

# Memory that is read to measure its bandwidth: much more than a cache holds, or as much as a tight budget allows.
BANDWIDTH_BYTES = 512 * 2**20
MIN_BANDWIDTH_BYTES = 64 * 2**20

_switched_off = False


def native() -> ModuleType | None:
    """The compiled kernels; None if they are missing or switched off."""
    return None if _switched_off or _obstacle() else _load()


def why_not_native() -> str | None:
    """The reason why the compiled kernels are not used, to follow "the kernels are"; None if they are."""
    if _switched_off:
        return "switched off"
    obstacle = _obstacle()
    return obstacle.reason if obstacle else None


def how_to_have_native() -> str | None:
    """The step after which they can be used, as a sentence; None if they can."""
    obstacle = _obstacle()
    return obstacle.remedy if obstacle else None


def compiled() -> ModuleType:
    """The compiled module, even if it is switched off. Raises ImportError if it is not built."""
    import_module("mlx.core")  # loads the library to which the kernels are linked
    return import_module("._native", __package__)


@contextmanager
def off() -> Iterator[None]:
    """A context in which models are loaded to run on MLX's own operations."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


def set_threads(count: int) -> None:
    """Set the number of threads of the kernels, if there are any. Raises ValueError outside 1..1024."""
    if module := native():
        module.set_threads(count)


def read_bandwidth(room: int = BANDWIDTH_BYTES) -> float | None:
    """Bytes per second that the kernels' threads read from memory, with `room` bytes free; None without kernels."""
    module = native()
    return module.read_bandwidth(max(MIN_BANDWIDTH_BYTES, min(room, BANDWIDTH_BYTES))) if module else None


def product_rates() -> tuple[float, float] | None:
    """The highest rates of the kernels' threads in operations per second, on bytes and on FP32: a multiplication and
    an addition count as two. None without kernels."""
    module = native()
    return (module.byte_product_rate(), module.float_product_rate()) if module else None


@dataclass(frozen=True)
class _Obstacle:
    reason: str
    remedy: str


def _obstacle() -> _Obstacle | None:
    if os.environ.get("GPTOSS_MLX_KERNELS") == "0":
        return _Obstacle("switched off by GPTOSS_MLX_KERNELS=0", "unset it to use them")
    return _unusable()


@cache
def _unusable() -> _Obstacle | None:
    try:
        module = _load()
    except ModuleNotFoundError:
        from . import building

        return _Obstacle(building.why_not_built(), building.how_to_build())
    except ImportError as error:
        from .building import installing_again

        return _Obstacle(f"not loadable: {printable(str(error))}", installing_again())
    if module.mlx_version != module.built_for_mlx:
        reason = f"built for MLX {module.built_for_mlx}, and this is MLX {module.mlx_version}"
        return _Obstacle(reason, f"install MLX {module.built_for_mlx}")
    return None


@cache
def _load() -> ModuleType:
    """The module, set up with the environment variables. Raises ImportError, GptOssError."""
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
