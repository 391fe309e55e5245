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

from ..device import lays_out_arrays
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
    """Experts that had to be read, also where their reads began before they were asked for."""
    bytes_read: int = 0
    stall_seconds: float = 0.0
    """Time in which the computation waited for a read."""
    ahead_right: int = 0
    """Experts that began to be read before their layer asked for them."""
    ahead_wrong: int = 0
    """Those that it then did not ask for."""

    def __add__(self, other: PoolStats) -> PoolStats:
        return PoolStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, earlier: PoolStats) -> PoolStats:
        return PoolStats(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)))

    @property
    def hit_rate(self) -> float:
        return 1 - self.missed / self.needed if self.needed else 1.0


NOTHING = np.empty(0, int)


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

    def vacate(self, count: int, spared: np.ndarray = NOTHING) -> list[int]:
        """Up to `count` slots that are not in use, those with the lowest values, emptied and held; `spared` slots only
        where there are no others."""
        if not count:
            return []
        values = np.where(self._holds < 0, -1.0, self._value.ravel()[self._holds])
        values[spared] += self._value.max()
        values[self._busy] = np.inf
        order = np.argsort(values, kind="stable")[:count]
        slots = order[~self._busy[order]].tolist()
        held = self._holds[slots]
        self._slot_of[held[held >= 0]] = -1
        self._holds[slots] = -1
        self.hold(slots)
        return slots

    def fill(self, slot: int, layer: int, expert: int) -> None:
        """Note what a slot holds; one that is in another slot too stays there."""
        number = layer * self._experts + expert
        if self._slot_of[number] < 0:
            self._holds[slot], self._slot_of[number] = number, slot


