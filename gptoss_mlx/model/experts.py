"""The experts of one layer, each a clamped SwiGLU: all of them in memory, or paged through the slots of a pool.

Knows how a batch of tokens is divided among the experts; leaves the choice of experts to the router, and the slots to
`expert_pool`.
"""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx
import numpy as np

from .config import SWIGLU_ALPHA
from .expert_pool import NOTHING, PROJECTIONS, ExpertPool, projection_shapes
from .weights import Matrix, Weights


class Experts:
    """A stack of expert MLPs: `gate` and `up` [N, intermediate, hidden], `down` [N, hidden, intermediate]."""

    def __init__(self, matrices: dict[str, Matrix], biases: dict[str, mx.array], limit: float):
        """Projection -> its matrices, and its biases [N, rows]; `limit` is the clamp of SwiGLU."""
        self.gate, self.up, self.down = ((matrices[name], biases[name]) for name in PROJECTIONS)
        self.limit = limit

    @classmethod
    def resident(cls, weights: Weights, path: str) -> Experts:
        """All experts of a layer, as the checkpoint stores them. Raises CheckpointError."""
        shapes = projection_shapes(weights.config)
        matrices = {name: weights.matrix(f"{path}.{name}", *shape) for name, shape in shapes.items()}
        biases = {name: weights.vector(f"{path}.{name}.bias", *shape[:2]) for name, shape in shapes.items()}
        return cls(matrices, biases, weights.config.swiglu_limit)

    @classmethod
    def of_pool(cls, weights: Weights, pool: ExpertPool) -> Experts:
        """The slots of a pool, never a copy of them: experts are read into them later."""
        matrices = {name: pool.matrix(name) for name in PROJECTIONS}
        return cls(matrices, {name: pool.bias(name) for name in PROJECTIONS}, weights.config.swiglu_limit)

    def __call__(self, x: mx.array, chosen: mx.array) -> mx.array:
        """Tokens x [T, hidden] and their experts `chosen` [T, k] -> the experts' outputs [T, k, hidden]."""
        tokens, k = chosen.shape
        number = chosen.flatten()
        if tokens == 1:
            return self.outputs(mx.broadcast_to(x, (k, x.shape[-1])), number, in_order=False)[None]
        # Sorted, each expert is read once for all the tokens that chose it.
        order = mx.argsort(number)
        y = self.outputs(x[order // k], number[order], in_order=True)
        return y[mx.argsort(order)].reshape(tokens, k, -1)

    def outputs(self, x: mx.array, number: mx.array, *, in_order: bool) -> mx.array:
        """Row n of x [N, hidden] through expert number[n] -> [N, hidden]."""

        def project(stack: tuple[Matrix, mx.array], x: mx.array) -> mx.array:
            matrix, bias = stack
            return matrix.apply_gathered(x, number, sorted_indices=in_order) + bias[number][:, None].astype(x.dtype)

        x = x[:, None]
        y = swiglu(project(self.gate, x), project(self.up, x), self.limit)
        return project(self.down, y)[:, 0]


def swiglu(gate: mx.array, up: mx.array, limit: float) -> mx.array:
    """gpt-oss's activation (gpt_oss/torch/model.py): gate clamped from above, up on both sides, and one added to up."""
    gate = mx.minimum(gate, limit)
    up = mx.clip(up, -limit, limit)
    return (up + 1) * gate * mx.sigmoid(SWIGLU_ALPHA * gate)


class MoeParts(Protocol):
    """A MoE block, whole or in parts over the slots of a pool: `network.MoeBlock`, or the kernels' MoeLayer."""

    def __call__(self, x: mx.array) -> mx.array:
        """x [1, L, hidden] -> x + moe(norm(x)), with all experts in memory."""

    def route(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """x [1, L, hidden] -> norm(x) [L, hidden], chosen experts [L, k] and their routing weights [L, k]."""

    def expert_outputs(self, normed: mx.array, slots: mx.array, outputs: mx.array) -> mx.array:
        """outputs [L, k, hidden] with those of the experts in `slots` [L, k] replaced; a negative slot changes none."""

    def combine(self, x: mx.array, chosen: mx.array, routing_weights: mx.array, outputs: mx.array) -> mx.array:
        """x [1, L, hidden] + the sum of outputs [L, k, hidden] times routing weights [L, k]."""


class PagedMoe:
    """A MoE block whose experts are read when a token needs them; the result has the same bits as with all of them."""

    def __init__(self, parts: MoeParts, pool: ExpertPool, layer: int):
        self.parts, self.pool, self.layer = parts, pool, layer
        self.next_parts: MoeParts | None = None
        """Those of the next layer; None where its experts are not read ahead."""

    def __call__(self, x: mx.array) -> mx.array:
        """x [1, L, hidden] -> x + moe(norm(x))."""
        normed, chosen, routing_weights = self.parts.route(x)
        guess = self._next_choice(x)
        mx.eval(chosen, guess, self.pool.unevaluated)
        experts, likely = np.array(chosen), NOTHING if guess is None else np.array(guess)
        outputs = mx.zeros((*experts.shape, x.shape[-1]), normed.dtype)
        for slot_of, more in self.pool.fetch(self.layer, experts, likely):
            outputs = self.parts.expert_outputs(normed, mx.array(slot_of[experts]), outputs)
            if more:
                mx.eval(outputs)
        y = self.parts.combine(x, chosen, routing_weights, outputs)
        self.pool.unevaluated = [y]
        return y

    def _next_choice(self, x: mx.array) -> mx.array | None:
        """The experts [k] that the next layer's router would choose now, the likeliest first: what comes between the
        two routers changes x little. Only in decoding: a prompt needs almost all experts."""
        if self.next_parts is None or x.shape[1] > 1:
            return None
        _, experts, routing_weights = self.next_parts.route(x)
        return mx.take_along_axis(experts, mx.argsort(-routing_weights, axis=-1), axis=-1)[0]
