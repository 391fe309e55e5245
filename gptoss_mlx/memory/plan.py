"""The memory plan: what a folder will take on a device, every byte in a row, before anything is loaded.

Reads config.json and the headers, never weights. Decides what is given up, in a fixed order, so that all fits; the
engine and the cache then do as the plan says. Covered: this process, and what a GPU holds for it. Not covered: the
page cache beyond the mapped weights, other programs, and what a system may give away after the plan was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from .. import kernels
from ..device import BACKENDS, backend, gpu
from ..errors import GptOssError
from ..model.checkpoint import CheckpointError
from ..model.kv_cache import KV_CHUNK, KV_QUANT_HEAD_DIMS, MAX_SNAPSHOTS
from ..model.network import keys_at_a_time
from ..model.recognition import open_converted
from .system import available, parse_size, size_text, total

DEFAULT_CONTEXT = 8192  # what is made to fit where nobody asks for a context; what is left may make it longer
MIN_CONTEXT = 1024
DEVICES = Path(__file__).with_name("devices.json")

# What Python, MLX and the kernels take, and what a tokenizer takes for each byte of its tokenizer.json: measured.
RUNTIME_BYTES = 60_000_000
TOKENIZER_FACTOR = 9

# Of what the system says is available, or a GPU may hold, a plan takes this much: the rest is for what changes after.
SHARE = 0.97


WORKSPACE = "prefill workspace"


class BudgetTooSmall(GptOssError):
    """Nothing fits; `smallest` is the number of bytes that would."""

    def __init__(self, message: str, smallest: int):
        super().__init__(message)
        self.smallest = smallest


@dataclass(frozen=True)
class Device:
    """Where a plan is for."""

    name: str
    memory: int
    gpu: int | None
    """What a GPU may hold; None where there is none."""
    backend: str
    """The name of one of `device.BACKENDS`."""
    cpu_experts: bool = False
    """Whether, beside a GPU, the CPU can compute experts."""

    @classmethod
    def here(cls) -> Device:
        """This machine, with what it can give now."""
        if (here := gpu()) is None:
            memory = available() or _beside_the_system()
            return cls("this machine", int(memory * SHARE), None, backend().name)
        limit = int((here.limit or total()) * SHARE)
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


def _beside_the_system() -> int:
    """RAM without what the system and other programs keep, where nobody tells how much that is: a guess."""
    return total() - max(3 * 2**30, total() // 5)


@dataclass(frozen=True)
class EngineConfig:
    """What can be given up to need less."""

    context: int
    kv_bits: int
    prefill_chunk: int
    expert_slots: int | None = None
    """Experts in memory at a time, of all layers; None: all of them."""
    cpu_expert_layers: int = 0
    workspace: int | None = None
    """Bytes that MLX may keep for its next results; None: what MLX likes."""
    allocations: int | None = None
    """Bytes that MLX may have in all; None: what MLX likes."""


@dataclass(frozen=True)
class PlanRow:
    name: str
    bytes: int
    mapped: bool
    """Pages of the model's files, which the system can drop and read again; else anonymous memory."""
    on_gpu: bool
    """Counts against what a GPU may hold."""


@dataclass(frozen=True)
class Candidate:
    """Settings that were considered, and what they would have taken."""

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
    """In order; the last one is what was chosen."""
    experts: int
    """Of all layers."""
    wanted_context: int | None

    @property
    def compromise(self) -> str | None:
        """What was given up, in a line; None where nothing was."""
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

    def as_dict(self) -> dict:
        return asdict(self) | {"total": self.total, "anonymous": self.anonymous, "on_gpu": self.on_gpu}


