"""Start, prefill, decode and memory of one model folder on this machine.

Prompts are random ids, since speed does not depend on what they mean; but where experts are paged it does, and there
they are text. Each point is warmed up and then repeated from the same state, each time with other tokens: the experts
of the same ones would be in memory already. What the machine gives is measured before and after each point, because on
a shared machine it swings. Not measured: sampling beyond greedy, and tokenization, except in
the start of a new process.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import pairwise
from math import prod
from pathlib import Path

import mlx.core as mx

from .. import kernels
from ..budget import MemoryPlan, Sizes
from ..cache import Mark
from ..checkpoint import Checkpoint
from ..config import ModelConfig
from ..engine import load
from ..errors import GptOssError, printable
from ..foreign import is_there, read_json
from ..interrupts import Interrupts
from ..routing import RoutingTrace, recording, replaying
from ..sampling import Sampling
from .energy import Meter, meter
from .figures import (
    Figures,
    Grid,
    Memory,
    ModelFacts,
    Percentiles,
    Point,
    Profile,
    Rates,
    Setup,
    Speed,
    Spread,
    Start,
    Work,
)
from .first_token import STARTS, cold_starts
from .machine import MemorySampler, Watch, describe
from .random_weights import SOURCE
from .roofline import Demand, mean_rates, measured_rates
from .stages import profile

GREEDY = Sampling(temperature=0)
WARM_UP = 16  # tokens that are decoded before decoding is timed
RANDOM_IDS = 2**16 + 1  # then they come again; of which no usual number of tokens is a part
SHORTEST_CONTEXT = 1024  # of those that the plan is asked for

OnProgress = Callable[[str, float | None], None]
"""What is being done, and the seconds that are left, once there is an idea of them."""


@dataclass(frozen=True)
class Wanted:
    """What is to be measured: at each depth each prompt, and each number of tokens to decode."""

    prompts: tuple[int, ...]
    generate: tuple[int, ...]
    depths: tuple[int, ...]
    repeat: int
    start: bool = True
    profile: bool = False
    replay: RoutingTrace | None = None

    @property
    def first_prompt(self) -> int:
        """Tokens of the prompt whose first token is waited for."""
        return self.prompts[0] if self.prompts else 1

    @property
    def points(self) -> list[Point]:
        """The smallest depth first."""
        return Grid(self.prompts, self.generate, tuple(sorted(set(self.depths)))).points

    @property
    def context(self) -> int:
        """Positions that all of it takes."""
        decoded = [1 + max(count, WARM_UP) for count in self.generate]
        return max(self.depths) + max(
            (self.first_prompt + 1, *self.prompts, *decoded, *([WARM_UP] if self.profile else []))
        )


def measure(plan: MemoryPlan, wanted: Wanted, command: str, on_progress: OnProgress) -> Figures:
    """Measure a folder in a process that keeps to `plan`; `command` would do the same.

    After Ctrl-C, what is done is there, and `finished` is False; nothing done, and it is a KeyboardInterrupt.
    Raises GptOssError for a folder that cannot be loaded, and for a context without room for what is wanted.
    """
    if wanted.context > plan.settings.context:
        asked = (plan.wanted_context or 0) >= wanted.context
        raise GptOssError(
            f"{wanted.context:,} tokens of context are needed, and this run has {plan.settings.context:,}: give"
            f" {'more --memory' if asked else f'--context {wanted.context}'}, or less --depth, --prompt or --generate"
        )
    watch, start, speeds, found, finished = Watch(), None, [], None, False
    with MemorySampler() as memory, meter() or nullcontext() as energy, Interrupts() as interrupts:
        try:
            if wanted.start:
                on_progress("starting new processes", None)
                with interrupts.at_once():
                    load_seconds, cold = cold_starts(plan, wanted.first_prompt)
            on_progress("loading", None)
            bench = _Bench(plan, wanted, memory, interrupts, energy, on_progress)
            if wanted.start:
                start = Start(wanted.first_prompt, load_seconds, cold, bench.warm_starts())
            for speed in bench.speeds():
                speeds.append(speed)
            if wanted.profile:
                found = bench.profile()
            finished = True
        except KeyboardInterrupt:
            if not (start or speeds):
                raise
        seen = memory.most()
    return Figures(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        machine=describe(),
        conditions=watch.conditions(),
        model=facts_of(Path(plan.model)),
        setup=setup_of(plan, wanted, energy and energy.covers),
        memory=Memory(
            anonymous=seen and seen.anonymous,
            mapped=seen and seen.mapped,
            peak=seen and seen.peak,
            planned=plan.total,
            by_context=_planned_by_context(plan),
            gpu=seen and seen.gpu,
        ),
        start=start,
        speeds=speeds,
        profile=found,
        finished=finished,
    )


class _Bench:
    """A loaded model, and the KV state at the depth that is measured now."""

    def __init__(
        self,
        plan: MemoryPlan,
        wanted: Wanted,
        memory: MemorySampler,
        interrupts: Interrupts,
        energy: Meter | None,
        on_progress: OnProgress,
    ):
        self.wanted, self.memory, self.interrupts, self.energy = wanted, memory, interrupts, energy
        self.model = load(plan.model, plan.settings)
        self.cache = self.model.make_cache()
        self.demand = Demand(Checkpoint.open(Path(plan.model)), self.model.config, self.model.make_cache())
        self.ids = _text(plan) if _reads_text(plan) else _random_ids(self.model.config)
        self.agenda = _Agenda(wanted, on_progress)
        self.room = plan.device.memory - plan.total
        self.rates = self._measured_rates()

    def warm_starts(self) -> Spread:
        """Seconds from a prompt to its first token."""
        seconds = []
        for number in range(1 + STARTS):
            ids = self._ids(number, 0, self.wanted.first_prompt)
            self.agenda.tell(f"first token, run {number} of {STARTS}" if number else "first token, warm-up")
            started = time.perf_counter()
            next(self.model.generate(ids, sampling=GREEDY, max_tokens=1, stop=(), on_prefill=self._check))
            seconds.append(time.perf_counter() - started)
            self.agenda.did("prefill", len(ids), seconds[-1])
        return Spread.of(seconds[1:])

    def speeds(self) -> Iterator[Speed]:
        """Each point as it is done."""
        mark = self.cache.mark()
        with replaying(self.model, self.wanted.replay) if self.wanted.replay else nullcontext():
            for point in self.wanted.points:
                mark = self._deepened(mark, point.depth)
                measure = self._prefill if point.kind == "prefill" else self._decode
                yield measure(mark, point.tokens)
        self.cache.go_back(mark.offset, mark)

    def profile(self) -> Profile:
        """Of a step at the greatest depth."""
        self.agenda.tell("profile")
        return profile(self.model, self.cache, self.demand, self.rates.bandwidth, self._check)

    def _deepened(self, mark: Mark, depth: int) -> Mark:
        """The state behind `depth` tokens, from that behind fewer."""
        self.cache.go_back(mark.offset, mark)
        if not (ids := self._ids(0, mark.offset, depth - mark.offset)):
            return mark
        started = time.perf_counter()

        def check(done: int, total: int) -> None:
            self.agenda.tell(f"context of {depth:,} tokens, {mark.offset + done:,} read")
            self.interrupts.check()

        self.model.prefill(ids, self.cache, on_progress=check)
        self.agenda.did("prefill", len(ids), time.perf_counter() - started)
        return self.cache.mark()

    def _prefill(self, mark: Mark, count: int) -> Speed:
        def run(number: int, count: int) -> list[float]:
            ids = self._ids(number, mark.offset, count)
            self.cache.go_back(mark.offset, mark)
            started = time.perf_counter()
            mx.eval(self.model.prefill(ids, self.cache, on_progress=self._check))
            return [time.perf_counter() - started]

        work = self.demand.prefill(mark.offset, count, self.model.settings.prefill_chunk)
        return self._repeated("prefill", count, mark.offset, work, run, warm_up=count)

    def _decode(self, mark: Mark, count: int) -> Speed:
        def run(number: int, count: int) -> list[float]:
            first = self._ids(number, mark.offset, 1)
            self.cache.go_back(mark.offset, mark)
            tokens = self.model.generate(first, sampling=GREEDY, max_tokens=count + 1, stop=(), cache=self.cache)
            next(tokens)  # it is what prefill ends with
            ends = [time.perf_counter()]
            for _ in tokens:
                ends.append(time.perf_counter())
                self.interrupts.check()
            return [end - begun for begun, end in pairwise(ends)]

        work = self.demand.decode(mark.offset + 1, count)
        return self._repeated("decode", count, mark.offset, work, run, warm_up=WARM_UP)

    def _repeated(
        self, kind: str, tokens: int, depth: int, work: Work, run: Callable[[int, int], list[float]], warm_up: int
    ) -> Speed:
        """`run`, of its number and of a number of tokens, gives the seconds of its parts: of tokens that come one by
        one."""
        name = Point(kind, tokens, depth).name
        self.agenda.tell(f"{name}, warm-up")
        self.agenda.did(kind, warm_up, sum(run(0, warm_up)))
        stats = self.model.expert_stats and replace(self.model.expert_stats)
        joules = self.energy and self.energy.joules()  # None where there is none to tell
        runs = []
        for number in range(1, 1 + self.wanted.repeat):
            self.agenda.tell(f"{name}, run {number} of {self.wanted.repeat}")
            runs.append(run(number, tokens))
            self.agenda.did(kind, tokens, sum(runs[-1]))
        spent = self.energy and self.energy.joules()
        before, self.rates = self.rates, self._measured_rates()
        return Speed(
            kind=kind,
            tokens=tokens,
            depth=depth,
            tokens_per_second=Spread.of([tokens / sum(parts) for parts in runs]),
            work=work,
            rates=mean_rates(before, self.rates),
            token_seconds=Percentiles.of([part for parts in runs for part in parts]) if kind == "decode" else None,
            experts=self.model.expert_stats - stats if stats else None,
            # A counter that did not move was too slow to tell.
            joules_per_token=None if None in (joules, spent) else (spent - joules) / (tokens * len(runs)) or None,
        )

    def _ids(self, run: int, offset: int, count: int) -> list[int]:
        """What a run reads behind `offset`; run 0 reads on where the context ends."""
        return _cyclic(self.ids, offset + run * count, count)

    def _measured_rates(self) -> Rates:
        started = time.perf_counter()
        with self.memory.apart():
            found = measured_rates(self.room)
        self.agenda.did("rates", 1, time.perf_counter() - started)
        return found

    def _check(self, *progress: int) -> None:
        self.interrupts.check()


class _Agenda:
    """How many tokens of each kind, and looks at the machine's rates, are still to do, and how long the last took."""

    def __init__(self, wanted: Wanted, on_progress: OnProgress):
        depths, points = len(set(wanted.depths)), len(wanted.prompts) + len(wanted.generate)
        starts = (1 + STARTS) * wanted.first_prompt if wanted.start else 0
        self._left = {
            "prefill": starts + max(wanted.depths) + depths * (1 + wanted.repeat) * sum(wanted.prompts),
            "decode": depths * sum(WARM_UP + wanted.repeat * count for count in wanted.generate),
            "rates": 1 + depths * points,
        }
        self._seconds: dict[str, float] = {}
        self._on_progress = on_progress

    def did(self, kind: str, count: int, seconds: float) -> None:
        self._left[kind] -= count
        self._seconds[kind] = seconds / count

    def tell(self, what: str) -> None:
        """What is done next."""
        known = all(kind in self._seconds for kind, count in self._left.items() if count)
        left = sum(count * self._seconds.get(kind, 0) for kind, count in self._left.items())
        self._on_progress(what, left if known else None)


