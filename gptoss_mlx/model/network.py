"""The gpt-oss network, top to bottom, in plain MLX operations. On a CPU, `native_layers` replaces its parts.

One sequence at a time. Knows the published architecture (openai/gpt-oss, gpt_oss/torch/model.py); leaves the place of
weights to `weights` and `checkpoint`, the KV cache to `kv_cache`, and the choice of tokens to `engine`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import mlx.core as mx
import numpy as np

from ..device import fused
from . import native_layers
from .config import Rope
from .expert_pool import ExpertPool
from .experts import Experts, PagedMoe
from .kv_cache import FullKV, KVCache, RingKV
from .weights import Weights


class Transformer:
    def __init__(
        self,
        weights: Weights,
        *,
        expert_slots: int | None = None,
        expert_layers_on_cpu: int = 0,
        embeddings_on_gpu: bool = False,
    ):
        """All experts in memory, or `expert_slots` of them at a time. Beside a GPU, the CPU can compute the experts of
        the last layers, so that these do not count against the GPU's limit, and looks up embeddings unless they are
        on the GPU. Raises CheckpointError, GptOssError."""
        config = weights.config
        self.config = config
        embeddings = "model.embed_tokens", config.vocab_size, config.hidden_size
        self.embedding = weights.embedding(*embeddings, on_gpu=embeddings_on_gpu)
        self.pool = None if expert_slots is None else ExpertPool(weights, expert_slots)
        on_cpu = range(config.num_layers - expert_layers_on_cpu, config.num_layers)
        self.layers = [
            Layer(weights, index, kind, self.pool, experts_on_cpu=index in on_cpu)
            for index, kind in enumerate(config.layer_types)
        ]
        paged = [layer.moe for layer in self.layers if isinstance(layer.moe, PagedMoe)]
        for moe, following in pairwise(paged):
            moe.next_parts = following.parts
        self.norm = Norm(weights, "model.norm")
        head = "lm_head", config.vocab_size, config.hidden_size
        self.head = native_layers.linear(weights, *head) or weights.linear(*head, bias=False)

    def make_cache(self, context: int, kv_bits: int) -> KVCache:
        """The empty KV cache of a conversation of up to `context` positions."""
        return KVCache(self.config, [layer.attention.kv_dtype for layer in self.layers], context, kv_bits)

    def hidden(self, ids: mx.array, cache: KVCache) -> mx.array:
        """Ids [1, L] at positions cache.offset.. -> normalized hidden states [1, L, hidden]; advances the cache."""
        x = self.embedding(ids)
        masks = cache.masks(ids.shape[1])
        for layer, kind, kv in zip(self.layers, self.config.layer_types, cache.layers, strict=True):
            x = layer(x, cache.offset, masks[kind], kv)
        cache.advance(ids.shape[1])
        return self.norm(x)

    @property
    def at_once(self) -> int:
        """Conversations of which a token each can be read together: several where all parts are kernels."""
        blocks = [layer.moe.parts if isinstance(layer.moe, PagedMoe) else layer.moe for layer in self.layers]
        parts = [self.head, *blocks, *(layer.attention for layer in self.layers)]
        return native_layers.FEW_TOKENS if all(map(native_layers.is_native, parts)) else 1

    def hidden_together(self, ids: Sequence[int], caches: Sequence[KVCache]) -> mx.array:
        """The next id of each conversation, up to `at_once` of them -> normalized hidden states [1, conversations,
        hidden], with the same bits as `hidden` gives one after another; advances the caches. Each weight of the dense
        parts is read once for all of them, and so is an expert that several choose."""
        x = self.embedding(mx.array([ids]))
        offsets = [cache.offset for cache in caches]
        for index, layer in enumerate(self.layers):
            assert isinstance(layer.attention, native_layers.NativeAttention)
            x = layer.moe(layer.attention.together(x, offsets, [cache.layers[index] for cache in caches]))
        for cache in caches:
            cache.advance(1)
        return self.norm(x)

    def logits(self, hidden: mx.array) -> mx.array:
        """[1, L, hidden] -> [1, L, vocabulary]."""
        return self.head(hidden)


class Layer:
    """Attention and the MoE block, each after a norm and with a residual connection."""

    def __init__(self, weights: Weights, index: int, kind: str, pool: ExpertPool | None, *, experts_on_cpu: bool):
        config, path = weights.config, f"model.layers.{index}"
        window = config.sliding_window if kind == "sliding_attention" else 0
        # YaRN scales cos and sin, and so both q and k: squared, it can scale their product instead.
        scale = mscale(config.rope) ** 2 / math.sqrt(config.head_dim)
        freqs = rope_freqs(config.rope, config.head_dim)
        attention = weights, f"{path}.self_attn", f"{path}.input_layernorm", window, scale, freqs
        self.attention = native_layers.attention(*attention) or Attention(*attention)
        moe = weights, f"{path}.mlp", f"{path}.post_attention_layernorm"
        self.moe: Callable[[mx.array], mx.array]
        if experts_on_cpu:
            self.moe = native_layers.moe_beside_gpu(*moe)
            return
        parts = native_layers.moe(*moe, pool) or MoeBlock(*moe, pool)
        self.moe = parts if pool is None else PagedMoe(parts, pool, index)

    def __call__(self, x: mx.array, offset: int, mask: mx.array | str | None, kv: FullKV | RingKV) -> mx.array:
        return self.moe(self.attention(x, offset, mask, kv))


class Norm:
    """RMSNorm."""

    def __init__(self, weights: Weights, path: str):
        self.weight = weights.vector(f"{path}.weight", weights.config.hidden_size)
        self.eps = weights.config.rms_norm_eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight, self.eps)


class Attention:
    """Grouped-query attention with a learned sink logit per head, which joins the softmax and has no value."""

    def __init__(self, weights: Weights, path: str, norm: str, window: int, scale: float, freqs: mx.array):
        """`window` is unused: the mask and the KV cache have it."""
        config = weights.config
        self.norm = Norm(weights, norm)
        self.scale, self.freqs, self.kv_dtype = scale, freqs, weights.dtype
        self.head_dim = config.head_dim
        self.heads, self.kv_heads = config.num_heads, config.num_kv_heads
        outputs = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
        sizes = {f"{path}.{name}_proj": heads * config.head_dim for name, heads in outputs.items()}
        self.inputs = weights.linears(sizes, config.hidden_size)
        self.output = weights.linear(f"{path}.o_proj", config.hidden_size, config.num_heads * config.head_dim)
        self.sinks = weights.vector(f"{path}.sinks", config.num_heads)

    def __call__(self, x: mx.array, offset: int, mask: mx.array | str | None, kv: FullKV | RingKV) -> mx.array:
        """x [1, L, hidden] at positions offset.. -> x + attention(norm(x)); stores keys and values in `kv`."""
        y = self._heads(self.inputs(self.norm(x)))
        rotated = self._rotate(y[:, : self.heads + self.kv_heads], offset)  # queries and keys
        query, key, value = rotated[:, : self.heads], rotated[:, self.heads :], y[:, self.heads + self.kv_heads :]
        seen = kv.update(offset, key, value)
        if len(seen) == 2:
            y = attention(query, *seen, scale=self.scale, mask=mask, sinks=self.sinks)
        else:
            y = quantized_attention(query, seen, scale=self.scale, causal=mask == "causal", sinks=self.sinks)
        return self.output.added_to(x, y.swapaxes(1, 2).flatten(2))

    def _heads(self, x: mx.array) -> mx.array:
        """[1, L, heads * head_dim] -> [1, heads, L, head_dim]."""
        return mx.unflatten(x, -1, (-1, self.head_dim)).swapaxes(1, 2)

    def _rotate(self, x: mx.array, offset: int) -> mx.array:
        return mx.fast.rope(x, self.head_dim, traditional=False, base=None, scale=1.0, offset=offset, freqs=self.freqs)


def attention(
    query: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: mx.array | str | None, sinks: mx.array
) -> mx.array:
    """mx.fast.scaled_dot_product_attention, in parts where Metal would keep the scores of all keys.

    It has a kernel for more than 8 queries, and one for so few that the heads that share keys make at most 32 rows of
    them (mlx/backend/metal/scaled_dot_product_attention.cpp): 4 queries of gpt-oss.
    """
    length, at_a_time = query.shape[2], max(32 * keys.shape[1] // query.shape[1], 1)
    starts = range(0, length, at_a_time if length <= 8 else length)
    parts = []
    for start in starts:
        end = min(start + starts.step, length)
        # With "causal", the last query of a part sees the last of its keys.
        seen = keys.shape[2] - (length - end if mask == "causal" else 0)
        part_mask = mask[start:end] if isinstance(mask, mx.array) else mask
        part = mx.fast.scaled_dot_product_attention(
            query[:, :, start:end], keys[:, :, :seen], values[:, :, :seen], scale=scale, mask=part_mask, sinks=sinks
        )
        parts.append(part)
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


def quantized_attention(
    query: mx.array, kv: Sequence[mx.array], *, scale: float, causal: bool, sinks: mx.array
) -> mx.array:
    """mx.fast.scaled_dot_product_attention over an 8-bit KV cache: `kv` is the six arrays of `FullKV.update`.

    query [1, heads, L, head_dim] -> the same shape; if `causal`, the last query sees the last key. A chunk of keys at a
    time, with a running denominator (arXiv 1805.02867), so that the scores stay small in any context. Decode has one
    chunk: five launches.
    """
    _, heads, length, width = query.shape
    kv_heads, positions = kv[0].shape[1:3]
    rows = query.reshape(1, kv_heads, -1, width)  # heads that share keys become rows of one matrix
    last_seen = (mx.arange(rows.shape[2]) % length + (positions - length))[:, None] if causal else None
    denominator = mx.repeat(sinks, length).reshape(1, kv_heads, -1, 1)  # its logarithm
    y: mx.array | None = None
    chunk = keys_at_a_time(heads * length)
    for start in range(0, positions, chunk):
        keys, values = ([part[:, :, start : start + chunk] for part in parts] for parts in (kv[:3], kv[3:]))
        products = _product(rows, keys, transpose=True)
        unseen = None if last_seen is None else mx.arange(start, start + products.shape[-1]) > last_seen
        terms = mx.logsumexp(attention_logits(products, scale, unseen), axis=-1, keepdims=True)
        shares = attention_weights(products, scale, unseen, denominator, terms)
        part = _product(shares, values, transpose=False)
        larger = mx.logaddexp(denominator.astype(mx.float32), terms)
        y = part if y is None else y * mx.exp(denominator - larger) + part
        denominator = larger
    assert y is not None
    return y.astype(query.dtype).reshape(query.shape)


def _product(x: mx.array, stored: Sequence[mx.array], *, transpose: bool) -> mx.array:
    """x times 8-bit keys or values, whose heads are groups."""
    codes, scales, biases = stored
    return mx.quantized_matmul(x, codes, scales, biases, transpose=transpose, group_size=4 * codes.shape[-1], bits=8)


def _logits(products: mx.array, scale: float, unseen: mx.array | None) -> mx.array:
    """q k in FP32, times `scale`; minus infinity where a key is unseen."""
    logits = products.astype(mx.float32) * scale
    return logits if unseen is None else mx.where(unseen, -mx.inf, logits)


attention_logits = fused(_logits)


@fused
def attention_weights(
    products: mx.array, scale: float, unseen: mx.array | None, denominator: mx.array, terms: mx.array
) -> mx.array:
    """The softmax of these logits, `terms` the logarithm of their sum and `denominator` that of all others, in the
    dtype of `products`."""
    whole = mx.logaddexp(denominator.astype(mx.float32), terms)
    return mx.exp(_logits(products, scale, unseen) - whole).astype(products.dtype)


def keys_at_a_time(rows: int) -> int:
    """How many 8-bit keys meet `rows` queries at a time: 2^22 scores take 16 MiB in FP32; few keys would be slow."""
    return max(2**22 // rows, 128)


class MoeBlock:
    """The router picks experts for each token; the softmax over the picked ones alone gives their routing weights."""

    def __init__(self, weights: Weights, path: str, norm: str, pool: ExpertPool | None = None):
        """With a pool, the experts are its slots: call `route`, `expert_outputs` and `combine` instead of the block."""
        config = weights.config
        self.norm = Norm(weights, norm)
        self.k = config.experts_per_token
        self.router = weights.linear(f"{path}.router", config.num_experts, config.hidden_size)
        self.experts = Experts.of_pool(weights, pool) if pool else Experts.resident(weights, f"{path}.experts")

    def __call__(self, x: mx.array) -> mx.array:
        """x [1, L, hidden] -> x + moe(norm(x))."""
        normed, chosen, routing_weights = self.route(x)
        return self.combine(x, chosen, routing_weights, self.experts(normed, chosen))

    def route(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """x [1, L, hidden] -> norm(x) [L, hidden], chosen experts [L, k] and their routing weights [L, k]."""
        normed = self.norm(x).flatten(0, 1)
        scores = self.router(normed)
        chosen = mx.argpartition(scores, kth=-self.k, axis=-1)[:, -self.k :]
        routing_weights = mx.softmax(mx.take_along_axis(scores, chosen, axis=-1), axis=-1, precise=True)
        return normed, chosen, routing_weights

    def expert_outputs(self, normed: mx.array, slots: mx.array, outputs: mx.array) -> mx.array:
        """outputs [L, k, hidden] with those of the experts in `slots` [L, k] replaced; a negative slot changes none."""
        number = np.array(slots).ravel()
        if len(normed) == 1 and number.min() >= 0:
            return self.experts(normed, slots)
        pairs = np.argsort(number, kind="stable")[np.count_nonzero(number < 0) :]
        y = self.experts.outputs(normed[mx.array(pairs // self.k)], mx.array(number[pairs]), in_order=len(normed) > 1)
        outputs = outputs.flatten(0, 1)
        outputs[mx.array(pairs)] = y
        return outputs.reshape(len(normed), self.k, -1)

    def combine(self, x: mx.array, chosen: mx.array, routing_weights: mx.array, outputs: mx.array) -> mx.array:
        """x [1, L, hidden] + the sum of outputs [L, k, hidden] times routing weights [L, k]."""
        return mx.addmm(x.swapaxes(0, 1), routing_weights[:, None], outputs).swapaxes(0, 1)


def mscale(rope: Rope) -> float:
    """YaRN's attention scaling, a factor on cos and sin: 0.1 ln(factor) + 1 (arXiv 2309.00071, equation 22)."""
    return 0.1 * math.log(rope.factor) + 1


def rope_freqs(rope: Rope, head_dim: int) -> mx.array:
    """float32 [head_dim / 2]: MLX's `freqs` of each rotated pair, which are positions per radian, the reciprocals of
    the inverse frequencies that papers and transformers have (arXiv 2309.00071, section 3.2).

    Pairs that turn more than beta_fast times within the original context keep their frequency, those that turn less
    than beta_slow times are slowed by `factor`, and a ramp joins them. gpt-oss does not round the ends of the ramp.
    """
    pairs = range(head_dim // 2)
    plain = [rope.theta ** (2 * pair / head_dim) for pair in pairs]
    if rope.factor == 1:
        return mx.array(plain)

    def pair_turning(times: float) -> float:
        return head_dim * math.log(rope.original_context / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_turning(rope.beta_fast), pair_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high = high + 0.001 if high == low else high
    slowed = [min(max((pair - low) / (high - low), 0), 1) for pair in pairs]
    return mx.array([w / (1 - s + s / rope.factor) for w, s in zip(plain, slowed, strict=True)])
