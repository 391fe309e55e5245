"""Start, prefill, decode and memory of one model folder on this machine.

Prompts are random ids, since speed does not depend on what they mean; but where experts are paged it does, and there
they are text. Each point is warmed up and then repeated from the same depth, each time with other tokens: the experts
of the same ones would be in memory already. All points take turns, so that what the machine does meanwhile is in the
spread of each; and what it gives at most is measured again and again. Not measured: sampling beyond greedy, and
tokenization, except in the start of a new process.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path

import mlx.core as mx

from ..engine.generate import load
from ..engine.interrupts import Interrupts
from ..engine.sampling import Sampling
from ..errors import GptOssError
from ..memory.plan import MemoryPlan
from ..model.checkpoint import Checkpoint
from ..model.config import ModelConfig
from ..model.expert_pool import PoolStats
from ..model.kv_cache import Snapshot
from .energy import Meter, meter
from .facts import WARM_UP, BenchmarkSpec, _has_tokenizer, _planned_by_context, _reads_text, facts_of, setup_of
from .figures import (
    Figures,
    Memory,
    Percentiles,
    Point,
    Profile,
    Rates,
    Speed,
    Spread,
    Start,
    Work,
)
from .first_token import STARTS, cold_starts
from .machine import MemorySampler, Watch, describe
from .roofline import Workload, mean_rates, measured_rates
from .routing import recording, replaying
from .stages import profile

GREEDY = Sampling(temperature=0)
MIN_SECONDS = 0.2  # that a run takes: what is shorter is done again and again
RATES_APART = 2.0  # seconds, at most, between a look at what the machine gives and the run that it counts for
RANDOM_IDS = 2**16 + 1  # then they come again; of which no usual number of tokens is a part

OnProgress = Callable[[str, float | None], None]
"""What is being done, and the seconds that are left, once there is an idea of them."""


def measure(plan: MemoryPlan, wanted: BenchmarkSpec, command: str, on_progress: OnProgress) -> Figures:
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
    watch, start, bench, found, finished = Watch(), None, None, None, False
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
            bench.measure()
            if wanted.profile:
                found = bench.profile()
            finished = True
        except KeyboardInterrupt:
            if not (start or (bench and bench.speeds)):
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
        speeds=bench.speeds,
        profile=found,
        finished=finished,
    )


class _Series:
    """The runs of one point, all from the same depth."""

    def __init__(self, point: Point, work: Work, work_off: Callable[[int, int], list[float]]):
        """`work_off`, given a number and how many tokens, does the work once with the tokens of that number, and gives
        the seconds of its parts: of tokens that come one by one."""
        self.point, self.work, self._work_off = point, work, work_off
        self._number = 0
        self._at_a_time = 1
        self._runs: list[float] = []  # seconds of the work, once
        self._parts: list[float] = []
        self._experts: PoolStats | None = None
        self._joules: float | None = 0.0
        self.rates: list[Rates] = []

    def warm_up(self) -> tuple[int, float]:
        """Tokens and seconds of it."""
        tokens = WARM_UP if self.point.kind == "decode" else self.point.tokens
        seconds = sum(self._work_off(0, tokens))
        self._at_a_time = max(1, math.ceil(MIN_SECONDS / (seconds * self.point.tokens / tokens)))
        return tokens, seconds

    def run(self, stats: PoolStats | None, energy: Meter | None) -> tuple[int, float]:
        """Tokens and seconds of it; `stats` are those of the model."""
        before, joules = stats and replace(stats), energy and energy.joules()
        parts = []
        for _ in range(self._at_a_time):
            self._number += 1
            parts += self._work_off(self._number, self.point.tokens)
        spent = energy and energy.joules()
        self._joules = None if None in (self._joules, joules, spent) else self._joules + spent - joules
        if before is not None:
            self._experts = stats - before if self._experts is None else self._experts + (stats - before)
        self._parts += parts
        self._runs.append(sum(parts) / self._at_a_time)
        return self._at_a_time * self.point.tokens, sum(parts)

    def speed(self) -> Speed | None:
        """None before the first run has ended."""
        if not self._runs:
            return None
        done = self.point.tokens * self._at_a_time * len(self._runs)
        return Speed(
            *self.point,
            tokens_per_second=Spread.of([self.point.tokens / seconds for seconds in self._runs]),
            work=self.work,
            rates=mean_rates(self.rates),
            token_seconds=Percentiles.of(self._parts) if self.point.kind == "decode" else None,
            experts=self._experts,
            # A counter that did not move was too slow to tell.
            joules_per_token=self._joules / done if self._joules else None,
        )


class _Bench:
    """A loaded model, and the KV state at the depth that is measured now."""

    def __init__(
        self,
        plan: MemoryPlan,
        wanted: BenchmarkSpec,
        memory: MemorySampler,
        interrupts: Interrupts,
        energy: Meter | None,
        on_progress: OnProgress,
    ):
        self.wanted, self.memory, self.interrupts, self.energy = wanted, memory, interrupts, energy
        self.model = load(plan.model, plan.settings)
        self.cache = self.model.make_cache()
        self.demand = Workload(Checkpoint.open(Path(plan.model)), self.model.config, self.model.make_cache())
        self.ids = _text(plan) if _reads_text(plan) else _random_ids(self.model.config)
        self.agenda = _Agenda(wanted, on_progress)
        self.room = plan.device.memory - plan.total
        self.series: list[_Series] = []
        self._look_at_rates()

    @property
    def speeds(self) -> list[Speed]:
        """Of all points that have had a run."""
        return [speed for series in self.series if (speed := series.speed())]

    def warm_starts(self) -> Spread:
        """Seconds from a prompt to its first token."""
        seconds = []
        for number in range(1 + STARTS):
            ids = self._ids(number, 0, self.wanted.first_prompt)
            self.agenda.tell(f"first token, run {number} of {STARTS}" if number else "first token, warm-up")
            started = time.perf_counter()
            next(self.model.generate(ids, sampling=GREEDY, max_tokens=1, stop=(), on_prefill=self._check))
            seconds.append(time.perf_counter() - started)
            self.agenda.read(len(ids), seconds[-1])
        return Spread.of(seconds[1:])

    def measure(self) -> None:
        """All points, by turns. `speeds` has them, also when it is broken off.

        The first turn reads the context, from the smallest depth to the greatest. What the runs of later turns leave
        behind at a smaller depth stays in the context of a greater one: tokens too, if others.
        """
        mark = self.cache.snapshot()
        with replaying(self.model, self.wanted.replay) if self.wanted.replay else nullcontext():
            for depth, points in groupby(self.wanted.points, lambda point: point.depth):
                mark = self._deepened(mark, depth)
                here = [self._series_of(point, mark) for point in points]
                self.series += here
                for series in here:
                    self.agenda.tell(f"{series.point.name}, warm-up")
                    self.agenda.ran(series.point, *series.warm_up())
                self._turn(1, here)
            for number in range(2, 1 + self.wanted.repeat):
                self._turn(number, self.series)
        self.cache.rewind(mark.offset, mark)

    def profile(self) -> Profile:
        """Of a step at the greatest depth."""
        self.agenda.tell("profile")
        return profile(self.model, self.cache, self.demand, self.rates.bandwidth, self._check)

    def _turn(self, number: int, all_series: list[_Series]) -> None:
        """A run of each, beside what the machine gives."""
        for series in all_series:
            if time.monotonic() - self._rates_seen > RATES_APART:
                self._look_at_rates()
            series.rates.append(self.rates)
            self.agenda.tell(f"{series.point.name}, run {number} of {self.wanted.repeat}")
            self.agenda.ran(series.point, *series.run(self.model.expert_stats, self.energy))

    def _deepened(self, mark: Snapshot, depth: int) -> Snapshot:
        """The state behind `depth` tokens, from that behind fewer."""
        self.cache.rewind(mark.offset, mark)
        if not (ids := self._ids(0, mark.offset, depth - mark.offset)):
            return mark
        started = time.perf_counter()

        def check(done: int, total: int) -> None:
            self.agenda.tell(f"context of {depth:,} tokens, {mark.offset + done:,} read")
            self.interrupts.check()

        self.model.prefill(ids, self.cache, on_progress=check)
        self.agenda.read(len(ids), time.perf_counter() - started)
        return self.cache.snapshot()

    def _series_of(self, point: Point, mark: Snapshot) -> _Series:
        if point.kind == "prefill":
            work = self.demand.prefill(point.depth, point.tokens, self.model.settings.prefill_chunk)
            return _Series(point, work, partial(self._prefill, mark))
        return _Series(point, self.demand.decode(point.depth + 1, point.tokens), partial(self._decode, mark))

    def _prefill(self, mark: Snapshot, number: int, count: int) -> list[float]:
        ids = self._ids(number, mark.offset, count)
        self.cache.rewind(mark.offset, mark)
        started = time.perf_counter()
        mx.eval(logits := self.model.prefill(ids, self.cache, on_progress=self._check))
        seconds = time.perf_counter() - started
        self.model.require_finite(mx.sum(logits))
        return [seconds]

    def _decode(self, mark: Snapshot, number: int, count: int) -> list[float]:
        first = self._ids(number, mark.offset, 1)
        self.cache.rewind(mark.offset, mark)
        tokens = self.model.generate(first, sampling=GREEDY, max_tokens=count + 1, stop=(), cache=self.cache)
        next(tokens)  # it is what prefill ends with
        ends = [time.perf_counter()]
        for _ in tokens:
            ends.append(time.perf_counter())
            self.interrupts.check()
        return [end - begun for begun, end in pairwise(ends)]

    def _ids(self, run: int, offset: int, count: int) -> list[int]:
        """What a run reads behind `offset`; run 0 reads on where the context ends."""
        return _cyclic(self.ids, offset + run * count, count)

    def _look_at_rates(self) -> None:
        with self.memory.apart():
            self.rates = measured_rates(self.room)
        self._rates_seen = time.monotonic()

    def _check(self, *progress: int) -> None:
        self.interrupts.check()


class _Agenda:
    """What is still to do, and how long a token of each kind took last."""

    def __init__(self, wanted: BenchmarkSpec, on_progress: OnProgress):
        self._runs = dict.fromkeys(wanted.points, 1 + wanted.repeat)  # with the one that warms up
        self._to_read = max(wanted.depths) + ((1 + STARTS) * wanted.first_prompt if wanted.start else 0)
        self._seconds: dict[str, float] = {}
        self._on_progress = on_progress

    def read(self, tokens: int, seconds: float) -> None:
        """So many tokens of context, or of a prompt that is waited for."""
        self._to_read -= tokens
        self._seconds["prefill"] = seconds / tokens

    def ran(self, point: Point, tokens: int, seconds: float) -> None:
        self._runs[point] -= 1
        self._seconds[point.kind] = seconds / tokens

    def tell(self, what: str) -> None:
        """What is done next."""
        self._on_progress(what, self._seconds_left())

    def _seconds_left(self) -> float | None:
        """None before a token of each kind has been timed."""
        each, runs = self._seconds, {point: count for point, count in self._runs.items() if count}
        if {point.kind for point in runs} - each.keys() or (self._to_read and "prefill" not in each):
            return None
        of_runs = sum(count * max(MIN_SECONDS, point.tokens * each[point.kind]) for point, count in runs.items())
        return of_runs + self._to_read * each.get("prefill", 0)


def record_routing(plan: MemoryPlan, wanted: BenchmarkSpec, path: Path) -> None:
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
    from ..engine.builtin_text import TEXT
    from ..engine.tokenizer import Tokenizer

    return Tokenizer.load(Path(plan.model)).encode(TEXT.read_text(encoding="utf-8"))


def _cyclic(ids: list[int], start: int, count: int) -> list[int]:
    """`count` of them from `start` on, as if they went on again and again."""
    return [ids[index % len(ids)] for index in range(start, start + count)]