def record_routing(plan: MemoryPlan, wanted: Wanted, path: Path) -> None:
    """Write a trace of the first prompt, text where the folder has a tokenizer, and of what is said after it."""
    model = load(plan.model, plan.settings)
    ids = _text(plan) if _has_tokenizer(plan) else _random_ids(model.config)
    ids = _cyclic(ids, 0, wanted.first_prompt)
    with recording(model) as recorder:
        for _ in model.generate(ids, sampling=GREEDY, max_tokens=1 + max(wanted.generate, default=0), stop=()):
            pass
    recorder.trace().save(path)


def _random_ids(config: ModelConfig) -> list[int]:
    return random.Random(0).choices(range(config.vocab_size), k=RANDOM_IDS)


def _text(plan: MemoryPlan) -> list[int]:
    """English prose, as ids."""
    from gptoss_convert.fidelity import TEXT

    from ..tokenizer import Tokenizer

    return Tokenizer.load(Path(plan.model)).encode(TEXT.read_text(encoding="utf-8"))


def _cyclic(ids: list[int], start: int, count: int) -> list[int]:
    """`count` of them from `start` on, as if they went on again and again."""
    return [ids[index % len(ids)] for index in range(start, start + count)]


def _has_tokenizer(plan: MemoryPlan) -> bool:
    return is_there(Path(plan.model, "tokenizer.json"))


