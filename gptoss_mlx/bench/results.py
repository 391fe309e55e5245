"""What a benchmark finds out about one model on one machine, as data.

Seconds, bytes, joules, and tokens, bytes or operations per second; None where the system does not say. How results
come about is `measure`'s affair, and how they are shown that of `tables`, `report` and `formats`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta

from ..memory.estimate import EngineConfig
from ..model.expert_pool import PoolStats

FORMAT = 1  # of the JSON

Kind = Literal["prefill", "decode"]
# What a file of results may hold: nothing that was measured is below 0 or above 1e24.
Count = Annotated[int, Meta(ge=0)]
Amount = Annotated[float, Meta(ge=0, le=1e24)]


@dataclass(frozen=True)
class Spread:
    """The median of several runs, with the least and the most."""

    median: Amount
    least: Amount
    most: Amount
    runs: Count

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Percentiles:
    """Seconds that single tokens took, by the nearest rank; None where there are so few that it would be the most."""

    p50: Amount
    p90: Amount | None
    p99: Amount | None
    most: Amount

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles:
        ordered = sorted(values)

        def percentile(percent: int) -> float | None:
            rank = -(-percent * len(ordered) // 100)
            return ordered[rank - 1] if rank < len(ordered) else None

        return cls(statistics.median(ordered), percentile(90), percentile(99), ordered[-1])


@dataclass(frozen=True)
class Rates:
    """What the machine can do at its best, on the same threads or the same GPU: the mean of several measurements."""

    bandwidth: Amount | None
    """Bytes per second of plain reads."""
    matrix: Amount | None
    """Operations per second, of the kind that products with quantized weights are made of: 8-bit integers on a CPU,
    BF16 on a GPU. A multiplication and an addition are two."""
    vector: Amount | None
    """The same, of the kind that attention is made of: FP32 on a CPU, BF16 on a GPU."""


@dataclass(frozen=True)
class Work:
    """What a run has to do on any machine."""

    bytes: Count
    """Weights, keys and values that have to be read; what stays in a processor's cache is not counted."""
    matrix_operations: Count
    vector_operations: Count

    def least_seconds(self, rates: Rates) -> float | None:
        """What reading or computing alone would take, whichever is longer; None unless all rates are known."""
        if not (rates.bandwidth and rates.matrix and rates.vector):
            return None
        computing = self.matrix_operations / rates.matrix + self.vector_operations / rates.vector
        return max(self.bytes / rates.bandwidth, computing)


class Point(NamedTuple):
    """Prefill or decode of some tokens after `depth` tokens of context."""

    kind: Kind
    tokens: int
    depth: int

    @property
    def name(self) -> str:
        return f"{self.kind} {self.tokens:,} at {self.depth:,}"


@dataclass(frozen=True)
class Grid:
    """Numbers of tokens to prefill and to decode, each after each depth."""

    prompt: tuple[int, ...]
    generate: tuple[int, ...]
    depth: tuple[int, ...]

    @property
    def points(self) -> list[Point]:
        """The smallest depth first."""
        points = []
        for depth in sorted(set(self.depth)):
            points += [Point("prefill", tokens, depth) for tokens in self.prompt]
            points += [Point("decode", tokens, depth) for tokens in self.generate]
        return points


@dataclass(frozen=True)
class Speed:
    """The speed at one point."""

    kind: Kind
    tokens: Count
    depth: Count
    tokens_per_second: Spread
    work: Work
    """Work of one run."""
    rates: Rates
    token_seconds: Percentiles | None = None
    """Seconds of single tokens while decoding, over all runs."""
    experts: PoolStats | None = None
    """Counts over all runs, where experts are paged."""
    joules_per_token: Amount | None = None

    def __post_init__(self) -> None:
        spread = self.tokens_per_second
        if not 0 < spread.least <= spread.median <= spread.most:
            raise ValueError("tokens_per_second is no spread")

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
        """The median as a share of the limit."""
        return self.limit and self.tokens_per_second.median / self.limit

    def as_dict(self) -> dict[str, Any]:
        derived = {"name": self.name, "limit_tokens_per_second": self.limit, "share_of_limit": self.share}
        return derived | asdict(self)


@dataclass(frozen=True)
class Start:
    """How soon a prompt of `prompt` tokens gets its first token."""

    prompt: Count
    load_seconds: Spread
    """In a new process: from the folder to a model that can begin."""
    cold_seconds: Spread
    """From the start of a new process to the first token; the files are in the page cache as far as they fit."""
    warm_seconds: Spread
    """In a process in which the model is loaded and has run before."""


@dataclass(frozen=True)
class Memory:
    """Bytes of this process. `anonymous` and `mapped` are the maximum of each, not always at the same time."""

    planned: Count
    by_context: list[tuple[Count, Count]]
    """Tokens of context, and the bytes that the plan has for it."""
    anonymous: Count | None = None
    mapped: Count | None = None
    peak: Count | None = None
    gpu: Count | None = None
    """The maximum that MLX had on a GPU with memory of its own."""


@dataclass(frozen=True)
class Stage:
    """A part of one step of decoding."""

    name: str
    seconds: Amount
    bytes: Count


@dataclass(frozen=True)
class Profile:
    """One step of decoding after `depth` tokens, by stage; noise apart, the stages together take the whole step."""

    depth: Count
    stages: list[Stage]
    bandwidth: Amount | None

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)


@dataclass(frozen=True)
class ModelFacts:
    name: str
    """The folder's name, without the path to it."""
    recipe: str | None
    random_weights: bool
    layers: Count
    experts: Count
    experts_per_token: Count
    bytes: Count
    bits_per_weight: Amount


@dataclass(frozen=True, kw_only=True)
class Setup(EngineConfig):
    """What was asked for, and what the memory plan made of it."""

    repeat: Count
    threads: Count | None
    """Threads of the kernels; None without them."""
    energy: str | None
    """What the joules cover."""
    prompts: str
    """What was read: "random ids", or "text" where routing decides what is paged; or which routing was replayed."""


@dataclass(frozen=True)
class Machine:
    """What computed the results."""

    system: str
    processor: str
    cores: Count
    memory: Count
    device: str
    """A GPU's name, or "CPU"."""
    kernels: str | None
    """The instruction set of the kernels in use; None without them."""
    versions: dict[str, str]
    commit: str | None
    """The commit of gptoss-mlx, where it runs from a repository."""


@dataclass(frozen=True)
class Conditions:
    """Signs that the machine was not idle, or not at its full speed, while it was measured."""

    load_average: Amount | None
    """The load average of the minute before."""
    others: Amount | None
    """The share of the cores' time that other programs took meanwhile."""
    stolen: Amount | None
    """The share of time in which a host gave this virtual machine's cores to others."""
    throttled: Count | None
    """Times that cores were slowed because they were hot."""
    clock: Amount | None
    """The clock of the fastest core, as a share of its highest, at the end."""
    power: str | None
    """"mains" or "battery"."""
    gpu_slowed: bool | None = None
    """Whether heat, or a power supply that asked for it, slowed an NVIDIA GPU at the end."""


@dataclass(frozen=True)
class Results:
    date: str
    """ISO 8601, in UTC."""
    command: str
    """The command that would measure the same."""
    machine: Machine
    conditions: Conditions
    model: ModelFacts
    setup: Setup
    memory: Memory
    start: Start | None
    speeds: list[Speed]
    profile: Profile | None
    finished: bool
    """False where the measurement was interrupted."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        speeds = [speed.as_dict() for speed in self.speeds]
        return {"format": FORMAT} | asdict(self) | {"speeds": speeds}
