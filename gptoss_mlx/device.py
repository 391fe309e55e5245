"""The device that computes here, and its traits: the only module that asks MLX for it.

Four backends: "gpu" (MLX on Metal), "cuda" (MLX on a GPU with memory of its own), "kernels" (a CPU with the compiled
kernels) and "cpu" (MLX alone on a CPU). `BACKENDS` has the traits of each, `gpu` the limits of a GPU. Knows nothing of
models.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

from . import kernels

if TYPE_CHECKING:
    import mlx.core as mx

    Elementwise = Callable[..., mx.array]

METAL_PAGE = 16_384


@dataclass(frozen=True)
class Costs:
    """How much slower a turn becomes, in percent, by what saves memory. See `memory.plan` for their reasons."""

    shorter_chunks: tuple[float, ...]
    """Costs of the smaller prefill chunks, in their order."""
    quantized_kv: float
    """Cost of an 8-bit KV cache."""
    cpu_embeddings: float = 0
    """Cost of embeddings that the CPU looks up beside a GPU."""
    cpu_layer: float = 0
    """Cost of a layer whose experts the CPU computes beside a GPU."""


@dataclass(frozen=True)
class Backend:
    name: str
    activation_bytes: int
    """Bytes of an activation: BF16 on a GPU; FP32 on a CPU, where MLX computes it many times faster than BF16, and the
    kernels take only it."""
    kv_bytes: int
    """Bytes of a value in a KV cache that is not quantized."""
    expert_activations: tuple[float, float]
    """Values in memory for each token and each expert that it chose, in multiples of the hidden size and of the
    intermediate size. The kernels keep the product of an expert's gate and up projections, and an 8-bit copy; MLX keeps
    every result."""
    tiled_kv_bits: tuple[int, ...]
    """Bits of the KV caches of which attention keeps the scores of a few keys at a time, not those of all."""
    map_unit: int | None
    """Bytes of which a file has to be a multiple so that weights are used where it is mapped: the kernels' words,
    Metal's pages. None where they are copied."""
    looks_ahead: bool
    """Whether the next token is computed while one is reported. Otherwise a GPU would wait for Python; a CPU would only
    waste the token after the last."""
    prefill_chunks: tuple[int, ...]
    """Tokens that are prefilled at a time: the default, then smaller numbers to save memory. The kernels unpack the
    weights of an expert once for all tokens of a chunk that chose it; MLX on a CPU keeps the scores of a chunk against
    the whole context."""
    costs: Costs
    """What it costs to save memory."""

    @property
    def dtype(self) -> mx.Dtype:
        """The dtype of activations."""
        import mlx.core as mx

        return mx.bfloat16 if self.activation_bytes == 2 else mx.float32


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "gpu",
            activation_bytes=2,
            kv_bytes=2,
            expert_activations=(2, 4),
            tiled_kv_bits=(16,),
            map_unit=METAL_PAGE,
            looks_ahead=True,
            prefill_chunks=(2048, 512, 128),
            costs=Costs(shorter_chunks=(2, 10), quantized_kv=6, cpu_embeddings=1, cpu_layer=5),
        ),
        Backend(
            "kernels",
            activation_bytes=4,
            kv_bytes=2,
            expert_activations=(1, 1.6),
            tiled_kv_bits=(16, 8),
            map_unit=4,
            looks_ahead=False,
            prefill_chunks=(512, 128, 32),
            costs=Costs(shorter_chunks=(5, 20), quantized_kv=1),
        ),
        Backend(
            "cpu",
            activation_bytes=4,
            kv_bytes=4,
            expert_activations=(2, 4),
            tiled_kv_bits=(),
            map_unit=None,
            looks_ahead=False,
            prefill_chunks=(256, 64, 16),
            costs=Costs(shorter_chunks=(5, 20), quantized_kv=1),
        ),
    )
}
BACKENDS["cuda"] = replace(BACKENDS["gpu"], name="cuda", map_unit=None)


@dataclass(frozen=True)
class Gpu:
    name: str
    limit: int | None
    """The maximum of bytes that it should hold; None if MLX does not report it."""
    max_buffer: int | None
    """The maximum of bytes of one array; None if MLX does not report it."""
    is_unified: bool
    """Whether it uses the machine's memory: Metal's, whose limit is the working set that the system recommends."""
    uuid: str


def backend() -> Backend:
    """The backend of MLX's default device."""
    if is_gpu():
        return BACKENDS["cuda" if is_cuda() else "gpu"]
    return BACKENDS["kernels" if kernels.native() else "cpu"]


def is_gpu() -> bool:
    """Whether MLX's default device is a GPU."""
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.gpu


def is_cuda() -> bool:
    """Whether the default device is a GPU with memory of its own."""
    import mlx.core as mx

    return is_gpu() and mx.cuda.is_available()


def lays_out_arrays() -> bool:
    """Whether the kernels may lay arrays over memory that MLX has not allocated. Not in a build for Metal: there an
    array lies in one of Metal's buffers, whatever the default device is."""
    import mlx.core as mx

    return backend().name == "kernels" and not mx.metal.is_available()


def name() -> str:
    """MLX's name for the default device: a chip, or a processor."""
    import mlx.core as mx

    return str(mx.device_info().get("device_name", "unknown"))


def kind() -> str:
    """ "CPU" or "GPU"."""
    return "GPU" if is_gpu() else "CPU"


def gpu() -> Gpu | None:
    """The GPU that is MLX's default device; None if that is a CPU."""
    import mlx.core as mx

    if not is_gpu():
        return None
    info = mx.device_info()

    def number(field: str) -> int | None:
        return int(info[field]) if field in info else None

    working_set = number("max_recommended_working_set_size")  # Metal's
    return Gpu(
        name=name(),
        limit=number("memory_size") if working_set is None else working_set,
        max_buffer=number("max_buffer_length"),
        is_unified=working_set is not None,
        uuid=str(info.get("uuid", "")),
    )


def instruction_set() -> str | None:
    """The instruction set of the compiled kernels; None without them."""
    native = kernels.native()
    return native.kernels_in_use() if native else None


def own_gpu_memory_peak() -> int | None:
    """The peak of bytes that MLX has had on a GPU with memory of its own, since `forget_gpu_peak`; None without one,
    and before anything has imported MLX."""
    return sys.modules["mlx.core"].get_peak_memory() if "mlx.core" in sys.modules and is_cuda() else None


def forget_gpu_peak() -> None:
    """Start a new peak."""
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


def fused(chain: Elementwise) -> Elementwise:
    """A function of elementwise operations, in one launch on a GPU. On a CPU, MLX would need a C++ compiler for it."""

    @cache
    def compiled() -> Elementwise:
        import mlx.core as mx

        return mx.compile(chain)

    @wraps(chain)
    def call(*arguments: Any) -> mx.array:
        return (compiled() if is_gpu() else chain)(*arguments)

    return call


@contextmanager
def reference() -> Iterator[None]:
    """A context in which models are loaded to run on MLX's own operations, on the CPU."""
    import mlx.core as mx

    device = mx.default_device()
    try:
        mx.set_default_device(mx.cpu)
        with kernels.off():
            yield
    finally:
        mx.set_default_device(device)
