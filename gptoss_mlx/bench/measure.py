"""Start, prefill, decode and memory of one model folder on this machine.

Prompts are random ids, since speed does not depend on their meaning; but where experts are paged it does, and there
they are text. Each point is warmed up and then repeated from the same depth, each time with other tokens: the experts
of the same ones would be in memory already. All points take turns, so that what the machine does meanwhile is in the
spread of each; and its best rates are measured again and again. Not measured: sampling beyond greedy, and tokenization,
except in the start of a new process.
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
from itertools import groupby
from pathlib import Path

import mlx.core as mx

from ..engine.generate import load
from ..engine.interrupts import Interrupts
from ..errors import GptOssError
from ..memory.estimate import MemoryEstimate
from ..memory.plan import MemoryPlan
from ..model.config import ModelConfig
from ..model.expert_pool import PoolStats
from ..model.kv_cache import Snapshot
from .energy import Meter, meter, sum_if_known
from .facts import WARM_UP, BenchmarkSpec, facts_of, has_tokenizer, planned_by_context, reads_text, setup_of
from .first_token import STARTS, cold_starts
from .machine import MemorySampler, Watch, describe
from .results import Memory, Percentiles, Point, Profile, Rates, Results, Speed, Spread, Start, Work
from .roofline import Workload, mean_rates, measured_rates
from .routing import recording, replaying
from .stages import GREEDY, decode_seconds, profile

MIN_SECONDS = 0.2  # of one run: shorter work is repeated within it
RATES_APART = 2.0  # seconds between measuring the machine's rates and a run that they count for, at most
RANDOM_IDS = 2**16 + 1  # after which they are repeated; no usual number of tokens divides it

OnProgress = Callable[[str, float | None], None]
"""Gets what is being done, and an estimate of the seconds that are left, once there is one."""


def measure(plan: MemoryPlan, spec: BenchmarkSpec, command: str, on_progress: OnProgress) -> Results:
    """Measure a folder in a process that keeps to `plan`; `command` would do the same.

    Ctrl-C ends it with the results so far, `finished` being False; where there are none, it is a KeyboardInterrupt.
    Raises GptOssError for a folder that cannot be loaded, and for a context without room for what is asked.
    """
    if spec.context > plan.settings.context:
        asked = (plan.wanted_context or 0) >= spec.context
        raise GptOssError(
            f"{spec.context:,} tokens of context are needed, and this run has {plan.settings.context:,}: give"
            f" {'more --memory' if asked else f'--context {spec.context}'}, or less --depth, --prompt or --generate"
        )
    watch, estimate = Watch(), MemoryEstimate(Path(plan.model))
    finished = False
    with MemorySampler() as memory, meter() or nullcontext() as energy, Interrupts() as interrupts:
        if spec.start:
            on_progress("starting new processes", None)
            with interrupts.at_once():
                cold = cold_starts(plan, spec.first_prompt)
        on_progress("loading", None)
        bench = _Bench(plan, spec, estimate, memory, interrupts, energy, on_progress)
        try:
            if spec.start:
                bench.start = Start(spec.first_prompt, *cold, bench.warm_starts())
            bench.measure()
            if spec.profile:
                bench.take_profile()
            finished = True
        except KeyboardInterrupt:
            if not (bench.start or bench.speeds):
                raise
        seen = memory.max()
    return Results(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        machine=describe(),
        conditions=watch.conditions(),
        model=facts_of(Path(plan.model), estimate),
        setup=setup_of(plan, spec, energy.covers if energy else None),
        memory=Memory(plan.total, planned_by_context(plan, estimate), **(vars(seen) if seen else {})),
        start=bench.start,
        speeds=bench.speeds,
        profile=bench.profile,
        finished=finished,
    )


class _Series:
    """The runs of one point, all from the same depth."""

    def __init__(self, point: Point, work: Work, work_off: Callable[[int, int], list[float]]):
        """`work_off`, given the number of a run and a count of tokens, does the work once with the tokens of that run,
        and returns the seconds of its parts: of each token, where they come one by one."""
        self.point, self.work, self._work_off = point, work, work_off
        self.seconds = 0.0
        """Seconds of the last run, or, before the first, of one as the warm-up was."""
        self.rates: list[Rates] = []
        self._number = 0
        self._at_a_time = 1
        self.runs: list[float] = []
        """Seconds of the work, once."""
        self._parts: list[float] = []
        self._experts = PoolStats()
        self._joules: list[float | None] = []

    def warm_up(self) -> None:
        tokens = WARM_UP if self.point.kind == "decode" else self.point.tokens
        seconds = sum(self._work_off(0, tokens)) * self.point.tokens / tokens
        self._at_a_time = max(1, math.ceil(MIN_SECONDS / seconds))
        self.seconds = self._at_a_time * seconds

    def run(self, stats: PoolStats | None, energy: Meter | None) -> None:
        """`stats` are those of the model."""
        before, joules = replace(stats) if stats else None, energy.joules() if energy else None
        parts = []
        for _ in range(self._at_a_time):
            self._number += 1
            parts += self._work_off(self._number, self.point.tokens)
        spent = energy.joules() if energy else None
        self._joules.append(None if joules is None or spent is None else spent - joules)
        if stats and before:
            self._experts += stats - before
        self._parts += parts
        self.seconds = sum(parts)
        self.runs.append(self.seconds / self._at_a_time)

    def speed(self) -> Speed | None:
        """None before the first run has ended."""
        if not self.runs:
            return None
        done, joules = self.point.tokens * self._at_a_time * len(self.runs), sum_if_known(self._joules)
        return Speed(
            *self.point,
            tokens_per_second=Spread.of([self.point.tokens / seconds for seconds in self.runs]),
            work=self.work,
            rates=mean_rates(self.rates),
            token_seconds=Percentiles.of(self._parts) if self.point.kind == "decode" else None,
            experts=self._experts if self._experts.needed else None,
            # A counter that did not move was too slow to say.
            joules_per_token=joules / done if joules else None,
        )


class _Bench:
    """A loaded model, and the KV state at the depth that is measured now."""

    def __init__(
        self,
        plan: MemoryPlan,
        spec: BenchmarkSpec,
        estimate: MemoryEstimate,
        memory: MemorySampler,
        interrupts: Interrupts,
        energy: Meter | None,
        on_progress: OnProgress,
    ):
        self.spec, self.memory, self.interrupts, self.energy = spec, memory, interrupts, energy
        self.model = load(plan.model, plan.settings)
        self.cache = self.model.make_cache()
        self.workload = Workload(estimate.tensors, self.model.config, self.model.make_cache())
        self.ids = _text(plan) if reads_text(plan) else _random_ids(self.model.config)
        self.on_progress = on_progress
        self.room = plan.device.memory - plan.total
        self.series: list[_Series] = []
        self.start: Start | None = None
        self.profile: Profile | None = None
        self._look_at_rates()

    @property
    def speeds(self) -> list[Speed]:
        """The speeds of all points that have had a run."""
        return [speed for series in self.series if (speed := series.speed())]

    def warm_starts(self) -> Spread:
        """Seconds from a prompt to its first token."""
        seconds = []
        for number in range(1 + STARTS):
            ids = self._ids(number, 0, self.spec.first_prompt)
            self._tell(f"first token, run {number} of {STARTS}" if number else "first token, warm-up")
            started = time.perf_counter()
            next(self.model.generate(ids, sampling=GREEDY, max_tokens=1, stop=(), on_prefill=self._check))
            seconds.append(time.perf_counter() - started)
        return Spread.of(seconds[1:])

    def measure(self) -> None:
        """Measure all points by turns; `speeds` has them, also after an interrupt.

        The first turn reads the context, from the smallest depth to the greatest. The tokens that a run of a later turn
        leaves at a smaller depth stay in the context of a greater one, in the place of those that were read first.
        """
        snapshot = self._snapshot()
        with replaying(self.model, self.spec.replay) if self.spec.replay else nullcontext():
            for depth, points in groupby(self.spec.points, lambda point: point.depth):
                snapshot = self._deepened(snapshot, depth)
                here = [self._series_of(point, snapshot) for point in points]
                self.series += here
                for series in here:
                    self._tell(f"{series.point.name}, warm-up")
                    series.warm_up()
                self._turn(1, here)
            for number in range(2, 1 + self.spec.repeat):
                self._turn(number, self.series)
        self.cache.rewind(snapshot.offset, snapshot)

    def take_profile(self) -> None:
        """Profile a step at the greatest depth."""
        self._tell("profile")
        self.profile = profile(self.model, self.cache, self.workload, self.rates.bandwidth, self._check)

    def _turn(self, number: int, all_series: list[_Series]) -> None:
        """One run of each point, beside the machine's rates."""
        for series in all_series:
            if time.monotonic() - self._rates_seen > RATES_APART:
                self._look_at_rates()
            series.rates.append(self.rates)
            self._tell(f"{series.point.name}, run {number} of {self.spec.repeat}")
            series.run(self.model.expert_stats, self.energy)

    def _deepened(self, snapshot: Snapshot, depth: int) -> Snapshot:
        """A snapshot after `depth` tokens, from one after fewer."""
        self.cache.rewind(snapshot.offset, snapshot)
        if not (ids := self._ids(0, snapshot.offset, depth - snapshot.offset)):
            return snapshot

        def check(done: int, total: int) -> None:
            self._tell(f"context of {depth:,} tokens, {snapshot.offset + done:,} read")
            self.interrupts.check()

        self.model.prefill(ids, self.cache, on_progress=check)
        return self._snapshot()

    def _snapshot(self) -> Snapshot:
        """The state now; nothing of it has been overwritten, as nothing was rewound that was read since."""
        snapshot = self.cache.snapshot()
        assert snapshot
        return snapshot

    def _series_of(self, point: Point, snapshot: Snapshot) -> _Series:
        if point.kind == "prefill":
            work = self.workload.prefill(point.depth, point.tokens, self.model.settings.prefill_chunk)
            return _Series(point, work, partial(self._prefill, snapshot))
        return _Series(point, self.workload.decode(point.depth + 1, point.tokens), partial(self._decode, snapshot))

    def _prefill(self, snapshot: Snapshot, number: int, count: int) -> list[float]:
        ids = self._ids(number, snapshot.offset, count)
        self.cache.rewind(snapshot.offset, snapshot)
        started = time.perf_counter()
        mx.eval(logits := self.model.prefill(ids, self.cache, on_progress=self._check))
        seconds = time.perf_counter() - started
        self.model.require_finite(mx.sum(logits))
        return [seconds]

    def _decode(self, snapshot: Snapshot, number: int, count: int) -> list[float]:
        (first,) = self._ids(number, snapshot.offset, 1)
        self.cache.rewind(snapshot.offset, snapshot)
        return decode_seconds(self.model, self.cache, first, count, self._check)

    def _ids(self, run: int, offset: int, count: int) -> list[int]:
        """The tokens that a run reads after `offset`; run 0 continues the context."""
        return _cyclic(self.ids, offset + run * count, count)

    def _look_at_rates(self) -> None:
        with self.memory.apart():
            self.rates = measured_rates(self.room)
        self._rates_seen = time.monotonic()

    def _tell(self, what: str) -> None:
        """Report what is done next, and how long all runs will take that are left, once each point has been warmed
        up."""
        is_known = len(self.series) == len(self.spec.points) and all(series.seconds for series in self.series)
        left = sum(series.seconds * (self.spec.repeat - len(series.runs)) for series in self.series)
        self.on_progress(what, left if is_known and left else None)

    def _check(self, *progress: int) -> None:
        self.interrupts.check()


def record_routing(plan: MemoryPlan, spec: BenchmarkSpec, path: Path) -> None:
    """Write a trace of the first prompt, text where the folder has a tokenizer, and of what is generated after it."""
    model = load(plan.model, plan.settings)
    ids = _text(plan) if has_tokenizer(plan) else _random_ids(model.config)
    ids = _cyclic(ids, 0, spec.first_prompt)
    with recording(model) as recorder:
        for _ in model.generate(ids, sampling=GREEDY, max_tokens=1 + max(spec.generate, default=0), stop=()):
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
    """`count` ids from `start` on, as if they were repeated for ever."""
    return [ids[index % len(ids)] for index in range(start, start + count)]
