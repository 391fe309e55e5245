"""Conversion of small random checkpoints: every bit of the experts, every byte of the files, every refusal."""

import hashlib
import json
import os
import shutil
import time
from collections import namedtuple

import mlx.core as mx
import numpy as np
import pytest

import zygote
from checkpoints import config_of, tensors_of, write_checkpoint, write_safetensors
from golden.make_logits import dequantized
from gptoss_convert import RECIPES, affine, convert
from gptoss_convert.quantize import in_runs
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.kernels import native
from gptoss_mlx.model.checkpoint import Checkpoint, Shard
from gptoss_mlx.model.safetensors import ITEM_SIZE, read_header

CONFIG = config_of()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("source"), CONFIG, shards=3)


@pytest.fixture(scope="module")
def folders(source, tmp_path_factory):
    """The source converted with every recipe."""
    root = tmp_path_factory.mktemp("converted")
    for recipe in RECIPES:
        convert(source, root / recipe, recipe)
    return root


def published_experts(layer=0):
    """FP32 [E, outputs, inputs] of gate, up and down, straight from the published bytes."""
    values = dequantized(tensors_of(CONFIG))
    path = f"model.layers.{layer}.mlp.experts"
    gate_up = values[f"{path}.gate_up_proj"].swapaxes(1, 2)
    return {"gate": gate_up[:, 0::2], "up": gate_up[:, 1::2], "down": values[f"{path}.down_proj"].swapaxes(1, 2)}


@pytest.mark.parametrize("recipe", ["mxfp4-q4", "mxfp4-q8", "mxfp4-bf16"])
def test_experts_keep_every_bit(folders, recipe):
    checkpoint = Checkpoint.open(folders / recipe)
    blocks = tensors_of(CONFIG)["model.layers.0.mlp.experts.gate_up_proj_blocks"][0]
    path = "model.layers.0.mlp.experts"
    assert checkpoint.view(f"{path}.up_proj.weight").tobytes() == np.ascontiguousarray(blocks[:, 1::2]).tobytes()
    for name, values in published_experts().items():
        weight, scales = (checkpoint.array(f"{path}.{name}_proj.{part}") for part in ("weight", "scales"))
        stored = mx.dequantize(weight, scales, group_size=32, bits=4, mode="mxfp4", dtype=mx.float32)
        assert np.array_equal(np.array(stored), values)


@pytest.mark.parametrize(("recipe", "bits"), [("mxfp4-q4", 4), ("mxfp4-q8", 8), ("q4", 4)])
def test_affine_weights_are_nearer_than_those_of_mlx(folders, recipe, bits):
    checkpoint = Checkpoint.open(folders / recipe)
    for module in ["lm_head", "model.embed_tokens", "model.layers.1.self_attn.o_proj"]:
        plain = mx.array(tensors_of(CONFIG)[f"{module}.weight"][0]).view(mx.bfloat16)
        ours = [checkpoint.array(f"{module}.{part}") for part in ("weight", "scales", "biases")]
        theirs = mx.quantize(plain, group_size=64, bits=bits)
        errors = []
        for weight, scales, biases in (ours, theirs):
            line = scales.astype(mx.float32), biases.astype(mx.float32)
            stored = mx.dequantize(weight, *line, group_size=64, bits=bits)
            errors.append(mx.linalg.norm(stored - plain.astype(mx.float32)).item())
        assert errors[0] < 0.95 * errors[1]


def test_q4_requantizes_the_experts(folders):
    checkpoint = Checkpoint.open(folders / "q4")
    for name, values in published_experts().items():
        module = f"model.layers.0.mlp.experts.{name}_proj"
        parts = [checkpoint.array(f"{module}.{part}") for part in ("weight", "scales", "biases")]
        stored = np.array(mx.dequantize(*parts, group_size=64, bits=4, dtype=mx.float32))
        assert 0 < np.abs(stored - values).mean() < 0.2 * np.abs(values).mean()


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_no_recipe_touches_is_bf16_and_unchanged(folders, recipe):
    checkpoint, tensors = Checkpoint.open(folders / recipe), tensors_of(CONFIG)
    for name in ("input_layernorm.weight", "self_attn.sinks", "self_attn.q_proj.bias", "mlp.router.weight"):
        assert np.array_equal(checkpoint.view(f"model.layers.2.{name}"), tensors[f"model.layers.2.{name}"][0])
    gate_up = tensors["model.layers.2.mlp.experts.gate_up_proj_bias"][0]
    assert np.array_equal(checkpoint.view("model.layers.2.mlp.experts.gate_proj.bias"), gate_up[:, 0::2])


@pytest.mark.parametrize("recipe", RECIPES)
def test_mlx_lm_loads_it(folders, recipe):
    from mlx_lm import load

    model, tokenizer = load(str(folders / recipe))
    assert model(mx.array([[1, 2, 3]])).shape == (1, 3, CONFIG["vocab_size"])
    assert tokenizer.encode("a")


