"""Load time, time to first token, prefill and decode speed, and memory of one model folder, in this process.

Prompts are random ids: speed does not depend on what they mean. Every run is repeated after a warm-up, and the median
counts. The bandwidth of the memory is measured before and after decoding, because on a shared machine it swings. Not
measured: sampling beyond greedy, tokenization, and what other programs do meanwhile.
"""

from __future__ import annotations

import platform
import random
import statistics
import time
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import mlx.core as mx

from .. import kernels
from ..budget import MemoryPlan
from ..checkpoint import Checkpoint
from ..engine import Model, load
from ..experts import PoolStats
from ..memory import proc_bytes
from ..sampling import Sampling
from .roofline import kv_bytes, weight_bytes

GREEDY = Sampling(temperature=0)


@dataclass(frozen=True)
class Spread:
    """Median of several runs, with the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Decode:
    """Decoding behind `depth` tokens of context."""

    depth: int
    tokens_per_second: Spread
    bytes_per_token: int
    """Weights, keys and values."""
    read_bandwidth: float | None
    """Bytes per second that the same threads read, measured before and after: the mean. None without kernels."""

    @property
    def bytes_per_second(self) -> float:
        return self.bytes_per_token * self.tokens_per_second.median


@dataclass(frozen=True)
class Figures:
    model: str
    device: str
    mlx: str
    prompt: int
    generate: int
    repeat: int
    load_seconds: float
    first_token_seconds: float
    """Load and prefill, up to the first token: weights come from the disk or the page cache."""
    prefill_tokens_per_second: Spread
    decode: list[Decode]
    anonymous_bytes: int | None
    mapped_bytes: int | None
    peak_bytes: int | None
    planned_bytes: int
    context: int
    kv_bits: int
    experts: PoolStats | None
    """Of decoding, where experts are paged."""

    def as_dict(self) -> dict:
        return asdict(self)


def measure(plan: MemoryPlan, *, prompt: int, generate: int, repeat: int, depths: tuple[int, ...] = ()) -> Figures:
    """Run the whole measurement as `plan` says, decoding behind the prompt and each of `depths` tokens of context.

    Raises GptOssError for a folder that cannot be loaded, and for a depth that its context has no room for.
    """
    folder = Path(plan.model)
    started = time.perf_counter()
    model = load(folder, plan.settings)
    load_seconds = time.perf_counter() - started
    ids = random.Random(0).choices(range(model.config.vocab_size), k=max(prompt, *depths, 0))
    next(model.generate(ids[:prompt], sampling=GREEDY, stop=()))
    first_token_seconds = time.perf_counter() - started

    prefills = [_prefill_seconds(model, ids[:prompt]) for _ in range(repeat)]
    weights = weight_bytes(Checkpoint.open(folder), model.config)
    before = replace(model.expert_stats) if model.expert_stats else None
    room = plan.device.memory - plan.total
    decode = [_decode(model, ids[:depth], generate, repeat, weights, room) for depth in (prompt, *depths)]
    memory = proc_bytes("self/status")
    return Figures(
        model=str(folder),
        device=_device(),
        mlx=mx.__version__,
        prompt=prompt,
        generate=generate,
        repeat=repeat,
        load_seconds=load_seconds,
        first_token_seconds=first_token_seconds,
        prefill_tokens_per_second=Spread.of([prompt / seconds for seconds in prefills]),
        decode=decode,
        # Resident now, after the work; None where the system does not tell.
        anonymous_bytes=memory.get("RssAnon"),
        mapped_bytes=memory.get("RssFile"),
        peak_bytes=memory.get("VmHWM"),
        planned_bytes=plan.total,
        context=model.context,
        kv_bits=model.settings.kv_bits,
        experts=model.expert_stats - before if before else None,
    )


def _device() -> str:
    native = kernels.native()
    how = f", {native.kernels_in_use()} kernels, {native.threads()} threads" if native else ""
    return f"{mx.default_device().type.name.upper()} on {platform.machine()} {platform.system()}{how}"


def _prefill_seconds(model: Model, ids: list[int]) -> float:
    started = time.perf_counter()
    mx.eval(model.prefill(ids, model.make_cache()))
    return time.perf_counter() - started


def _decode(model: Model, context: list[int], count: int, repeat: int, weights: int, room: int) -> Decode:
    """The context is read once; each run goes on where the one before it ended."""
    cache = model.make_cache()
    (token,) = model.generate(context, sampling=GREEDY, max_tokens=1, stop=(), cache=cache)
    before, speeds = kernels.read_bandwidth(room), []
    for _ in range(repeat):
        tokens = model.generate([token], sampling=GREEDY, max_tokens=count + 1, stop=(), cache=cache)
        next(tokens)  # the one behind the end of the last run: it is not timed
        started = time.perf_counter()
        decoded = len(list(islice(tokens, count)))
        speeds.append(decoded / (time.perf_counter() - started))
    after = kernels.read_bandwidth(room)
    return Decode(
        depth=len(context),
        tokens_per_second=Spread.of(speeds),
        bytes_per_token=weights + kv_bytes(cache),
        read_bandwidth=before and after and (before + after) / 2,
    )
