"""The memory plan: the bytes that a model needs on a device, a row for each part, before anything is loaded.

Reads config.json and the headers, never weights. Decides what is given up, in a fixed order, so that all fits; the
engine and the KV cache then follow the plan. Covers this process and its memory on a GPU. Does not cover the page cache
beyond the mapped weights, other programs, and memory that the system gives to others after the plan was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import kernels
from ..device import BACKENDS, Backend, backend, gpu
from ..errors import GptOssError
from ..model.checkpoint import CheckpointError
from ..model.kv_cache import KV_CHUNK, KV_QUANT_HEAD_DIMS, MAX_SNAPSHOTS
from ..model.network import keys_at_a_time
from ..model.recognition import open_converted
from .system import available, parse_size, size_text, total

DEFAULT_CONTEXT = 8192  # tokens, if no context is asked for; memory that is left makes it longer
MIN_CONTEXT = 1024
DEVICES = Path(__file__).with_name("devices.json")

# Memory of Python, MLX and the kernels, and of a tokenizer for each byte of its tokenizer.json: measured.
RUNTIME_BYTES = 60_000_000
TOKENIZER_FACTOR = 9

HEADROOM = 0.03  # Use 97 % of available memory, the system's or a GPU's; the rest is headroom.

WORKSPACE = "prefill workspace"


class BudgetTooSmall(GptOssError):
    """No plan fits; `smallest` is the number of bytes with which one would."""

    def __init__(self, message: str, smallest: int):
        super().__init__(message)
        self.smallest = smallest


@dataclass(frozen=True)
class Device:
    """A device for which a plan is made."""

    name: str
    memory: int
    """Bytes for this process, GPU included."""
    gpu: int | None
    """The GPU's limit in bytes; None without one."""
    backend: str
    """A name in `device.BACKENDS`."""
    cpu_experts: bool = False
    """Whether, beside a GPU, the CPU can compute experts."""

    @property
    def traits(self) -> Backend:
        return BACKENDS[self.backend]

    @classmethod
    def here(cls) -> Device:
        """This machine, with the memory that is available now."""
        if (here := gpu()) is None:
            return cls("this machine", _usable(available() or _beside_the_system()), None, backend().name)
        limit = _usable(here.limit or total())
        if not here.is_unified:
            return cls("this machine", limit, limit, "gpu")
        return cls("this machine", _beside_the_system(), limit, "gpu", cpu_experts=kernels.native() is not None)

    @classmethod
    def named(cls, name: str) -> Device:
        """A profile of devices.json. Raises GptOssError."""
        profiles = json.loads(DEVICES.read_text(encoding="utf-8"))
        if name not in profiles:
            raise GptOssError(f"there is no device {name!r}: choose from {', '.join(profiles)}")
        profile = profiles[name]
        gpu = profile["gpu"] and parse_size(profile["gpu"])
        return cls(name, parse_size(profile["memory"]), gpu, "gpu" if gpu else "kernels", cpu_experts=bool(gpu))


def _usable(memory: int) -> int:
    return int(memory * (1 - HEADROOM))


