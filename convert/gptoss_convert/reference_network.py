"""The network in FP32, one matrix at a time: what a checkpoint computes, source or converted, in little memory.

In NumPy, whose products of many tokens with a matrix are BLAS's: MLX's on a Linux CPU take a hundred times as long. A
matrix is decoded for its one product and forgotten, an expert at a time, so memory depends neither on the number of
layers nor on that of experts. `gptoss_mlx.model.network` is the network that generates; the tests compare the two.
Knows nothing about what is measured with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import EllipsisType
from typing import Protocol

import mlx.core as mx
import numpy as np

from gptoss_mlx.errors import GptOssError
from gptoss_mlx.model.bf16 import as_f32
from gptoss_mlx.model.checkpoint import FLOATS
from gptoss_mlx.model.config import SWIGLU_ALPHA, ModelConfig
from gptoss_mlx.model.network import mscale, rope_freqs
from gptoss_mlx.model.recognition import open_converted
from gptoss_mlx.model.safetensors import CheckpointError
from gptoss_mlx.model.weights import Weights

from . import affine, mxfp4
from .sources import Source

Index = int | slice | np.ndarray | EllipsisType
# A linear map's path, the number of the expert if it is one's, and what comes in, float32 [tokens, inputs].
OnInput = Callable[[str, int | None, np.ndarray], None]

WINDOW = 512  # the largest number of tokens that attend to each other


class DecodedWeights(Protocol):
    """Every weight of a model under its canonical name, decoded when it is asked for."""

    config: ModelConfig

    def values(self, name: str, index: Index = ...) -> np.ndarray:
        """float32: a whole tensor, or this part of its first dimension. Raises CheckpointError."""


class SourceWeights:
    def __init__(self, source: Source):
        self.folder, self.config = source.folder, source.config
        self._items = {item.name: item for item in source.weights()}
        self.shapes = {name: item.shape for name, item in self._items.items()}

    @property
    def layer_bytes(self) -> int:
        """What a layer's weights take in FP32."""
        return 4 * sum(math.prod(shape) for name, shape in self.shapes.items() if name.startswith("model.layers.0."))

    def values(self, name: str, index: Index = ...) -> np.ndarray:
        item = self._items[name]
        if isinstance(index, int):
            return item.as_f32(slice(index, index + 1))[0]
        if isinstance(index, np.ndarray):
            return np.concatenate([item.as_f32(slice(row, row + 1)) for row in index.tolist()])
        return item.as_f32(slice(None) if index is ... else index)


class ConvertedWeights:
    def __init__(self, folder: Path):
        """Raises GptOssError for a folder that is no model's."""
        self.folder = folder
        self.config, self._checkpoint = open_converted(folder)
        self._stored = Weights(self._checkpoint, self.config, mx.float32)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise CheckpointError unless the folder has a tensor of this shape, in any form."""
        if len(shape) >= 2 and name.endswith(".weight"):
            self._stored.matrix(name.removesuffix(".weight"), *shape)  # for its checks alone: nothing is read
        else:
            self._stored.check(name, shape, FLOATS)

    def values(self, name: str, index: Index = ...) -> np.ndarray:
        module = name.removesuffix(".weight")
        q = self._stored.quantization(module) if name.endswith(".weight") else None
        if q is None:
            return self._floats(name, index)
        weight = self._checkpoint.view(name)[index]
        if q.mode == "mxfp4":
            blocks = weight.view(np.uint8).reshape(*weight.shape[:-1], -1, mxfp4.BLOCK // 2)
            return _of_blocks(f"{self.folder}: {name!r}", blocks, self._checkpoint.view(f"{module}.scales")[index])
        scales, biases = (self._floats(f"{module}.{part}", index) for part in ("scales", "biases"))
        return affine.dequantized(weight, scales, biases, q.group_size, q.bits)

    def _floats(self, name: str, index: Index) -> np.ndarray:
        return as_f32(self._checkpoint.view(name)[index])


def _of_blocks(where: str, blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    if (scales == mxfp4.NOT_A_NUMBER).any():
        raise CheckpointError(f"{where} has a scale that is not a number (E8M0 255): the checkpoint is corrupt")
    return mxfp4.dequantized(blocks, scales)


def windows(source: Source, text: str, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `tokens` ids of a text in windows of one length, [windows, length], and the id that follows each one.

    Raises GptOssError for a text that has fewer than two tokens.
    """
    ids = np.array(source.tokenizer().encode(text, tokens + 1))
    if len(ids) < 2:
        raise GptOssError(f"the text has {len(ids)} tokens: a prediction takes at least 2")
    if ids.max() >= source.config.vocab_size:
        raise GptOssError(f"the tokenizer has the id {ids.max()}, outside the vocabulary of {source.config.vocab_size}")
    return in_windows(ids)


