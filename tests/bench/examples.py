"""Results written by hand: what a benchmark could say of gpt-oss-20b on machines that tell much, or nothing."""

from dataclasses import replace

from gptoss_mlx.bench.results import (
    Conditions,
    Machine,
    Memory,
    ModelFacts,
    Percentiles,
    Profile,
    Rates,
    Results,
    Setup,
    Speed,
    Spread,
    Stage,
    Start,
    Work,
)
from gptoss_mlx.model.expert_pool import PoolStats

RATES = Rates(bandwidth=40e9, matrix=800e9, vector=100e9)


def prefill(tokens: int, depth: int, median: float) -> Speed:
    return Speed(
        kind="prefill",
        tokens=tokens,
        depth=depth,
        tokens_per_second=Spread(median, 0.98 * median, 1.01 * median, 5),
        work=Work(11_000_000_000, tokens * 7_200_000_000, tokens * (depth + tokens) * 40_000),
        rates=RATES,
    )


def decode(tokens: int, depth: int, median: float) -> Speed:
    return Speed(
        kind="decode",
        tokens=tokens,
        depth=depth,
        tokens_per_second=Spread(median, 0.95 * median, 1.04 * median, 5),
        work=Work(tokens * (1_920_000_000 + depth * 24_600), tokens * 7_200_000_000, tokens * depth * 40_000),
        rates=RATES,
        token_seconds=Percentiles(1 / median, 1.05 / median, 1.25 / median, 2 / median),
    )


FULL = Results(
    date="2026-03-01T12:00:00Z",
    command="gptoss-mlx bench gpt-oss-20b --prompt 512,2048 --generate 128 --depth 0,4096,16384 --profile",
    machine=Machine(
        system="Linux 6.18 on x86_64",
        processor="AMD EPYC 9R14",
        cores=2,
        memory=25_200_000_000,
        device="CPU",
        kernels="avx512-vnni",
        versions={"gptoss-mlx": "0.1.0", "MLX": "0.32.4", "Python": "3.11.7"},
        commit="c65292d",
    ),
    conditions=Conditions(load_average=0.08, others=0.004, stolen=0.002, throttled=0, clock=0.99, power="mains"),
    model=ModelFacts("gpt-oss-20b", "mxfp4-q4", False, 24, 32, 4, 11_200_000_000, 4.28),
    setup=Setup(
        repeat=5,
        threads=2,
        context=32_768,
        kv_bits=16,
        prefill_chunk=512,
        expert_slots=None,
        cpu_expert_layers=0,
        energy=None,
        prompts="random ids",
    ),
    memory=Memory(
        anonymous=840_000_000,
        mapped=10_900_000_000,
        peak=11_700_000_000,
        planned=12_400_000_000,
        by_context=[(1024 << n, 11_600_000_000 + (1024 << n) * 24_600) for n in range(8)],
    ),
    start=Start(
        prompt=16,
        load_seconds=Spread(0.31, 0.3, 0.34, 5),
        cold_seconds=Spread(0.92, 0.9, 1.02, 5),
        warm_seconds=Spread(0.152, 0.15, 0.16, 5),
    ),
    speeds=[
        prefill(512, 0, 84.2),
        prefill(512, 4096, 74.3),
        prefill(512, 16_384, 48.9),
        prefill(2048, 0, 92.5),
        prefill(2048, 4096, 79),
        prefill(2048, 16_384, 52.7),
        decode(128, 0, 18.5),
        decode(128, 4096, 17.6),
        decode(128, 16_384, 15.2),
    ],
    profile=Profile(
        depth=4096,
        stages=[
            Stage("attention", 0.0142, 441_000_000),
            Stage("experts", 0.0335, 1_270_000_000),
            Stage("head", 0.0081, 310_000_000),
            Stage("rest", 0.0012, 0),
        ],
        bandwidth=40e9,
    ),
    finished=True,
)

# Of a machine that tells nothing, on which nothing optional was asked for.
BARE = replace(
    FULL,
    command="gptoss-mlx bench 20b",
    machine=replace(FULL.machine, kernels=None, commit=None, versions={}),
    conditions=Conditions(None, None, None, None, None, None),
    model=replace(FULL.model, recipe=None),
    setup=replace(FULL.setup, threads=None),
    memory=Memory(12_400_000_000, []),
    start=None,
    speeds=[replace(decode(128, 0, 0.053), rates=Rates(None, None, None), token_seconds=None)],
    profile=None,
)

PAGED = replace(
    FULL,
    setup=replace(FULL.setup, energy="CPU package", expert_slots=485, prompts="the routing of a day of chat"),
    speeds=[
        replace(decode(128, 0, 4.7), experts=PoolStats(61_440, 15_360, 203_000_000_000, 71.4), joules_per_token=6.42),
        replace(decode(128, 4096, 4.1), experts=PoolStats(61_440, 19_050, 252_000_000_000, 88.2)),
    ],
)

DISTURBED = replace(
    FULL,
    conditions=Conditions(load_average=1.4, others=0.31, stolen=0.031, throttled=3, clock=0.52, power="battery"),
    speeds=FULL.speeds[:2],
    start=None,
    profile=None,
    finished=False,
)

# What a folder may be called.
HOSTILE = replace(
    FULL, model=replace(FULL.model, name="a|b [red]$x^{$ <b>`\x1b[31m\n=1+1", recipe="*m*|[/]"), speeds=FULL.speeds[:1]
)
