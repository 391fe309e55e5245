"""An earlier run as a baseline: what is read of a file that anybody can have written, and what has changed since."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from bench.examples import BARE, DISTURBED, FULL, HOSTILE, PAGED, decode, prefill
from gptoss_mlx.bench import formats
from gptoss_mlx.bench.baseline import (
    check_comparable,
    compare_with_baseline,
    read_baseline,
    report,
    setting_differences,
)
from gptoss_mlx.bench.report import print_report
from gptoss_mlx.bench.results import Spread
from gptoss_mlx.errors import GptOssError


def any_below(changes):
    return any(change.below for change in changes)


POINTS = [speed.point for speed in FULL.speeds]


def times(results, factor, bandwidth=1.0):
    """The results of a run that was `factor` as fast, on memory that gave `bandwidth` as much."""

    def changed(speed):
        was = speed.tokens_per_second
        spread = Spread(factor * was.median, factor * was.least, factor * was.most, was.runs)
        rates = replace(speed.rates, bandwidth=bandwidth * speed.rates.bandwidth)
        return replace(speed, tokens_per_second=spread, rates=rates)

    return replace(results, speeds=list(map(changed, results.speeds)))


@pytest.fixture
def saved(tmp_path):
    """Write results, or any JSON, and tell where."""

    def save(content):
        path = tmp_path / "baseline.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return save


@pytest.mark.parametrize("results", [FULL, BARE, PAGED, DISTURBED, HOSTILE])
def test_what_was_written_is_read(results, saved):
    assert read_baseline(saved(formats.as_json(results))) == results


def test_what_is_not_known_is_passed_over(saved):
    assert read_baseline(saved(FULL.as_dict() | {"changes": [], "note": {"of": "mine"}})) == FULL


def at(data, *path):
    *path, last = path
    for step in path:
        data = data[step]
    return data, last


WRONG_VALUES = [
    (("speeds", 0, "tokens_per_second", "median"), "fast", "Expected `float`, got `str`"),
    (("speeds", 0, "tokens_per_second", "median"), True, "Expected `float`, got `bool`"),
    (("speeds", 0, "tokens_per_second", "median"), None, "Expected `float`, got `null`"),
    (("speeds", 0, "tokens_per_second", "median"), 0, "tokens_per_second is no spread"),
    (("speeds", 1, "tokens_per_second", "least"), 1e9, "tokens_per_second is no spread"),
    (("speeds", 2, "rates", "bandwidth"), -1.5, "Expected `float` >= 0.0"),
    (("speeds", 2, "rates", "bandwidth"), 1e300, "Expected `float` <= 1e+24"),
    (("speeds", 2, "tokens"), 128.5, "Expected `int`, got `float`"),
    (("speeds", 2, "depth"), -1, "Expected `int` >= 0"),
    (("speeds", 0, "kind"), "guess", "Invalid enum value 'guess'"),
    (("speeds", 0, "kind"), ["decode"], "Expected `str`, got `array`"),
    (("speeds", 0), [], "Expected `object`, got `array`"),
    (("speeds",), {}, "Expected `array`, got `object`"),
    (("memory", "by_context", 1), [1024], "Expected `array` of length 2, got 1"),
    (("memory", "peak"), "much", "Expected `int | null`, got `str`"),
    (("machine", "versions", "MLX"), 0.32, "Expected `str`, got `float`"),
    (("machine",), None, "Expected `object`, got `null`"),
    (("model", "random_weights"), 1, "Expected `bool`, got `int`"),
    (("profile", "stages"), "attention", "Expected `array`, got `str`"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG_VALUES)
def test_wrong_values(path, value, message, saved):
    data = json.loads(formats.as_json(FULL))
    inside, last = at(data, *path)
    inside[last] = value
    with pytest.raises(GptOssError) as error:
        read_baseline(saved(data))
    assert f"baseline.json is no baseline: {message} - at `$" in str(error.value)
    for step in path[:2]:
        assert (f"[{step}]" if isinstance(step, int) else f".{step}") in str(error.value)


@pytest.mark.parametrize(
    "path", [("setup",), ("setup", "kv_bits"), ("speeds", 3, "work", "bytes"), ("conditions", "power"), ("finished",)]
)
def test_missing_values(path, saved):
    data = json.loads(formats.as_json(FULL))
    inside, last = at(data, *path)
    del inside[last]
    *folder, name = path
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in folder)
    with pytest.raises(GptOssError) as error:
        read_baseline(saved(data))
    place = f" - at `${where}`" if where else ""
    assert str(error.value).endswith(f"is no baseline: Object missing required field `{name}`{place}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        ("tokens/s", "Expecting value"),
        (formats.as_json(FULL)[:-100], "cannot read"),
        (formats.as_json(FULL).replace("84.2", "NaN", 1), "the number nan"),
        (formats.as_json(FULL).replace("84.2", "1e999", 1), "the number inf"),
        ("[" * 100_000, "nested"),
        (" " * (5 * 2**20), "more than 4,194,304 bytes"),
        ("[]", "is no baseline: write one with `gptoss-mlx bench --format json`"),
        ('{"speeds": []}', "is no baseline: write one with"),
        (FULL.as_dict() | {"format": 2}, "has the format 2, and this version reads 1"),
        (FULL.as_dict() | {"format": "\x1b[31m"}, r"has the format '\x1b[31m', and this version reads 1"),
        ({"format": 1}, "is no baseline: Object missing required field `date`"),
    ],
)
def test_what_is_no_baseline(content, message, saved):
    with pytest.raises(GptOssError) as error:
        read_baseline(saved(content))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_files_that_are_none(tmp_path):
    with pytest.raises(GptOssError, match=r"cannot read .*: No such file or directory"):
        read_baseline(tmp_path / "missing.json")
    with pytest.raises(GptOssError, match=r"cannot read .*: not a regular file"):
        read_baseline(tmp_path)


def test_ratio_and_verdict():
    changes = compare_with_baseline(times(FULL, 0.93, bandwidth=0.9), FULL)
    assert [change.name for change in changes] == [speed.name for speed in FULL.speeds]
    assert [change.ratio for change in changes] == pytest.approx([0.93] * len(FULL.speeds))
    assert [change.bandwidth_ratio for change in changes] == pytest.approx([0.9] * len(FULL.speeds))
    assert any_below(changes)
    assert not any_below(compare_with_baseline(times(FULL, 0.93), FULL, fail_below=0.9))
    assert not any_below(compare_with_baseline(times(FULL, 0.96), FULL))
    assert not any_below(compare_with_baseline(FULL, FULL, fail_below=1))
    assert any_below(compare_with_baseline(times(FULL, 0.999), FULL, fail_below=1))


def test_one_slow_speed_is_enough():
    changed = times(FULL, 1.1)
    changed.speeds[-1] = times(FULL, 0.9).speeds[-1]
    changes = compare_with_baseline(changed, FULL)
    assert [change.name for change in changes if change.below] == ["decode 128 at 16,384"]
    assert any_below(changes)


def test_speeds_of_only_one_run_are_told_and_do_not_fail():
    now = replace(FULL, speeds=[decode(128, 0, 18.5), decode(128, 65_536, 9)])
    then = replace(FULL, speeds=[prefill(512, 0, 84), decode(128, 0, 18.5)])
    changes = compare_with_baseline(now, then)
    assert [(change.name, change.ratio) for change in changes] == [
        ("decode 128 at 0", 1.0),
        ("decode 128 at 65,536", None),
        ("prefill 512 at 0", None),
    ]
    assert (changes[1].earlier, changes[2].present) == (None, None)
    assert not any_below(changes)


def test_a_baseline_without_any_of_the_points():
    with pytest.raises(GptOssError, match="nothing to compare: the baseline has prefill 512 at 0, and this run decode"):
        check_comparable(FULL.machine, FULL.model, FULL.setup, POINTS[-1:], replace(FULL, speeds=[prefill(512, 0, 84)]))
    with pytest.raises(GptOssError, match="the baseline has nothing, and this run"):
        check_comparable(FULL.machine, FULL.model, FULL.setup, POINTS, replace(FULL, speeds=[]))


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("machine", {"processor": "Apple M4"}, "processor Apple M4, and this is AMD EPYC 9R14"),
        ("machine", {"cores": 64}, "cores 64, and this is 2"),
        ("machine", {"device": "NVIDIA H100"}, "device NVIDIA H100, and this is CPU"),
        ("machine", {"kernels": None}, "kernels not set, and this is avx512-vnni"),
        ("setup", {"threads": 1}, "threads 1, and this is 2"),
        ("model", {"name": "gpt-oss-120b"}, "model gpt-oss-120b, and this is gpt-oss-20b"),
        ("model", {"recipe": "mxfp4-q8"}, "recipe mxfp4-q8, and this is mxfp4-q4"),
        ("model", {"bytes": 12_100_000_000}, "bytes 12,100,000,000, and this is 11,200,000,000"),
        ("model", {"random_weights": True}, "random weights True, and this is False"),
    ],
)
def test_another_machine_or_model(part, changes, message):
    baseline = replace(FULL, **{part: replace(getattr(FULL, part), **changes)})
    line = f"the baseline was measured on {message}. A baseline is of the same machine and model"
    with pytest.raises(GptOssError) as error:
        check_comparable(FULL.machine, FULL.model, FULL.setup, POINTS, baseline)
    assert str(error.value) == line


def test_versions_and_conditions_may_differ():
    machine = replace(FULL.machine, system="Linux 6.19", commit=None, versions={"gptoss-mlx": "0.2.0"})
    later = replace(times(FULL, 1.2), machine=machine, conditions=DISTURBED.conditions, date="2026-05-01T00:00:00Z")
    assert not any_below(compare_with_baseline(later, FULL))


def test_settings_that_differ_are_told():
    assert setting_differences(FULL.setup, FULL.setup) == []
    assert setting_differences(replace(FULL.setup, workspace=2**20), FULL.setup) == []
    assert setting_differences(PAGED.setup, replace(FULL.setup, context=8192, kv_bits=8, prefill_chunk=32)) == [
        "context: 8,192 then, 32,768 now",
        "kv bits: 8 then, 16 now",
        "prefill chunk: 32 then, 512 now",
        "expert slots: not set then, 485 now",
        "energy: not set then, CPU package now",
        "prompts: random ids then, the routing of a day of chat now",
    ]


def test_changes_as_a_table():
    now = times(replace(FULL, speeds=FULL.speeds[-2:]), 0.93, bandwidth=0.912)
    changes = compare_with_baseline(now, replace(FULL, speeds=FULL.speeds[-3:]))
    console = Console(file=io.StringIO(), width=80)
    print_report(report(changes, ["bits per KV-cache value: 8 then, 16 now"]), console)
    assert "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) == (
        """\
Beside the baseline, tokens/s
┏━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━┳━━━━━━━┳━━━━━━━━┓
┃ what                 ┃             then ┃              now ┃ ratio ┃ memory ┃
┡━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━╇━━━━━━━╇━━━━━━━━┩
│ decode 128 at 4,096  │ 17.6 (16.7-18.3) │ 16.4 (15.5-17.0) │ 0.930 │  0.912 │
│ decode 128 at 16,384 │ 15.2 (14.4-15.8) │ 14.1 (13.4-14.7) │ 0.930 │  0.912 │
│ decode 128 at 0      │ 18.5 (17.6-19.2) │                - │       │        │
└──────────────────────┴──────────────────┴──────────────────┴───────┴────────┘
ratio: now over then; memory: the same of its bandwidth, measured beside each
slower: decode 128 at 4,096, 0.930 of the baseline
slower: decode 128 at 16,384, 0.930 of the baseline
changed: bits per KV-cache value: 8 then, 16 now"""
    )
