"""The kernels against MLX's own operations, on every instruction set that this machine runs; and their doors."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import gptoss_mlx
from checkpoints import config_of, write_checkpoint
from conversations import Generator
from gptoss_convert import convert
from gptoss_mlx import Sampling, kernels
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.render import encode
from gptoss_mlx.model.checkpoint import Checkpoint
from gptoss_mlx.model.network import quantized_attention, rope_freqs

native = kernels.native()
if native is None:
    pytest.skip(f"kernels: {kernels.why_not_native()}", allow_module_level=True)

EIGHT_BITS = 1e-2  # the relative error that 8-bit activations may cause
EXACT = 1e-5
FORMS = [("bf16", 16, 1), ("mxfp4", 4, 32)] + [("affine", bits, group) for bits in (4, 8) for group in (32, 64, 128)]


@pytest.fixture(params=native.available_kernels())
def instructions(request):
    before = native.kernels_in_use()
    native.use_kernels(request.param)
    yield request.param
    native.use_kernels(before)


@pytest.fixture(autouse=True, scope="module")
def on_the_cpu():
    """Where MLX has a GPU, too."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.fixture(autouse=True)
def seed():
    mx.random.seed(1)


def relative(got, right):
    return (mx.linalg.norm(mx.array(got) - right) / mx.maximum(mx.linalg.norm(right), 1e-9)).item()


def bf16(*shape, scale=1.0):
    return (mx.random.normal(shape) * scale).astype(mx.bfloat16)


def stored(form, *shape, bias=False):
    """A random weight as the kernels take it, and as FP32."""
    mode, bits, group = form
    weight = bf16(*shape, scale=shape[-1] ** -0.5)
    vector = bf16(*shape[:-1]) if bias else None
    if mode == "bf16":
        return native.StoredMatrix(mode, bits, group, weight, None, None, vector), weight.astype(mx.float32), vector
    parts = mx.quantize(weight, group_size=group, bits=bits, mode=mode)
    right = mx.dequantize(*parts, group_size=group, bits=bits, mode=mode).astype(mx.float32)
    scales, biases = (*parts[1:], None)[:2]
    return native.StoredMatrix(mode, bits, group, parts[0], scales, biases, vector), right, vector


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(64, 224), (100, 2880)])
@pytest.mark.parametrize("tokens", [1, 3, 19])
def test_products(instructions, form, rows, columns, tokens):
    if columns % form[2]:
        pytest.skip("no whole number of groups")
    matrix, right, bias = stored(form, rows, columns, bias=True)
    x = mx.random.normal((1, tokens, columns))
    got = native.LinearMap(matrix, rows, columns)(x)
    assert got.shape == (1, tokens, rows)
    assert relative(got, x @ right.T + bias) < (EXACT if form[0] == "bf16" else EIGHT_BITS)


def test_no_tokens_give_nothing():
    matrix, _, _ = stored(FORMS[1], 8, 64)
    assert native.LinearMap(matrix, 8, 64)(mx.zeros((0, 64))).shape == (0, 8)


