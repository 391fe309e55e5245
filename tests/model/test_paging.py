"""Paged experts on small models: the same bits as with all of them in memory, and a pool that stays whole."""

import json
import random
import shutil
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from checkpoints import config_of, write_checkpoint
from gptoss_convert import convert
from gptoss_mlx import GptOssError, kernels, load
from gptoss_mlx.memory.plan import Device, EngineConfig, make_plan
from gptoss_mlx.model.checkpoint import Checkpoint
from gptoss_mlx.model.expert_pool import SlotTable
from gptoss_mlx.model.safetensors import CheckpointError
from memory.shapes import PUBLISHED, converted_shape

WHOLE = EngineConfig(context=4096, kv_bits=16, prefill_chunk=16)
LENGTH = 40  # of a prompt: whole chunks, and a rest


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("paging")
    source = write_checkpoint(root / "source", config_of(hidden_size=256, intermediate_size=192))
    return {recipe: convert_to(source, root / recipe, recipe) for recipe in ("mxfp4-q4", "q4")}


def convert_to(source, folder, recipe):
    convert(source, folder, recipe)
    return folder


def outputs(folder, settings):
    """Logits of a prompt in chunks, and of some tokens after it."""
    model = load(folder, settings)
    cache = model.make_cache()
    ids = random.Random(4).choices(range(250), k=LENGTH)
    rows = [
        model(mx.array([ids[i : i + settings.prefill_chunk]]), cache) for i in range(0, LENGTH, settings.prefill_chunk)
    ]
    rows += [model(mx.array([[id_]]), cache) for id_ in ids[:6]]
    return model, np.concatenate([np.array(each[0].astype(mx.float32)) for each in rows])


@pytest.fixture(scope="module")
def whole(folders):
    """The outputs with all experts in memory, by recipe; computed once for each way of computing."""
    made = {}

    def whole(recipe):
        key = recipe, kernels.native() is None
        if key not in made:
            made[key] = outputs(folders[recipe], WHOLE)[1]
        return made[key]

    return whole


@pytest.mark.parametrize(
    ("recipe", "slots"),
    [
        ("mxfp4-q4", 4),
        ("q4", 11),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [("mxfp4-q4", 32), ("mxfp4-q4", 11), ("q4", 4), ("q4", 32)]
        ),
    ],
)
def test_the_same_bits(folders, whole, computing, recipe, slots):
    right = whole(recipe)
    model, got = outputs(folders[recipe], replace(WHOLE, expert_slots=slots))
    assert (got == right).all()
    stats = model.expert_stats
    size = model.network.pool.expert_bytes
    # Of an expert that was read ahead in vain, the reads that had not begun were left.
    assert stats.missed * size <= stats.bytes_read <= (stats.missed + stats.ahead_wrong) * size
    assert stats.missed == 32 if slots == 32 else stats.missed > 32
    # How many reads began ahead depends on when others had ended.
    assert stats.ahead_right > stats.ahead_wrong or slots == 32


def test_experts_on_the_cpu_beside_a_gpu(folders, whole):
    """Here the GPU is a CPU too: the same kernels, and activations that come and go in another type."""
    if not kernels.native():
        pytest.skip(kernels.why_not_native())
    right = whole("mxfp4-q4")
    model, got = outputs(folders["mxfp4-q4"], replace(WHOLE, cpu_expert_layers=2))
    assert (got == right).all()
    layer = model.network.layers[-1].moe
    x = mx.random.normal((1, 3, 256))
    assert layer(x.astype(mx.bfloat16)).dtype == mx.bfloat16
    with kernels.off(), pytest.raises(GptOssError, match="need the compiled kernels"):
        load(folders["mxfp4-q4"], replace(WHOLE, cpu_expert_layers=2))


def test_where_nothing_can_be_read_around_the_page_cache(folders, whole, monkeypatch):
    """As on tmpfs, or on a disk with large blocks."""
    from gptoss_mlx.model.direct_io import DirectFiles

    right = whole("mxfp4-q4")
    for name, value in (("DIRECT", 0), ("BLOCK", 2**20)):
        with monkeypatch.context() as patch:
            patch.setattr(DirectFiles, name, value)
            _, got = outputs(folders["mxfp4-q4"], replace(WHOLE, expert_slots=6))
        assert (got == right).all()


def test_an_interrupted_fetch_leaves_the_pool_whole(folders):
    model, right = outputs(folders["mxfp4-q4"], replace(WHOLE, expert_slots=8))
    for count in range(3):
        fetch = model.network.pool.fetch(1, np.array([[0, 1, 2, 3], [4, 5, 6, 7]]))
        for _ in range(count):
            next(fetch)
        fetch.close()
    cache = model.make_cache()
    ids = random.Random(4).choices(range(250), k=LENGTH)[: WHOLE.prefill_chunk]
    assert (np.array(model(mx.array([ids]), cache)[0].astype(mx.float32)) == right[: len(ids)]).all()


