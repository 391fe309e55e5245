"""The memory plan: the bytes that a model needs on a device, a row for each part, before anything is loaded.

Reads config.json and the headers, never weights. Decides what is given up so that all fits, what costs the least speed
first; the engine and the KV cache then follow the plan. Covers this process and its memory on a GPU. Does not cover the
page cache beyond the mapped weights, other programs, and what the system gives to others after the plan was made.

What is given up on Metal, for gpt-oss-20b and 8,192 tokens, and its cost in percent of a turn that is prefill and
decode in equal parts. Not measured on a Mac: from bytes and launches, for an M2 (100 GB/s, some 20 ms a token).

    given up                        memory of the GPU       cost
    embeddings on the GPU           0.33 GB                 1: a token crosses to the CPU and back, 0.1-0.3 ms
    prefill chunks of 2,048         0.25 GB for 512         2: experts are read four times as often, 4 % of prefill
    experts of a layer              0.42 GB                 5: two crossings, and the CPU's share of the bandwidth
    16-bit KV cache                 0.1 GB (1.5 at 131,072) 6: no fused attention, least of all in prefill
    prefill chunks of 512           0.06 GB for 128         10: 16 tokens an expert do not fill its tiles
    experts in memory               all                     decode becomes as slow as the disk

On a CPU an 8-bit KV cache costs least: the kernels read it as fast as it comes. `device.BACKENDS` has the costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from ..errors import GptOssError
from ..model.kv_cache import KV_CHUNK, KV_QUANT_HEAD_DIMS, MAX_SNAPSHOTS
from ..model.network import keys_at_a_time
from ..model.recognition import open_converted
from ..model.safetensors import CheckpointError
from .devices import Device
from .system import size_text

DEFAULT_CONTEXT = 8192  # tokens, if no context is asked for; memory that is left makes it longer
MIN_CONTEXT = 1024

# Memory of Python, MLX and the kernels, and of a tokenizer for each byte of its tokenizer.json: measured.
RUNTIME_BYTES = 60_000_000
TOKENIZER_FACTOR = 9

WORKSPACE = "prefill workspace"


class BudgetTooSmall(GptOssError):
    """No plan fits; `smallest` is the number of bytes with which one would."""

    def __init__(self, message: str, smallest: int):
        super().__init__(message)
        self.smallest = smallest


@dataclass(frozen=True)
class EngineConfig:
    """The settings that decide how much memory a model needs."""

    context: int
    """Maximum of tokens in the KV cache."""
    kv_bits: int
    """Bits per value in the KV cache of full layers: 16 or 8."""
    prefill_chunk: int
    """Tokens that are prefilled at a time."""
    expert_slots: int | None = None
    """Experts in memory at a time, of all layers together; None for all of them."""
    cpu_expert_layers: int = 0
    """Layers whose experts a CPU computes beside a GPU."""
    embeddings_on_gpu: bool = False
    """Whether a GPU looks up embeddings, so that they count as its own."""
    workspace: int | None = None
    """Maximum of bytes that MLX keeps for its next results; None for MLX's default."""
    allocations: int | None = None
    """Maximum of bytes that MLX has in all; None for MLX's default."""


@dataclass(frozen=True)
class PlanRow:
    """The bytes of one part of the model or the process."""

    name: str
    bytes: int
    mapped: bool
    """Whether they are pages of the model's files, which the system can drop and read again, or anonymous memory."""
    on_gpu: bool
    """Whether they count against a GPU's limit."""


@dataclass(frozen=True)
class Candidate:
    """Settings that were considered, in words, and the bytes that they need."""

    what: str
    bytes: int
    gpu_bytes: int

    def shortfall(self, device: Device) -> tuple[int, int]:
        """The bytes that a device lacks for it; if none, those that its GPU lacks. Compared, less is better."""
        lacking = max(self.bytes - device.memory, 0)
        on_gpu = 0 if device.gpu is None else max(self.gpu_bytes - device.gpu, 0)
        return lacking, 0 if lacking else on_gpu


