"""What is measured is what it says: the state behind a depth, each run's own tokens, and a bare loop's time."""

import io
import json
import math
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from gptoss_mlx import kernels
from gptoss_mlx.bench import first_token, machine, measure, stages
from gptoss_mlx.bench.energy import meter
from gptoss_mlx.bench.facts import BenchmarkSpec
from gptoss_mlx.bench.first_token import cold_starts
from gptoss_mlx.bench.machine import MemorySampler
from gptoss_mlx.bench.results import Point, Rates
from gptoss_mlx.bench.stages import GREEDY
from gptoss_mlx.cli.loading import use_threads
from gptoss_mlx.engine.generate import load
from gptoss_mlx.engine.interrupts import Interrupts
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.memory.plan import BudgetTooSmall, Device, MemoryEstimate, make_plan
from gptoss_mlx.terminal.progress_bars import step_progress

NEAR = 0.05  # of each other
PATIENCE = 40  # seconds: what other programs take may hit one side more, until there are many runs of both
MAX_OVERHEAD = 0.01

WANTED = BenchmarkSpec(prompt=(100,), generate=(8,), depth=(0, 300), repeat=2, start=False)


def plan_of(folder: Path, *, paged: bool = False):
    if not paged:
        return make_plan(folder, Device.here(), context=4096)
    with pytest.raises(BudgetTooSmall) as caught:
        make_plan(folder, Device.here(), memory=2**20, context=1024)
    return make_plan(folder, Device.here(), memory=caught.value.smallest + 100_000, context=1024)


@pytest.fixture
def bench_of(demo_folder, monkeypatch):
    """Make what measures, on a machine whose rates take no time to find; each run does its work once."""
    monkeypatch.setattr(measure, "measured_rates", lambda room: Rates(10e9, 1e12, 1e11))
    monkeypatch.setattr(measure, "MIN_SECONDS", 0)
    monkeypatch.setattr(stages, "ROUNDS", 1)
    told = []

    def make(wanted: BenchmarkSpec, energy=None, paged: bool = False) -> measure._Bench:
        plan, estimate = plan_of(demo_folder, paged=paged), MemoryEstimate(demo_folder)
        bench = measure._Bench(plan, wanted, estimate, sampler, Interrupts(), energy, lambda *each: told.append(each))
        bench.told = told
        return bench

    with MemorySampler() as sampler:
        yield make


def profile_of(bench):
    bench.take_profile()
    return bench.profile


def test_the_state_behind_a_depth_is_that_of_its_tokens_after_the_runs(bench_of):
    """Of rings that have gone round too: the demo's window is shorter than the depths."""
    wanted = replace(WANTED, depth=(0, 40, 300), repeat=1)  # a second turn would leave other tokens in the context
    bench = bench_of(wanted)
    assert bench.model.config.sliding_window < 300
    probe = bench.ids[:7]
    bench.measure()
    assert [speed.depth for speed in bench.speeds if speed.kind == "decode"] == [0, 40, 300]
    # `measure` leaves the state of the last depth.
    fresh = bench.model.make_cache()
    bench.model.prefill(bench.ids[:300], fresh)
    assert bench.cache.offset == fresh.offset == 300
    mx.eval(left := bench.model.prefill(probe, bench.cache), right := bench.model.prefill(probe, fresh))
    assert mx.array_equal(left, right)


def test_each_run_reads_other_tokens_and_from_the_same_depth(bench_of, monkeypatch):
    bench = bench_of(WANTED)
    reads = []
    prefill = bench.model.prefill

    def listening(ids, cache, **options):
        reads.append((cache.offset, tuple(ids)))
        return prefill(ids, cache, **options)

    monkeypatch.setattr(bench.model, "prefill", listening)
    bench.measure()
    prompts = [each for each in reads if len(each[1]) == 100]
    assert [offset for offset, _ in prompts] == [0, 0, 300, 300, 0, 300]  # the first at each depth warms up
    for depth in (0, 300):
        assert len({ids for offset, ids in prompts if offset == depth}) == 1 + WANTED.repeat
    firsts = [each for each in reads if len(each[1]) == 1]
    assert [offset for offset, _ in firsts] == [0, 0, 300, 300, 0, 300]
    assert [ids for offset, ids in reads if offset == 0 and len(ids) == 300] == [tuple(bench.ids[:300])]


