"""The gpt-oss network, top to bottom, in plain MLX operations. On a CPU, `kernels.layers` stands in for its parts.

One sequence at a time. Knows the published architecture (openai/gpt-oss, gpt_oss/torch/model.py); where weights lie is
`weights`' and `checkpoint`'s affair, the KV state is `cache`'s, and which tokens to feed is `engine`'s.
"""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from . import native_layers
from .config import Rope
from .expert_pool import ExpertPool
from .experts import Experts, PagedMoe
from .kv_cache import FullKV, KVCache, RingKV, Stored
from .weights import Weights


class Transformer:
    def __init__(self, weights: Weights, *, expert_slots: int | None = None, expert_layers_on_cpu: int = 0):
        """All experts in memory, or `expert_slots` of them at a time. Beside a GPU, the CPU can compute the experts of
        some layers, the last ones: they then do not count against what the GPU may hold.
        """
        config = weights.config
        self.config = config
        self.embedding = weights.embedding("model.embed_tokens", config.vocab_size, config.hidden_size)
        self.pool = None if expert_slots is None else ExpertPool(weights, expert_slots)
        on_cpu = range(config.num_layers - expert_layers_on_cpu, config.num_layers)
        self.layers = [
            Layer(weights, index, kind, self.pool, experts_on_cpu=index in on_cpu)
            for index, kind in enumerate(config.layer_types)
        ]
        self.norm = Norm(weights, "model.norm")
        head = "lm_head", config.vocab_size, config.hidden_size
        self.head = native_layers.linear(weights, *head) or weights.linear(*head, bias=False)

    def make_cache(self, context: int, kv_bits: int) -> KVCache:
        """The empty KV state of one conversation of at most `context` positions."""
        return KVCache(self.config, [layer.attention.kv_dtype for layer in self.layers], context, kv_bits)

    def hidden(self, ids: mx.array, cache: KVCache) -> mx.array:
        """Ids [1, L] at positions cache.offset.. -> hidden states [1, L, hidden], normalized; advances the cache."""
        x = self.embedding(ids)
        masks = cache.masks(ids.shape[1])
        for layer, kind, kv in zip(self.layers, self.config.layer_types, cache.layers, strict=True):
            x = layer(x, cache.offset, masks[kind], kv)
        cache.advance(ids.shape[1])
        return self.norm(x)

    def logits(self, hidden: mx.array) -> mx.array:
        """[1, L, hidden] -> [1, L, vocabulary]."""
        return self.head(hidden)


class Layer:
    """Attention and the mixture of experts, each behind a norm and added to what came in."""

    def __init__(self, weights: Weights, index: int, kind: str, pool: ExpertPool | None, *, experts_on_cpu: bool):
        config, path = weights.config, f"model.layers.{index}"
        attention = f"{path}.self_attn", f"{path}.input_layernorm"
        moe = f"{path}.mlp", f"{path}.post_attention_layernorm"
        positions = {
            "window": config.sliding_window if kind == "sliding_attention" else 0,
            # YaRN scales cos and sin, and so both q and k: squared, it can scale their product instead.
            "scale": mscale(config.rope) ** 2 / math.sqrt(config.head_dim),
            "freqs": rope_freqs(config.rope, config.head_dim),
        }
        self.attention = native_layers.attention(weights, *attention, **positions) or Attention(
            weights, *attention, **positions
        )
        if experts_on_cpu:
            self.moe = native_layers.moe_beside_gpu(weights, *moe)
            return
        parts = native_layers.moe(weights, *moe, pool) or MoeBlock(weights, *moe, pool)
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
    """Grouped-query attention with a learned sink logit per head, which joins the softmax and carries no value."""

    def __init__(self, weights: Weights, path: str, norm: str, *, window: int, scale: float, freqs: mx.array):
        """`window` is what the mask and `kv` already know."""
        config = weights.config
        self.norm = Norm(weights, norm)
        self.scale, self.freqs, self.kv_dtype = scale, freqs, weights.dtype
        self.head_dim = config.head_dim
        self.query = weights.linear(f"{path}.q_proj", config.num_heads * config.head_dim, config.hidden_size)
        self.key = weights.linear(f"{path}.k_proj", config.num_kv_heads * config.head_dim, config.hidden_size)
        self.value = weights.linear(f"{path}.v_proj", config.num_kv_heads * config.head_dim, config.hidden_size)
        self.output = weights.linear(f"{path}.o_proj", config.hidden_size, config.num_heads * config.head_dim)
        self.sinks = weights.vector(f"{path}.sinks", config.num_heads)

    def __call__(self, x: mx.array, offset: int, mask: mx.array | str | None, kv: FullKV | RingKV) -> mx.array:
        """x [1, L, hidden] at positions offset.. -> x + attention(norm(x)); stores keys and values in `kv`."""
        y = self.norm(x)
        query, key = (self._rotate(self._heads(project(y)), offset) for project in (self.query, self.key))
        keys, values = kv.update(offset, key, self._heads(self.value(y)))
        attend = mx.fast.scaled_dot_product_attention if isinstance(keys, mx.array) else quantized_attention
        y = attend(query, keys, values, scale=self.scale, mask=mask, sinks=self.sinks)
        return x + self.output(y.swapaxes(1, 2).flatten(2))

    def _heads(self, x: mx.array) -> mx.array:
        """[1, L, heads * head_dim] -> [1, heads, L, head_dim]."""
        return mx.unflatten(x, -1, (-1, self.head_dim)).swapaxes(1, 2)

    def _rotate(self, x: mx.array, offset: int) -> mx.array:
        return mx.fast.rope(x, self.head_dim, traditional=False, base=None, scale=1.0, offset=offset, freqs=self.freqs)