def _reads_text(plan: MemoryPlan) -> bool:
    return plan.settings.expert_slots is not None and _has_tokenizer(plan)


def setup_of(plan: MemoryPlan, wanted: Wanted, energy: str | None = None) -> Setup:
    """`energy`: what a meter covers."""
    settings, native = plan.settings, kernels.native()
    prompts = "text" if _reads_text(plan) else "random ids"
    return Setup(
        repeat=wanted.repeat,
        threads=native.threads() if native and mx.default_device().type == mx.DeviceType.cpu else None,
        context=settings.context,
        kv_bits=settings.kv_bits,
        prefill_chunk=settings.prefill_chunk,
        expert_slots=settings.expert_slots,
        cpu_expert_layers=settings.cpu_expert_layers,
        energy=energy,
        prompts=f"the routing of {wanted.replay.model}" if wanted.replay else prompts,
    )


def facts_of(folder: Path) -> ModelFacts:
    config, tensors = ModelConfig.load(folder), Checkpoint.open(folder).tensors
    weights = 0
    for name, tensor in tensors.items():
        module = name.rpartition(".")[0]
        if name == f"{module}.scales":
            weights += prod(tensor.shape) * config.quantization_of(module).group_size
        elif f"{module}.scales" not in tensors or name == f"{module}.bias":
            weights += prod(tensor.shape)
    size = sum(tensor.nbytes for tensor in tensors.values())
    recipe, source = _provenance(folder)
    return ModelFacts(
        name=printable(folder.resolve().name),
        recipe=recipe,
        random_weights=source == SOURCE,
        layers=config.num_layers,
        experts=config.num_experts,
        experts_per_token=config.experts_per_token,
        bytes=size,
        bits_per_weight=8 * size / weights,
    )


def _provenance(folder: Path) -> tuple[str | None, str | None]:
    """The recipe of a folder, and what it was made from, where it says so."""
    made = read_json(path) if is_there(path := folder / "provenance.json") else None
    made = made if isinstance(made, dict) else {}
    source = made.get("source")
    texts = made.get("recipe"), source.get("id") if isinstance(source, dict) else None
    return tuple(text if isinstance(text, str) else None for text in texts)


def _planned_by_context(plan: MemoryPlan) -> list[tuple[int, int]]:
    """What the plan would be for shorter and longer contexts, everything else the same."""
    sizes = Sizes(Path(plan.model))
    contexts, length = [], SHORTEST_CONTEXT
    while length < sizes.config.max_context:
        contexts.append(length)
        length *= 2
    return [
        (context, sum(row.bytes for row in sizes.rows(replace(plan.settings, context=context), plan.device)))
        for context in (*contexts, sizes.config.max_context)
    ]
