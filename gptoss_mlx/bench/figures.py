"""What a benchmark says of one model on one machine, as data.

Seconds, bytes, joules, and tokens, bytes or operations per second; None where the machine does not tell. How figures
come about is `measure`'s affair, and how they are shown `report`'s.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from ..model.expert_pool import PoolStats

FORMAT = 1  # of the JSON


@dataclass(frozen=True)
class Spread:
    """The median of several runs, with the least and the most."""

    median: float
    least: float
    most: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Percentiles:
    """Of the seconds that single tokens took, by the nearest rank; None of so few that it would be the most."""

    p50: float
    p90: float | None
    p99: float | None
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles:
        ordered = sorted(values)

        def percentile(percent: int) -> float | None:
            rank = -(-percent * len(ordered) // 100)
            return ordered[rank - 1] if rank < len(ordered) else None

        return cls(statistics.median(ordered), percentile(90), percentile(99), ordered[-1])


@dataclass(frozen=True)
class Rates:
    """What the machine gave at most beside a figure, on the same threads or the same GPU: the mean of several looks."""

    bandwidth: float | None
    """Bytes per second of plain reads."""
    matrix: float | None
    """Operations per second, of the kind that products with quantized weights are made of: of 8-bit integers on a CPU,
    in BF16 on a GPU. A multiplication and an addition are two."""
    vector: float | None
    """The same, of the kind that attention is made of: in FP32 on a CPU, in BF16 on a GPU."""


@dataclass(frozen=True)
class Work:
    """What a run has to do on any machine."""

    bytes: int
    """Of weights, keys and values that have to be read; what stays in a processor's cache is not counted."""
    matrix_operations: int
    vector_operations: int

    def least_seconds(self, rates: Rates) -> float | None:
        """What reading or computing alone would take, whichever is longer; None unless all rates are known."""
        if not (rates.bandwidth and rates.matrix and rates.vector):
            return None
        computing = self.matrix_operations / rates.matrix + self.vector_operations / rates.vector
        return max(self.bytes / rates.bandwidth, computing)


class Point(NamedTuple):
    """Prefill or decode of some tokens behind `depth` tokens of context."""

    kind: Literal["prefill", "decode"]
    tokens: int
    depth: int

    @property
    def name(self) -> str:
        return f"{self.kind} {self.tokens:,} at {self.depth:,}"


@dataclass(frozen=True)
class Grid:
    """Tokens to prefill and to decode, each behind each depth."""

    prompt: tuple[int, ...]
    generate: tuple[int, ...]
    depth: tuple[int, ...]

    @property
    def points(self) -> list[Point]:
        kinds = [("prefill", tokens) for tokens in self.prompt] + [("decode", tokens) for tokens in self.generate]
        return [Point(kind, tokens, depth) for depth in self.depth for kind, tokens in kinds]


@dataclass(frozen=True)
class Speed:
    """Prefill or decode of some tokens behind `depth` tokens of context."""

    kind: Literal["prefill", "decode"]
    tokens: int
    depth: int
    tokens_per_second: Spread
    work: Work
    """Of one run."""
    rates: Rates
    token_seconds: Percentiles | None = None
    """Of decoding: single tokens, of all runs."""
    experts: PoolStats | None = None
    """Of all runs, where experts are paged."""
    joules_per_token: float | None = None

    @property
    def point(self) -> Point:
        return Point(self.kind, self.tokens, self.depth)

    @property
    def name(self) -> str:
        return self.point.name

    @property
    def limit(self) -> float | None:
        """Tokens per second that the rates would allow."""
        seconds = self.work.least_seconds(self.rates)
        return seconds and self.tokens / seconds

    @property
    def share(self) -> float | None:
        """Of the limit."""
        return self.limit and self.tokens_per_second.median / self.limit

    def as_dict(self) -> dict[str, Any]:
        derived = {"name": self.name, "limit_tokens_per_second": self.limit, "share_of_limit": self.share}
        return derived | asdict(self)


@dataclass(frozen=True)
class Start:
    """How soon a prompt of `prompt` tokens gets its first token."""

    prompt: int
    load_seconds: Spread
    """In a new process: from the folder to a model that can begin."""
    cold_seconds: Spread
    """From the start of a new process to the first token; the files are in the page cache as far as they fit."""
    warm_seconds: Spread
    """In a process in which the model is loaded and has run before."""


@dataclass(frozen=True)
class Memory:
    """Of this process. `anonymous` and `mapped` are the most that was seen of each, not always at the same time."""

    anonymous: int | None
    mapped: int | None
    peak: int | None
    planned: int
    by_context: list[tuple[int, int]]
    """Tokens of context, and the bytes that the plan has for it."""
    gpu: int | None = None
    """The most that MLX had on a GPU with memory of its own."""


@dataclass(frozen=True)
class Stage:
    """A part of one step of decoding."""

    name: str
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Profile:
    """One step of decoding behind `depth` tokens, by stage; noise apart, the stages together take the whole step."""

    depth: int
    stages: list[Stage]
    bandwidth: float | None

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)


@dataclass(frozen=True)
class ModelFacts:
    name: str
    """Of the folder, without the path to it."""
    recipe: str | None
    random_weights: bool
    layers: int
    experts: int
    experts_per_token: int
    bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class Setup:
    """What was asked for, and what the memory plan made of it."""

    repeat: int
    threads: int | None
    """Of the kernels; None without them."""
    context: int
    kv_bits: int
    prefill_chunk: int
    expert_slots: int | None
    """Experts in memory at a time, of all layers; None: all of them."""
    cpu_expert_layers: int
    """Layers whose experts the CPU computes beside a GPU."""
    energy: str | None
    """What the joules cover."""
    prompts: str
    """What was read: "random ids", or "text" where routing decides what is paged; or which routing was replayed."""


@dataclass(frozen=True)
class Machine:
    """What the figures were measured on."""

    system: str
    processor: str
    cores: int
    memory: int
    device: str
    """What computes: a GPU's name, or "CPU"."""
    kernels: str | None
    """The instruction set of the kernels in use; None without them."""
    versions: dict[str, str]
    commit: str | None
    """Of gptoss-mlx, where it runs from a repository."""


@dataclass(frozen=True)
class Conditions:
    """Signs that the machine was not idle, or not at its full speed, while it was measured."""

    load_average: float | None
    """Of the minute before."""
    others: float | None
    """The share of the cores' time that other programs took meanwhile."""
    stolen: float | None
    """The share of time in which a host gave this virtual machine's cores to others."""
    throttled: int | None
    """Times that cores were slowed because they were hot."""
    clock: float | None
    """The clock of the fastest core, as a share of its highest, at the end."""
    power: str | None
    """"mains" or "battery"."""
    gpu_slowed: bool | None = None
    """Whether heat, or a power supply that asked for it, slowed an NVIDIA GPU at the end."""


@dataclass(frozen=True)
class Figures:
    date: str
    """ISO 8601, in UTC."""
    command: str
    """That would measure the same."""
    machine: Machine
    conditions: Conditions
    model: ModelFacts
    setup: Setup
    memory: Memory
    start: Start | None
    speeds: list[Speed]
    profile: Profile | None
    finished: bool
    """False where the measurement was broken off."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        speeds = [speed.as_dict() for speed in self.speeds]
        return {"format": FORMAT} | asdict(self) | {"speeds": speeds}