@pytest.mark.parametrize("tokens", [1, 2, 7, 40])
@pytest.mark.parametrize("count", [1, 5])
def test_experts(instructions, tokens, count):
    hidden, inner, k = 96, 160, min(count, 2)
    shapes = [(count, inner, hidden), (count, inner, hidden), (count, hidden, inner)]
    # A stack of one has no dimension for it.
    forms = [stored(("mxfp4", 4, 32), *(shape if count > 1 else shape[1:]), bias=True) for shape in shapes]
    router, router_weight, router_bias = stored(("bf16", 16, 1), count, hidden, bias=True)
    norm = bf16(hidden)
    layer = native.MoeLayer(
        hidden=hidden, intermediate=inner, experts=count, experts_per_token=k, slots=count, eps=1e-5, limit=7.0,
        norm=norm, router=router, gate=forms[0][0], up=forms[1][0], down=forms[2][0],
    )  # fmt: skip
    x = mx.random.normal((tokens, hidden))
    chosen = mx.argsort(mx.random.uniform(shape=(tokens, count)), axis=1)[:, :k].astype(mx.int32)
    routing_weights = mx.softmax(mx.random.normal((tokens, k)), axis=1)
    gate, up, down = (right.reshape(shape) for (_, right, _), shape in zip(forms, shapes, strict=True))
    biases = [bias.reshape(count, -1) for _, _, bias in forms]

    def expert(e, row):
        g = mx.minimum(gate[e] @ row + biases[0][e], 7)
        u = mx.clip(up[e] @ row + biases[1][e], -7, 7)
        return down[e] @ ((u + 1) * g * mx.sigmoid(1.702 * g)) + biases[2][e]

    def mixed(rows, chosen, weights):
        return mx.stack(
            [sum(weights[t, i] * expert(chosen[t, i].item(), rows[t]) for i in range(k)) for t in range(len(rows))]
        )

    # Any experts, and all outputs in one go; the expert of the first pair is left out, and its outputs stay.
    slots = mx.where(chosen == chosen[0, 0], -1, chosen)
    got = layer.expert_outputs(x, slots, mx.full((tokens, k, hidden), 7.0))
    got = layer.expert_outputs(x, mx.where(slots < 0, chosen, -1), got)
    got = layer.combine(mx.zeros((1, tokens, hidden)), chosen, routing_weights, got)
    assert relative(got[0], mixed(x, chosen, routing_weights)) < 2 * EIGHT_BITS  # two products in a row
    left = layer.expert_outputs(x, slots, mx.full((tokens, k, hidden), 7.0))
    assert (left[0, 0] == 7).all()

    normed = mx.fast.rms_norm(x, norm, 1e-5)
    scores = normed @ router_weight.T + router_bias
    best = mx.argsort(-scores, axis=1)[:, :k]
    right = x + mixed(normed, best, mx.softmax(mx.take_along_axis(scores, best, axis=1), axis=1))
    whole = layer(x[None])
    assert relative(whole[0], right) < 2 * EIGHT_BITS
    # In parts: the same bits.
    rows, chosen, routing_weights = layer.route(x[None])
    outputs = layer.expert_outputs(rows, chosen, mx.zeros((tokens, k, hidden)))
    assert (layer.combine(x[None], chosen, routing_weights, outputs) == whole).all()


def attention_layer(window, heads=6, kv_heads=2, dim=32, hidden=96):
    form = ("affine", 4, 32)
    shapes = [(heads * dim, hidden), (kv_heads * dim, hidden), (kv_heads * dim, hidden), (hidden, heads * dim)]
    matrices = [stored(form, *shape, bias=True)[0] for shape in shapes]
    rope = gptoss_mlx.model.config.Rope(theta=150000.0, factor=32.0)
    sinks = bf16(heads)
    layer = native.AttentionLayer(
        hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=dim, window=window, eps=1e-5, scale=0.3,
        norm=bf16(hidden), query=matrices[0], key=matrices[1], value=matrices[2], output=matrices[3],
        sinks=sinks, freqs=rope_freqs(rope, dim),
    )  # fmt: skip
    return layer, sinks


@pytest.mark.parametrize("window", [0, 16])
@pytest.mark.parametrize("chunks", [(40,), (1,) * 40, (3, 17, 1, 1, 18), (16, 24), (700, 1, 1)])
def test_attention(instructions, window, chunks):
    heads, kv_heads, dim, length = 6, 2, 32, sum(chunks)
    layer, sinks = attention_layer(window)
    q = mx.random.normal((1, length, heads, dim))
    k, v = (mx.random.normal((1, length, kv_heads, dim)).astype(mx.bfloat16).astype(mx.float32) for _ in range(2))
    query, key = mx.arange(length)[:, None], mx.arange(length)[None]
    seen = (key <= query) & ((key > query - window) if window else True)
    by_head = [a.swapaxes(1, 2) for a in (q, k, v)]
    right = mx.fast.scaled_dot_product_attention(*by_head, scale=0.3, mask=seen, sinks=sinks.astype(mx.float32))

    buffers = [mx.zeros((1, kv_heads, window or length, dim), mx.bfloat16) for _ in range(2)]
    parts, start = [], 0
    for count in chunks:
        rows = slice(start, start + count)
        part, *buffers = layer.attend(q[:, rows], k[:, rows], v[:, rows], buffers, start)
        parts.append(part)
        start += count
    assert relative(mx.concatenate(parts, axis=1), right.swapaxes(1, 2)) < EXACT