def make_plan(
    folder: Path, device: Device, *, memory: int | None = None, context: int | None = None, kv_bits: int | None = None
) -> MemoryPlan:
    """The plan for a converted folder on `device`, within `memory` bytes if that is given.

    What is given up, in this order: BF16 keys and values, long prefill chunks, experts on the GPU (beside one), experts
    in memory, the context. Raises BudgetTooSmall, and GptOssError for a folder or a context that cannot be.
    """
    sizes = MemoryEstimate(folder)
    most = sizes.config.max_context
    if context is not None and context < 1:
        raise GptOssError(f"a context of {context} is too small: give a number of tokens, 1 or more")
    if kv_bits not in (None, 8, 16):
        raise GptOssError(f"a KV cache of {kv_bits} bits is not possible: 8 or 16")
    if context is not None and context > most:
        raise GptOssError(f"a context of {context:,} is more than the model's {most:,}")
    if kv_bits == 8 and sizes.config.head_dim not in KV_QUANT_HEAD_DIMS:
        raise GptOssError(f"keys and values in 8 bits need heads of {KV_QUANT_HEAD_DIMS}, not {sizes.config.head_dim}")
    if memory is not None:
        device = replace(device, memory=memory, gpu=device.gpu and min(memory, device.gpu))
    attempts = []
    wanted = context or min(DEFAULT_CONTEXT, most)
    for what, settings in _candidates(sizes, device, wanted, kv_bits):
        rows = sizes.rows(settings, device)
        attempts.append(Candidate(what, sum(row.bytes for row in rows), _gpu_bytes(rows)))
        if _fits(rows, device):
            break
    else:
        raise BudgetTooSmall(
            f"{folder} needs at least {size_text(attempts[-1].bytes)}, and {device.name} gives"
            f" {size_text(device.memory)}: give more memory, or convert with a smaller recipe",
            attempts[-1].bytes,
        )
    while context is None and settings.expert_slots is None and settings.context < most:
        longer = replace(settings, context=min(2 * settings.context, most))
        if not _fits(sizes.rows(longer, device), device):
            break
        settings = longer
    rows = tuple(sizes.rows(settings, device))
    settings = replace(
        settings,
        workspace=next(row.bytes for row in rows if row.name == WORKSPACE),
        # All, because on a GPU MLX counts the maps that it adopts too, and slows down above its limit.
        allocations=sum(row.bytes for row in rows),
    )
    return MemoryPlan(
        model=str(folder),
        device=device,
        settings=settings,
        rows=rows,
        attempts=tuple(attempts),
        experts=sizes.all_experts,
        wanted_context=context,
    )


