"""What computes here, and what follows from that: the one place that asks MLX.

Three backends: "gpu" (MLX on Metal or CUDA), "kernels" (a CPU, with the compiled kernels) and "cpu" (MLX alone on a
CPU). What a backend is like stands in `BACKENDS`; what a GPU may hold, in `gpu`. Knows nothing of models.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import kernels

if TYPE_CHECKING:
    import mlx.core as mx


@dataclass(frozen=True)
class Backend:
    name: str
    activation_bytes: int
    """BF16 on a GPU. FP32 on a CPU, where MLX computes it many times faster, and the kernels take it."""
    kv_bytes: int
    """Of a value in a KV cache that is not quantized."""
    maps_files: bool
    """Whether weights are used where a file is mapped, without a copy."""
    looks_ahead: bool
    """Whether a token is computed while the one before it is reported. A GPU would wait for Python otherwise; a CPU
    would only waste the token after the last."""
    prefill_chunks: tuple[int, ...]
    """Tokens that are prefilled at a time, the usual number first. The kernels unpack an expert's weights once for all
    those of a chunk that chose it; MLX on a CPU keeps the scores of a chunk against the whole context."""

    @property
    def dtype(self) -> mx.Dtype:
        """Of activations."""
        import mlx.core as mx

        return mx.bfloat16 if self.activation_bytes == 2 else mx.float32


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("gpu", 2, 2, maps_files=True, looks_ahead=True, prefill_chunks=(2048, 512, 128)),
        Backend("kernels", 4, 2, maps_files=True, looks_ahead=False, prefill_chunks=(512, 128, 32)),
        Backend("cpu", 4, 4, maps_files=False, looks_ahead=False, prefill_chunks=(256, 64, 16)),
    )
}


@dataclass(frozen=True)
class Gpu:
    name: str
    limit: int | None
    """Bytes that it should hold at most; None where MLX does not say."""
    max_buffer: int | None
    """Bytes of the largest array that it takes."""
    is_unified: bool
    """Whether its memory is the machine's."""
    uuid: str


def backend() -> Backend:
    """What computes on MLX's default device."""
    if is_gpu():
        return BACKENDS["gpu"]
    return BACKENDS["kernels" if kernels.native() else "cpu"]


def is_gpu() -> bool:
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.gpu


def is_cuda() -> bool:
    """Whether it is a GPU with memory of its own."""
    import mlx.core as mx

    return is_gpu() and mx.cuda.is_available()


def name() -> str:
    """As MLX calls what computes here: a chip, or a processor."""
    import mlx.core as mx

    return str(mx.device_info().get("device_name", "unknown"))


def kind() -> str:
    """ "CPU" or "GPU"."""
    return "GPU" if is_gpu() else "CPU"


def gpu() -> Gpu | None:
    """The GPU that computes here; None where a CPU does."""
    import mlx.core as mx

    if not is_gpu():
        return None
    info = mx.device_info()
    unified = "max_recommended_working_set_size" in info
    return Gpu(
        name=name(),
        limit=info.get("max_recommended_working_set_size", info.get("memory_size")),
        max_buffer=info.get("max_buffer_length"),
        is_unified=unified,
        uuid=str(info.get("uuid", "")),
    )


def instruction_set() -> str | None:
    """What the compiled kernels use; None without them."""
    native = kernels.native()
    return native.kernels_in_use() if native else None


def own_gpu_memory_peak() -> int | None:
    """The most bytes that MLX has had on a GPU with memory of its own, since `forget_gpu_peak`; None without one, and
    before anything has imported MLX."""
    return sys.modules["mlx.core"].get_peak_memory() if "mlx.core" in sys.modules and is_cuda() else None


def forget_gpu_peak() -> None:
    """Have that peak begin anew."""
    if own_gpu_memory_peak() is not None:
        sys.modules["mlx.core"].reset_peak_memory()


@dataclass(frozen=True)
class Runtime:
    """What computes here, and in which versions: all that decides the bits of a result beside a model and its plan."""

    version: str
    """The version of gptoss-mlx."""
    mlx: str
    """The version of MLX."""
    device: str
    """"CPU" or "GPU"."""
    name: str
    """The chip's or the processor's name, as MLX has it."""
    kernels: str | None
    """The instruction set of the compiled kernels; None without them."""
    threads: int | None
    """Threads of the kernels; None where they do not compute."""


def runtime() -> Runtime:
    from importlib.metadata import version

    native = kernels.native() if backend().name == "kernels" else None
    return Runtime(
        version=version("gptoss-mlx"),
        mlx=version("mlx"),
        device=kind(),
        name=name(),
        kernels=instruction_set(),
        threads=native.threads() if native else None,
    )


@contextmanager
def reference() -> Iterator[None]:
    """What is loaded within this runs on MLX's own operations, on the CPU."""
    import mlx.core as mx

    device = mx.default_device()
    try:
        mx.set_default_device(mx.cpu)
        with kernels.off():
            yield
    finally:
        mx.set_default_device(device)