def _beside_the_system() -> int:
    """RAM without the system and other programs: a guess, for systems that do not report it."""
    return total() - max(3 * 2**30, total() // 5)


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


@dataclass(frozen=True)
class MemoryPlan:
    model: str
    device: Device
    settings: EngineConfig
    rows: tuple[PlanRow, ...]
    attempts: tuple[Candidate, ...]
    """All candidates in order; the last one was chosen."""
    experts: int
    """Number of experts of all layers together."""
    wanted_context: int | None
    """The context that was asked for, in tokens."""

    @property
    def compromise(self) -> str | None:
        """The settings that were given up, in a line; None if none were."""
        given_up = [self.attempts[-1].what] if len(self.attempts) > 1 else []
        if self.wanted_context and self.settings.context < self.wanted_context:
            given_up.append(f"a context of {self.settings.context:,} instead of {self.wanted_context:,}")
        if not given_up:
            return None
        return (
            f"to fit {size_text(self.device.memory)}: {' and '.join(given_up)}"
            f" (everything in memory would take {size_text(self.attempts[0].bytes)})"
        )

    @property
    def total(self) -> int:
        return sum(row.bytes for row in self.rows)

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

    Gives up, in this order: the 16-bit KV cache, long prefill chunks, experts on a GPU, experts in memory, the context.
    Raises BudgetTooSmall, CheckpointError, and GptOssError for a context or `kv_bits` that the model cannot have.
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
    attempts = []
    wanted = context or min(DEFAULT_CONTEXT, max_context)
    for what, settings in _candidates(sizes, device, wanted, kv_bits):
        rows = sizes.rows(settings, device)
        attempts.append(Candidate(what, sum(row.bytes for row in rows), _gpu_bytes(rows)))
        if _fits(rows, device):
            break
    else:
        raise BudgetTooSmall(
            f"{folder} needs at least {size_text(attempts[-1].bytes)} of memory, and {device.name} has"
            f" {size_text(device.memory)} for it: free some memory, or convert with a smaller recipe",
            attempts[-1].bytes,
        )
    while context is None and settings.expert_slots is None and settings.context < max_context:
        longer = replace(settings, context=min(2 * settings.context, max_context))
        if not _fits(sizes.rows(longer, device), device):
            break
        settings = longer
    rows = sizes.rows(settings, device)
    settings = replace(
        settings,
        workspace=next(row.bytes for row in rows if row.name == WORKSPACE),
        # The sum, because on a GPU MLX counts adopted maps too, and slows down above its limit.
        allocations=sum(row.bytes for row in rows),
    )
    return MemoryPlan(
        model=str(folder),
        device=device,
        settings=settings,
        rows=tuple(rows),
        attempts=tuple(attempts),
        experts=sizes.all_experts,
        wanted_context=context,
    )


def _candidates(
    sizes: MemoryEstimate, device: Device, wanted: int, kv_bits: int | None
) -> Iterator[tuple[str, EngineConfig]]:
    """Settings to try, the best first, each with the words for its difference from the one before."""
    min_bits = kv_bits or (8 if sizes.config.head_dim in KV_QUANT_HEAD_DIMS else 16)
    longest, *shorter = device.traits.prefill_chunks
    context = wanted
    while True:
        if context == wanted:
            yield "everything in memory", EngineConfig(context, kv_bits or 16, longest)
            smaller = EngineConfig(context, min_bits, longest)
            if kv_bits is None and min_bits == 8:
                yield "8-bit KV cache", smaller
            for chunk in shorter:
                yield f"prefill in chunks of {chunk} tokens", replace(smaller, prefill_chunk=chunk)
            if device.cpu_experts:
                for layers in range(1, sizes.config.num_layers + 1):
                    yield f"experts of {layers} layers on the CPU", replace(smaller, cpu_expert_layers=layers)
        for chunk in (longest, *shorter):
            paged = EngineConfig(context, min_bits, chunk, expert_slots=sizes.min_slots)
            rows = sizes.rows(paged, device)
            room = device.memory - sum(row.bytes for row in rows)
            if device.gpu is not None:
                room = min(room, device.gpu - _gpu_bytes(rows))
            slots = sizes.min_slots + max(room, 0) // sizes.expert_bytes
            at_a_time = "" if chunk == longest else f", prefill in chunks of {chunk} tokens"
            yield f"experts paged{at_a_time}", replace(paged, expert_slots=min(slots, sizes.all_experts))
        if context <= MIN_CONTEXT:
            return
        context = max(context // 2, MIN_CONTEXT)


def _gpu_bytes(rows: list[PlanRow] | tuple[PlanRow, ...]) -> int:
    return sum(row.bytes for row in rows if row.on_gpu)


def _fits(rows: list[PlanRow], device: Device) -> bool:
    return sum(row.bytes for row in rows) <= device.memory and (device.gpu is None or _gpu_bytes(rows) <= device.gpu)


class MemoryEstimate:
    """The bytes of each part of a model, from its headers."""

    def __init__(self, folder: Path):
        """Raises GptOssError for a folder that holds no converted model."""
        self.config, checkpoint = open_converted(folder)
        self.tensors = checkpoint.tensors
        if not self.experts:
            raise CheckpointError(f"{folder} has no experts: not a gpt-oss model")
        self.all_experts = self.config.num_layers * self.config.num_experts
        self.min_slots = 2 * self.config.experts_per_token
        vocabulary = folder / "tokenizer.json"
        self.tokenizer = TOKENIZER_FACTOR * vocabulary.stat().st_size if vocabulary.is_file() else 0

    def of(self, part: str) -> int:
        """Bytes of the tensors with `part` in their names."""
        return sum(t.nbytes for name, t in self.tensors.items() if part in name)

    @cached_property
    def experts(self) -> int:
        return self.of(".mlp.experts.")

    @cached_property
    def embeddings(self) -> int:
        return self.of("embed_tokens")

    @cached_property
    def expert_bytes(self) -> int:
        return -(-self.experts // self.all_experts)

    def rows(self, settings: EngineConfig, device: Device) -> list[PlanRow]:
        """The maximum of everything that is in memory with these settings."""
        maps = device.traits.maps_files
        paged, layers = settings.expert_slots is not None, self.config.num_layers
        on_cpu = 0 if paged else self.experts * settings.cpu_expert_layers // layers
        trunk = self.of("") - self.experts - self.embeddings
        rows = [
            PlanRow("attention, routers, head", trunk, mapped=maps, on_gpu=True),
            PlanRow("embeddings", self.embeddings, mapped=True, on_gpu=False),
            PlanRow("experts", 0 if paged else self.experts - on_cpu, mapped=maps, on_gpu=True),
            PlanRow("experts on the CPU", on_cpu, mapped=maps, on_gpu=False),
            PlanRow("expert slots", (settings.expert_slots or 0) * self.expert_bytes, mapped=False, on_gpu=True),
            PlanRow("expert read buffers", self._read_buffers() if paged else 0, mapped=False, on_gpu=False),
            *self._kv(settings, device),
            PlanRow(WORKSPACE, self._workspace(settings, device), mapped=False, on_gpu=True),
            PlanRow("FP32 copies of weights", 0 if maps else self._fp32_copies(), mapped=False, on_gpu=False),
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

    def _fp32_copies(self) -> int:
        """FP32 copies that MLX makes on a CPU: of scales and biases for good, of plain matrices one at a time."""
        floats = {name: t for name, t in self.tensors.items() if t.dtype == "BF16"}
        plain = [2 * t.nbytes for name, t in floats.items() if name.endswith(".weight") and len(t.shape) > 1]
        return sum(2 * t.nbytes for t in floats.values()) - sum(plain) + max(plain, default=0)

    def _read_buffers(self) -> int:
        from ..model.expert_pool import ExpertPool

        largest = max(t.nbytes // t.shape[0] for name, t in self.tensors.items() if ".mlp.experts." in name)
        return ExpertPool.READERS * (largest + 2 * 4096)
