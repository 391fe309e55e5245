"""The gpt-oss network, top to bottom, in plain MLX operations. On a CPU, `kernels.layers` stands in for its parts.

One sequence at a time. Knows the published architecture (openai/gpt-oss, gpt_oss/torch/model.py); where weights lie is
`weights`' and `checkpoint`'s affair, the KV state is `cache`'s, and which tokens to feed is `engine`'s.
"""

from __future__ import annotations

import math

import mlx.core as mx

from .cache import Cache, FullKV, RingKV
from .config import Rope
from .experts import Experts
from .kernels import layers as kernels
from .weights import Weights


class Transformer:
    def __init__(self, weights: Weights):
        config = weights.config
        self.config = config
        self.embedding = weights.embedding("model.embed_tokens", config.vocab_size, config.hidden_size)
        self.layers = [Layer(weights, f"model.layers.{index}", kind) for index, kind in enumerate(config.layer_types)]
        self.norm = Norm(weights, "model.norm")
        head = "lm_head", config.vocab_size, config.hidden_size
        self.head = kernels.linear(weights, *head) or weights.linear(*head, bias=False)

    def hidden(self, ids: mx.array, cache: Cache) -> mx.array:
        """Ids [1, L] at positions cache.offset.. -> hidden states [1, L, hidden], normalized; advances the cache."""
        x = self.embedding(ids)
        masks = cache.masks(ids.shape[1])
        for layer, kind, kv in zip(self.layers, self.config.layer_types, cache.layers, strict=True):
            x = layer(x, cache.offset, masks[kind], kv)
        cache.offset += ids.shape[1]
        return self.norm(x)

    def logits(self, hidden: mx.array) -> mx.array:
        """[1, L, hidden] -> [1, L, vocabulary]."""
        return self.head(hidden)


class Layer:
    """Attention and the mixture of experts, each behind a norm and added to what came in."""

    def __init__(self, weights: Weights, path: str, kind: str):
        config = weights.config
        attention = f"{path}.self_attn", f"{path}.input_layernorm"
        mixture = f"{path}.mlp", f"{path}.post_attention_layernorm"
        positions = {
            "window": config.sliding_window if kind == "sliding_attention" else 0,
            # YaRN scales cos and sin, and so both q and k: squared, it can scale their product instead.
            "scale": concentration(config.rope) ** 2 / math.sqrt(config.head_dim),
            "wavelengths": rope_wavelengths(config.rope, config.head_dim),
        }
        self.attention = kernels.attention(weights, *attention, **positions) or Attention(
            weights, *attention, **positions
        )
        self.mixture = kernels.mixture(weights, *mixture) or Mixture(weights, *mixture)

    def __call__(self, x: mx.array, offset: int, mask: mx.array | str | None, kv: FullKV | RingKV) -> mx.array:
        return self.mixture(self.attention(x, offset, mask, kv))


class Norm:
    """RMSNorm."""

    def __init__(self, weights: Weights, path: str):
        self.weight = weights.vector(f"{path}.weight", weights.config.hidden_size)
        self.eps = weights.config.rms_norm_eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight, self.eps)


class Attention:
    """Grouped-query attention with a learned sink logit per head, which joins the softmax and carries no value."""

    def __init__(self, weights: Weights, path: str, norm: str, *, window: int, scale: float, wavelengths: mx.array):
        """`window` is what the mask and `kv` already know."""
        config = weights.config
        self.norm = Norm(weights, norm)
        self.scale, self.wavelengths = scale, wavelengths
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
        y = mx.fast.scaled_dot_product_attention(query, keys, values, scale=self.scale, mask=mask, sinks=self.sinks)
        return x + self.output(y.swapaxes(1, 2).flatten(2))

    def _heads(self, x: mx.array) -> mx.array:
        """[1, L, heads * head_dim] -> [1, heads, L, head_dim]."""
        return mx.unflatten(x, -1, (-1, self.head_dim)).swapaxes(1, 2)

    def _rotate(self, x: mx.array, offset: int) -> mx.array:
        return mx.fast.rope(
            x, self.head_dim, traditional=False, base=None, scale=1.0, offset=offset, freqs=self.wavelengths
        )


class Mixture:
    """The router picks experts for each token; the softmax is over the picked ones alone."""

    def __init__(self, weights: Weights, path: str, norm: str):
        config = weights.config
        self.norm = Norm(weights, norm)
        self.k = config.experts_per_token
        self.router = weights.linear(f"{path}.router", config.num_experts, config.hidden_size)
        self.experts = Experts(weights, f"{path}.experts")

    def __call__(self, x: mx.array) -> mx.array:
        """x [1, L, hidden] -> x + mixture(norm(x))."""
        tokens = self.norm(x).flatten(0, 1)
        scores = self.router(tokens)
        chosen = mx.argpartition(-scores, kth=self.k - 1, axis=-1)[:, : self.k]
        share = mx.softmax(mx.take_along_axis(scores, chosen, axis=-1), axis=-1, precise=True)
        return x + self.experts(tokens, chosen, share).reshape(x.shape)


def concentration(rope: Rope) -> float:
    """YaRN's factor on cos and sin: 0.1 ln(factor) + 1 (arXiv 2309.00071, equation 22)."""
    return 0.1 * math.log(rope.factor) + 1


def rope_wavelengths(rope: Rope, head_dim: int) -> mx.array:
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
