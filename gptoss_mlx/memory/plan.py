"""The memory plan: what a model needs on a device, before anything is loaded, and what is given up so that it fits.

What costs the least speed is given up first; the engine and the KV cache then follow the plan. Leaves the bytes of each
part to `estimate`. Covers this process and its memory on a GPU. Does not cover the page cache beyond the mapped
weights, other programs, and what the system gives to others after the plan was made.

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

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from ..errors import GptOssError
from ..model.kv_cache import KV_QUANT_HEAD_DIMS
from .devices import Device
from .estimate import WORKSPACE, EngineConfig, MemoryEstimate, ModelHeaders, PlanRow
from .system import size_text

DEFAULT_CONTEXT = 8192  # tokens, if no context is asked for; memory that is left makes it longer
MIN_CONTEXT = 1024


class BudgetTooSmall(GptOssError):
    """No plan fits; `smallest` is the number of bytes with which one would."""

    def __init__(self, message: str, smallest: int):
        super().__init__(message)
        self.smallest = smallest


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
    token_bytes: int
    """Bytes of weights that one decoded token reads."""
    token_disk_bytes: int
    """Bytes of them that come from the disk, if every expert is as likely as any other."""

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
    model: Path | ModelHeaders,
    device: Device,
    *,
    memory: int | None = None,
    context: int | None = None,
    kv_bits: int | None = None,
) -> MemoryPlan:
    """The plan for a converted folder, or one that a conversion would write, on `device`, within `memory` bytes if that
    is given.

    Gives up what costs the least speed, and before the context the experts in memory. Raises
    BudgetTooSmall, CheckpointError, and GptOssError for a context or `kv_bits` that the model cannot have.
    """
    sizes = MemoryEstimate(model)
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
        device = device.within(memory)
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
        raise _too_small(sizes.name, device, attempts[-1])
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
        model=sizes.name,
        device=device,
        settings=settings,
        rows=tuple(rows),
        attempts=tuple(attempts),
        experts=sizes.all_experts,
        wanted_context=context,
        copied=sizes.copied(device),
        token_bytes=sizes.token_bytes,
        token_disk_bytes=sizes.token_disk_bytes(settings),
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


def undiminished(sizes: MemoryEstimate, device: Device, context: int) -> Candidate:
    """What a model takes with everything in memory, and nothing given up."""
    chunk, on_gpu = device.traits.prefill_chunks[0], device.gpu is not None
    rows = sizes.rows(EngineConfig(context, 16, chunk, embeddings_on_gpu=on_gpu), device)
    return Candidate("everything in memory", _bytes(rows), _gpu_bytes(rows))


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


def _too_small(model: str, device: Device, smallest: Candidate) -> BudgetTooSmall:
    lacking, _ = smallest.shortfall(device)
    needed, has = (smallest.bytes, device.memory) if lacking else (smallest.gpu_bytes, device.gpu or 0)
    where = "" if lacking else " on its GPU"
    return BudgetTooSmall(
        f"{model} needs at least {size_text(needed)} of memory{where}, and {device.name} has {size_text(has)} for it:"
        " free some memory, or convert with a smaller recipe",
        needed,
    )


def _bytes(rows: Iterable[PlanRow]) -> int:
    return sum(row.bytes for row in rows)


def _gpu_bytes(rows: Iterable[PlanRow]) -> int:
    return sum(row.bytes for row in rows if row.on_gpu)


def _fits(rows: list[PlanRow], device: Device) -> bool:
    return _bytes(rows) <= device.memory and (device.gpu is None or _gpu_bytes(rows) <= device.gpu)
