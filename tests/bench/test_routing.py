"""Traces of routing: what is recorded is what the model does, and what is replayed pages as it did."""

import os
import random
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from checkpoints import config_of, write_checkpoint
from gptoss_convert import convert
from gptoss_mlx import GptOssError, kernels, load
from gptoss_mlx.bench import routing
from gptoss_mlx.bench.routing import RoutingTrace, recording, replaying
from gptoss_mlx.memory.plan import EngineConfig

WHOLE = EngineConfig(context=1024, kv_bits=16, prefill_chunk=24)
PAGED = replace(WHOLE, expert_slots=11)  # of 32
IDS = random.Random(4).choices(range(250), k=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("routing")
    convert(write_checkpoint(root / "source", config_of(hidden_size=128)), root / "model")
    return root / "model"


@pytest.fixture(scope="module")
def trace(folder):
    model = load(folder, PAGED)
    with recording(model) as recorder:
        outputs(model)
    return recorder.trace()


def outputs(model):
    """Logits behind a prompt that is read in chunks, and behind each of some tokens more."""
    cache = model.make_cache()
    rows = [model.prefill(IDS, cache)] + [model(mx.array([[id_]]), cache)[0] for id_ in IDS[:9]]
    return np.concatenate([np.array(row.astype(mx.float32)) for row in rows])


@pytest.mark.parametrize("settings", [WHOLE, PAGED], ids=["whole", "paged"])
def test_recording_changes_no_bit(folder, computing, settings):
    right = outputs(load(folder, settings))
    model = load(folder, settings)
    before = [layer.moe for layer in model.network.layers]
    with recording(model) as recorder:
        assert (outputs(model) == right).all()
    assert [layer.moe for layer in model.network.layers] == before
    assert (outputs(model) == right).all()
    trace = recorder.trace()
    assert (trace.shape, trace.model, trace.chosen.dtype) == ((4, 8, 4), "model", np.uint8)
    assert len(trace.chosen) == len(IDS) + 9


def test_what_is_recorded_is_the_routers_choice(folder):
    """The first layer's router, computed anew from the attention before it."""
    with kernels.off():
        model = load(folder, WHOLE)
    with recording(model) as recorder:
        model.prefill(IDS[:40], model.make_cache())
    layer, cache = model.network.layers[0], model.make_cache()
    x = layer.attention(
        model.network.embedding(mx.array([IDS[:40]])), 0, cache.masks(40)["sliding_attention"], cache.layers[0]
    )
    scores = np.array(layer.moe.router(layer.moe.norm(x)))[0]
    best = np.sort(np.argsort(-scores, axis=1)[:, :4], axis=1)
    assert (np.sort(recorder.trace().chosen[:, 0], axis=1) == best).all()


def test_whole_and_paged_record_the_same(folder, trace):
    model = load(folder, WHOLE)
    with recording(model) as recorder:
        outputs(model)
    assert (recorder.trace().chosen == trace.chosen).all()


def test_a_chunk_that_was_broken_off_is_not_in_the_trace(folder, monkeypatch):
    model = load(folder, WHOLE)
    with recording(model) as recorder:
        model.prefill(IDS[:10], model.make_cache())
        whole = recorder.trace()

        def pressed(*anything):
            raise KeyboardInterrupt

        with monkeypatch.context() as broken:
            broken.setattr(model.network.layers[2], "moe", pressed)
            with pytest.raises(KeyboardInterrupt):
                model.prefill(IDS[10:30], model.make_cache())
        assert (recorder.trace().chosen == whole.chosen).all()
        model.prefill(IDS[:10], model.make_cache())
    assert (recorder.trace().chosen == np.concatenate([whole.chosen, whole.chosen])).all()


def test_a_replay_misses_what_the_recorded_run_missed(folder, computing):
    recorded = load(folder, PAGED)
    with recording(recorded) as recorder:
        right = outputs(recorded)
    trace = recorder.trace()
    replayed = load(folder, PAGED)
    with replaying(replayed, trace):
        assert (outputs(replayed) == right).all()  # the same tokens go where they went by themselves
    counts = [(model.expert_stats.needed, model.expert_stats.missed) for model in (recorded, replayed)]
    assert counts[0] == counts[1]
    assert counts[0][1] > 32


def test_other_tokens_go_where_the_trace_says_around_and_around(folder, trace):
    model = load(folder, PAGED)
    others, start = [7] * 100, len(trace.chosen) - 30
    with replaying(model, replace(trace, chosen=trace.chosen[start:])), recording(model) as recorder:
        cache = model.make_cache()
        model.prefill(others, cache)
        mx.eval(model(mx.array([[3]]), cache))
    wanted = trace.chosen[[start + t % 30 for t in range(101)]]
    assert (recorder.trace().chosen == wanted).all()


def test_a_replay_that_cannot_be_is_refused(folder, trace):
    model = load(folder, PAGED)
    for changed in (
        replace(trace, experts=32),
        replace(trace, chosen=trace.chosen[:, :2]),
        replace(trace, chosen=trace.chosen[..., :2]),
    ):
        with pytest.raises(GptOssError, match=r"has .* layers of .*, and this model 4 layers of 8 experts, 4"):
            replaying(model, changed).__enter__()
    with pytest.raises(GptOssError, match="no tokens"):
        replaying(model, replace(trace, chosen=trace.chosen[:0])).__enter__()
    with pytest.raises(GptOssError, match="give less --memory"):
        replaying(load(folder, WHOLE), trace).__enter__()


def test_experts_on_the_cpu_are_refused(folder):
    model = load(folder, WHOLE)
    model.settings = replace(model.settings, cpu_expert_layers=1)
    with pytest.raises(GptOssError, match="beside the GPU"):
        recording(model).__enter__()


def test_a_file_gives_back_what_was_saved(trace, tmp_path):
    path = tmp_path / "routing.trace"
    trace.save(path)
    loaded = RoutingTrace.load(path)
    assert (loaded.chosen == trace.chosen).all()
    assert (loaded.shape, loaded.model, loaded.chosen.dtype) == (trace.shape, trace.model, trace.chosen.dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["routing.trace"]
    path.rename(path.with_suffix(".safetensors"))
    assert (np.array(mx.load(str(path.with_suffix(".safetensors")))["chosen"]) == trace.chosen).all()
    os.mkfifo(tmp_path / "fifo")
    for elsewhere in (tmp_path / "none" / "trace", tmp_path, tmp_path / "fifo", Path("")):
        with pytest.raises(GptOssError, match="cannot write"):
            trace.save(elsewhere)
    assert (tmp_path / "fifo").is_fifo()


def test_more_experts_than_a_byte_counts(tmp_path):
    chosen = np.array([[[0, 299]], [[5, 4]]], np.uint16)
    RoutingTrace(chosen, 300, "m").save(tmp_path / "trace")
    assert (RoutingTrace.load(tmp_path / "trace").chosen == chosen).all()


CHOSEN = np.arange(24, dtype=np.uint8).reshape(3, 2, 4) % 8
BAD = {
    "out of range": {"chosen": CHOSEN + np.uint8(1)},
    "twice": {"chosen": CHOSEN // 2},
    "flat": {"chosen": CHOSEN.ravel()},
    "empty": {"chosen": CHOSEN[:0]},
    "more of a token than there are": {"chosen": np.arange(18, dtype=np.uint8).reshape(1, 2, 9)},
    "wide": {"chosen": CHOSEN.astype(np.uint16)},
    "signed": {"chosen": CHOSEN.astype(np.int64)},
    "floats": {"chosen": CHOSEN.astype(np.float32)},
    "no experts": {"experts": "0"},
    "many experts": {"experts": str(2**40)},
    "endless experts": {"experts": "8" * 5000},
    "experts in words": {"experts": "eight"},
    "experts in other digits": {"experts": "٨"},
    "experts below zero": {"experts": "-8"},
    "experts unsaid": {"experts": None},
    "a nameless model": {"model": None},
    "a long name": {"model": "m" * 500},
    "one more tensor": {"more": np.ones(1, np.uint8)},
}


def write_trace(path: Path, **changes) -> None:
    """A file as `RoutingTrace.save` writes it, but for `changes`."""
    entries = {"chosen": CHOSEN, "experts": "8", "model": "m"} | changes
    arrays = {name: mx.array(value) for name, value in entries.items() if isinstance(value, np.ndarray)}
    with path.open("wb") as file:
        mx.save_safetensors(file, arrays, {name: value for name, value in entries.items() if isinstance(value, str)})


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_trace(tmp_path, name):
    path = tmp_path / "bad.trace"
    write_trace(path)
    assert RoutingTrace.load(path).shape == (2, 8, 4)
    write_trace(path, **BAD[name])
    with pytest.raises(GptOssError, match=r"^cannot read [^\n]*bad\.trace as a routing trace: [^\n]*$"):
        RoutingTrace.load(path)


def test_sizes_are_bounded_before_anything_is_read(trace, tmp_path, monkeypatch):
    path = tmp_path / "bad.trace"
    trace.save(path)
    monkeypatch.setattr(routing, "MAX_BYTES", trace.chosen.nbytes - 1)
    with pytest.raises(GptOssError, match="chosen has more than"):
        RoutingTrace.load(path)
    with pytest.raises(GptOssError, match="tokens is more than a file has"):
        trace.save(path)


def test_headers_that_lie(tmp_path):
    """About sizes that are not there."""
    path = tmp_path / "bad.trace"
    write_trace(path)
    data = path.read_bytes()
    for old, new in ((b"[3,2,4]", b"[9,2,4]"), (b"[0,24]", b"[0,99]"), (b"[0,24]", b"[9,24]"), (b'"U8"', b'"XX"')):
        assert old in data
        path.write_bytes(data.replace(old, new))
        with pytest.raises(GptOssError, match="as a routing trace"):
            RoutingTrace.load(path)


@pytest.mark.parametrize("many", [200, pytest.param(3000, marks=pytest.mark.slow)])
def test_any_broken_byte_gives_one_line_or_a_trace(tmp_path, many):
    path, chance = tmp_path / "broken.trace", random.Random(1)
    write_trace(path)
    good = path.read_bytes()
    for _ in range(many):
        data = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.choice([len(data), len(data), chance.randrange(len(data))])])
        with suppress(GptOssError):
            assert RoutingTrace.load(path).shape[1] <= 2**16


@pytest.mark.parametrize("data", [b"", b"PK", b"x" * 5000, b"PK\3\4" + bytes(18)], ids=range(4))
def test_other_files(tmp_path, data):
    (tmp_path / "trace").write_bytes(data)
    for path in (tmp_path / "trace", tmp_path / "none", tmp_path):
        with pytest.raises(GptOssError, match=r"cannot read .* as a routing trace"):
            RoutingTrace.load(path)


def test_generate_records(run, demo_folder, tmp_path):
    """The command's trace is that of the prompt and the answer; the answer is the same."""
    file = tmp_path / "routing.trace"
    command = "generate", demo_folder, "-p", "What is 3 + 4?", "--temperature", 0, "--max-tokens", 400
    plain, recorded = run(*command), run(*command, "--record-routing", file)
    assert (recorded.returncode, recorded.stdout, recorded.stderr) == (0, plain.stdout, "")
    trace = RoutingTrace.load(file)
    assert trace.shape == (4, 8, 4)
    assert trace.model == demo_folder.name
    assert len(trace.chosen) > 50


def test_generate_says_that_it_cannot_record_before_it_loads(run, demo_folder, tmp_path):
    done = run("generate", demo_folder, "-p", "Hi", "--record-routing", tmp_path / "none" / "routing.trace")
    assert done.returncode == 2
    assert re.search("none", done.stderr)
    assert not done.stdout