@dataclass(frozen=True)
class MemoryPlan:
    model: str
    device: Device
    settings: EngineConfig
    rows: tuple[PlanRow, ...]
    attempts: tuple[Candidate, ...]
    """The candidates in the order of their costs, but for those that lack as much as one before; the last fits."""
    experts: int
    """Number of experts of all layers together."""
    wanted_context: int | None
    """The context that was asked for, in tokens."""
    copied: int
    """Bytes of files that this device could use where they are mapped, if they were laid out for that."""

    @property
    def compromise(self) -> str | None:
        """The settings that were given up, in a line; None if none were."""
        given_up = [self.attempts[-1].what] if len(self.attempts) > 1 else []
        if self.wanted_context and self.settings.context < self.wanted_context:
            given_up.append(f"a context of {self.settings.context:,} instead of {self.wanted_context:,}")
        if not given_up:
            return None
        first, device = self.attempts[0], self.device
        if device.gpu is not None and first.bytes <= device.memory:
            return (
                f"to fit {size_text(device.gpu)} on the GPU: {' and '.join(given_up)}"
                f" (everything on it would take {size_text(first.gpu_bytes)})"
            )
        return (
            f"to fit {size_text(device.memory)}: {' and '.join(given_up)}"
            f" (everything in memory would take {size_text(first.bytes)})"
        )

    @property
    def advice(self) -> str | None:
        """The step that would let files be mapped, in a line; None if they are."""
        if not self.copied:
            return None
        return (
            f"{size_text(self.copied)} of {self.model} is not laid out to be mapped, and is copied into memory: what"
            " `gptoss-mlx convert` makes of the checkpoint that it comes from is mapped"
        )

    @property
    def total(self) -> int:
        return _bytes(self.rows)

    @property
    def anonymous(self) -> int:
        return sum(row.bytes for row in self.rows if not row.mapped)

    @property
    def on_gpu(self) -> int:
        return _gpu_bytes(self.rows)

    def as_dict(self) -> dict[str, Any]:
        """All fields and sums, for JSON."""
        return asdict(self) | {"total": self.total, "anonymous": self.anonymous, "on_gpu": self.on_gpu}


def make_plan(
    folder: Path, device: Device, *, memory: int | None = None, context: int | None = None, kv_bits: int | None = None
) -> MemoryPlan:
    """The plan for a converted folder on `device`, within `memory` bytes if that is given.

    Gives up what costs the least speed, and before the context the experts in memory. Raises
    BudgetTooSmall, CheckpointError, and GptOssError for a context or `kv_bits` that the model cannot have.
    """
    sizes = MemoryEstimate(folder)
    max_context = sizes.config.max_context
    if context is not None and context < 1:
        raise GptOssError(f"a context of {context} is too small: give a number of tokens, 1 or more")
    if kv_bits not in (None, 8, 16):
        raise GptOssError(f"a KV cache of {kv_bits} bits is not possible: 8 or 16")
    if context is not None and context > max_context:
        raise GptOssError(f"a context of {context:,} is more than the model's {max_context:,}")
    if kv_bits == 8 and sizes.config.head_dim not in KV_QUANT_HEAD_DIMS:
        head_dims = " or ".join(map(str, KV_QUANT_HEAD_DIMS))
        raise GptOssError(
            f"an 8-bit KV cache needs a head_dim of {head_dims}, and the model has {sizes.config.head_dim}"
        )
    if memory is not None:
        device = replace(device, memory=memory, gpu=device.gpu and min(memory, device.gpu))
    attempts: list[Candidate] = []
    wanted = context or min(DEFAULT_CONTEXT, max_context)
    for settings in _candidates(sizes, device, wanted, kv_bits):
        rows = sizes.rows(settings, device)
        tried = Candidate(_given_up(settings, device, kv_bits), _bytes(rows), _gpu_bytes(rows))
        if not attempts or tried.shortfall(device) < attempts[-1].shortfall(device):
            attempts.append(tried)
        if _fits(rows, device):
            break
    else:
        raise _too_small(folder, device, attempts[-1])
    while context is None and settings.expert_slots is None and settings.context < max_context:
        longer = replace(settings, context=min(2 * settings.context, max_context))
        if not _fits(sizes.rows(longer, device), device):
            break
        settings = longer
    rows = sizes.rows(settings, device)
    settings = replace(
        settings,
        workspace=next(row.bytes for row in rows if row.name == WORKSPACE),
        # MLX slows down above this: on a GPU, what the plan keeps below.
        allocations=_bytes(rows) if device.gpu is None else device.gpu,
    )
    return MemoryPlan(
        model=str(folder),
        device=device,
        settings=settings,
        rows=tuple(rows),
        attempts=tuple(attempts),
        experts=sizes.all_experts,
        wanted_context=context,
        copied=sizes.copied(device),
    )