# In the second, sizes that no published model has: sinks of 6 bytes, router biases of 10, scales of 480.
SIZES = [{}, {"num_attention_heads": 3, "num_key_value_heads": 1, "num_local_experts": 5, "hidden_size": 96}]


@pytest.mark.parametrize("sizes", SIZES)
def test_files_can_be_mapped(tmp_path, sizes):
    convert(write_checkpoint(tmp_path / "source", config_of(**sizes)), tmp_path / "dest", "mxfp4-bf16")
    checkpoint = Checkpoint.open(tmp_path / "dest")
    for path in (tmp_path / "dest").glob("*.safetensors"):
        assert path.stat().st_size % 16384 == 0
        for tensor in read_header(path).tensors.values():
            assert tensor.start % (64 if tensor.nbytes % 64 == 0 else ITEM_SIZE[tensor.dtype]) == 0
    embedding = checkpoint.file_of["model.embed_tokens.weight"]
    assert all(name.startswith("model.embed_tokens.") for name in read_header(embedding).tensors)


@pytest.mark.parametrize("sizes", SIZES)
def test_views_of_a_map_are_what_mlx_reads(tmp_path, sizes):
    """As on a device that adopts the map: every tensor cut from the file's 32-bit words."""
    convert(write_checkpoint(tmp_path / "source", config_of(**sizes)), tmp_path / "dest", "mxfp4-bf16")
    for path in (tmp_path / "dest").glob("*.safetensors"):
        shard = Shard(path)
        data = np.fromfile(path, dtype=np.uint32)
        shard.windows = lambda start, end, data=data: mx.array(data[start // 4 : -(-end // 4)])
        read = mx.load(str(path))
        assert set(read) == set(shard.header.tensors)
        assert all(mx.array_equal(shard.array(name), array) for name, array in read.items())


@pytest.mark.parametrize("limit", [40_000, 100_000, 10**6])
def test_shard_limit(source, tmp_path, limit):
    convert(source, tmp_path / "dest", shard_limit=limit)
    files = list((tmp_path / "dest").glob("*.safetensors"))
    assert all(path.stat().st_size <= limit or len(in_runs(read_header(path).tensors.values())) == 1 for path in files)
    assert len(Checkpoint.open(tmp_path / "dest").tensors) == len(
        Checkpoint.open(convert_once(source, tmp_path / "whole")).tensors
    )


def convert_once(source, dest):
    convert(source, dest)
    return dest


def test_the_folder_says_where_it_came_from(folders, source):
    folder = folders / "mxfp4-q4"
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["recipe"] == "mxfp4-q4"
    assert provenance["source"]["id"] == source.name
    for where, key in ((source, "source_sha256"), (folder, "sha256")):
        files = sorted(where.glob("*.safetensors"))
        assert provenance[key] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert (folder / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [256, 257, 263]


def test_config_lists_what_differs_from_the_default(folders):
    config = json.loads((folders / "mxfp4-q4" / "config.json").read_text())
    assert "quantization_config" not in config
    entry = config["quantization"]
    assert (entry["group_size"], entry["bits"], entry["mode"]) == (64, 4, "affine")
    expert = entry["model.layers.3.mlp.experts.down_proj"]
    assert expert == {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    assert "lm_head" not in entry


def test_the_same_again_is_the_same_bytes(source, folders, tmp_path):
    convert(source, tmp_path / "again")
    for path in (folders / "mxfp4-q4").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_report_and_progress(source, tmp_path):
    steps = []
    report = convert(source, tmp_path / "dest", on_progress=steps.append)
    assert report.parameters == sum(array.size for array in dequantized(tensors_of(CONFIG)).values())
    assert 4 < report.bits_per_weight < 8
    assert report.output_bytes == sum(path.stat().st_size for path in (tmp_path / "dest").glob("*.safetensors"))
    for stage in ("convert", "checksums"):
        done = [step.done for step in steps if step.stage == stage]
        assert done == sorted(done)
    assert steps[-1].done == steps[-1].total


def copy(source, folder):
    shutil.copytree(source, folder)
    return folder


def rewrite(folder, change):
    """The checkpoint of CONFIG in `folder` with `change(tensors)` applied, in one file."""
    tensors = tensors_of(CONFIG)
    change(tensors)
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def assert_refused(source, dest, *parts):
    with pytest.raises(GptOssError) as error:
        convert(source, dest)
    for part in parts:
        assert part in str(error.value), str(error.value)
    assert "\n" not in str(error.value)
    assert not dest.exists()
    assert not list(dest.parent.glob(f".{dest.name}*"))


def test_sources_of_other_models_and_damaged_ones(source, tmp_path):
    dest = tmp_path / "dest"
    folder = copy(source, tmp_path / "truncated")
    shard = max(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert_refused(folder, dest, shard.name, "truncated")

    folder = copy(source, tmp_path / "incomplete")
    shard = max(folder.glob("*.safetensors"))
    shard.unlink()
    assert_refused(folder, dest, shard.name, "incomplete")

    folder = copy(source, tmp_path / "llama")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"model_type": "llama"}))
    assert_refused(folder, dest, "llama")

    folder = copy(source, tmp_path / "other_shape")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_attention_heads": 8}))
    assert_refused(folder, dest, "sinks", "[4]", "[8]")

    def rename(tensors):
        tensors["model.layers.0.extra.weight"] = tensors["model.norm.weight"]

    assert_refused(rewrite(tmp_path / "unknown", rename), dest, "model.layers.0.extra.weight")
    assert_refused(rewrite(tmp_path / "missing", lambda t: t.pop("lm_head.weight")), dest, "lacks lm_head.weight")

    def not_a_number(tensors):
        tensors["model.layers.1.mlp.experts.down_proj_scales"][0][0, 0, 0] = 255

    assert_refused(rewrite(tmp_path / "nan", not_a_number), dest, "down_proj", "not a number")
    assert_refused(rewrite(tmp_path / "no_config", lambda t: None) / "nothing", dest, "neither a folder nor")


def test_sizes_that_no_group_divides(tmp_path):
    config = config_of(hidden_size=96)
    source = write_checkpoint(tmp_path / "source", config)
    assert_refused(source, tmp_path / "dest", "96 columns", "groups of 64")


def test_destinations(source, tmp_path):
    (tmp_path / "file").write_text("")
    for dest in (tmp_path, tmp_path / "file"):
        with pytest.raises(GptOssError, match="exists already"):
            convert(source, dest)
    with pytest.raises(GptOssError, match="no recipe 'q3'"):
        convert(source, tmp_path / "dest", "q3")
    with pytest.raises(GptOssError, match="cannot write"):
        convert(source, tmp_path / "file" / "dest")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_full_disk_is_noticed_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    assert_refused(source, tmp_path / "dest", "has 1.0 kB free", "needs 67.", "make room for 67.")


def test_memory_does_not_grow_with_the_model(tmp_path):
    """Four times the layers, the same peak: a conversion streams."""
    code = "import sys; from gptoss_convert import convert; print(convert(*sys.argv[1:]).peak_anonymous_bytes)"
    peaks = []
    for layers in (4, 16):
        config = config_of(num_hidden_layers=layers, hidden_size=256, intermediate_size=512)
        source = write_checkpoint(tmp_path / f"source{layers}", config)
        words = ["-c", code, str(source), str(tmp_path / f"dest{layers}")]
        peaks.append(zygote.shared().run(words, "", os.environ, timeout=100).stdout)
    if "None" in peaks[0]:
        pytest.skip("this system does not tell anonymous memory")
    small, large = map(int, peaks)
    assert large < small + 8 * 2**20


def test_seconds_are_those_of_the_clock(source, tmp_path):
    started = time.monotonic()
    report = convert(source, tmp_path / "dest")
    assert 0 < report.seconds <= time.monotonic() - started


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("weighed", [False, True])
def test_the_kernel_fits_as_numpy_does(bits, group, weighed):
    if (kernels := native()) is None:
        pytest.skip("there are no kernels")
    random = np.random.RandomState(bits)
    values = (random.standard_normal((37, 5, group)) * np.exp(random.standard_normal((37, 5, 1)))).astype(np.float32)
    values[3, 2] = 0.5
    importance = random.uniform(0.1, 1.9, (5, group)).astype(np.float32) if weighed else None
    for ours, definition in zip(
        affine._fitted_by_kernel(kernels, values, bits, importance),
        affine._fitted_by_numpy(values, bits, importance),
        strict=True,
    ):
        assert np.array_equal(ours, definition)


def test_links_to_files_of_the_user_are_not_copied(source, tmp_path):
    """What is copied may be uploaded. In the hub's cache, files are links to blobs."""
    secret = tmp_path / "secret"
    secret.write_text("nobody's business")
    folder = copy(source, tmp_path / "linked")
    (folder / "LICENSE").symlink_to(secret)
    assert_refused(folder, tmp_path / "dest", "LICENSE", "outside its folder")
    (folder / "LICENSE").unlink()
    (tmp_path / "cache" / "blobs").mkdir(parents=True)
    secret.rename(tmp_path / "cache" / "blobs" / "b")
    snapshot = copy(folder, tmp_path / "cache" / "snapshots" / "commit")
    (snapshot / "LICENSE").symlink_to("../../blobs/b")
    convert(snapshot, tmp_path / "dest")
    assert (tmp_path / "dest" / "LICENSE").read_text() == "nobody's business"