@pytest.mark.parametrize(
    "wanted",
    [
        WANTED,
        replace(WANTED, repeat=1, prompt=(3, 700), start=True),
        replace(WANTED, prompt=(), start=True),
        replace(WANTED, generate=(), profile=True, depth=(17,)),
        replace(WANTED, prompt=(), generate=(1,), depth=(0,), repeat=1, profile=True),
    ],
)
def test_context_and_tokens_are_just_enough(bench_of, wanted):
    """With one position less, something has no room."""
    bench = bench_of(wanted)
    make_cache = bench.model.make_cache
    bench.cache.context = wanted.context
    bench.cache.layers = make_cache().layers
    if wanted.start:
        bench.warm_starts()
    bench.measure()
    if wanted.profile:
        bench.take_profile()
    assert max(speed.depth + speed.tokens + (speed.kind == "decode") for speed in bench.speeds) <= wanted.context


def test_points_take_turns_and_short_runs_are_done_again_and_again(bench_of, monkeypatch):
    monkeypatch.setattr(measure, "MIN_SECONDS", 0.05)
    monkeypatch.setattr(measure, "RATES_APART", 0)
    warm_up, warm_ups = measure._Series.warm_up, []

    def recorded(series):
        warm_up(series)
        warm_ups.append(series.seconds / series._at_a_time)

    monkeypatch.setattr(measure._Series, "warm_up", recorded)
    bench = bench_of(replace(WANTED, repeat=3, depth=(0,)))
    bench.measure()
    turns = [what for what, _ in bench.told if ", run " in what]
    assert turns == [f"{speed.name}, run {n} of 3" for n in (1, 2, 3) for speed in bench.speeds]
    for series, one_run in zip(bench.series, warm_ups, strict=True):
        assert series._at_a_time == max(1, math.ceil(measure.MIN_SECONDS / one_run))
        assert len(series.runs) == 3
        assert len(series.rates) == 3
    decode = bench.series[1]
    assert len(decode._parts) == 3 * decode._at_a_time * 8
    assert sum(decode._parts) == pytest.approx(sum(decode.runs) * decode._at_a_time)


@pytest.mark.timing
def test_runs_on_the_demo_are_short(bench_of, monkeypatch):
    monkeypatch.setattr(measure, "MIN_SECONDS", 0.2)
    bench = bench_of(replace(WANTED, repeat=1, depth=(0,)))
    bench.measure()
    assert all(series._at_a_time > 1 for series in bench.series)