def _candidates(sizes: MemoryEstimate, device: Device, wanted: int, kv_bits: int | None) -> Iterator[EngineConfig]:
    """Settings to try: those with all experts in memory, by their costs, then paged ones, in ever shorter contexts."""
    traits, costs = device.traits, device.traits.costs
    has_8_bits = sizes.config.head_dim in KV_QUANT_HEAD_DIMS
    chunks = dict(zip(traits.prefill_chunks, (0, *costs.shorter_chunks), strict=True))
    kv = {kv_bits: 0.0} if kv_bits else {16: 0.0} | ({8: costs.quantized_kv} if has_8_bits else {})
    embeddings = {True: 0.0, False: costs.cpu_embeddings} if device.gpu else {False: 0.0}
    most = sizes.config.num_layers if device.cpu_experts and sizes.cpu_can_compute_experts else 0
    yield from sorted(
        (
            EngineConfig(wanted, bits, chunk, cpu_expert_layers=layers, embeddings_on_gpu=on_gpu)
            for bits, chunk, layers, on_gpu in product(kv, chunks, range(most + 1), embeddings)
        ),
        key=lambda each: (
            kv[each.kv_bits]
            + chunks[each.prefill_chunk]
            + costs.cpu_layer * each.cpu_expert_layers
            + embeddings[each.embeddings_on_gpu]
        ),
    )
    context = wanted
    while True:
        for chunk in chunks:
            paged = EngineConfig(context, min(kv), chunk, expert_slots=sizes.min_slots)
            rows = sizes.rows(paged, device)
            room = device.memory - _bytes(rows)
            if device.gpu is not None:
                room = min(room, device.gpu - _gpu_bytes(rows))
            slots = sizes.min_slots + max(room, 0) // sizes.expert_bytes
            yield replace(paged, expert_slots=min(slots, sizes.all_experts))
        if context <= MIN_CONTEXT:
            return
        context = max(context // 2, MIN_CONTEXT)


def _given_up(settings: EngineConfig, device: Device, kv_bits: int | None) -> str:
    """What settings give up, in words, the dearest first; `kv_bits` were asked for."""
    layers, chunk = settings.cpu_expert_layers, settings.prefill_chunk
    given_up = {
        "experts paged": settings.expert_slots is not None,
        f"experts of {layers} layer{'s' * (layers > 1)} on the CPU": layers > 0,
        "8-bit KV cache": kv_bits is None and settings.kv_bits == 8,
        f"prefill in chunks of {chunk} tokens": chunk < device.traits.prefill_chunks[0],
        "embeddings on the CPU": device.gpu is not None and not settings.embeddings_on_gpu,
    }
    return ", ".join(what for what, is_given_up in given_up.items() if is_given_up) or "everything in memory"


def _too_small(folder: Path, device: Device, smallest: Candidate) -> BudgetTooSmall:
    lacking, _ = smallest.shortfall(device)
    needed, has = (smallest.bytes, device.memory) if lacking else (smallest.gpu_bytes, device.gpu or 0)
    where = "" if lacking else " on its GPU"
    return BudgetTooSmall(
        f"{folder} needs at least {size_text(needed)} of memory{where}, and {device.name} has {size_text(has)} for it:"
        " free some memory, or convert with a smaller recipe",
        needed,
    )


def _bytes(rows: Iterable[PlanRow]) -> int:
    return sum(row.bytes for row in rows)


def _gpu_bytes(rows: Iterable[PlanRow]) -> int:
    return sum(row.bytes for row in rows if row.on_gpu)


def _fits(rows: list[PlanRow], device: Device) -> bool:
    return _bytes(rows) <= device.memory and (device.gpu is None or _gpu_bytes(rows) <= device.gpu)


TRUNK, EXPERTS, EMBEDDINGS = PARTS = ("trunk", "experts", "embeddings")


def part_of(tensor: str) -> str:
    """The part of the model to which a tensor of this name belongs."""
    return EXPERTS if ".mlp.experts." in tensor else EMBEDDINGS if "embed_tokens" in tensor else TRUNK


class MemoryEstimate:
    """The bytes of each part of a model, from its headers."""

    def __init__(self, folder: Path):
        """Raises GptOssError for a folder that holds no converted model."""
        self.config, self.checkpoint = open_converted(folder)
        self.tensors = self.checkpoint.tensors
        if not self.experts:
            raise CheckpointError(f"{folder} has no experts: not a gpt-oss model")
        self.all_experts = self.config.num_layers * self.config.num_experts
        self.min_slots = 2 * self.config.experts_per_token
        vocabulary = folder / "tokenizer.json"
        self._weights_on: dict[str, Sequence[tuple[int, bool]]] = {}
        self.tokenizer = TOKENIZER_FACTOR * vocabulary.stat().st_size if vocabulary.is_file() else 0

    @cached_property
    def experts(self) -> int:
        return sum(tensor.nbytes for name, tensor in self.tensors.items() if part_of(name) == EXPERTS)

    @cached_property
    def expert_bytes(self) -> int:
        return -(-self.experts // self.all_experts)

    @cached_property
    def cpu_can_compute_experts(self) -> bool:
        """Whether the kernels can, with tensors that they map themselves: other programs' may not be aligned, or be in
        another dtype."""
        experts = [name for name in self.tensors if part_of(name) == EXPERTS]
        forms = {self.config.stored_form(name.rpartition(".")[0], self.tensors) for name in experts}
        return all(form is None or form.bits in (4, 8) for form in forms) and all(
            self.checkpoint.can_be_mapped(name, 1) and self.tensors[name].dtype in ("U8", "U32", "BF16")
            for name in experts
        )

    def copied(self, device: Device) -> int:
        """Bytes of tensors that MLX reads as copies, where others would be mapped."""
        unit = device.traits.map_unit
        copied = (name for name in self.tensors if unit and not self.checkpoint.can_be_mapped(name, unit))
        return sum(self.tensors[name].nbytes for name in copied)

    def _weights(self, device: Device) -> Sequence[tuple[int, bool]]:
        """Of each of PARTS, the bytes of its tensors, and whether they are mapped. A GPU adopts whole pages."""
        if device.backend not in self._weights_on:
            unit = device.traits.map_unit
            page = unit if unit and device.gpu is not None else 1
            sizes, mapped = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, True)
            for name, tensor in self.tensors.items():
                is_mapped = self.checkpoint.can_be_mapped(name, unit)
                part = part_of(name)
                mapped[part] &= is_mapped
                pages = -(-tensor.end // page) - tensor.start // page
                sizes[part] += pages * page if is_mapped else tensor.nbytes
            self._weights_on[device.backend] = [(sizes[part], mapped[part]) for part in PARTS]
        return self._weights_on[device.backend]

    def rows(self, settings: EngineConfig, device: Device) -> list[PlanRow]:
        """The maximum of everything that is in memory with these settings."""
        weights = self._weights(device)
        paged, layers = settings.expert_slots is not None, self.config.num_layers
        (trunk, trunk_mapped), (experts, experts_mapped), (embeddings, embeddings_mapped) = weights
        on_cpu = 0 if paged else experts * settings.cpu_expert_layers // layers
        slots = (settings.expert_slots or 0) * self.expert_bytes
        on_gpu = settings.embeddings_on_gpu
        rows = [
            PlanRow("attention, routers, head", trunk, mapped=trunk_mapped, on_gpu=True),
            # What the CPU looks up is a map in any case.
            PlanRow("embeddings", embeddings, mapped=embeddings_mapped or not on_gpu, on_gpu=on_gpu),
            PlanRow("experts", 0 if paged else experts - on_cpu, mapped=experts_mapped, on_gpu=True),
            PlanRow("experts on the CPU", on_cpu, mapped=True, on_gpu=False),
            PlanRow("expert slots", slots, mapped=False, on_gpu=True),
            PlanRow("expert read buffers", self._read_buffers() if paged else 0, mapped=False, on_gpu=False),
            *self._kv(settings, device),
            PlanRow(WORKSPACE, self._workspace(settings, device), mapped=False, on_gpu=True),
            PlanRow("FP32 copies of weights", self._fp32_copies(device), mapped=False, on_gpu=False),
            PlanRow("tokenizer", self.tokenizer, mapped=False, on_gpu=False),
            PlanRow("runtime", RUNTIME_BYTES, mapped=False, on_gpu=False),
        ]
        return [row for row in rows if row.bytes]

    def _kv(self, settings: EngineConfig, device: Device) -> list[PlanRow]:
        config = self.config
        values = 2 * config.num_kv_heads * config.head_dim
        full = config.layer_types.count("full_attention")
        plain = device.traits.kv_bytes
        # In an 8-bit KV cache each head has a scale and a bias in BF16.
        per_position = values * plain if settings.kv_bits == 16 else values + values // config.head_dim * 4
        context = -(-settings.context // 256) * 256
        ring = (config.num_layers - full) * config.sliding_window * values * plain
        return [
            PlanRow(
                f"KV cache, full layers, {settings.kv_bits} bits",
                full * context * per_position,
                mapped=False,
                on_gpu=True,
            ),
            # The old buffer of a layer's keys or values, while the larger one is filled.
            PlanRow("KV cache, growing", context * per_position // 2 * 4 // 5, mapped=False, on_gpu=True),
            PlanRow("KV cache, sliding layers", ring, mapped=False, on_gpu=True),
            PlanRow("KV cache, snapshots", MAX_SNAPSHOTS * ring, mapped=False, on_gpu=True),
            PlanRow("KV cache, saving", full * min(KV_CHUNK, context) * per_position, mapped=False, on_gpu=True),
        ]

    def _workspace(self, settings: EngineConfig, device: Device) -> int:
        """Activations of one chunk of a prompt, in attention or in the experts, and the logits of one token."""
        config, chunk = self.config, settings.prefill_chunk
        heads, k = config.num_heads * config.head_dim, config.experts_per_token
        of_hidden, of_intermediate = device.traits.expert_activations
        per_expert = of_hidden * config.hidden_size + of_intermediate * config.intermediate_size
        per_token = 4 * config.hidden_size + max(4 * heads, k * per_expert)
        logits = 6 * 4 * config.vocab_size
        return int(chunk * device.traits.activation_bytes * per_token) + logits + self._scores(settings, device)

    def _scores(self, settings: EngineConfig, device: Device) -> int:
        """Attention scores of one chunk in FP32, three times, unless attention keeps those of a few keys only."""
        if settings.kv_bits in device.traits.tiled_kv_bits:
            return 0
        rows, keys = settings.prefill_chunk * self.config.num_heads, settings.context
        if settings.kv_bits == 8:
            keys = min(keys, keys_at_a_time(rows))
        return 3 * 4 * rows * keys

    def _fp32_copies(self, device: Device) -> int:
        """FP32 copies that MLX makes on a CPU: of scales and biases for good, of plain matrices one at a time."""
        if device.backend != "cpu":
            return 0
        floats = {name: t for name, t in self.tensors.items() if t.dtype == "BF16"}
        plain = [2 * t.nbytes for name, t in floats.items() if name.endswith(".weight") and len(t.shape) > 1]
        return sum(2 * t.nbytes for t in floats.values()) - sum(plain) + max(plain, default=0)

    def _read_buffers(self) -> int:
        from ..model.expert_pool import ExpertPool

        largest = max(t.nbytes // t.shape[0] for name, t in self.tensors.items() if ".mlp.experts." in name)
        return ExpertPool.READERS * (largest + 2 * 4096)
