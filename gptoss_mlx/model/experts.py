"""The experts of one layer, each a clamped SwiGLU: all of them in memory, or paged through the slots of a pool.

Knows how a batch of tokens is divided among the experts; leaves the choice of experts to the router, and the slots to
`expert_pool`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from ..device import fused
from .config import SWIGLU_ALPHA, ModelConfig
from .expert_pool import NOTHING, PROJECTIONS, ExpertPool, projection_shapes
from .weights import Matrix, Weights


@dataclass(frozen=True)
class Stack:
    """One projection of N experts: matrices [N, outputs, inputs] and biases [N, outputs]."""

    matrices: Matrix
    biases: mx.array

    def __call__(
        self, x: mx.array, number: mx.array, *, rows: mx.array | None = None, in_order: bool = False
    ) -> tuple[mx.array, mx.array]:
        """Row rows[n] of x [N, 1, inputs], its n-th if left out, times matrix number[n] -> [N, 1, outputs]; and what is
        to be added to it. `in_order`: `number` ascends."""
        products = self.matrices.apply_gathered(x, number, rows=rows, sorted_indices=in_order)
        return products, mx.expand_dims(self.biases[number], -2).astype(x.dtype)


class Experts:
    """A stack of expert MLPs: `gate` and `up` [N, intermediate, hidden], `down` [N, hidden, intermediate]."""

    def __init__(self, stacks: Mapping[str, Stack], config: ModelConfig, gate_up: Stack | None = None):
        """Projection -> its stack; `gate_up` are those of gate and then those of up, where they lie so."""
        self.gate, self.up, self.down = (stacks[name] for name in PROJECTIONS)
        self.gate_up = gate_up
        self.limit = config.swiglu_limit
        # For the experts of one token: where each finds its row, and its place in `gate_up`. Of constants, nothing is
        # computed again for each token.
        self._all = mx.arange(config.experts_per_token, dtype=mx.uint32)
        self._first = mx.zeros(2 * config.experts_per_token, mx.uint32)
        self._halves = mx.array([[0], [len(self.gate.biases)]], mx.uint32)

    @classmethod
    def resident(cls, weights: Weights, path: str) -> Experts:
        """All experts of a layer, as the checkpoint stores them. Raises CheckpointError."""
        sizes = {f"{path}.{name}": weights.config.num_experts for name in PROJECTIONS[:2]}
        # First, so that gate and up are parts of it: apart, a GPU would count both.
        joined = weights.joined(sizes, weights.config.intermediate_size, weights.config.hidden_size)
        stacks = {
            name: Stack(weights.matrix(f"{path}.{name}", *shape), weights.vector(f"{path}.{name}.bias", *shape[:2]))
            for name, shape in projection_shapes(weights.config).items()
        }
        return cls(stacks, weights.config, joined and Stack(*joined))

    @classmethod
    def of_pool(cls, weights: Weights, pool: ExpertPool) -> Experts:
        """The slots of a pool, never a copy of them: experts are read into them later."""
        return cls({name: Stack(pool.matrix(name), pool.bias(name)) for name in PROJECTIONS}, weights.config)

    def __call__(self, x: mx.array, chosen: mx.array) -> mx.array:
        """Tokens x [T, hidden] and their experts `chosen` [T, k] -> the experts' outputs [T, k, hidden]."""
        tokens, k = chosen.shape
        if tokens == 1:
            return self._of_one_token(x, chosen.flatten())[None]
        # Sorted, each expert is read once for all the tokens that chose it.
        number = chosen.flatten()
        order = mx.argsort(number)
        y = self.outputs(x[order // k], number[order], in_order=True)
        return y[mx.argsort(order)].reshape(tokens, k, -1)

    def outputs(self, x: mx.array, number: mx.array, *, in_order: bool) -> mx.array:
        """Row n of x [N, hidden] through expert number[n] -> [N, hidden]."""
        x = x[:, None]
        y = swiglu(*self.gate(x, number, in_order=in_order), *self.up(x, number, in_order=in_order), self.limit)
        return self._down(y, number, in_order=in_order)

    def _of_one_token(self, x: mx.array, number: mx.array) -> mx.array:
        """x [1, hidden] through the experts `number` [k] -> [k, hidden], in as few launches as there can be."""
        x = x[:, None]
        if self.gate_up:
            of_both, k = (number + self._halves).flatten(), len(number)
            products, biases = self.gate_up(x, of_both, rows=self._first)
            parts = [products[:k], biases[:k], products[k:], biases[k:]]
        else:
            rows = self._first[: len(number)]
            parts = [*self.gate(x, number, rows=rows), *self.up(x, number, rows=rows)]
        return self._down(swiglu(*parts, self.limit), number, rows=self._all)

    def _down(self, y: mx.array, number: mx.array, **how: Any) -> mx.array:
        """y [N, 1, intermediate] through the down projections, as `Stack` takes them -> [N, hidden]."""
        products, biases = self.down(y, number, **how)
        return (products + biases).squeeze(1)


@fused
def swiglu(gate: mx.array, gate_bias: mx.array, up: mx.array, up_bias: mx.array, limit: float) -> mx.array:
    """gpt-oss's activation (gpt_oss/torch/model.py): gate clamped from above, up on both sides, and one added to up."""
    gate = mx.minimum(gate + gate_bias, limit)
    up = mx.clip(up + up_bias, -limit, limit)
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
        return mx.take_along_axis(experts, mx.argsort(-routing_weights, axis=-1), axis=-1).flatten()
