"""The experts of one layer: the clamped SwiGLU that each one is, and where they live: all in memory, or some.

Knows how a batch of tokens is divided among the experts, and which of them are kept when not all fit; which experts a
token goes to is the router's decision, and how many fit is the plan's.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from mmap import mmap
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

import mlx.core as mx
import numpy as np

from . import kernels
from .checkpoint import NUMPY_DTYPE, CheckpointError, TensorInfo
from .config import SWIGLU_ALPHA, ModelConfig
from .weights import Matrix, Weights

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class Experts:
    """A stack of expert MLPs: `gate` and `up` [N, intermediate, hidden], `down` [N, hidden, intermediate]."""

    def __init__(self, matrices: dict[str, Matrix], biases: dict[str, mx.array], limit: float):
        """Of each projection its matrices, and its biases [N, rows]."""
        self.gate, self.up, self.down = ((matrices[name], biases[name]) for name in PROJECTIONS)
        self.limit = limit

    @classmethod
    def resident(cls, weights: Weights, path: str) -> Experts:
        """All experts of a layer, as they lie in the checkpoint."""
        shapes = projection_shapes(weights.config)
        matrices = {name: weights.matrix(f"{path}.{name}", *shape) for name, shape in shapes.items()}
        biases = {name: weights.vector(f"{path}.{name}.bias", *shape[:2]) for name, shape in shapes.items()}
        return cls(matrices, biases, weights.config.swiglu_limit)

    @classmethod
    def of_pool(cls, weights: Weights, pool: ExpertPool) -> Experts:
        """The slots of a pool. A copy of them in another dtype would not see what is read into them later."""
        matrices = {name: pool.matrix(name) for name in PROJECTIONS}
        return cls(matrices, {name: pool.bias(name) for name in PROJECTIONS}, weights.config.swiglu_limit)

    def __call__(self, x: mx.array, chosen: mx.array) -> mx.array:
        """Tokens x [T, hidden] and the stack's numbers `chosen` [T, k] -> each one's output [T, k, hidden]."""
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


def projection_shapes(config: ModelConfig) -> dict[str, tuple[int, int, int]]:
    """[experts, rows, columns] of each projection of a layer's experts."""
    count, hidden, intermediate = config.num_experts, config.hidden_size, config.intermediate_size
    return dict(zip(PROJECTIONS, [(count, intermediate, hidden)] * 2 + [(count, hidden, intermediate)], strict=True))


def swiglu(gate: mx.array, up: mx.array, limit: float) -> mx.array:
    """The published activation: gate clamped from above, up on both sides, and one added to up."""
    gate = mx.minimum(gate, limit)
    up = mx.clip(up, -limit, limit)
    return (up + 1) * gate * mx.sigmoid(SWIGLU_ALPHA * gate)


class MixtureParts(Protocol):
    """The second half of a layer in parts, over the slots of a pool: `model.Mixture`, or the kernels' MixtureLayer."""

    def route(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """x [1, L, hidden] -> normed [L, hidden], chosen experts [L, k] and their shares [L, k]."""

    def expert_outputs(self, normed: mx.array, slots: mx.array, outputs: mx.array) -> mx.array:
        """Outputs [L, k, hidden] with those of the experts in `slots` [L, k]; below 0, an output stays as it is."""

    def combine(self, x: mx.array, chosen: mx.array, share: mx.array, outputs: mx.array) -> mx.array:
        """x + the outputs, weighted."""


class PagedMixture:
    """The second half of a layer whose experts are read when a token needs them; the same bits as with all of them."""

    def __init__(self, parts: MixtureParts, pool: ExpertPool, layer: int):
        self.parts, self.pool, self.layer = parts, pool, layer

    def __call__(self, x: mx.array) -> mx.array:
        """x [1, L, hidden] -> x + mixture(norm(x))."""
        normed, chosen, share = self.parts.route(x)
        experts = np.array(chosen)
        outputs = mx.zeros((*experts.shape, x.shape[-1]), normed.dtype)
        for slot_of in self.pool.fetch(self.layer, experts):
            outputs = self.parts.expert_outputs(normed, mx.array(slot_of[experts]), outputs)
            mx.eval(outputs)  # the slots may be given away after this
        return self.parts.combine(x, chosen, share, outputs)


@dataclass
class PoolStats:
    """What a pool has done since it was made, counted once for each expert that a chunk of tokens needs in a layer."""

    needed: int = 0
    missed: int = 0
    bytes_read: int = 0
    stall_seconds: float = 0.0
    """Time in which nothing could be computed because a read was not done."""

    def __add__(self, other: PoolStats) -> PoolStats:
        return PoolStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, earlier: PoolStats) -> PoolStats:
        return PoolStats(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)))

    @property
    def hit_rate(self) -> float:
        return 1 - self.missed / self.needed if self.needed else 1.0


