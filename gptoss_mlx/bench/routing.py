"""Which experts each token goes to: recorded from a run, kept in a file, and given to another run.

How long paging takes depends on which experts follow each other, and random weights or a text of another kind choose
others. With a trace, a benchmark pages as a real conversation does. Knows nothing of how experts are kept.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..engine.generate import Model
from ..errors import GptOssError
from ..files import replacing
from ..model.experts import MoeParts, PagedMoe
from ..untrusted import os_error_text, read_regular

MEMBERS = {"chosen": 256 * 2**20, "experts": 1024, "model": 4096}  # of the file, and the most bytes of each
MAX_DIRECTORY = 1024  # bytes: three entries have about 60 each
MAX_NAME = 200  # characters of a model's name
HEADER = re.compile(
    rb"\{'descr': '(\|u1|<u2|<i8|<U[1-9]\d{0,2})', 'fortran_order': False,"
    rb" 'shape': \(((?:\d{1,9}, ?){0,2}(?:\d{1,9})?)\), \} *\n"
)
UNREADABLE = (OSError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)  # of a ZIP file

Redirect = Callable[[int, np.ndarray], np.ndarray]
"""The number of a layer, and the experts [L, k] that its router chose -> those that the tokens go to."""


@dataclass(frozen=True)
class RoutingTrace:
    """What each of a run's tokens, in order, chose in each layer."""

    chosen: np.ndarray
    """[tokens, layers, k], the order within k as the router gave it: uint8, or uint16 with more than 256 experts."""
    experts: int
    """Of each layer."""
    model: str
    """Name of the folder that it was recorded with."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, experts of each, and experts per token: what a model needs to have to follow the trace."""
        _, layers, k = self.chosen.shape
        return layers, self.experts, k

    def save(self, path: Path) -> None:
        """Write a file in NumPy's .npz, which appears whole or not at all. Raises GptOssError."""
        if self.chosen.nbytes > MEMBERS["chosen"] - 1024:
            raise GptOssError(f"a routing trace of {len(self.chosen):,} tokens is more than a file has: record fewer")
        try:
            with replacing(path) as file:
                np.savez_compressed(file, chosen=self.chosen, experts=self.experts, model=self.model[:MAX_NAME])
        except OSError as error:
            raise GptOssError(f"cannot write the routing trace {path}: {os_error_text(error)}") from None

    @classmethod
    def load(cls, path: Path) -> RoutingTrace:
        """Read a file of anybody's. Raises GptOssError for what is no trace."""
        try:
            chosen, experts, model = _members(read_regular(path, sum(MEMBERS.values())))
            return cls(_checked(chosen, _number(experts)), _number(experts), _text(model))
        except (*UNREADABLE, ValueError) as error:
            raise GptOssError(f"cannot read {path} as a routing trace: {os_error_text(error) or 'cut off'}") from None


def _members(data: bytes) -> list[np.ndarray]:
    """The arrays of a .npz file, in the order of MEMBERS. What is unpacked is known to be bounded before."""
    strange = ValueError(f"not a .npz file of {', '.join(MEMBERS)}")
    # The end of a ZIP file without a comment. The directory that it names, or one that ZIP64 names before it, could
    # otherwise have millions of entries.
    if data[-42:-38] == b"PK\6\7" or data[-22:-18] != b"PK\5\6" or data[-2:] != b"\0\0":
        raise strange
    if int.from_bytes(data[-10:-6], "little") > MAX_DIRECTORY:
        raise strange
    with zipfile.ZipFile(BytesIO(data)) as archive:
        found = {member.filename: member for member in archive.infolist()}
        if found.keys() != {f"{name}.npy" for name in MEMBERS}:
            raise strange
        for name, most in MEMBERS.items():
            member = found[f"{name}.npy"]
            if member.file_size > most or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name} has more than {most:,} bytes, or is packed by a method of another kind")
        return [_array(name, archive.read(f"{name}.npy")) for name in MEMBERS]


def _array(name: str, data: bytes) -> np.ndarray:
    """What a .npy file of version 1.0 holds. Its header is text in Python's syntax; what NumPy writes is all that is
    understood of it."""
    start = 10 + int.from_bytes(data[8:10], "little")
    header = HEADER.fullmatch(data[10:start]) if data[:8] == b"\x93NUMPY\1\0" else None
    if not header:
        raise ValueError(f"{name} has another header than a trace's")
    dtype, shape = np.dtype(header[1].decode()), tuple(int(size) for size in header[2].replace(b",", b" ").split())
    if prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"{name} does not hold what its header says")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def _number(array: np.ndarray) -> int:
    if array.shape or array.dtype != np.int64 or not 1 <= (number := int(array)) <= 2**16:
        raise ValueError("experts is not a whole number from 1 to 65,536")
    return number


def _text(array: np.ndarray) -> str:
    if array.shape or array.dtype.kind != "U" or array.dtype.itemsize > 4 * MAX_NAME:
        raise ValueError(f"model is not a name of at most {MAX_NAME} characters")
    return array.tobytes().decode("utf-32-le").rstrip("\0")  # NumPy's own conversion breaks on what is no text


def _checked(chosen: np.ndarray, experts: int) -> np.ndarray:
    if chosen.dtype != _dtype(experts) or chosen.ndim != 3:
        raise ValueError(f"chosen is not {_dtype(experts)} [tokens, layers, experts per token]")
    if not chosen.size:
        raise ValueError("it has no tokens")
    if chosen.max() >= experts:
        raise ValueError(f"expert {chosen.max()} of {experts} is chosen")
    in_order = np.sort(chosen, axis=-1)
    if (in_order[..., 1:] == in_order[..., :-1]).any():
        raise ValueError("a token chooses an expert twice")
    return chosen


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
        """Of all positions that have passed every layer until now."""
        return RoutingTrace(np.concatenate(self._chunks, dtype=_dtype(self._experts)), self._experts, self._name)


@contextmanager
def recording(model: Model) -> Iterator[Recorder]:
    """While open, a recorder hears where every position goes that is read or decoded, with any cache.

    No logits change. Where all experts are in memory, a layer takes longer: it stops at its router. Raises GptOssError
    where the CPU has experts beside a GPU.
    """
    recorder = Recorder(model)
    with _redirected(model, recorder.note):
        yield recorder


@contextmanager
def replaying(model: Model, trace: RoutingTrace) -> Iterator[None]:
    """While open, the t-th position that is read or decoded goes where the trace's t-th token went, and after the last
    to where the first one went; the shares of the outputs stay those of the model's own router.

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
            moe = layer.moe
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
    """The second half of a layer in the parts of another one, `MoeParts`, but for where its tokens go."""

    def __init__(self, parts: MoeParts, layer: int, redirect: Redirect):
        self._parts, self._layer, self._redirect = parts, layer, redirect
        self.expert_outputs, self.combine = parts.expert_outputs, parts.combine

    def __call__(self, x: mx.array) -> mx.array:
        """x [1, L, hidden] -> x + moe(norm(x)), where all experts are in memory."""
        normed, chosen, share = self.route(x)
        outputs = mx.zeros((*chosen.shape, x.shape[-1]), normed.dtype)
        return self.combine(x, chosen, share, self.expert_outputs(normed, chosen.astype(mx.int32), outputs))

    def route(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """x [1, L, hidden] -> normed [L, hidden], experts [L, k] and their shares [L, k]."""
        normed, chosen, share = self._parts.route(x)
        return normed, mx.array(self._redirect(self._layer, np.array(chosen))), share