def test_what_is_done_is_there_when_it_is_broken_off(bench_of, monkeypatch):
    bench = bench_of(replace(WANTED, depth=(0, 300), repeat=3))
    prefill, reads = bench.model.prefill, []

    def interrupted(ids, cache, **options):
        reads.append(len(ids))
        if reads.count(100) == 5:  # the second run of the first point, behind the warm-ups and first runs of both
            raise KeyboardInterrupt
        return prefill(ids, cache, **options)

    monkeypatch.setattr(bench.model, "prefill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.measure()
    assert [(speed.depth, speed.kind, speed.tokens_per_second.runs) for speed in bench.speeds] == [
        (0, "prefill", 1),
        (0, "decode", 1),
        (300, "prefill", 1),
        (300, "decode", 1),
    ]


def test_time_left(bench_of):
    bench = bench_of(replace(WANTED, repeat=5))
    bench.measure()
    known = [left for _, left in bench.told if left is not None]
    assert bench.told[0][1] is None
    assert len(known) > len(bench.told) / 2
    assert all(left > 0 for left in known)
    assert bench.told[-1][0] == "decode 8 at 300, run 5 of 5"
    assert known[-1] == bench.series[-1].runs[-2]  # one is left, and takes as long as the one before


class Joules:
    """Twelve joules each time that it is asked; none after a while."""

    covers = "a test"

    def __init__(self):
        self.asked = 0

    def joules(self):
        self.asked += 1
        return 12.0 * self.asked if self.asked <= 10 else None


def test_energy_is_that_of_the_runs_that_count(bench_of):
    wanted = replace(WANTED, generate=(8, 6), prompt=(100,), depth=(0,))
    bench = bench_of(wanted, Joules())
    bench.measure()
    # Each run asks twice, before and after; the last of the third point's are not told.
    assert {speed.name: speed.joules_per_token for speed in bench.speeds} == {
        "prefill 100 at 0": 12 / 100,
        "decode 8 at 0": 12 / 8,
        "decode 6 at 0": None,
    }


def test_experts_are_counted_without_the_warm_up(bench_of):
    bench = bench_of(replace(WANTED, depth=(0,), prompt=(30,), generate=(6,)), paged=True)
    bench.measure()
    prefill, decode = bench.speeds
    layers, k = bench.model.config.num_layers, bench.model.config.experts_per_token
    assert decode.experts.needed == WANTED.repeat * (6 + 1) * layers * k  # each run begins with a token of its own
    assert prefill.experts.needed > 0
    size, read = bench.model.network.pool.expert_bytes, decode.experts.bytes_read
    assert decode.experts.missed * size <= read <= (decode.experts.missed + decode.experts.ahead_wrong) * size
    assert bench.ids[:5] != measure._random_ids(bench.model.config)[:5]  # text


def test_a_profile_is_a_step_and_the_bytes_of_one_token(bench_of):
    bench = bench_of(replace(WANTED, depth=(300,), profile=True))
    bench.measure()
    found = profile_of(bench)
    assert found.depth == 300
    assert [stage.name for stage in found.stages] == ["attention", "experts", "head", "rest"]
    assert all(stage.seconds >= 0 for stage in found.stages)
    assert abs(sum(stage.bytes for stage in found.stages) - bench.workload.decode(300, 1).bytes) <= 2
    assert bench.cache.offset == 300


@pytest.mark.timing
def test_a_profile_takes_as_long_as_a_token(bench_of, monkeypatch):
    monkeypatch.setattr(stages, "ROUNDS", 5)
    bench = bench_of(replace(WANTED, depth=(300,), profile=True))
    bench.measure()
    step = token = 9.0
    for _ in range(30):
        step = min(step, profile_of(bench).seconds)
        token = min(token, statistics.median(bench._decode(bench.cache.snapshot(), 0, 24)))
        if abs(step / token - 1) < 0.2:
            return
    pytest.fail(f"a step of {step} s, and of {token} s while decoding")


def test_a_profile_of_paged_experts_has_no_rest(bench_of):
    bench = bench_of(replace(WANTED, depth=(0,), prompt=(), generate=(2,), profile=True), paged=True)
    bench.measure()
    found = profile_of(bench)
    assert [stage.name for stage in found.stages] == ["attention", "head", "experts"]
    assert sum(stage.bytes for stage in found.stages) == pytest.approx(bench.workload.decode(0, 1).bytes, abs=2)


def test_a_profile_can_be_interrupted(bench_of):
    bench = bench_of(replace(WANTED, depth=(0,), profile=True))
    bench.measure()
    bench.interrupts._press()
    with pytest.raises(KeyboardInterrupt):
        bench.take_profile()


@pytest.mark.timing
def test_speeds_are_those_of_a_bare_loop(bench_of):
    """By turns in one process, each behind a run that warms up: nothing of the bench is in what it times."""
    bench = bench_of(replace(WANTED, prompt=(512,), generate=(64,), depth=(0,), repeat=1))
    model, mark = bench.model, bench.cache.snapshot()

    def bare_prefill() -> float:
        cache = model.make_cache()
        started = time.perf_counter()
        mx.eval(model.prefill(bench.ids[512:1024], cache))
        return 512 / (time.perf_counter() - started)

    def bare_decode() -> float:
        tokens = model.generate([bench.ids[1]], sampling=GREEDY, max_tokens=65, stop=())
        next(tokens)
        started = time.perf_counter()
        assert sum(1 for _ in tokens) == 64
        return 64 / (time.perf_counter() - started)

    def speed_of(point: Point) -> float:
        series = bench._series_of(point, mark)
        series.warm_up()
        bench._turn(1, [series])
        return series.speed().tokens_per_second.median

    sides = {
        "prefill": (lambda: speed_of(Point("prefill", 512, 0)), bare_prefill),
        "decode": (lambda: speed_of(Point("decode", 64, 0)), bare_decode),
    }
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}

    def apart(name: str) -> float:
        """How far the two are from each other: the best of each, or the median of what they are in a pair."""
        ours, bare = zip(*pairs[name], strict=True)
        return min(abs(max(ours) / max(bare) - 1), abs(statistics.median(a / b for a, b in pairs[name]) - 1))

    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        for name, (ours, bare) in sides.items():
            bare()
            pairs[name].append((ours(), bare()))
        if len(pairs["decode"]) >= 10 and all(apart(name) < NEAR for name in sides):
            return
    pytest.fail(str({name: apart(name) for name in sides}))


def cost(call, times: int) -> float:
    """Seconds of a call: the best of several rounds."""
    rounds = []
    for _ in range(7):
        started = time.perf_counter()
        for _ in range(times):
            call()
        rounds.append((time.perf_counter() - started) / times)
    return min(rounds)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.timing
