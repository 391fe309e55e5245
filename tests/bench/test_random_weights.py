"""Random weights: the folder that a conversion makes, but for what is in it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from checkpoints import write_checkpoint
from gptoss_convert import RECIPES, convert, random_weights
from gptoss_convert.random_weights import RandomShape, parse_shape, random_folder
from gptoss_convert.recipes import recipe_named
from gptoss_mlx import GptOssError, load
from gptoss_mlx.model.checkpoint import Checkpoint
from gptoss_mlx.model.config import ModelConfig

# Two layers with every size but the vocabulary's, the experts' number and the intermediate one's as they are published.
FIRST, *OTHERS = RECIPES
SMALL = parse_shape("gpt-oss-20b:2").config | {
    "hidden_size": 256,
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "vocab_size": 512,
}


def written(folder: Path, config: dict, recipe: str = "mxfp4-q4") -> Path:
    folder.mkdir()
    random_weights._RandomModel(config, recipe_named(recipe)).write(folder, lambda progress: None)
    return folder


@pytest.fixture
def little(monkeypatch):
    """What stands for a published model, with an argument that stays a shape's name."""
    monkeypatch.setattr(RandomShape, "config", SMALL)
    return parse_shape("gpt-oss-20b:2")


def test_shapes():
    assert parse_shape("gpt-oss-20b") == RandomShape("gpt-oss-20b", 24, 32)
    assert parse_shape("gpt-oss-120b") == RandomShape("gpt-oss-120b", 36, 128)
    assert parse_shape("gpt-oss-120b:4") == RandomShape("gpt-oss-120b", 4, 128)
    assert [str(parse_shape(text)) for text in ("gpt-oss-20b", "gpt-oss-20b:24", "gpt-oss-120b:2")] == [
        "gpt-oss-20b",
        "gpt-oss-20b",
        "gpt-oss-120b:2",
    ]
    for name in random_weights.SHAPES:
        kinds = ModelConfig.from_dict(parse_shape(f"{name}:6").config).layer_types
        assert kinds.count("full_attention") == kinds.count("sliding_attention") == 3


@pytest.mark.parametrize(
    "text",
    ["", "20b", "gpt-oss-20b:", "gpt-oss-20b:3", "gpt-oss-20b:0", "gpt-oss-20b:26", "gpt-oss-20b:-2", "a\nb", "٢"],
)
def test_what_is_no_shape(text):
    with pytest.raises(GptOssError, match=r"^[^\n]*write gpt-oss-20b\[:LAYERS\] or gpt-oss-120b\[:LAYERS\][^\n]*$"):
        parse_shape(text)


@pytest.mark.parametrize("name", random_weights.SHAPES)
def test_the_bytes_of_a_whole_model(name):
    """20.9 and 116.8 billion parameters, as published: 19.1 and 114.7 in experts at 4.25 bits, the others at 4.5."""
    model = random_weights._RandomModel(parse_shape(name).config, recipe_named("mxfp4-q4"))
    assert model.nbytes == pytest.approx({"gpt-oss-20b": 11.2e9, "gpt-oss-120b": 62.3e9}[name], rel=0.01)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_folder_is_what_a_conversion_makes(tmp_path, recipe):
    published = SMALL | {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
    convert(write_checkpoint(tmp_path / "source", published), tmp_path / "converted", recipe)
    written(tmp_path / "random", SMALL, recipe)
    converted, random = (Checkpoint.open(tmp_path / name) for name in ("converted", "random"))
    assert forms(random) == forms(converted)
    for name in ("config.json", "model.safetensors.index.json"):
        assert json.loads((tmp_path / "random" / name).read_text()) == json.loads(
            (tmp_path / "converted" / name).read_text()
        )
    ours, theirs = (json.loads((tmp_path / name / "provenance.json").read_text()) for name in ("random", "converted"))
    assert [ours[key] for key in ("recipe", "tool")] == [theirs[key] for key in ("recipe", "tool")]
    sizes = [
        {path.name: path.stat().st_size for path in (tmp_path / name).glob("*.safetensors")}
        for name in ("random", "converted")
    ]
    assert sizes[0] == sizes[1]


def forms(checkpoint: Checkpoint) -> dict:
    """Where each tensor lies, and as what."""
    return {
        name: (tensor.dtype, tensor.shape, tensor.start, checkpoint.file_of[name].name)
        for name, tensor in checkpoint.tensors.items()
    }


@pytest.mark.parametrize("recipe", [FIRST, *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)])
def test_activations_stay_sane_through_all_layers(tmp_path, recipe):
    config = SMALL | {"num_hidden_layers": 36, "layer_types": SMALL["layer_types"] * 18}
    model = load(written(tmp_path / "model", config, recipe))
    ids = np.random.default_rng(1).integers(0, 512, (1, 256))
    hidden = model.network.embedding(mx.array(ids))
    cache = model.make_cache()
    masks = cache.masks(256)
    sizes = []
    for layer, kind, kv in zip(model.network.layers, model.config.layer_types, cache.layers, strict=True):
        hidden = layer(hidden, 0, masks[kind], kv)
        sizes.append(mx.sqrt(mx.square(hidden.astype(mx.float32)).mean()).item())
    logits = np.array(model.network.logits(model.network.norm(hidden)).astype(mx.float32))
    assert np.isfinite(logits).all()
    assert max(sizes) < 36
    assert all(sizes[i] < sizes[i - 1] + 2 for i in range(1, 36))
    assert 0.3 < logits.std() < 3