def quantized_attention(
    query: mx.array, keys: Stored, values: Stored, *, scale: float, mask: str | None, sinks: mx.array
) -> mx.array:
    """What mx.fast.scaled_dot_product_attention computes, over keys and values as `cache.FullKV` keeps them in 8 bits.

    Query [1, heads, L, head_dim]; the last query sees the last key. A stretch of keys at a time, with a running maximum
    (arXiv 1805.02867), so that the scores stay small in any context.
    """
    _, heads, length, width = query.shape
    kv_heads, positions = keys[0].shape[1:3]
    stored = {"group_size": width, "bits": 8}
    # Heads that share keys become rows of one matrix.
    rows = (query * scale).reshape(1, kv_heads, -1, width)
    most = mx.repeat(sinks.astype(mx.float32), length).reshape(1, kv_heads, -1, 1)
    weight, total = mx.ones_like(most), mx.zeros(rows.shape)
    last_seen = (mx.arange(rows.shape[2]) % length + (positions - length))[:, None]
    stretch = keys_at_a_time(heads * length)
    for start in range(0, positions, stretch):
        those = slice(start, min(start + stretch, positions))
        key, value = (tuple(part[:, :, those] for part in parts) for parts in (keys, values))
        scores = mx.quantized_matmul(rows, *key, transpose=True, **stored).astype(mx.float32)
        if mask == "causal":
            scores = mx.where(mx.arange(those.start, those.stop) <= last_seen, scores, -mx.inf)
        larger = mx.maximum(most, scores.max(axis=-1, keepdims=True))
        kept, each = mx.exp(most - larger), mx.exp(scores - larger)
        weight = weight * kept + each.sum(axis=-1, keepdims=True)
        total = total * kept + mx.quantized_matmul(each.astype(query.dtype), *value, transpose=False, **stored)
        most = larger
    return (total / weight).astype(query.dtype).reshape(query.shape)


def keys_at_a_time(rows: int) -> int:
    """Of keys in 8 bits, against `rows` queries: 2^22 scores take 16 MiB in FP32, and a product of few keys is slow."""
    return max(2**22 // rows, 128)


class MoeBlock:
    """The router picks experts for each token; the softmax is over the picked ones alone."""

    def __init__(self, weights: Weights, path: str, norm: str, pool: ExpertPool | None = None):
        """With a pool, the experts are its slots, and `route`, `expert_outputs` and `combine` are to be used."""
        config = weights.config
        self.norm = Norm(weights, norm)
        self.k = config.experts_per_token
        self.router = weights.linear(f"{path}.router", config.num_experts, config.hidden_size)
        self.experts = Experts.of_pool(weights, pool) if pool else Experts.resident(weights, f"{path}.experts")

    def __call__(self, x: mx.array) -> mx.array:
        """x [1, L, hidden] -> x + moe(norm(x))."""
        normed, chosen, share = self.route(x)
        return self.combine(x, chosen, share, self.experts(normed, chosen))

    def route(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """x [1, L, hidden] -> norm(x) [L, hidden], chosen experts [L, k] and their shares [L, k]."""
        normed = self.norm(x).flatten(0, 1)
        scores = self.router(normed)
        chosen = mx.argpartition(-scores, kth=self.k - 1, axis=-1)[:, : self.k]
        share = mx.softmax(mx.take_along_axis(scores, chosen, axis=-1), axis=-1, precise=True)
        return normed, chosen, share

    def expert_outputs(self, normed: mx.array, slots: mx.array, outputs: mx.array) -> mx.array:
        """Outputs [L, k, hidden] with those of the experts in `slots` [L, k]; below 0, an output stays as it is."""
        number = np.array(slots).ravel()
        pairs = np.argsort(number, kind="stable")[np.count_nonzero(number < 0) :]
        y = self.experts.outputs(normed[mx.array(pairs // self.k)], mx.array(number[pairs]), in_order=len(normed) > 1)
        outputs = outputs.flatten(0, 1)
        outputs[mx.array(pairs)] = y
        return outputs.reshape(len(normed), self.k, -1)

    def combine(self, x: mx.array, chosen: mx.array, share: mx.array, outputs: mx.array) -> mx.array:
        """x + the outputs, weighted."""
        return x + (outputs * share[..., None]).sum(axis=1).reshape(x.shape)


def mscale(rope: Rope) -> float:
    """YaRN's factor on cos and sin: 0.1 ln(factor) + 1 (arXiv 2309.00071, equation 22)."""
    return 0.1 * math.log(rope.factor) + 1


def rope_freqs(rope: Rope, head_dim: int) -> mx.array:
    """float32 [head_dim / 2]: positions per radian of each rotated pair (arXiv 2309.00071, section 3.2).

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