class SlotTable:
    """Which expert of which layer lies in which slot, and which one has to leave for another: the least used.

    An expert's value is the number of tokens that chose it, each counting less the longer ago it was.
    """

    HALF_LIFE = 32  # tokens

    def __init__(self, layers: int, experts: int, slots: int):
        self._experts = experts
        self._value = np.zeros((layers, experts))
        # The expert that a slot holds, as layer * experts + expert, and the way back; -1 where there is none.
        self._holds = np.full(slots, -1)
        self._slot_of = np.full(layers * experts, -1)
        self._busy = np.zeros(slots, bool)

    def use(self, layer: int, counts: np.ndarray, tokens: int) -> None:
        """Of `tokens` tokens, counts[e] chose expert e of this layer."""
        self._value[layer] *= 0.5 ** (tokens / self.HALF_LIFE)
        self._value[layer] += counts

    def find(self, layer: int, experts: np.ndarray) -> np.ndarray:
        """The slots of experts of a layer; -1 for one that is in none."""
        return self._slot_of[layer * self._experts + experts]

    def hold(self, slots: list[int]) -> None:
        """These slots are in use: nobody may have them."""
        self._busy[slots] = True

    def release(self, slots: list[int] | slice = slice(None)) -> None:
        self._busy[slots] = False

    def vacate(self, count: int) -> list[int]:
        """At most `count` slots that are not in use, emptied and held, those that are least worth keeping."""
        if not count:
            return []
        values = np.where(self._holds < 0, -1.0, self._value.ravel()[self._holds])
        values[self._busy] = np.inf
        order = np.argsort(values, kind="stable")[:count]
        slots = order[~self._busy[order]].tolist()
        held = self._holds[slots]
        self._slot_of[held[held >= 0]] = -1
        self._holds[slots] = -1
        self.hold(slots)
        return slots

    def fill(self, slot: int, layer: int, expert: int) -> None:
        self._holds[slot] = layer * self._experts + expert
        self._slot_of[self._holds[slot]] = slot