def test_overhead_is_below_a_hundredth_of_what_is_timed(demo_folder, monkeypatch):
    """On the smallest model: what is done for each token, and what the threads do while a token is computed, as a share
    of one core's time."""
    model = load(demo_folder)
    token = 9.0
    for _ in range(7):
        tokens = model.generate([0], sampling=GREEDY, max_tokens=65, stop=())
        next(tokens)
        token = min(token, cost(lambda tokens=tokens: next(tokens), 9))
    ends: list[float] = []
    with MemorySampler() as memory, Interrupts() as interrupts:

        def each_token() -> None:
            ends.append(time.perf_counter())
            interrupts.check()

        share = cost(each_token, 1000) / token
        share += cost(memory._sample, 100) / machine.SAMPLE_SECONDS
    if energy := meter():
        with energy:
            share += cost(energy.joules, 20)
    monkeypatch.setattr(sys, "stderr", Terminal())
    shown = []
    for _ in range(3):
        with step_progress() as show:
            show("decode 64 at 4,096, run 1 of 5", 3.0)
            before = time.process_time()
            time.sleep(1)
            shown.append(time.process_time() - before)
    assert share + min(shown) < MAX_OVERHEAD


class TestColdStarts:
    @pytest.fixture(autouse=True)
    def one(self, monkeypatch):
        """A process each, for all but those that a command starts."""
        monkeypatch.setattr(first_token, "STARTS", 1)

    @pytest.fixture
    def heard(self, tmp_path, monkeypatch):
        """What each new process was started with, noted as it starts."""
        log = tmp_path / "log"
        (tmp_path / "path").mkdir()
        (tmp_path / "path" / "sitecustomize.py").write_text(
            "import json, os, sys\n"
            f"with open({str(log)!r}, 'a') as file:\n"
            "    print(json.dumps([sys.orig_argv, os.environ.get('GPTOSS_MLX_THREADS')]), file=file)\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
        return lambda: [json.loads(line) for line in log.read_text().splitlines()]

    def test_a_start_is_all_of_it(self, demo_folder, tmp_path, monkeypatch):
        """And takes no modules of the current folder, where Python can be told."""
        monkeypatch.setattr(first_token, "STARTS", 2)
        if sys.version_info >= (3, 11):
            (tmp_path / "tokenizers.py").write_text("raise SystemExit('not this one')")
            monkeypatch.chdir(tmp_path)
        load_seconds, first = cold_starts(plan_of(demo_folder), 8)
        assert load_seconds.runs == first.runs == 2
        assert 0 < load_seconds.median < first.median

    @pytest.mark.parametrize("paged", [pytest.param(False, marks=pytest.mark.slow), True])
    def test_settings_reach_it(self, demo_folder, heard, paged):
        plan = plan_of(demo_folder, paged=paged)
        cold_starts(plan, 8)
        assert len(heard()) == 1
        for words, _ in heard():
            settings = json.loads(words[-2])
            assert settings["expert_slots"] == plan.settings.expert_slots
            assert settings["context"] == plan.settings.context

    def test_threads_of_the_command_line(self, demo_folder, heard, monkeypatch):
        monkeypatch.setattr(measure, "measured_rates", lambda room: Rates(10e9, 1e12, 1e11))
        before = kernels.native() and kernels.native().threads()
        spec = BenchmarkSpec(prompt=(4,), generate=(), depth=(0,), repeat=1)
        try:
            use_threads(1)
            results = measure.measure(plan_of(demo_folder), spec, "bench", lambda *progress: None)
        finally:
            if before:
                kernels.set_threads(before)
        assert results.setup.threads in (1, None)
        children = [threads for words, threads in heard() if "gptoss_mlx.bench.first_token" in words]
        assert children in (["1"], [None])  # None without kernels

    def test_what_fails_there_is_one_line(self, demo_folder, tmp_path):
        plan = plan_of(demo_folder)
        with pytest.raises(GptOssError, match=r"^a new process could not run the model: .* is not a folder"):
            cold_starts(replace(plan, model=str(tmp_path / "gone")), 8)


@pytest.mark.parametrize("paged", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_nothing_of_the_rates_is_in_the_memory(run, demo_folder, paged):
    """They read 512 MB, or 64 MB where memory is short, that are none of the model's."""
    sizes = ("--prompt", 4, "--generate", 0, "--depth", 0, "--repeat", 1, "--no-start", "--format", "json")
    options = ("--memory", plan_of(demo_folder, paged=True).device.memory, "--context", 1024) if paged else ()
    memory = json.loads(run("bench", demo_folder, *sizes, *options).stdout)["memory"]
    assert memory["peak"] is None or max(memory["anonymous"], memory["mapped"]) < memory["peak"]
    # Half of the least that they read is room for what Python takes more on some machines.
    assert memory["peak"] is None or memory["peak"] <= memory["planned"] + 2**25
