"""The network against transformers (golden logits), MLX-LM with its YaRN range unrounded, and itself."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from checkpoints import config_of, write_checkpoint
from golden.cases import CASES, prompt_of
from gptoss_convert import convert
from gptoss_mlx import GptOssError, Sampling, kernels
from gptoss_mlx.engine import generate
from gptoss_mlx.engine.generate import ContextFull
from gptoss_mlx.model.network import attention
from gptoss_mlx.model.safetensors import CheckpointError
from mlx_lm_oracle import mlx_lm_model

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "logits.npz")
GREEDY = Sampling(temperature=0)


def load(folder):
    """The network in MLX's own operations, exact in FP32: tests/kernels compares the kernels with it."""
    with kernels.off():
        return generate.load(folder)


def relative(got, right):
    return np.abs(np.array(got) - np.array(right)).max() / np.abs(np.array(right)).max()


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The converted folder of a random checkpoint; made once for each configuration and recipe."""
    made = {}

    def folder(config, seed=0, recipe="mxfp4-bf16"):
        key = (repr(config), seed, recipe)
        if key not in made:
            root = tmp_path_factory.mktemp("model")
            convert(write_checkpoint(root / "source", config, seed), root / "converted", recipe)
            made[key] = root / "converted"
        return made[key]

    return folder


@pytest.fixture(scope="module")
def small(folder_of):
    """A model whose window is short enough to be passed in every test."""
    return load(folder_of(config_of(sliding_window=16)))


def one_shot(model, ids):
    return np.array(model(mx.array([ids]))[0])


def in_chunks(model, ids, chunk):
    cache = model.make_cache()
    parts = [model(mx.array([ids[start : start + chunk]]), cache)[0] for start in range(0, len(ids), chunk)]
    return np.concatenate(parts)


def where_looked_at(model, ids, positions, chunk):
    """In chunks, with the attention of the last layer, which is a full one, only where logits are looked at: of all
    other positions it has keys and values alone, for no layer after it wants more."""
    assert [*model.config.layer_types].index("full_attention") == model.config.num_layers - 1
    attend, cache, parts = mx.fast.scaled_dot_product_attention, model.make_cache(), []

    def left_out(query, *kv, mask, **options):
        return query if isinstance(mask, str) else attend(query, *kv, mask=mask, **options)

    for start in range(0, len(ids), chunk):
        looked_at = start < model.config.sliding_window or any(start <= at < start + chunk for at in positions)
        with pytest.MonkeyPatch.context() as patch:
            if not looked_at:
                patch.setattr(mx.fast, "scaled_dot_product_attention", left_out)
            parts.append(np.array(model(mx.array([ids[start : start + chunk]]), cache)[0]))
    return np.concatenate(parts)


@pytest.mark.parametrize(
    ("name", "compute"),
    [
        pytest.param(
            name,
            lambda model, case: one_shot(model, prompt_of(case))[case.positions],
            id=name,
            # MLX on a CPU takes a second for each million pairs of positions.
            marks=[pytest.mark.slow] if case.length > 1000 else [],
        )
        for name, case in CASES.items()
    ]
    + [
        pytest.param(
            "past_4096",
            lambda model, case: where_looked_at(model, prompt_of(case), case.positions, 128)[case.positions],
            id="past_4096 in chunks",
        )
    ],
)
def test_logits_equal_those_of_transformers(name, compute, folder_of):
    case = CASES[name]
    model = load(folder_of(config_of(**case.config), case.seed))
    assert relative(compute(model, case), GOLDEN[name]) < 1e-4


@pytest.mark.parametrize("chunk", [1, 15, 16, 17, 100])
def test_chunks_change_nothing(small, chunk):
    ids = prompt_of(CASES["odd_counts"])[: max(24, 3 * chunk)]
    right = one_shot(small, ids)
    assert relative(in_chunks(small, ids, chunk), right) < 1e-4
    assert relative(small.prefill(ids, small.make_cache(), chunk=chunk)[0], right[-1]) < 1e-4


def test_decode_after_prefill_equals_one_shot(small):
    ids = prompt_of(CASES["published_shape"])[:70]
    cache = small.make_cache()
    small.prefill(ids[:50], cache)
    decoded = [np.array(small(mx.array([[id_]]), cache)[0, 0]) for id_ in ids[50:]]
    assert relative(decoded, one_shot(small, ids)[50:]) < 1e-4
    assert cache.offset == 70


def test_sliding_layers_stop_growing(small):
    cache = small.make_cache()
    sizes = []
    for _ in range(4):
        small.prefill(prompt_of(CASES["published_shape"])[:100], cache)
        sizes.append([layer.buffers[0].shape[2] for layer in cache.layers])
    kinds = small.config.layer_types
    for index, kind in enumerate(kinds):
        lengths = [size[index] for size in sizes]
        assert lengths == [16] * 4 if kind == "sliding_attention" else lengths[-1] >= 400


@pytest.mark.parametrize(
    "recipe", ["mxfp4-q4", *(pytest.param(each, marks=pytest.mark.slow) for each in ("q4", "mxfp4-q8", "mxfp4-bf16"))]
)
@pytest.mark.parametrize(("length", "count"), [(160, 8), pytest.param(300, 64, marks=pytest.mark.slow)])
def test_mlx_lm_agrees_on_the_same_folder(folder_of, recipe, length, count):
    folder = folder_of(config_of(), recipe=recipe)
    ids = prompt_of(CASES["published_shape"])[:length]
    ours, theirs = load(folder), mlx_lm_model(folder)
    assert relative(one_shot(ours, ids), np.array(theirs(mx.array([ids]))[0])) < 1e-4
    assert list(ours.generate(ids, sampling=GREEDY, max_tokens=count, stop=())) == mlx_lm_greedy(theirs, ids, count)


def mlx_lm_greedy(model, ids, count):
    from mlx_lm.generate import generate_step

    return [int(token) for token, _ in generate_step(mx.array(ids), model, max_tokens=count)]


def test_mlx_lm_as_released_rounds_the_range(folder_of):
    """Where this fails, MLX-LM has been mended, and `mlx_lm_model` need not patch it any more."""
    from mlx_lm.utils import load_model

    folder = folder_of(config_of())
    theirs, _ = load_model(folder)
    theirs.set_dtype(mx.float32)
    ids = prompt_of(CASES["published_shape"])[:100]
    assert relative(one_shot(load(folder), ids), np.array(theirs(mx.array([ids]))[0])) > 1e-3


def test_generate_stops_and_leaves_the_cache_at_the_last_token(small):
    ids = prompt_of(CASES["published_shape"])[:40]
    free = list(small.generate(ids, sampling=GREEDY, max_tokens=12, stop=()))
    assert len(free) == 12
    cache = small.make_cache()
    stopped = list(small.generate(ids, sampling=GREEDY, stop={free[5]}, cache=cache))
    assert stopped == free[: free.index(free[5]) + 1]
    assert cache.offset == len(ids) + len(stopped) - 1
    again = list(small.generate([stopped[-1]], sampling=GREEDY, max_tokens=12 - len(stopped), stop=(), cache=cache))
    assert stopped + again == free


def test_looking_ahead_changes_nothing_but_the_cache(small, look_ahead):
    """As on a GPU: the same tokens, and a cache that also holds the last one, unless the context ends there."""
    ids = prompt_of(CASES["published_shape"])[:40]
    free = list(small.generate(ids, sampling=GREEDY, max_tokens=12, stop=()))
    look_ahead(True)
    assert list(small.generate(ids, sampling=GREEDY, max_tokens=12, stop=())) == free
    cache = small.make_cache()
    stopped = list(small.generate(ids, sampling=GREEDY, stop={free[5]}, cache=cache))
    assert cache.offset == len(ids) + len(stopped)
    (last,) = small.generate(free[len(stopped) : len(stopped) + 1], sampling=GREEDY, max_tokens=1, cache=cache)
    assert last == free[len(stopped) + 1]


def test_same_seed_same_tokens(small):
    def draw(seed):
        return list(small.generate([1, 2, 3], sampling=Sampling(seed=seed), max_tokens=8, stop=()))

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_stop_ids_come_from_the_folder(small):
    assert small.stop_ids == {256, 257, 263}


def test_prefill_reports_progress(small):
    seen = []
    small.prefill(list(range(100)), small.make_cache(), chunk=32, on_progress=lambda *step: seen.append(step))
    assert seen == [(0, 100), (32, 100), (64, 100), (96, 100), (100, 100)]


@pytest.mark.parametrize("ids", [[], [320], [-1], [0, 1, 10**9]])
def test_ids_that_no_embedding_has(small, ids):
    with pytest.raises(GptOssError, match=r"token"):
        list(small.generate(ids))


@pytest.mark.parametrize("ahead", [False, True])
def test_end_of_context(folder_of, look_ahead, ahead):
    look_ahead(ahead)
    model = load(folder_of(config_of(max_position_embeddings=64)))
    ids = list(range(60))
    assert len(list(model.generate(ids, sampling=GREEDY, stop=()))) == 5
    with pytest.raises(ContextFull, match="context of 64"):
        list(model.generate(list(range(65))))


def test_folder_that_does_not_match_its_config(folder_of, tmp_path):
    folder = folder_of(config_of())
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = (folder / "config.json").read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 8')
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"self_attn"):
        load(tmp_path)


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(GptOssError, match="not a folder"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize("text", ["{}", '{"temperature": 1.0}', '{"eos_token_id": null}'])
def test_stop_ids_that_nobody_lists_are_the_published_ones(folder_of, tmp_path, text):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in folder_of(config_of()).iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").write_text(text)
    assert load(folder).stop_ids == generate.PUBLISHED_STOP_IDS


@pytest.mark.parametrize("form", ["causal", "window", None])
@pytest.mark.parametrize("length", [1, 4, 5, 8, 9, 20])
def test_attention_of_few_queries_in_parts(monkeypatch, form, length):
    """The same as at once; and Metal has a kernel for each part."""
    mx.random.seed(3)
    query, keys, values = (mx.random.normal((1, heads, n, 64)) for heads, n in ((16, length), (2, 30), (2, 30)))
    sinks = mx.random.normal((16,))
    mask = mx.random.uniform(shape=(length, 30)) > 0.3 if form == "window" else form
    at_once = mx.fast.scaled_dot_product_attention
    right = at_once(query, keys, values, scale=0.2, mask=mask, sinks=sinks)
    lengths = []

    def counted(query, *arguments, **options):
        lengths.append(query.shape[2])
        return at_once(query, *arguments, **options)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", counted)
    assert relative(attention(query, keys, values, scale=0.2, mask=mask, sinks=sinks), right) < 1e-5
    assert sum(lengths) == length
    assert all(part <= 4 or part > 8 for part in lengths)