def _candidates(
    sizes: MemoryEstimate, device: Device, wanted: int, kv_bits: int | None
) -> Iterator[tuple[str, EngineConfig]]:
    """Settings to try, the most comfortable first, with the word for what is new in them."""
    least_bits = kv_bits or (8 if sizes.config.head_dim in KV_QUANT_HEAD_DIMS else 16)
    longest, *shorter = BACKENDS[device.backend].prefill_chunks
    context = wanted
    while True:
        if context == wanted:
            yield "everything in memory", EngineConfig(context, kv_bits or 16, longest)
            smaller = EngineConfig(context, least_bits, longest)
            if kv_bits is None and least_bits == 8:
                yield "8-bit keys and values", smaller
            for chunk in shorter:
                yield f"prefill of {chunk} tokens at a time", replace(smaller, prefill_chunk=chunk)
            if device.cpu_experts:
                for layers in range(1, sizes.config.num_layers + 1):
                    yield f"experts of {layers} layers on the CPU", replace(smaller, cpu_expert_layers=layers)
        for chunk in (longest, *shorter):
            paged = EngineConfig(context, least_bits, chunk, expert_slots=sizes.least_slots)
            rows = sizes.rows(paged, device)
            room = device.memory - sum(row.bytes for row in rows)
            if device.gpu is not None:
                room = min(room, device.gpu - _gpu_bytes(rows))
            slots = sizes.least_slots + max(room, 0) // sizes.expert_bytes
            at_a_time = "" if chunk == longest else f", prefill of {chunk} tokens at a time"
            yield f"experts paged{at_a_time}", replace(paged, expert_slots=min(slots, sizes.all_experts))
        if context <= MIN_CONTEXT:
            return
        context = max(context // 2, MIN_CONTEXT)


def _gpu_bytes(rows: list[PlanRow] | tuple[PlanRow, ...]) -> int:
    return sum(row.bytes for row in rows if row.on_gpu)


def _fits(rows: list[PlanRow], device: Device) -> bool:
    return sum(row.bytes for row in rows) <= device.memory and (device.gpu is None or _gpu_bytes(rows) <= device.gpu)


class MemoryEstimate:
    """How many bytes each part of a folder takes, from its headers."""

    def __init__(self, folder: Path):
        self.config, checkpoint = open_converted(folder)
        self.tensors = checkpoint.tensors
        if not self.experts:
            raise CheckpointError(f"{folder} has no experts: not a gpt-oss model")
        self.all_experts = self.config.num_layers * self.config.num_experts
        self.least_slots = 2 * self.config.experts_per_token
        vocabulary = folder / "tokenizer.json"
        self.tokenizer = TOKENIZER_FACTOR * vocabulary.stat().st_size if vocabulary.is_file() else 0

    def of(self, wanted: str) -> int:
        return sum(t.nbytes for name, t in self.tensors.items() if wanted in name)

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
        """Everything that will be in memory with these settings, at most."""
        maps = BACKENDS[device.backend].maps_files
        paged, layers = settings.expert_slots is not None, self.config.num_layers
        on_cpu = 0 if paged else self.experts * settings.cpu_expert_layers // layers
        trunk = self.of("") - self.experts - self.embeddings
        rows = [
            PlanRow("attention, routers, head", trunk, mapped=maps, on_gpu=True),
            PlanRow("embeddings", self.embeddings, mapped=True, on_gpu=False),
            PlanRow("experts", 0 if paged else self.experts - on_cpu, mapped=maps, on_gpu=True),
            PlanRow("experts on the CPU", on_cpu, mapped=maps, on_gpu=False),
            PlanRow("expert slots", (settings.expert_slots or 0) * self.expert_bytes, mapped=False, on_gpu=True),
            PlanRow("expert reads", self._read_buffers() if paged else 0, mapped=False, on_gpu=False),
            *self._kv(settings, device),
            PlanRow(WORKSPACE, self._workspace(settings, device), mapped=False, on_gpu=True),
            PlanRow("weights in FP32", 0 if maps else self._fp32_copies(), mapped=False, on_gpu=False),
            PlanRow("tokenizer", self.tokenizer, mapped=False, on_gpu=False),
            PlanRow("runtime", RUNTIME_BYTES, mapped=False, on_gpu=False),
        ]
        return [row for row in rows if row.bytes]

    def _kv(self, settings: EngineConfig, device: Device) -> list[PlanRow]:
        config = self.config
        values = 2 * config.num_kv_heads * config.head_dim
        full = config.layer_types.count("full_attention")
        plain = BACKENDS[device.backend].kv_bytes
        # In 8 bits each head has a scale and a bias in BF16.
        per_position = values * plain if settings.kv_bits == 16 else values + values // config.head_dim * 4
        context = -(-settings.context // 256) * 256
        ring = (config.num_layers - full) * config.sliding_window * values * plain
        return [
            PlanRow(
                f"KV of full layers, {settings.kv_bits} bits", full * context * per_position, mapped=False, on_gpu=True
            ),
            # The smaller half of a layer's keys or values, while it moves into a larger buffer.
            PlanRow("KV while it grows", context * per_position // 2 * 4 // 5, mapped=False, on_gpu=True),
            PlanRow("KV of sliding layers", ring, mapped=False, on_gpu=True),
            PlanRow("KV to go back to", MAX_SNAPSHOTS * ring, mapped=False, on_gpu=True),
            PlanRow("KV while it is kept", full * min(KV_CHUNK, context) * per_position, mapped=False, on_gpu=True),
        ]

    def _workspace(self, settings: EngineConfig, device: Device) -> int:
        """Activations of one chunk of a prompt, in attention or in the experts, and the logits of one token."""
        config, chunk = self.config, settings.prefill_chunk
        heads, k = config.num_heads * config.head_dim, config.experts_per_token
        width = BACKENDS[device.backend].activation_bytes
        # The kernels keep what an expert's two projections give, multiplied, and an 8-bit copy; MLX keeps all of it.
        if device.backend == "kernels":
            per_expert = config.hidden_size + 1.6 * config.intermediate_size
        else:
            per_expert = 2 * config.hidden_size + 4 * config.intermediate_size
        widest = 4 * config.hidden_size + max(4 * heads, k * per_expert)
        logits = 6 * 4 * config.vocab_size
        return int(chunk * width * widest) + logits + self._scores(settings, device)

    def _scores(self, settings: EngineConfig, device: Device) -> int:
        """Scores of one chunk, and what becomes of them, where they are kept: three times in FP32."""
        rows, keys = settings.prefill_chunk * self.config.num_heads, settings.context
        if settings.kv_bits == 8:
            keys = min(keys, keys_at_a_time(rows))
        # The kernels, and MLX's on a GPU, keep the scores of few keys.
        in_pieces = device.backend == "kernels" or (device.backend == "gpu" and settings.kv_bits == 16)
        return 0 if in_pieces else 3 * 4 * rows * keys

    def _fp32_copies(self) -> int:
        """What MLX on a CPU makes FP32 of: scales and biases for good, and the largest plain matrix as it is used."""
        floats = {name: t for name, t in self.tensors.items() if t.dtype == "BF16"}
        plain = [2 * t.nbytes for name, t in floats.items() if name.endswith(".weight") and len(t.shape) > 1]
        return sum(2 * t.nbytes for t in floats.values()) - sum(plain) + max(plain, default=0)

    def _read_buffers(self) -> int:
        from ..model.expert_pool import ExpertPool

        largest = max(t.nbytes // t.shape[0] for name, t in self.tensors.items() if ".mlp.experts." in name)
        return ExpertPool.READERS * (largest + 2 * 4096)