def test_a_file_that_shrinks_is_an_error_and_the_pool_goes_on(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders["mxfp4-q4"], folder)
    model = load(folder, replace(WHOLE, expert_slots=8))
    ids = mx.array([[1, 2, 3, 4]])
    right = np.array(model(ids).astype(mx.float32))
    list(model.network.pool.fetch(0, np.arange(8)[None]))  # layer 3 leaves the slots
    opened = Checkpoint.open(folder)
    name = "model.layers.3.mlp.experts.down_proj.weight"
    path, start = opened.file_of[name], opened.tensors[name].start
    whole = path.read_bytes()
    with path.open("r+b") as file:  # the same file, which the pool has open
        file.truncate(start)
        list(model.network.pool.fetch(2, np.array([[0, 1]]), np.arange(8)))  # nobody needs what cannot be read ahead
        with pytest.raises(CheckpointError, match="shorter"):
            list(model.network.pool.fetch(3, np.arange(8)[None]))
        file.write(whole)
    assert (np.array(model(ids).astype(mx.float32)) == right).all()


def test_the_least_used_leave():
    table = SlotTable(layers=2, experts=4, slots=3)

    def use(layer, expert):
        table.use(layer, np.bincount([expert], minlength=4), 1)
        if table.find(layer, np.array([expert]))[0] < 0:
            (slot,) = table.vacate(1)
            table.fill(slot, layer, expert)
            table.release()

    for layer, expert in [(0, 1), (0, 1), (1, 1), (1, 1), (1, 2), (0, 3)]:
        use(layer, expert)
    assert table.find(0, np.arange(4)).tolist()[1] >= 0
    assert table.find(1, np.arange(4)).tolist()[1] >= 0
    assert table.find(1, np.arange(4)).tolist()[2] < 0  # used once, before the last
    assert table.find(0, np.arange(4)).tolist()[3] >= 0
    table.hold([0, 1])
    assert table.vacate(3) == [2]
    assert table.vacate(3) == []


def test_experts_in_other_forms_are_refused(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders["mxfp4-q4"], folder)
    shutil.copytree(folders["q4"], tmp_path / "other")
    # Layer 3 of one folder beside the others of another.
    config = json.loads((folder / "config.json").read_text())
    other = json.loads((tmp_path / "other" / "config.json").read_text())
    names = [name for name in config["quantization"] if "layers.3.mlp.experts" in name]
    for name in names:
        config["quantization"][name] = {k: other["quantization"][k] for k in ("group_size", "bits", "mode")}
    (folder / "config.json").write_text(json.dumps(config))
    arrays = {
        n: Checkpoint.open(folder).array(n) for n in Checkpoint.open(folder).tensors if "layers.3.mlp.experts" not in n
    }
    arrays |= {
        n: Checkpoint.open(tmp_path / "other").array(n)
        for n in Checkpoint.open(tmp_path / "other").tensors
        if "layers.3.mlp.experts" in n
    }
    mx.eval(arrays)
    for path in folder.glob("model*"):
        path.unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)
    assert load(folder)(mx.array([[1, 2]])).shape == (1, 2, 320)
    with pytest.raises(CheckpointError, match="layer 3 stores its experts in another form"):
        load(folder, replace(WHOLE, expert_slots=8))


def test_a_slice_of_120b_runs_paged(tmp_path):
    """Four layers of 128 experts, in the real width: weights are zeros, the paging is real."""
    folder = converted_shape(tmp_path / "model", 4, 128, vocab_size=1024)
    plan = make_plan(folder, Device("a test", 2 * 10**9, None, "kernels"), context=1024)
    model = load(folder, plan.settings)
    assert 8 <= plan.settings.expert_slots < 512
    logits = model(mx.array([[1, 2, 3]]))
    assert logits.shape == (1, 3, 1024)
    assert not mx.isnan(logits).any()
    assert model.expert_stats.missed > 0
    assert model.network.pool.expert_bytes == 3 * (PUBLISHED["hidden_size"] ** 2 * 17 // 32 + 2880 * 2)


def test_what_is_printed_of_a_model(folders):
    model = load(folders["mxfp4-q4"], replace(WHOLE, expert_slots=8))
    pool, opened = model.network.pool, Checkpoint.open(folders["mxfp4-q4"])
    assert repr(pool) == f"ExpertPool(8 slots of {pool.expert_bytes:,} bytes, 100% hits)"
    assert repr(pool.matrix("up_proj")) == "Matrix([8, 192, 32] mlx.core.uint32, 4-bit mxfp4)"
    assert repr(model.make_cache()) == "KVCache(0 of 4,096 positions, 0 bytes)"
    assert repr(opened).startswith(f"Checkpoint('{folders['mxfp4-q4']}', {len(opened.tensors)} tensors, ")
