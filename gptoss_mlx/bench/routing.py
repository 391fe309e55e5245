"""Which experts each token goes to: recorded from a run, kept in a file, and given to another run.

How long paging takes depends on which experts follow each other, and random weights or a text of another kind choose
others. With a trace, a benchmark pages as a real conversation does. Knows nothing of how experts are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..engine.generate import Model
from ..errors import GptOssError
from ..files import replace_file
from ..model.experts import MoeParts, PagedMoe
from ..model.safetensors import read_header
from ..untrusted import open_regular, os_error_text

MAX_BYTES = 256 * 2**20  # of what was chosen
MAX_EXPERTS = 2**16
MAX_NAME = 200  # characters of a model's name
DTYPES = {"U8": np.uint8, "U16": np.uint16}

Redirect = Callable[[int, np.ndarray], np.ndarray]
"""The number of a layer, and the experts [L, k] that its router chose -> those that the tokens go to."""


@dataclass(frozen=True)
class RoutingTrace:
    """The experts that each of a run's tokens, in order, chose in each layer."""

    chosen: np.ndarray
    """[tokens, layers, k], the order within k as the router gave it: uint8, or uint16 with more than 256 experts."""
    experts: int
    """Experts of each layer."""
    model: str
    """Name of the folder that it was recorded with."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, experts of each, and experts per token: what a model needs to have to follow the trace."""
        _, layers, k = self.chosen.shape
        return layers, self.experts, k

    def save(self, path: Path) -> None:
        """Write a safetensors file, which appears whole or not at all. Raises GptOssError."""
        if self.chosen.nbytes > MAX_BYTES:
            raise GptOssError(f"a routing trace of {len(self.chosen):,} tokens is more than a file has: record fewer")
        file = BytesIO()
        metadata = {"experts": str(self.experts), "model": self.model[:MAX_NAME]}
        mx.save_safetensors(file, {"chosen": mx.array(self.chosen)}, metadata)
        replace_file(path, file.getvalue())

    @classmethod
    def load(cls, path: Path) -> RoutingTrace:
        """Read an untrusted file. Raises GptOssError for what is no trace."""
        try:
            return _read(path)
        except (GptOssError, OSError, ValueError) as error:
            raise GptOssError(f"cannot read {path} as a routing trace: {os_error_text(error)}") from None


def _read(path: Path) -> RoutingTrace:
    """Raises GptOssError, OSError and ValueError."""
    header = read_header(path)
    if header.tensors.keys() != {"chosen"}:
        raise ValueError("it does not hold one tensor, `chosen`")
    number, model, tensor = header.metadata.get("experts", ""), header.metadata.get("model"), header.tensors["chosen"]
    experts = int(number) if number.isascii() and number.isdigit() and len(number) <= len(str(MAX_EXPERTS)) else 0
    if not 1 <= experts <= MAX_EXPERTS:
        raise ValueError(f"experts is not a whole number from 1 to {MAX_EXPERTS:,}")
    if model is None or len(model) > MAX_NAME:
        raise ValueError(f"model is not a name of at most {MAX_NAME} characters")
    dtype = _dtype(experts)
    if DTYPES.get(tensor.dtype) != dtype or len(tensor.shape) != 3:
        raise ValueError(f"chosen is not {dtype} [tokens, layers, experts per token]")
    if tensor.nbytes > MAX_BYTES:
        raise ValueError(f"chosen has more than {MAX_BYTES:,} bytes")
    with open_regular(path) as file:
        file.seek(tensor.start)
        chosen = np.frombuffer(file.read(tensor.nbytes), dtype).reshape(tensor.shape)
    if chosen.max() >= experts:
        raise ValueError(f"expert {chosen.max()} of {experts} is chosen")
    in_order = np.sort(chosen, axis=-1)
    if (in_order[..., 1:] == in_order[..., :-1]).any():
        raise ValueError("a token chooses an expert twice")
    return RoutingTrace(chosen, experts, model)


def _dtype(experts: int) -> np.dtype:
    return np.dtype(np.uint8 if experts <= 256 else np.uint16)


