"""The limit of speed: what the network has to read and to compute, and the best rates of the machine.

Decoding a token reads the weights that it goes through, of the experts those of its own, and all keys and values that
it attends to. Prefill reads the same weights once for a chunk of tokens, of the experts all that some token of the
chunk chose, and is mostly arithmetic. Not counted is what is small or stays in a processor's cache: activations, and
rows of the embedding table.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from math import prod

import mlx.core as mx

from .. import kernels
from ..device import is_gpu
from ..memory.system import total
from ..model.config import ModelConfig
from ..model.kv_cache import FullKV, KVCache, RingKV
from ..model.safetensors import TensorInfo
from .facts import quantized_weights
from .results import Rates, Work

STAGES = {".self_attn.": "attention", ".input_layernorm.": "attention", ".mlp.": "experts"} | {
    ".post_attention_layernorm.": "experts",
    "lm_head.": "head",
    "model.norm.": "head",
}

# The size of an array that is read to measure a GPU's bandwidth, and of a matrix that is squared for its arithmetic.
GPU_READ_BYTES, MIN_GPU_READ_BYTES = 2**30, 2**26
GPU_MATRIX_SIDE = 4096
AT_A_TIME, ROUNDS = 8, 4  # products that a GPU gets together, and how often


@dataclass
class StageWeights:
    """Weights that a token meets in one stage."""

    bytes: float = 0
    """Bytes that are read for it if it comes alone."""
    matrix_weights: float = 0
    """Weights that are each one multiplication and addition, in the arithmetic of products with quantized weights."""
    vector_weights: float = 0
    """The same in FP32, as the kernels do it for weights in BF16."""


class Workload:
    """What the network of a folder reads and computes, whoever runs it."""

    def __init__(self, tensors: Mapping[str, TensorInfo], config: ModelConfig, cache: KVCache):
        """`cache`: an empty one, which knows how keys and values are kept."""
        self.config, self.cache = config, cache
        self.shared = {name: StageWeights() for name in dict.fromkeys(STAGES.values())}
        self.experts = StageWeights()
        """The weights of all experts of all layers together."""
        for name, tensor in tensors.items():
            stage = next((stage for part, stage in STAGES.items() if part in name), None)
            if stage is None:  # the embedding table
                continue
            weights = self.experts if ".mlp.experts." in name else self.shared[stage]
            weights.bytes += tensor.nbytes
            module = name.removesuffix(".weight")
            if module == name or len(tensor.shape) < 2:
                continue
            if f"{module}.scales" in tensors:
                weights.matrix_weights += quantized_weights(module, tensors, config)
            else:
                weights.vector_weights += prod(tensor.shape)

    def stage_bytes(self, depth: int) -> dict[str, int]:
        """Bytes that one token reads after `depth` tokens of context, by stage."""
        found = {name: weights.bytes for name, weights in self.shared.items()}
        found["experts"] += self.experts.bytes * self._chosen_share
        found["attention"] += self._kv_bytes(depth, 1)
        return {name: round(count) for name, count in found.items()}

    def decode(self, depth: int, tokens: int) -> Work:
        """`tokens` tokens, one after the other, after `depth`."""
        weights = sum(each.bytes for each in self.shared.values()) + self.experts.bytes * self._chosen_share
        return self._work(depth, tokens, tokens * weights + self._kv_bytes(depth, tokens), heads=tokens)

    def prefill(self, depth: int, tokens: int, chunk: int) -> Work:
        """`tokens` tokens, `chunk` at a time, after `depth`; the head follows the last of them alone."""
        bytes_read = self.shared["head"].bytes
        layers = self.shared["attention"].bytes + self.shared["experts"].bytes
        for start in range(0, tokens, chunk):
            count = min(chunk, tokens - start)
            # If each token chose at random: routing that prefers some experts reads fewer, and can beat this limit.
            needed = 1 - (1 - self._chosen_share) ** count
            bytes_read += layers + self.experts.bytes * needed + self._kv_bytes(depth + start + count - 1, 1)
        return self._work(depth, tokens, bytes_read, heads=1)

    @property
    def _chosen_share(self) -> float:
        """The share of the experts that one token chooses."""
        return self.config.experts_per_token / self.config.num_experts

    def _work(self, depth: int, tokens: int, bytes_read: float, heads: int) -> Work:
        """What `tokens` tokens after `depth` take, `heads` of which are followed by the head. Attention has scores, and
        sums of values: each a multiplication and an addition for every position that is seen."""
        times = [(self.shared["attention"], tokens), (self.shared["experts"], tokens), (self.shared["head"], heads)]
        parts = [*times, (self.experts, tokens * self._chosen_share)]
        seen = sum(_seen(layer, depth, tokens) for layer in self.cache.layers)
        vector = 2 * sum(weights.vector_weights * count for weights, count in parts)
        return Work(
            bytes=round(bytes_read),
            matrix_operations=round(2 * sum(weights.matrix_weights * count for weights, count in parts)),
            vector_operations=round(vector) + 4 * self.config.num_heads * self.config.head_dim * seen,
        )

    def _kv_bytes(self, depth: int, tokens: int) -> int:
        """Keys and values of all layers that `tokens` tokens after `depth` see, each for itself."""
        return sum(
            layer.heads * sum(columns * dtype.size for columns, dtype in layer.forms) * _seen(layer, depth, tokens)
            for layer in self.cache.layers
        )


def _seen(layer: FullKV | RingKV, depth: int, tokens: int) -> int:
    """The positions that each of `tokens` tokens after `depth` attends to, itself included, added up."""
    window = layer.window if isinstance(layer, RingKV) else depth + tokens
    growing = max(min(window - depth, tokens), 0)
    return growing * depth + growing * (growing + 1) // 2 + (tokens - growing) * window


def measured_bandwidth(room: int) -> float | None:
    """Bytes per second that the kernels' threads, or the GPU, read now; `room` bytes of memory are free for it."""
    return _gpu_bandwidth(room) if is_gpu() else kernels.read_bandwidth(room)