def in_windows(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At least two ids -> those that predict and those that follow them, each [windows, length]."""
    count = math.ceil((len(ids) - 1) / WINDOW)
    length = (len(ids) - 1) // count
    predicting, following = (ids[start : start + count * length].reshape(count, length) for start in (0, 1))
    return predicting, following


class Network:
    def __init__(self, weights: DecodedWeights, on_input: OnInput = lambda module, expert, x: None):
        """`on_input` is called with the inputs of each linear map but the head."""
        self.weights, self.config, self._on_input = weights, weights.config, on_input

    @np.errstate(over="ignore", invalid="ignore")
    def hidden(self, ids: np.ndarray, on_layer: Callable[[], None] = lambda: None) -> np.ndarray:
        """Ids [windows, length] -> float32 [windows * length, hidden], normalized: what comes into the head.

        `on_layer` is called after each layer.
        """
        positions = np.arange(ids.shape[1])
        distance = positions[:, None] - positions
        seen = {
            "full_attention": distance >= 0,
            "sliding_attention": (distance >= 0) & (distance < self.config.sliding_window),
        }
        angles = positions[:, None] / np.array(rope_freqs(self.config.rope, self.config.head_dim))
        turn = (mscale(self.config.rope) * np.exp(1j * angles)).astype(np.complex64)
        x = self.weights.values("model.embed_tokens.weight", ids.ravel())
        for index, kind in enumerate(self.config.layer_types):
            path = f"model.layers.{index}"
            x += self._attention(f"{path}.self_attn", self._norm(f"{path}.input_layernorm", x), turn, seen[kind])
            x += self._moe(f"{path}.mlp", self._norm(f"{path}.post_attention_layernorm", x))
            on_layer()
        return self._norm("model.norm", x)

    @np.errstate(over="ignore", invalid="ignore")
    def logits(self, hidden: np.ndarray, vocabulary: slice) -> np.ndarray:
        """[tokens, hidden] -> the logits of a range of the vocabulary, float32 [tokens, range]."""
        return hidden @ self.weights.values("lm_head.weight", vocabulary).T

    def _norm(self, path: str, x: np.ndarray) -> np.ndarray:
        mean_square = np.einsum("ti,ti->t", x, x)[:, None] / np.float32(x.shape[-1])
        return x / np.sqrt(mean_square + np.float32(self.config.rms_norm_eps)) * self.weights.values(f"{path}.weight")

    def _linear(self, module: str, x: np.ndarray) -> np.ndarray:
        self._on_input(module, None, x)
        return x @ self.weights.values(f"{module}.weight").T + self.weights.values(f"{module}.bias")

    def _attention(self, path: str, x: np.ndarray, turn: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """x [tokens, hidden] -> the same shape. `turn` complex64 [length, head_dim / 2] rotates queries and keys,
        `seen` [length, length] says which keys each query sees."""
        config, length = self.config, len(seen)

        def heads(name: str, sharing: int) -> np.ndarray:
            """float32 [windows, KV heads, heads that share one, length, head_dim]."""
            y = self._linear(f"{path}.{name}", x)
            return y.reshape(-1, length, config.num_kv_heads, sharing, config.head_dim).transpose(0, 2, 3, 1, 4)

        sharing = config.num_heads // config.num_kv_heads
        query, key = _rotated(heads("q_proj", sharing), turn), _rotated(heads("k_proj", 1), turn)
        value = heads("v_proj", 1)
        sinks = self.weights.values(f"{path}.sinks").reshape(config.num_kv_heads, sharing, 1, 1)
        y = np.empty_like(query)
        for head in np.ndindex(y.shape[:2]):
            y[head] = _attended(query[head], key[head][0], value[head][0], sinks[head[1]], seen)
        return self._linear(f"{path}.o_proj", y.transpose(0, 3, 1, 2, 4).reshape(len(x), -1))

    def _moe(self, path: str, x: np.ndarray) -> np.ndarray:
        """x [tokens, hidden] -> the same shape: for each token, its experts' outputs weighted and summed."""
        scores, k = self._linear(f"{path}.router", x), self.config.experts_per_token
        chosen = np.argpartition(-scores, k - 1)[:, :k]
        weight = np.exp(np.take_along_axis(scores - scores.max(axis=1, keepdims=True), chosen, axis=1))
        weight /= weight.sum(axis=1, keepdims=True)
        total = np.zeros_like(x)
        for expert in range(self.config.num_experts):
            tokens, place = np.nonzero(chosen == expert)
            if len(tokens):
                total[tokens] += weight[tokens, place, None] * self._expert(f"{path}.experts", expert, x[tokens])
        return total

    def _expert(self, path: str, expert: int, x: np.ndarray) -> np.ndarray:
        def project(name: str, x: np.ndarray) -> np.ndarray:
            module = f"{path}.{name}"
            self._on_input(module, expert, x)
            weight, bias = (self.weights.values(f"{module}.{part}", expert) for part in ("weight", "bias"))
            return x @ weight.T + bias

        limit = np.float32(self.config.swiglu_limit)
        gate = np.minimum(project("gate_proj", x), limit)
        up = np.clip(project("up_proj", x), -limit, limit)
        # Of a gate far below zero the exponential overflows, and the output is zero as it should be.
        return project("down_proj", (up + 1) * gate / (1 + np.exp(np.float32(-SWIGLU_ALPHA) * gate)))


def _rotated(x: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """x [..., length, head_dim], in which element i of the first half and of the second are a pair, turned."""
    first, second = np.split(x, 2, axis=-1)
    turned = (first + 1j * second) * turn
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _attended(query: np.ndarray, key: np.ndarray, value: np.ndarray, sinks: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Heads that share keys and values: query [G, L, head_dim], key and value [L, head_dim], sinks [G, 1, 1] -> as
    query."""
    heads, length, width = query.shape
    # One product of all the heads' rows: BLAS is several times slower at one for each head.
    scores = (query.reshape(-1, width) @ key.T).reshape(heads, length, length)
    scores /= np.float32(math.sqrt(width))
    np.copyto(scores, -np.inf, where=~seen)
    largest = np.maximum(scores.max(axis=-1, keepdims=True), sinks)
    scores -= largest
    np.exp(scores, out=scores)
    y = (scores.reshape(-1, length) @ value).reshape(query.shape)
    return y / (scores.sum(axis=-1, keepdims=True) + np.exp(sinks - largest))