class Recorder:
    """Collects what the routers of a model choose."""

    def __init__(self, model: Model):
        self._layers, self._experts, self._name = model.config.num_layers, model.config.num_experts, model.path.name
        self._chunk: list[np.ndarray] = []
        self._chunks: list[np.ndarray] = [np.empty((0, self._layers, model.config.experts_per_token), np.uint8)]

    def note(self, layer: int, chosen: np.ndarray) -> np.ndarray:
        """A `Redirect` that changes nothing."""
        if layer == 0:
            self._chunk = []  # what an interrupt may have left of the chunk before is dropped
        self._chunk.append(chosen)
        if layer == self._layers - 1:
            self._chunks.append(np.stack(self._chunk, axis=1).astype(_dtype(self._experts)))
        return chosen

    def trace(self) -> RoutingTrace:
        """The choices of all positions that have passed every layer until now."""
        return RoutingTrace(np.concatenate(self._chunks, dtype=_dtype(self._experts)), self._experts, self._name)


@contextmanager
def recording(model: Model) -> Iterator[Recorder]:
    """While open, a recorder notes where every position goes that is prefilled or decoded, with any cache.

    No logits change. Where all experts are in memory, a layer takes longer: it stops at its router. Raises GptOssError
    where the CPU has experts beside a GPU.
    """
    recorder = Recorder(model)
    with _redirected(model, recorder.note):
        yield recorder


@contextmanager
def replaying(model: Model, trace: RoutingTrace) -> Iterator[None]:
    """While open, the t-th position that is prefilled or decoded goes where the trace's t-th token went, and after the
    last to where the first one went; routing weights stay those of the model's own router.

    Raises GptOssError where the trace is of another shape than the model, or where all experts are in memory.
    """
    config = model.config
    own = config.num_layers, config.num_experts, config.experts_per_token
    if trace.shape != own:
        raise GptOssError(
            f"the routing trace of {trace.model} has {_shape_text(trace.shape)}, and this model {_shape_text(own)}"
        )
    if not len(trace.chosen):
        raise GptOssError(f"the routing trace of {trace.model} has no tokens")
    if model.network.pool is None:
        raise GptOssError("all experts are in memory, where routing costs nothing: give less --memory, or no trace")
    position = 0

    def traced(layer: int, chosen: np.ndarray) -> np.ndarray:
        nonlocal position
        tokens = np.arange(position, position + len(chosen)) % len(trace.chosen)
        if layer == config.num_layers - 1:
            position += len(chosen)
        return trace.chosen[tokens, layer].astype(chosen.dtype)

    with _redirected(model, traced):
        yield


def _shape_text(shape: tuple[int, int, int]) -> str:
    layers, experts, k = shape
    return f"{layers} layers of {experts} experts, {k} for a token"


@contextmanager
def _redirected(model: Model, redirect: Redirect) -> Iterator[None]:
    """While open, tokens go to the experts that `redirect` says."""
    if model.settings.cpu_expert_layers:
        raise GptOssError("the CPU has experts beside the GPU, whose routing is not seen: give another --memory")
    layers = model.network.layers
    before = [layer.moe for layer in layers]
    try:
        for index, layer in enumerate(layers):
            moe: Any = layer.moe  # with all experts in memory, it has the parts too
            if isinstance(moe, PagedMoe):
                parts = _Redirected(moe.parts, index, redirect)
                layer.moe = PagedMoe(parts, moe.pool, moe.layer)
            else:
                layer.moe = _Redirected(moe, index, redirect)
        yield
    finally:
        for layer, moe in zip(layers, before, strict=True):
            layer.moe = moe


class _Redirected:
    """A MoE block of the parts of another one, `MoeParts`, but for where its tokens go."""

    def __init__(self, parts: MoeParts, layer: int, redirect: Redirect):
        self._parts, self._layer, self._redirect = parts, layer, redirect
        self.expert_outputs, self.combine = parts.expert_outputs, parts.combine

    def __call__(self, x: mx.array) -> mx.array:
        """x [1, L, hidden] -> x + moe(norm(x)), where all experts are in memory."""
        normed, chosen, weights = self.route(x)
        outputs = mx.zeros((*chosen.shape, x.shape[-1]), normed.dtype)
        return self.combine(x, chosen, weights, self.expert_outputs(normed, chosen.astype(mx.int32), outputs))

    def route(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """x [1, L, hidden] -> normed [L, hidden], experts [L, k] and their routing weights [L, k]."""
        normed, chosen, weights = self._parts.route(x)
        return normed, mx.array(self._redirect(self._layer, np.array(chosen))), weights