class ExpertPool:
    """Slots for experts of any layer, filled from the checkpoint's files when a token needs them.

    Reads go around the page cache where the system allows it: memory is short, and what is in a slot needs no second
    copy.
    """

    READERS = 4  # reads under way at a time: a disk is slow with one

    def __init__(self, weights: Weights, slots: int):
        """Raises CheckpointError where the layers' experts are not all stored alike."""
        config = weights.config
        self.slots, self.expert_bytes, self.stats = slots, 0, PoolStats()
        self._experts = config.num_experts
        self._parts: list[list[_Part]] = []  # of each layer
        self._arrays: dict[str, mx.array] = {}  # "gate_proj.weight" -> [slots, ...]
        views: dict[str, np.ndarray] = {}
        forms: dict[str, tuple[str, tuple[int, ...]]] = {}
        for layer in range(config.num_layers):
            tensors = _expert_tensors(weights, f"model.layers.{layer}.mlp.experts")
            if layer == 0:
                forms = _forms(tensors)
                for name, tensor in tensors.items():
                    self._arrays[name], views[name] = _slot_memory(slots, tensor)
                self.expert_bytes = sum(tensor.nbytes for tensor in tensors.values()) // self._experts
            if _forms(tensors) != forms:
                raise CheckpointError(f"{weights.checkpoint.folder}: layer {layer} stores its experts in another form")
            files = weights.checkpoint.file_of
            self._parts.append([_Part(files[t.name], t, views[name]) for name, t in tensors.items()])
        self._quantization = {name: weights.quantization(f"model.layers.0.mlp.experts.{name}") for name in PROJECTIONS}
        self._table = SlotTable(config.num_layers, config.num_experts, slots)
        self._files, self._lock = _DirectFiles(), threading.Lock()
        self._readers = ThreadPoolExecutor(self.READERS, "experts")
        self._done: SimpleQueue[_Load] = SimpleQueue()

    def matrix(self, projection: str) -> Matrix:
        """The slots of one projection."""
        parts = [self._arrays.get(f"{projection}.{part}") for part in ("weight", "scales", "biases")]
        return Matrix(*parts, self._quantization[projection])

    def bias(self, projection: str) -> mx.array:
        """[slots, rows] in the dtype in which it is stored."""
        return self._arrays[f"{projection}.bias"]

    def fetch(self, layer: int, chosen: np.ndarray) -> Iterator[np.ndarray]:
        """Bring in the experts `chosen` [L, k], and yield, until each one has been there once, which are in slots.

        What is yielded is int32 [experts]: an expert's slot, or -1 for one that is not due. It holds until the next is
        asked for; meanwhile others are being read.
        """
        counts = np.bincount(chosen.ravel(), minlength=self._experts)
        self._table.use(layer, counts, len(chosen))
        needed = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        slots = self._table.find(layer, needed)
        here, missing = slots >= 0, needed[slots < 0].tolist()
        self.stats.needed += len(needed)
        self.stats.missed += len(missing)
        due = dict(zip(needed[here].tolist(), slots[here].tolist(), strict=True))
        self._table.hold(list(due.values()))
        under_way = 0
        try:
            while due or missing or under_way:
                under_way += self._start(layer, missing)
                if due:
                    yield self._due(due)
                    self._table.release(list(due.values()))
                due = {}
                started = time.perf_counter()
                while under_way and (not due or not self._done.empty()):
                    load = self._done.get()
                    under_way -= 1
                    due[load.expert] = self._taken_in(load)
                self.stats.stall_seconds += time.perf_counter() - started
        finally:
            # Also after an interrupt or a failed read: no read may go on into a slot that looks free.
            for _ in range(under_way):
                self._done.get()
            self._table.release()

    def _due(self, slot_of: dict[int, int]) -> np.ndarray:
        table = np.full(self._experts, -1, np.int32)
        table[list(slot_of)] = list(slot_of.values())
        return table

    def _start(self, layer: int, missing: list[int]) -> int:
        """Begin to read as many of the missing experts as there are slots that nobody uses now; returns how many."""
        slots = self._table.vacate(len(missing))
        for slot in slots:
            load = _Load(layer, missing.pop(0), slot, len(self._parts[layer]))
            for part in self._parts[layer]:
                self._readers.submit(self._read, load, part)
        return len(slots)

    def _taken_in(self, load: _Load) -> int:
        """The slot of what is read now. Raises what a read raised."""
        if load.error:
            raise load.error
        self.stats.bytes_read += self.expert_bytes
        self._table.fill(load.slot, load.layer, load.expert)
        return load.slot

    def _read(self, load: _Load, part: _Part) -> None:
        """One part of one expert, on a thread of its own; who is the last one says that the expert is there."""
        try:
            self._files.read(part.path, part.tensor.start + load.expert * part.size, part.slots[load.slot])
        except Exception as error:
            load.error = error
        with self._lock:
            load.parts_left -= 1
            if not load.parts_left:
                self._done.put(load)


@dataclass
class _Load:
    """An expert on its way into a slot."""

    layer: int
    expert: int
    slot: int
    parts_left: int
    error: Exception | None = None


@dataclass(frozen=True)
class _Part:
    """One tensor of a layer's experts, and the slots [slots, ...] that hold such parts."""

    path: Path
    tensor: TensorInfo
    slots: np.ndarray

    @property
    def size(self) -> int:
        return self.tensor.nbytes // self.tensor.shape[0]


