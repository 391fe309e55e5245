"""Folders that MLX-LM made, in all of its modes: they compute here what they compute there, or are refused by name."""

import json
import sys

import mlx.core as mx
import numpy as np
import pytest

from checkpoints import config_of, tensors_of, write_checkpoint
from gptoss_convert import convert
from gptoss_convert.inspection import Subject, inspect
from gptoss_mlx import kernels
from gptoss_mlx.engine import generate
from gptoss_mlx.errors import GptOssError
from mlx_lm_oracle import mlx_lm_model

from .parameters import with_slow

CONFIG = config_of(num_hidden_layers=2, hidden_size=128, intermediate_size=128)
# Of the published tensors, each byte of blocks is two weights, and scales are none.
COUNTS = {"blocks": 2, "scales": 0}
PARAMETERS = sum(array.size * COUNTS.get(name.rpartition("_")[2], 1) for name, (array, _) in tensors_of(CONFIG).items())
IDS = mx.array([np.random.RandomState(8).randint(0, 250, 40).tolist()])
PARTLY = {
    "as it is": {},
    "F16": {"dtype": "float16"},
    "F32": {"dtype": "float32"},
    **{f"{bits} bits": {"quantize": True, "q_bits": bits} for bits in (2, 3, 4, 5, 6, 8)},
    "groups of 32": {"quantize": True, "q_group_size": 32},
    "groups of 128": {"quantize": True, "q_group_size": 128},
    "MXFP4": {"quantize": True, "q_mode": "mxfp4"},
    "4 bits beside F16": {"quantize": True, "dtype": "float16"},
    "mixed, with group_size null": {"quantize": True, "quant_predicate": "mixed_4_6"},
}
# From a folder without any quantization, so that experts and routers are quantized too.
WHOLLY = {
    "all 4 bits": {"quantize": True},
    "all MXFP4": {"quantize": True, "q_mode": "mxfp4"},
    "all mixed, with group_size null": {"quantize": True, "quant_predicate": "mixed_3_6"},
}
LIKE_OTHERS = ("F32", "3 bits", "5 bits", "6 bits", "groups of 128", "all mixed, with group_size null")
REFUSED = {mode: {"quantize": True, "q_mode": mode} for mode in ("nvfp4", "mxfp8")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What MLX-LM makes of a random checkpoint, or of that without quantization."""
    from mlx_lm.convert import convert as mlx_lm_convert

    root = tmp_path_factory.mktemp("mlx-lm")
    write_checkpoint(root / "source", CONFIG)
    mlx_lm_convert(str(root / "source"), str(root / "dequantized"), dequantize=True)
    folders = {"dequantized": root / "dequantized"}

    def made(name):
        if name not in folders:
            source = folders["dequantized"] if name in WHOLLY else root / "source"
            mlx_lm_convert(str(source), str(root / name), **(PARTLY | WHOLLY | REFUSED)[name])
            folders[name] = root / name
        return folders[name]

    return made


def with_config(folder, copy, change):
    """The folder with another config.json."""
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text())
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(change(config)))
    return copy


def without(*names):
    return lambda config: {name: value for name, value in config.items() if name not in names}


def assert_agrees(folder, right=None):
    theirs = np.array(mlx_lm_model(right or folder)(IDS)[0])
    with kernels.off():
        ours = np.array(generate.load(folder)(IDS)[0])
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
    assert mx.isfinite(generate.load(folder)(IDS)).all()


@pytest.mark.parametrize("name", with_slow([*PARTLY, *WHOLLY, "dequantized"], LIKE_OTHERS))
def test_the_same_logits(made, name):
    assert_agrees(made(name))


@pytest.mark.parametrize("name", with_slow([*PARTLY, *WHOLLY, "dequantized"], LIKE_OTHERS))
def test_the_same_parameters(made, name):
    assert inspect(Subject.of_folder(made(name))).total("parameters") == PARAMETERS


@pytest.mark.parametrize("name", ["4 bits", "all 4 bits", "mixed, with group_size null", "all MXFP4"])
def test_with_quantization_config_alone(made, tmp_path, name):
    """MLX-LM writes it twice; here the copy is left."""
    assert_agrees(with_config(made(name), tmp_path / "copy", without("quantization")), made(name))


@pytest.mark.parametrize("name", ["as it is", "4 bits", "8 bits", "mixed, with group_size null"])
def test_with_the_quantization_config_of_the_source(made, tmp_path, name):
    """MLX-LM then takes the forms of what is not MXFP4 from the shapes."""

    def change(config):
        return without("quantization")(config) | {"quantization_config": CONFIG["quantization_config"]}

    assert_agrees(with_config(made(name), tmp_path / "copy", change))


@pytest.mark.parametrize("name", ["8 bits", "groups of 32", "all MXFP4"])
def test_with_a_default_that_is_not_that_of_the_modules(made, tmp_path, name):
    """As MLX-LM: what is not listed is stored as its shapes say."""

    def change(config):
        return config | {"quantization": {"group_size": 64, "bits": 4, "mode": "affine"}}

    assert_agrees(with_config(made(name), tmp_path / "copy", change))


@pytest.mark.parametrize("name", ["4 bits", "all MXFP4"])
def test_what_is_null_is_as_usual(made, tmp_path, name):
    def change(config):
        entry = {
            key: v | {"group_size": None} if isinstance(v, dict) else v for key, v in config["quantization"].items()
        }
        return config | {"quantization": entry | {"group_size": None}}

    assert_agrees(with_config(made(name), tmp_path / "copy", change))


@pytest.mark.parametrize("mode", REFUSED)
@pytest.mark.parametrize("command", ["chat", "plan", "inspect", "convert"])
def test_modes_that_do_not_run_here_are_named(made, complaint, tmp_path, mode, command):
    more = [tmp_path / "again"] if command == "convert" else []
    assert f"'{mode}'" in complaint(command, made(mode), *more)


@pytest.fixture
def complaint(run_here):
    """The one line of a command that fails."""

    def complaint(*arguments):
        done = run_here(*arguments)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        return line

    return complaint


@pytest.fixture(scope="module")
def fused(made, tmp_path_factory):
    """What `mlx_lm.fuse` writes of a folder and an adapter."""
    from mlx.utils import tree_flatten
    from mlx_lm import fuse
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model, save_config

    root = tmp_path_factory.mktemp("fused")
    model, _ = load_model(made("4 bits"))
    settings = {"rank": 4, "scale": 20.0, "dropout": 0.0, "keys": ["self_attn.q_proj", "self_attn.o_proj"]}
    linear_to_lora_layers(model, 2, settings)
    factors = {name: value for name, value in tree_flatten(model.parameters()) if ".lora_" in name}
    (root / "adapter").mkdir()
    mx.save_safetensors(
        str(root / "adapter" / "adapters.safetensors"),
        {name: mx.random.normal(value.shape, key=mx.random.key(3)) * 0.02 for name, value in factors.items()},
    )
    entry = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": settings}
    save_config(entry, root / "adapter" / "adapter_config.json")
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["--model", made("4 bits"), "--adapter-path", root / "adapter", "--save-path", root / "model"]
        patch.setattr(sys, "argv", ["mlx_lm.fuse", *map(str, arguments)])
        fuse.main()
    return root / "model"


def test_a_fused_folder_runs_and_convert_says_so(fused, made, tmp_path):
    assert_agrees(fused)
    for folder in (fused, made("dequantized")):
        with pytest.raises(GptOssError, match=f"`gptoss-mlx chat {folder}` runs it"):
            convert(folder, tmp_path / "model")