@pytest.mark.parametrize("recipe", ["mxfp4-q4", "mxfp4-bf16"])
def test_bytes_neither_shrink_nor_repeat(tmp_path, recipe):
    folder = written(tmp_path / "model", SMALL | {"num_local_experts": 32, "vocab_size": 8192}, recipe)
    data = b"".join(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))
    pages = [data[i : i + 4096] for i in range(0, len(data), 4096)]
    pages = [page for page in pages if page.strip(b" ")]  # headers are padded
    assert len(set(pages)) == len(pages) > 1000
    assert len(zlib.compress(data, 1)) > {"mxfp4-q4": 0.9, "mxfp4-bf16": 0.55}[recipe] * len(data)


def test_it_is_gone_at_the_end(little, tmp_path, monkeypatch):
    place = a_place(tmp_path, monkeypatch)
    told = []

    def use() -> None:
        with random_folder(little, on_progress=told.append) as folder:
            assert folder.parent.parent == place
            assert folder.name == "gpt-oss-20b-layers-2"
            assert load(folder).stop_ids == {199999, 200002, 200012}
            total = sum(tensor.nbytes for tensor in Checkpoint.open(folder).tensors.values())
            assert told[-1].done == told[-1].total == total
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):  # what goes wrong inside is not taken for trouble with the folder
        use()
    assert not list(place.iterdir())


def a_place(tmp_path, monkeypatch) -> Path:
    """TMPDIR, as `tempfile` sees it in a new process."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr("tempfile.tempdir", None)
    return place


def test_where_it_lies(little, tmp_path, monkeypatch):
    monkeypatch.setenv("GPTOSS_MLX_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with random_folder(little) as folder:
        assert folder.parent.parent == tmp_path / "home"
    free = {tmp_path / "home": 10**6, tmp_path / "temporary": 10**12}
    monkeypatch.setattr(random_weights, "free_disk", free.__getitem__)
    with random_folder(little) as folder:
        assert folder.parent.parent == tmp_path / "temporary"


def test_too_little_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    place = a_place(tmp_path, monkeypatch)
    monkeypatch.setattr(random_weights, "free_disk", lambda path: 3 * 10**9)
    with pytest.raises(GptOssError, match=r"gpt-oss-20b take 11\.\d\d GB, and .*place has 3\.00 GB free: set TMPDIR"):
        random_folder(parse_shape("gpt-oss-20b")).__enter__()
    assert not list(place.iterdir())


def test_a_disk_that_fills_up_is_one_line(little, tmp_path, monkeypatch):
    place = a_place(tmp_path, monkeypatch)

    def full(progress):
        raise OSError(28, "No space left on device")

    with pytest.raises(GptOssError, match=r"cannot write random weights in .*: No space left on device"):
        random_folder(little, on_progress=full).__enter__()
    assert not list(place.iterdir())


def test_ctrl_c_leaves_nothing_and_memory_stays_small(tmp_path):
    """A real slice, interrupted when half a gigabyte is written."""
    if shutil.disk_usage(tmp_path).free < 4e9:
        pytest.skip("needs 4 GB of disk")
    script = """
import os, signal
from gptoss_convert.random_weights import parse_shape, random_folder
from gptoss_mlx.memory.system import proc_bytes

def on_progress(progress):
    if progress.done >= 2**29:
        print(proc_bytes("self/status").get("RssAnon", 0), flush=True)
        os.kill(os.getpid(), signal.SIGINT)

with random_folder(parse_shape("gpt-oss-120b:2"), on_progress=on_progress):
    pass
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == -signal.SIGINT, done.stderr
    assert int(done.stdout.split()[0]) < 100e6
    assert not list(tmp_path.iterdir())
