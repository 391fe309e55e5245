"""Paged experts: slots in memory, filled from the files when a token needs an expert that is in none.

Knows which experts are in slots and which one leaves for another; leaves the number of slots to the memory plan, and
the choice of experts to the router.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from queue import SimpleQueue

import mlx.core as mx
import numpy as np

from ..device import backend
from ..kernels import compiled
from .checkpoint import FLOATS
from .config import ModelConfig
from .direct_io import DirectFiles
from .safetensors import NUMPY_DTYPE, CheckpointError, TensorInfo
from .weights import Matrix, Weights


@dataclass
class PoolStats:
    """The work of a pool since it was made; an expert counts once for each chunk of tokens that needs it in a layer."""

    needed: int = 0
    missed: int = 0
    bytes_read: int = 0
    stall_seconds: float = 0.0
    """Time in which the computation waited for a read."""

    def __add__(self, other: PoolStats) -> PoolStats:
        return PoolStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, earlier: PoolStats) -> PoolStats:
        return PoolStats(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)))

    @property
    def hit_rate(self) -> float:
        return 1 - self.missed / self.needed if self.needed else 1.0


class SlotTable:
    """Which expert of which layer lies in which slot, and which one leaves for another: the one of the lowest value.

    An expert's value is the number of tokens that chose it, with an exponential decay.
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
        """Count the tokens that chose each expert of a layer: counts [experts], of `tokens` in all."""
        self._value[layer] *= 0.5 ** (tokens / self.HALF_LIFE)
        self._value[layer] += counts

    def find(self, layer: int, experts: np.ndarray) -> np.ndarray:
        """The slots of experts of a layer, both [N]; -1 for one that is in none."""
        return self._slot_of[layer * self._experts + experts]

    def hold(self, slots: list[int]) -> None:
        """Mark slots as in use: `vacate` leaves them alone."""
        self._busy[slots] = True

    def release(self, slots: list[int] | slice = slice(None)) -> None:
        self._busy[slots] = False

    def vacate(self, count: int) -> list[int]:
        """Up to `count` slots that are not in use, those with the lowest values, emptied and held."""
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

    Reads bypass the page cache where the system allows it: memory is short, and an expert in a slot needs no second
    copy.
    """

    READERS = 4  # reads under way at a time: a disk is slow with one

    def __init__(self, weights: Weights, slots: int):
        """Raises CheckpointError where the experts of the layers differ in shape or dtype."""
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
        self._files, self._lock = DirectFiles(), threading.Lock()
        self._readers = ThreadPoolExecutor(self.READERS, "experts")
        self._done: SimpleQueue[_Load] = SimpleQueue()

    def __repr__(self) -> str:
        return f"ExpertPool({self.slots} slots of {self.expert_bytes:,} bytes, {self.stats.hit_rate:.0%} hits)"

    def matrix(self, projection: str) -> Matrix:
        """The slots of one projection: a stack [slots, rows, columns]."""
        weight = self._arrays[f"{projection}.weight"]
        scales, biases = (self._arrays.get(f"{projection}.{part}") for part in ("scales", "biases"))
        return Matrix(weight, scales, biases, self._quantization[projection])

    def bias(self, projection: str) -> mx.array:
        """[slots, rows] in the dtype in which it is stored."""
        return self._arrays[f"{projection}.bias"]

    def fetch(self, layer: int, chosen: np.ndarray) -> Iterator[np.ndarray]:
        """Load the experts `chosen` [L, k] of a layer, and yield tables of slots until each expert has been in one.

        A table is int32 [experts]: an expert's slot, or -1 where it is in none yet or was in an earlier table. It holds
        until the next is asked for; meanwhile others are being read. Raises CheckpointError.
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
        """Start the reads of as many missing experts as there are free slots; returns how many."""
        slots = self._table.vacate(len(missing))
        for slot in slots:
            load = _Load(layer, missing.pop(0), slot, len(self._parts[layer]))
            for part in self._parts[layer]:
                self._readers.submit(self._read, load, part)
        return len(slots)

    def _taken_in(self, load: _Load) -> int:
        """The slot of a loaded expert. Raises the error of its reads, if there was one."""
        if load.error:
            raise load.error
        self.stats.bytes_read += self.expert_bytes
        self._table.fill(load.slot, load.layer, load.expert)
        return load.slot

    def _read(self, load: _Load, part: _Part) -> None:
        """Read one part of an expert, on a worker thread; the last worker marks the expert loaded."""
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
    """An expert that is being read into a slot."""

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
    """The tensors of the experts at `path`, checked: "gate_proj.weight" -> where it lies. Raises CheckpointError."""
    for name, shape in projection_shapes(weights.config).items():
        weights.check_matrix(f"{path}.{name}", *shape)
        weights.check(f"{path}.{name}.bias", shape[:2], FLOATS)
    names = [f"{name}.{part}" for name in PROJECTIONS for part in ("weight", "scales", "biases", "bias")]
    tensors = weights.checkpoint.tensors
    return {name: tensors[f"{path}.{name}"] for name in names if f"{path}.{name}" in tensors}


def _forms(tensors: dict[str, TensorInfo]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def _slot_memory(slots: int, tensor: TensorInfo) -> tuple[mx.array, np.ndarray]:
    """An array [slots, ...] for parts like those of `tensor`, and a NumPy view that writes into it."""
    dtype = np.dtype(NUMPY_DTYPE[tensor.dtype])
    shape, kind = (slots, *tensor.shape[1:]), getattr(mx, dtype.name)
    array = compiled().untouched_memory(shape, kind) if backend().name == "kernels" else mx.zeros(shape, kind)
    mx.eval(array)
    view = np.array(array, copy=False)
    if tensor.dtype == "BF16":
        array = array.view(mx.bfloat16)
        mx.eval(array)
    return array, view


PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def projection_shapes(config: ModelConfig) -> dict[str, tuple[int, int, int]]:
    """[experts, rows, columns] of each projection of a layer's experts."""
    count, hidden, intermediate = config.num_experts, config.hidden_size, config.intermediate_size
    return dict(zip(PROJECTIONS, [(count, intermediate, hidden)] * 2 + [(count, hidden, intermediate)], strict=True))