@pytest.mark.parametrize(
    ("chunks", "dim"),
    [(chunks, dim) for chunks in [(40,), (1,) * 40, (3, 17, 1, 1, 18)] for dim in (32, 64, 128)]
    + [((700, 1, 1), 64), *(pytest.param((700, 1, 1), dim, marks=pytest.mark.slow) for dim in (32, 128))],
)
def test_attention_over_8_bit_keys(instructions, chunks, dim):
    """What is stored is in MLX's form, within half a step of what it was; attention reads exactly that."""
    heads, kv_heads, length, form = 6, 2, sum(chunks), {"group_size": dim, "bits": 8}
    layer, sinks = attention_layer(0, dim=dim)
    q = mx.random.normal((1, length, heads, dim))
    k, v = (mx.random.normal((1, length, kv_heads, dim)) for _ in range(2))
    widths = [(dim // 4, mx.uint32), (1, mx.bfloat16), (1, mx.bfloat16)] * 2
    buffers = [mx.zeros((1, kv_heads, length, width), dtype) for width, dtype in widths]
    parts, start = [], 0
    for count in chunks:
        rows = slice(start, start + count)
        part, *buffers = layer.attend(q[:, rows], k[:, rows], v[:, rows], buffers, start)
        parts.append(part)
        start += count
    stored_keys, stored_values = (
        mx.dequantize(*[b.astype(mx.float32) if b.dtype == mx.bfloat16 else b for b in those], **form)
        for those in (buffers[:3], buffers[3:])
    )
    for was, now in ((k.swapaxes(1, 2), stored_keys), (v.swapaxes(1, 2), stored_values)):
        step = (was.max(axis=-1) - was.min(axis=-1)) / 255
        assert (mx.abs(was - now).max(axis=-1) <= 0.55 * step).all()  # BF16 rounds the steps too
    seen = mx.arange(length) <= mx.arange(length)[:, None]
    right = mx.fast.scaled_dot_product_attention(
        q.swapaxes(1, 2), stored_keys, stored_values, scale=0.3, mask=seen, sinks=sinks.astype(mx.float32)
    )
    assert relative(mx.concatenate(parts, axis=1), right.swapaxes(1, 2)) < 2 * EXACT
    last = (..., slice(-100, None), slice(None))  # of MLX's operations, which are slow
    got = quantized_attention(q.swapaxes(1, 2)[last], buffers, scale=0.3, causal=True, sinks=sinks)
    assert relative(got, right[last]) < EXACT


def test_what_is_not_a_number_stays_none_in_8_bits():
    layer, _ = attention_layer(0, dim=32)
    buffers = [mx.zeros((1, 2, 8, w), t) for w, t in [(8, mx.uint32), (1, mx.bfloat16), (1, mx.bfloat16)] * 2]
    k = mx.ones((1, 2, 2, 32))
    k[0, 0, 0, 5] = float("nan")
    k[0, 1, 0, 5] = float("inf")
    _, _, scales, *_ = layer.attend(mx.ones((1, 2, 6, 32)), k, mx.ones((1, 2, 2, 32)), buffers, 0)
    assert mx.isnan(scales[0, :, :2, 0]).tolist() == [[True, True], [False, False]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("kernels")
    source = write_checkpoint(root / "source", config_of(sliding_window=16))
    made = {}
    for recipe in ("mxfp4-q4", "mxfp4-q8", "mxfp4-bf16", "q4"):
        convert(source, root / recipe, recipe)
        made[recipe] = root / recipe
    return made


@pytest.mark.parametrize("recipe", ["mxfp4-q4", "mxfp4-q8", "mxfp4-bf16", "q4"])
def test_every_recipe_runs_on_the_kernels(folders, recipe, instructions):
    model = gptoss_mlx.load(folders[recipe])
    assert all("Native" in type(layer.attention).__name__ for layer in model.network.layers)
    assert all(type(layer.moe).__name__ == "MoeLayer" for layer in model.network.layers)
    assert type(model.network.head).__name__ == "LinearMap"
    with kernels.off():
        exact = gptoss_mlx.load(folders[recipe])
    ids = mx.array([[(7 * i) % 251 for i in range(90)]])
    # A random network multiplies what 8 bits cost from layer to layer, and beyond all bounds where a router's choice
    # turns: so the median of the positions.
    error = mx.linalg.norm(model(ids) - exact(ids), axis=-1) / mx.linalg.norm(exact(ids), axis=-1)
    assert np.median(error) < 0.06


@pytest.fixture(scope="module")
def exact_answers(demo_folder):
    """Without kernels: prompts of the demo's tasks, greedy answers, and ids of right ones with log-probabilities."""
    with kernels.off():
        exact = gptoss_mlx.load(demo_folder)
    generator, tokenizer, made = Generator(5, held_out=True), Tokenizer.load(demo_folder), []

    def answers(count):
        while len(made) < count:
            segments = generator.sample(("arithmetic", "tool call", "project", "recall")[len(made) % 4]).segments
            prompt = encode(segments[0], tokenizer)
            answer = list(exact.generate(prompt, sampling=Sampling(temperature=0), max_tokens=24))
            ids = mx.array([prompt + encode(segments[1], tokenizer)])
            made.append((prompt, answer, ids, log_probabilities(exact, ids)))
        return made[:count]

    return answers


def log_probabilities(model, ids):
    logits = model(ids)[0]
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        (native.available_kernels()[0], 1),
        *(pytest.param(name, 8, marks=pytest.mark.slow) for name in native.available_kernels()),
    ],
)
def test_the_same_words_as_without_kernels(demo_folder, exact_answers, name, count):
    """The embedded model says the same: 95 of 100 greedy answers, and nearly the same distributions."""
    before = native.kernels_in_use()
    native.use_kernels(name)
    try:
        model, same, divergences = gptoss_mlx.load(demo_folder), 0, []
        for prompt, answer, ids, right in exact_answers(count):
            same += list(model.generate(prompt, sampling=Sampling(temperature=0), max_tokens=24)) == answer
            divergence = (np.exp(right) * (right - log_probabilities(model, ids))).sum(-1)
            divergences.append(divergence[len(prompt) - 1 :].mean())
    finally:
        native.use_kernels(before)
    assert same >= 0.95 * count
    assert np.mean(divergences) < 1e-3


def test_threads_change_no_result(demo_folder):
    model = gptoss_mlx.load(demo_folder)
    ids = mx.array([[(11 * i) % 1500 for i in range(200)]])
    before = native.threads()
    results = []
    try:
        for count in (1, 2, 5):
            native.set_threads(count)
            results.append(np.array(model(ids)))
    finally:
        native.set_threads(before)
    assert (results[0] == results[1]).all()
    assert (results[0] == results[2]).all()


def test_weights_are_mapped_and_not_copied(demo_folder):
    checkpoint = Checkpoint.open(demo_folder)
    assert checkpoint.is_mapped
    name = "model.layers.0.mlp.experts.gate_proj.weight"
    assert np.array_equal(np.array(checkpoint.array(name)), checkpoint.view(name))
    if (maps := Path("/proc/self/maps")).exists():
        assert str(demo_folder) in maps.read_text()


class TestDoors:
    """What would read or write where it must not is an exception, never a crash."""

    def test_products(self):
        matrix, _, _ = stored(FORMS[1], 8, 64)
        layer = native.LinearMap(matrix, 8, 64)
        for x in (mx.zeros((1, 32)), mx.zeros((1, 64), mx.bfloat16), mx.zeros(())):
            with pytest.raises(ValueError, match="x is"):
                layer(x)
        for rows, columns in ((9, 64), (8, 96), (8, 33), (0, 64), (-8, 64)):
            with pytest.raises(ValueError, match=r"weight is|no kernel"):
                native.LinearMap(matrix, rows, columns)
        weight = mx.zeros((8, 8), mx.uint32)
        for mode, bits, group in (("mxfp4", 8, 32), ("affine", 3, 32), ("affine", 4, 48), ("nf4", 4, 32)):
            with pytest.raises(ValueError, match="no kernel for"):
                native.LinearMap(native.StoredMatrix(mode, bits, group, weight, None, None, None), 8, 64)
        with pytest.raises(ValueError, match="has no scales"):
            native.LinearMap(native.StoredMatrix("mxfp4", 4, 32, weight, None, None, None), 8, 64)

    def test_experts_that_do_not_exist(self):
        shapes = [(3, 32, 64), (3, 32, 64), (3, 64, 32)]
        gate, up, down = (stored(FORMS[1], *shape, bias=True)[0] for shape in shapes)
        router = stored(FORMS[0], 3, 64, bias=True)[0]
        layer = native.MoeLayer(
            hidden=64, intermediate=32, experts=3, experts_per_token=2, slots=3, eps=1e-5, limit=7.0,
            norm=bf16(64), router=router, gate=gate, up=up, down=down,
        )  # fmt: skip
        normed, outputs = mx.zeros((1, 64)), mx.zeros((1, 2, 64))
        for wrong in (3, 10**6):
            with pytest.raises(RuntimeError, match=f"no slot {wrong}"):
                mx.eval(layer.expert_outputs(normed, mx.array([[0, wrong]]), mx.zeros((1, 2, 64))))
        with pytest.raises(ValueError, match="slots is"):
            layer.expert_outputs(normed, mx.array([[0.0, 1.0]]), outputs)
        with pytest.raises(ValueError, match="outputs is"):
            layer.expert_outputs(normed, mx.array([[0, 1]]), mx.zeros((1, 2, 32)))
        with pytest.raises(ValueError, match="routing_weights is"):
            layer.combine(mx.zeros((1, 1, 64)), mx.array([[0, 1]]), mx.ones((1, 1)), outputs)
        assert layer(mx.zeros((1, 1, 64))).shape == (1, 1, 64)  # and it still works

    @pytest.mark.parametrize(
        ("window", "capacity", "offset", "tokens"),
        [(0, 8, 8, 1), (0, 8, 0, 9), (16, 8, 0, 1), (0, 8, -1, 1), (0, 8, 2**31 - 1, 1), (16, 16, 0, 0)],
    )
    def test_positions_beyond_the_cache(self, window, capacity, offset, tokens):
        layer, _ = attention_layer(window)
        keys = mx.zeros((1, 2, capacity, 32), mx.bfloat16)
        with pytest.raises(ValueError, match=r"position|x is"):
            layer(mx.zeros((1, tokens, 96)), [keys, keys], offset)

    def test_a_cache_of_another_form(self):
        layer, _ = attention_layer(0)
        x, keys = mx.zeros((1, 1, 96)), mx.zeros((1, 2, 8, 32), mx.bfloat16)
        for wrong in (keys.astype(mx.float32), keys[:, :1], keys[0], mx.zeros((1, 2, 9, 32), mx.bfloat16)):
            with pytest.raises(ValueError, match="values is"):
                layer(x, [keys, wrong], 0)
        strided = mx.zeros((1, 2, 32, 8), mx.bfloat16).swapaxes(2, 3)
        with pytest.raises(RuntimeError, match="strided"):
            mx.eval(layer(x, [strided, keys], 0))

    def test_names_and_numbers(self):
        with pytest.raises(ValueError, match="abacus"):
            native.use_kernels("abacus")
        for count in (0, -1, 10**6):
            with pytest.raises(ValueError, match="threads"):
                native.set_threads(count)


@pytest.mark.skipif(not mx.metal.is_available(), reason="MLX is not built for Metal: tests/macos simulates it")
def test_no_array_is_laid_over_memory_in_a_build_for_metal():
    for call in (lambda: native.map_file(__file__), lambda: native.untouched_memory([2], mx.float32)):
        with pytest.raises(RuntimeError, match="build for Metal"):
            call()


@pytest.mark.skipif(mx.metal.is_available(), reason="MLX is built for Metal")
def test_files_that_cannot_be_mapped(tmp_path):
    with pytest.raises(RuntimeError, match="cannot map"):
        native.map_file("/nowhere/at/all")
    (tmp_path / "empty").touch()
    with pytest.raises(RuntimeError, match="0 bytes"):
        native.map_file(str(tmp_path / "empty"))
    (tmp_path / "odd").write_bytes(b"abcdefg")
    assert np.array(native.map_file(str(tmp_path / "odd"))).tobytes() == b"abcd"
    with pytest.raises(RuntimeError, match="cannot map"):
        native.map_file(str(tmp_path))


def test_switched_off_by_the_environment(run, demo_folder):
    for changes in ({"GPTOSS_MLX_KERNELS": "0"}, {}):
        result = run("generate", demo_folder, "-p", "What is 7 + 8?", "--temperature", 0, **changes)
        assert result.stdout == "7 + 8 = 15\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [("GPTOSS_MLX_INSTRUCTIONS", "abacus"), ("GPTOSS_MLX_THREADS", "0"), ("GPTOSS_MLX_THREADS", "many")],
)
def test_a_wrong_environment_is_one_line(run, name, value):
    result = run("doctor", **{name: value})
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {name} is '{value}'")
    assert len(result.stderr.splitlines()) == 1
