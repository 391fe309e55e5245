"""Attention, the MoE block and the head on the compiled kernels: the same calls as their definitions in `network`.

Each function returns None where the kernels are off, and if the quantization is unsupported; `network` then uses its
own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import mlx.core as mx

from ..device import backend
from ..errors import GptOssError
from ..kernels import compiled, native, why_not_native
from .checkpoint import FLOATS
from .expert_pool import PROJECTIONS, projection_shapes
from .kv_cache import FullKV, RingKV
from .weights import Matrix, Weights

if TYPE_CHECKING:
    from .expert_pool import ExpertPool
    from .experts import MoeParts

Made = TypeVar("Made")

FEW_TOKENS = 4  # that each row of weights meets as it is read; they give the same bits alone


def attention(
    weights: Weights, path: str, norm: str, window: int, scale: float, freqs: mx.array
) -> NativeAttention | None:
    """The attention of a layer; `window` is 0 for a full layer."""
    return _made(lambda: NativeAttention(weights, path, norm, window, scale, freqs))


def moe(weights: Weights, path: str, norm: str, pool: ExpertPool | None) -> MoeParts | None:
    """The MoE block of a layer; with a pool, over its slots."""

    def make() -> MoeParts:
        stored = _as_stored(weights)
        if pool:
            slots = {name: _stored(pool.matrix(name), pool.bias(name)) for name in PROJECTIONS}
            return _moe(stored, path, norm, slots, pool.slots)
        shapes = projection_shapes(weights.config)
        experts = {name: _matrix(stored, f"{path}.experts.{name}", *shapes[name], bias=True) for name in shapes}
        return _moe(stored, path, norm, experts, weights.config.num_experts)

    return _made(make)


def moe_beside_gpu(weights: Weights, path: str, norm: str) -> Callable[[mx.array], mx.array]:
    """The MoE block of a layer on the CPU, for activations of a GPU, with experts that do not count as the GPU's: MLX
    knows nothing of them. Raises GptOssError where there is no kernel."""
    if native() is None:
        raise GptOssError(f"experts on the CPU need the compiled kernels, which are {why_not_native()}")
    shapes = projection_shapes(weights.config)
    try:
        experts = {name: _mapped(weights, f"{path}.experts.{name}", *shapes[name]) for name in shapes}
        layer = _moe(_as_stored(weights), path, norm, experts, weights.config.num_experts)
    except ValueError as error:
        raise GptOssError(f"experts on the CPU: {error}") from None
    return lambda x: layer(x.astype(mx.float32)).astype(x.dtype)


def linear(weights: Weights, module: str, outputs: int, inputs: int) -> Callable[[mx.array], mx.array] | None:
    """A linear map without bias: x [..., inputs] -> [..., outputs]."""
    return _made(lambda: compiled().LinearMap(_matrix(_as_stored(weights), module, outputs, inputs), outputs, inputs))


def is_native(part: object) -> bool:
    return isinstance(part, (NativeAttention, compiled().MoeLayer, compiled().LinearMap)) if native() else False


def _made(make: Callable[[], Made]) -> Made | None:
    if backend().name != "kernels":
        return None
    try:
        return make()
    except ValueError:  # the kernels lack this quantization; MLX has all
        return None


class NativeAttention:
    kv_dtype = mx.bfloat16

    def __init__(self, weights: Weights, path: str, norm: str, window: int, scale: float, freqs: mx.array):
        config, stored = weights.config, _as_stored(weights)
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.layer = compiled().AttentionLayer(
            hidden=config.hidden_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            window=window,
            eps=config.rms_norm_eps,
            scale=scale,
            norm=stored.vector(f"{norm}.weight", config.hidden_size),
            query=_matrix(stored, f"{path}.q_proj", queries, config.hidden_size, bias=True),
            key=_matrix(stored, f"{path}.k_proj", keys, config.hidden_size, bias=True),
            value=_matrix(stored, f"{path}.v_proj", keys, config.hidden_size, bias=True),
            output=_matrix(stored, f"{path}.o_proj", config.hidden_size, queries, bias=True),
            sinks=stored.vector(f"{path}.sinks", config.num_heads),
            freqs=freqs,
        )

    def __call__(self, x: mx.array, offset: int, mask: mx.array | str | None, kv: FullKV | RingKV) -> mx.array:
        """x [1, L, hidden] at positions offset.. -> x + attention(norm(x)); stores keys and values in `kv`. `mask` is
        unused: the kernel makes its own from the window."""
        kv.reserve(offset, offset + x.shape[1])
        x, *kv.buffers = self.layer(x, kv.buffers, offset)
        return x

    def together(self, x: mx.array, offsets: Sequence[int], kvs: Sequence[FullKV | RingKV]) -> mx.array:
        """x [1, conversations, hidden], a token of each at its offset -> the same bits as one after another."""
        for kv, offset in zip(kvs, offsets, strict=True):
            kv.reserve(offset, offset + 1)
        x, *buffers = self.layer.together(x, [kv.buffers for kv in kvs], offsets)
        each = len(buffers) // len(kvs)
        for index, kv in enumerate(kvs):
            kv.buffers = buffers[index * each : (index + 1) * each]
        return x


def _moe(stored: Weights, path: str, norm: str, experts: Mapping[str, Any], slots: int) -> MoeParts:
    """`experts` are the StoredMatrix of each projection, a stack of `slots`."""
    config = stored.config
    return compiled().MoeLayer(
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        experts=config.num_experts,
        experts_per_token=config.experts_per_token,
        slots=slots,
        eps=config.rms_norm_eps,
        limit=config.swiglu_limit,
        norm=stored.vector(f"{norm}.weight", config.hidden_size),
        router=_matrix(stored, f"{path}.router", config.num_experts, config.hidden_size, bias=True),
        gate=experts["gate_proj"],
        up=experts["up_proj"],
        down=experts["down_proj"],
    )


def _as_stored(weights: Weights) -> Weights:
    """The same weights with small tensors in BF16, as every recipe stores them: views of the file, not copies."""
    return Weights(weights.checkpoint, weights.config, mx.bfloat16)


def _matrix(stored: Weights, module: str, *shape: int, bias: bool = False) -> Any:
    matrix = stored.matrix(module, *shape)
    return _stored(matrix, stored.vector(f"{module}.bias", *shape[:-1]) if bias else None)


def _mapped(weights: Weights, module: str, *shape: int) -> Any:
    """The kernels' StoredMatrix of a module with a bias, whose tensors MLX does not adopt."""
    weights.check_matrix(module, *shape)
    weights.check(f"{module}.bias", shape[:-1], FLOATS)
    q, checkpoint = weights.quantization(module), weights.checkpoint
    names = (f"{module}.{part}" for part in ("weight", "scales", "biases", "bias"))
    parts = (checkpoint.mapped(name) if name in checkpoint.tensors else None for name in names)
    form = ("bf16", 16, 1) if q is None else (q.mode, q.bits, q.group_size)
    return compiled().StoredMatrix(*form, *parts)


def _stored(matrix: Matrix, bias: mx.array | None) -> Any:
    """The kernels' StoredMatrix."""
    q = matrix.quantization
    if q is None:
        return compiled().StoredMatrix("bf16", 16, 1, matrix.weight, None, None, bias)
    return compiled().StoredMatrix(q.mode, q.bits, q.group_size, matrix.weight, matrix.scales, matrix.biases, bias)