def _expert_tensors(weights: Weights, path: str) -> dict[str, TensorInfo]:
    """What the experts at `path` are made of, checked: "gate_proj.weight" -> where it lies."""
    Experts.resident(weights, path)  # for its checks alone: nothing of the arrays is read
    names = [f"{name}.{part}" for name in PROJECTIONS for part in ("weight", "scales", "biases", "bias")]
    tensors = weights.checkpoint.tensors
    return {name: tensors[f"{path}.{name}"] for name in names if f"{path}.{name}" in tensors}


def _forms(tensors: dict[str, TensorInfo]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def _slot_memory(slots: int, tensor: TensorInfo) -> tuple[mx.array, np.ndarray]:
    """An array [slots, ...] for parts like those of `tensor`, and a NumPy view that writes into it."""
    dtype = np.dtype(NUMPY_DTYPE[tensor.dtype])
    shape, kind = (slots, *tensor.shape[1:]), getattr(mx, dtype.name)
    native = kernels.native()
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    array = native.untouched_memory(shape, kind) if native and on_cpu else mx.zeros(shape, kind)
    mx.eval(array)
    view = np.array(array, copy=False)
    if tensor.dtype == "BF16":
        array = array.view(mx.bfloat16)
        mx.eval(array)
    return array, view


class _DirectFiles:
    """Reads of parts of files that leave nothing in the page cache, where the system offers that."""

    # O_DIRECT wants offset, length and memory to be multiples of the disk's block: 512 bytes mostly, 4096 at most.
    BLOCK, PAGE = 512, 4096
    DIRECT = getattr(os, "O_DIRECT", 0)
    F_NOCACHE = 48  # of macOS

    def __init__(self) -> None:
        self._open: dict[Path, tuple[int, bool]] = {}
        self._lock, self._own = threading.Lock(), threading.local()
        self._in_blocks = True

    def read(self, path: Path, start: int, into: np.ndarray) -> None:
        """Fill `into` from byte `start` on. Raises CheckpointError."""
        target = into.reshape(-1).view(np.uint8)
        try:
            descriptor, direct = self._descriptor(path)
            if not direct:
                count = os.preadv(descriptor, [target], start)
            elif (count := self._straight(descriptor, start, target)) is None:
                count = self._by_way_of_pages(descriptor, start, target)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
        if count < target.size:
            raise CheckpointError(f"{path} has become shorter while it was in use")

    def _straight(self, descriptor: int, start: int, target: np.ndarray) -> int | None:
        """Read into `target` itself; None where blocks do not allow it."""
        if not self._in_blocks or (start | target.size | target.ctypes.data) % self.BLOCK:
            return None
        try:
            return os.preadv(descriptor, [target], start)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._in_blocks = False  # this disk's blocks are larger
            return None

    def _by_way_of_pages(self, descriptor: int, start: int, target: np.ndarray) -> int:
        before = start % self.PAGE
        length = -(-(before + target.size) // self.PAGE) * self.PAGE
        pages = self._pages(length)
        count = min(os.preadv(descriptor, [memoryview(pages)[:length]], start - before) - before, target.size)
        if count == target.size:
            target[:] = np.frombuffer(pages, np.uint8, count, before)
        return count

    def _pages(self, length: int) -> mmap:
        """This thread's own memory to read into: pages, which are aligned."""
        if getattr(self._own, "size", 0) < length:
            self._own.size, self._own.pages = length, mmap(-1, length)
        return self._own.pages

    def _descriptor(self, path: Path) -> tuple[int, bool]:
        with self._lock:
            if path not in self._open:
                self._open[path] = self._opened(path)
            return self._open[path]

    def _opened(self, path: Path) -> tuple[int, bool]:
        """A descriptor, and whether it wants whole blocks."""
        if self.DIRECT:
            try:
                descriptor = os.open(path, os.O_RDONLY | self.DIRECT | os.O_CLOEXEC)
                os.preadv(descriptor, [memoryview(self._pages(self.PAGE))[: self.PAGE]], 0)
                return descriptor, True
            except OSError:  # a file system without it, as tmpfs is
                pass
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(descriptor, self.F_NOCACHE, 1)
        return descriptor, False

    def __del__(self) -> None:
        for descriptor, _ in self._open.values():
            os.close(descriptor)