def measured_rates(room: int) -> Rates:
    """The rates of the kernels' threads, or of the GPU, now; `room` bytes of memory are free for it.

    Without kernels nothing is measured on a CPU: MLX uses it too little for a limit to mean anything.
    """
    if is_gpu():
        limit = mx.set_memory_limit(total())  # above that of the plan, MLX would go slower
        rates = Rates(_gpu_bandwidth(room), rate := _gpu_product_rate(), rate)
        mx.set_memory_limit(limit)
        mx.clear_cache()  # or MLX keeps this memory, as if the model had needed it
        return rates
    products = kernels.product_rates()
    return Rates(kernels.read_bandwidth(room), *(products or (None, None)))


def mean_rates(all_rates: Sequence[Rates]) -> Rates:
    """The mean of each rate; None where one of them is not known."""
    columns = zip(*(astuple(rates) for rates in all_rates), strict=True)
    return Rates(*(None if None in column else statistics.fmean(column) for column in columns))


def _gpu_bandwidth(room: int) -> float:
    """Bytes per second of a matrix by a vector, in BF16, as decoding reads weights."""
    width = 16384
    rows = max(min(room, GPU_READ_BYTES), MIN_GPU_READ_BYTES) // (2 * width)
    matrix, vectors = mx.ones((rows, width), mx.bfloat16), mx.ones((AT_A_TIME, width, 1), mx.bfloat16)
    mx.eval(matrix, vectors)
    return _best_rate(AT_A_TIME * matrix.nbytes, lambda: [matrix @ vectors[i] for i in range(AT_A_TIME)])


def _gpu_product_rate() -> float:
    """Operations per second of a product of two matrices in BF16."""
    side = GPU_MATRIX_SIDE
    matrix = mx.ones((side, side), mx.bfloat16)
    mx.eval(matrix)
    return _best_rate(AT_A_TIME * 2 * side**3, lambda: [matrix @ matrix for _ in range(AT_A_TIME)])


def _best_rate(amount: float, work: Callable[[], list[mx.array]]) -> float:
    """The most of `amount` per second, after a first round that only warms up."""
    seconds = []
    for _ in range(1 + ROUNDS):
        started = time.perf_counter()
        mx.eval(work())
        seconds.append(time.perf_counter() - started)
    return amount / min(seconds[1:])
