"""The 8-bit KV cache: what it costs in quality, and how it grows."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from checkpoints import config_of, write_checkpoint
from conversations import Generator
from evaluate import THRESHOLDS, examine
from gptoss_convert import convert
from gptoss_mlx import GptOssError, Sampling, kernels, load
from gptoss_mlx.engine.generate import ContextFull
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.render import encode
from gptoss_mlx.memory.plan import Device, EngineConfig, make_plan
from gptoss_mlx.model import network
from gptoss_mlx.model.kv_cache import quantize_kv

WHOLE = EngineConfig(context=4096, kv_bits=16, prefill_chunk=64)


def samples(generator, tokenizer, tasks, each):
    for task in tasks:
        for _ in range(each):
            sample = generator.sample(task)
            yield encode(sample.segments[0], tokenizer), encode(sample.segments[1], tokenizer)


@pytest.mark.parametrize(
    ("tasks", "each"),
    [
        (("arithmetic", "project"), 1),
        pytest.param(("arithmetic", "project", "recall"), 4, marks=pytest.mark.slow),
    ],
)
def test_8_bits_cost_little(demo_folder, computing, tasks, each):
    """The distribution of the next token, over answers of the demo model: mean KL below 1e-3 nats."""
    exact, tokenizer = load(demo_folder, WHOLE), Tokenizer.load(demo_folder)
    model = load(demo_folder, replace(WHOLE, kv_bits=8))
    divergences = []
    for prompt, answer in samples(Generator(5, held_out=True), tokenizer, tasks, each):
        logits = [m(mx.array([prompt + answer]))[0].astype(mx.float32) for m in (model, exact)]
        got, right = (np.array(rows - mx.logsumexp(rows, axis=-1, keepdims=True)) for rows in logits)
        divergences.append((np.exp(right) * (right - got)).sum(-1)[len(prompt) - 1 :].mean())
    assert np.mean(divergences) < 1e-3


@pytest.mark.parametrize("count", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_8_bits_recall_as_well(demo_folder, count):
    model = load(demo_folder, replace(WHOLE, kv_bits=8))
    outcomes = [ok for _, ok, _ in examine(model, Tokenizer.load(demo_folder), "recall", count)]
    assert sum(outcomes) >= THRESHOLDS["recall"] * len(outcomes)


@pytest.mark.parametrize("bits", [8, 16])
def test_keys_and_values_grow_to_the_context_and_no_further(demo_folder, bits):
    model = load(demo_folder, EngineConfig(context=700, kv_bits=bits, prefill_chunk=64))
    cache = model.make_cache()
    ids = [1 + i % 1000 for i in range(699)]
    mx.eval(model.prefill(ids, cache))
    assert {layer.buffers[0].shape[2] for layer in cache.layers} == {128, 700}
    list(model.generate([5], cache=cache, stop=(), sampling=Sampling(temperature=0), max_tokens=50))
    assert cache.offset == 700
    with pytest.raises(ContextFull, match=r"1 tokens after 700 exceed this run's context of 700"):
        model.prefill([1], cache)
    sizes = {8: 68, 16: 256 if not kernels.native() else 128}
    full = model.config.layer_types.count("full_attention")
    heads = model.config.num_kv_heads
    assert sum(b.nbytes for layer in cache.layers if layer.buffers[0].shape[2] == 700 for b in layer.buffers) == (
        full * 2 * heads * 700 * sizes[bits]
    )


def test_8_bits_need_a_head_that_is_a_group(tmp_path):
    source = write_checkpoint(tmp_path / "source", config_of(head_dim=96))
    convert(source, tmp_path / "model")
    with pytest.raises(GptOssError, match="head"):
        make_plan(tmp_path / "model", Device.here(), kv_bits=8)


@pytest.mark.parametrize("keys_at_once", [1000, 16, 7])
@pytest.mark.parametrize(("length", "causal"), [(1, False), (5, True), (40, True)])
def test_attention_is_that_over_the_numbers_that_are_stored(monkeypatch, keys_at_once, length, causal):
    """However many keys meet the queries at a time, and with a sink that is switched off."""
    monkeypatch.setattr(network, "keys_at_a_time", lambda rows: keys_at_once)
    mx.random.seed(1)
    query = mx.random.normal((1, 8, length, 64))
    stored = [quantize_kv(mx.random.normal((1, 2, 40, 64))) for _ in range(2)]
    sinks = mx.array([0.5, -2, 3, 0, -mx.inf, 1, 20, -1])
    y = network.quantized_attention(query, [*stored[0], *stored[1]], scale=0.2, causal=causal, sinks=sinks)
    keys, values = (
        mx.dequantize(codes, *(part.astype(mx.float32) for part in parts), group_size=64, bits=8)
        for codes, *parts in stored
    )
    mask = "causal" if causal else None
    right = mx.fast.scaled_dot_product_attention(query, keys, values, scale=0.2, mask=mask, sinks=sinks)
    assert np.abs(np.array(y - right)).max() < 1e-5
