"""Load time, time to first token, prefill and decode speed, and peak memory of one model folder, in this process.

Prompts are random ids: speed does not depend on what they mean. Every run is repeated after a warm-up, and the median
counts. Not measured: sampling beyond greedy, tokenization, and what other programs do meanwhile.
"""

from __future__ import annotations

import platform
import random
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx

from ..engine import Model, load
from ..sampling import Sampling

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
class Figures:
    model: str
    device: str
    mlx: str
    prompt: int
    decode: int
    repeat: int
    load_seconds: float
    first_token_seconds: float
    """Load and prefill, up to the first token: weights come from the disk or the page cache."""
    prefill_tokens_per_second: Spread
    decode_tokens_per_second: Spread
    peak_anonymous_bytes: int | None
    peak_mapped_bytes: int | None

    def as_dict(self) -> dict:
        return asdict(self)


def measure(folder: Path, *, prompt: int, decode: int, repeat: int) -> Figures:
    """Run the whole measurement. Raises GptOssError for a folder that cannot be loaded."""
    started = time.perf_counter()
    model = load(folder)
    load_seconds = time.perf_counter() - started
    ids = random.Random(0).choices(range(model.config.vocab_size), k=prompt)
    next(model.generate(ids, sampling=GREEDY, stop=()))
    first_token_seconds = time.perf_counter() - started

    runs = [_run(model, ids, decode) for _ in range(repeat)]
    anonymous, mapped = _memory()
    return Figures(
        model=str(folder),
        device=f"{mx.default_device()} on {platform.machine()} {platform.system()}",
        mlx=mx.__version__,
        prompt=prompt,
        decode=decode,
        repeat=repeat,
        load_seconds=load_seconds,
        first_token_seconds=first_token_seconds,
        prefill_tokens_per_second=Spread.of([prompt / prefill for prefill, _ in runs]),
        decode_tokens_per_second=Spread.of([(decode - 1) / seconds for _, seconds in runs]),
        peak_anonymous_bytes=anonymous,
        peak_mapped_bytes=mapped,
    )


def _run(model: Model, ids: list[int], decode: int) -> tuple[float, float]:
    """Seconds to the first token, and from there to the last of `decode`."""
    started = time.perf_counter()
    tokens = model.generate(ids, sampling=GREEDY, max_tokens=decode, stop=())
    next(tokens)
    first = time.perf_counter()
    for _ in tokens:
        pass
    return first - started, time.perf_counter() - first


def _memory() -> tuple[int | None, int | None]:
    """Anonymous and file-backed memory that is resident now, after the work; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None, None
    fields = dict(line.split(":", 1) for line in lines)
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
