"""The experts of one layer: where they live, and the clamped SwiGLU that each one is.

Knows how a batch of tokens is divided among the experts; which experts a token goes to is the router's decision.
"""

from __future__ import annotations

import mlx.core as mx

from .weights import Weights

SWIGLU_ALPHA = 1.702


class Experts:
    """The expert MLPs, all resident: `gate` and `up` [E, intermediate, hidden], `down` [E, hidden, intermediate]."""

    def __init__(self, weights: Weights, path: str):
        config = weights.config
        count, hidden, intermediate = config.num_experts, config.hidden_size, config.intermediate_size
        self.limit = config.swiglu_limit
        self.gate = weights.matrix(f"{path}.gate_proj", count, intermediate, hidden)
        self.up = weights.matrix(f"{path}.up_proj", count, intermediate, hidden)
        self.down = weights.matrix(f"{path}.down_proj", count, hidden, intermediate)
        self.gate_bias = weights.vector(f"{path}.gate_proj.bias", count, intermediate)
        self.up_bias = weights.vector(f"{path}.up_proj.bias", count, intermediate)
        self.down_bias = weights.vector(f"{path}.down_proj.bias", count, hidden)

    def __call__(self, x: mx.array, chosen: mx.array, share: mx.array) -> mx.array:
        """Tokens x [T, hidden], their experts `chosen` [T, k] and the weight `share` [T, k] of each -> [T, hidden]."""
        tokens, k = chosen.shape
        expert = chosen.flatten()
        several = tokens > 1
        if several:
            # Sorted, each expert is read once for all the tokens that chose it.
            order = mx.argsort(expert)
            expert, x = expert[order], x[order // k]
        else:
            x = mx.broadcast_to(x, (k, x.shape[-1]))
        x = x[:, None]
        gate = self.gate.apply_gathered(x, expert, sorted_indices=several) + self.gate_bias[expert][:, None]
        up = self.up.apply_gathered(x, expert, sorted_indices=several) + self.up_bias[expert][:, None]
        y = swiglu(gate, up, self.limit)
        y = self.down.apply_gathered(y, expert, sorted_indices=several) + self.down_bias[expert][:, None]
        y = y[mx.argsort(order)] if several else y
        return (y.reshape(tokens, k, -1) * share[..., None]).sum(axis=1)


def swiglu(gate: mx.array, up: mx.array, limit: float) -> mx.array:
    """The published activation: gate clamped from above, up on both sides, and one added to up."""
    gate = mx.minimum(gate, limit)
    up = mx.clip(up, -limit, limit)
    return (up + 1) * gate * mx.sigmoid(SWIGLU_ALPHA * gate)