class ExpertPool:
    """Slots for experts of any layer, filled from the checkpoint's files when a token needs them.

    Reads bypass the page cache where the system allows it: memory is short, and an expert in a slot needs no second
    copy.
    """

    READERS = 4  # reads under way at a time: a disk is slow with one
    READ_AHEAD = 2  # experts of the next layer: of those that are in no slot, a third guess is wrong as often as right

    def __init__(self, weights: Weights, slots: int):
        """Raises CheckpointError where the experts of the layers differ in shape or dtype."""
        config = weights.config
        self.slots, self.expert_bytes, self.stats = slots, 0, PoolStats()
        self._experts = config.num_experts
        self._parts: list[list[list[_Part]]] = []  # of each layer and projection
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
            parts = {name: _Part(files[t.name], t, views[name]) for name, t in tensors.items()}
            self._parts.append([[parts[n] for n in parts if n.startswith(name)] for name in PROJECTIONS])
        self._quantization = {name: weights.quantization(f"model.layers.0.mlp.experts.{name}") for name in PROJECTIONS}
        self._table = SlotTable(config.num_layers, config.num_experts, slots)
        self._files, self._lock = DirectFiles(), threading.Lock()
        self._readers = ThreadPoolExecutor(self.READERS, "experts")
        self._done: SimpleQueue[_Load] = SimpleQueue()
        self._ahead: list[_Load] = []  # by the last fetch
        self._loading: set[_Load] = set()
        self.unevaluated: list[mx.array] = []
        """Results that refer to slots: to be evaluated before the next fetch."""

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

    def fetch(self, layer: int, chosen: np.ndarray, likely: np.ndarray = NOTHING) -> Iterator[tuple[np.ndarray, bool]]:
        """Load the experts `chosen` [L, k] of a layer, and yield tables of slots until each expert has been in one.

        A table is int32 [experts]: an expert's slot, or -1 where it is in none yet or was in an earlier table. With it
        comes whether there will be another: then the table holds until that is asked for, and others are being read
        meanwhile. The last one holds until the next fetch.

        `likely` [N] are experts that the next layer may choose, the likeliest first: READ_AHEAD of them are read after
        those of this layer. Raises CheckpointError.
        """
        counts = np.bincount(chosen.ravel(), minlength=self._experts)
        self._table.use(layer, counts, len(chosen))
        needed = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        self._release()
        while not self._done.empty():
            self._land(self._done.get())
        waiting = self._needed_of_ahead(layer, counts)
        slots = self._table.find(layer, needed)
        due = dict(zip(needed[slots >= 0].tolist(), slots[slots >= 0].tolist(), strict=True))
        missing = [expert for expert in needed[slots < 0].tolist() if expert not in waiting]
        self.stats.needed += len(needed)
        self.stats.missed += len(missing)
        self._table.hold(list(due.values()))
        following = self._table.find(layer + 1, likely)
        spared = following[following >= 0]
        ahead = likely[: self.READ_AHEAD][following[: self.READ_AHEAD] < 0].tolist()
        while due or missing or waiting:
            waiting |= {load.expert: load for load in self._start(layer, missing, spared)}
            if not missing:
                self._ahead += self._start(layer + 1, ahead, spared)
            if due and self._done.empty():
                more = bool(missing or waiting)
                yield self._due(due), more
                if more:
                    self._release()
                due = {}
                continue
            started = time.perf_counter()
            load = self._done.get()
            self.stats.stall_seconds += time.perf_counter() - started
            self._land(load)
            if waiting.get(load.expert) is load:
                del waiting[load.expert]
                if load.error:
                    raise load.error
                due[load.expert] = load.slot
                self._table.hold([load.slot])

    def _needed_of_ahead(self, layer: int, counts: np.ndarray) -> dict[int, _Load]:
        """The experts that are being read ahead and are needed now; of the others, what is not read yet is left."""
        ahead, self._ahead = self._ahead, []
        right = [load for load in ahead if load.layer == layer and counts[load.expert]]
        for load in ahead:
            load.is_wanted = load in right
        self.stats.missed += len(right)
        self.stats.ahead_right += len(right)
        self.stats.ahead_wrong += len(ahead) - len(right)
        return {load.expert: load for load in right if load in self._loading}

    def _release(self) -> None:
        """Let other experts into all slots that none is being read into."""
        self._table.release()
        self._table.hold([load.slot for load in self._loading])

    def _due(self, slot_of: dict[int, int]) -> np.ndarray:
        table = np.full(self._experts, -1, np.int32)
        table[list(slot_of)] = list(slot_of.values())
        return table

    def _start(self, layer: int, missing: list[int], spared: np.ndarray) -> list[_Load]:
        """Start the reads of as many missing experts as there are free slots, and take these off the list."""
        loads = []
        for slot in self._table.vacate(len(missing), spared):
            loads.append(load := _Load(layer, missing.pop(0), slot, len(PROJECTIONS)))
            self._loading.add(load)
            for parts in self._parts[layer]:
                self._readers.submit(self._read, load, parts)
        return loads

    def _land(self, load: _Load) -> None:
        """Note that all reads of an expert have ended."""
        self._loading.remove(load)
        self.stats.bytes_read += load.bytes_read
        if load.bytes_read == self.expert_bytes:
            self._table.fill(load.slot, load.layer, load.expert)
        self._table.release([load.slot])

    def _read(self, load: _Load, parts: list[_Part]) -> None:
        """Read one projection of an expert, on a worker thread; the last worker marks the expert loaded."""
        count = 0
        try:
            for part in parts if load.is_wanted else []:
                self._files.read(part.path, part.tensor.start + load.expert * part.size, part.slots[load.slot])
                count += part.size
        except Exception as error:
            load.error = error
        with self._lock:
            load.bytes_read += count
            load.projections_left -= 1
            if not load.projections_left:
                self._done.put(load)


@dataclass(eq=False)
class _Load:
    """An expert that is being read into a slot."""

    layer: int
    expert: int
    slot: int
    projections_left: int
    bytes_read: int = 0
    is_wanted: bool = True
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
    array = compiled().untouched_memory(shape, kind) if lays_out_arrays() else mx.zeros(shape, kind)
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
