"""Recipes of the user's own: what they may say, what is refused, and that the result loads here and in MLX-LM."""

import json

import mlx.core as mx
import pytest

import gptoss_mlx
from checkpoints import config_of, write_checkpoint
from gptoss_convert import RECIPES, convert
from gptoss_convert.recipes import DEFAULT_RECIPE, MXFP4, recipe_named
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.model.checkpoint import Checkpoint
from gptoss_mlx.model.config import ModelConfig, Quantization

OWN = """
summary = "head and last layer finer, embedding coarser"
experts = "mxfp4"
attention = { bits = 4, group_size = 64 }
embedding = { bits = 3, group_size = 64 }
head = { bits = 8, group_size = 32 }

[modules]
"model.layers.3.self_attn.*" = "bf16"
"model.layers.[01].self_attn.o_proj" = { bits = 6, group_size = 64 }
"model.layers.2.mlp.experts.down_proj" = { bits = 5, group_size = 32 }
"""
PLAIN = """
experts = "bf16"
attention = "bf16"
embedding = "bf16"
head = "bf16"
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("source"), config_of())


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    return path


def test_ours():
    assert next(iter(RECIPES)) == DEFAULT_RECIPE
    recipe = RECIPES["mxfp4-q8"]
    assert recipe.of("model.layers.0.mlp.experts.up_proj") == MXFP4
    assert recipe.of("model.layers.0.self_attn.k_proj") == Quantization(64, 8)
    assert recipe.of("model.layers.0.mlp.router") is None


def test_own(source, own, tmp_path, run):
    result = run("convert", source, tmp_path / "model", "--recipe", own)
    assert result.returncode == 0, result.stderr
    config = ModelConfig.load(tmp_path / "model")
    tensors = Checkpoint.open(tmp_path / "model").tensors
    assert config.quantization_of("lm_head") == Quantization(32, 8)
    assert config.quantization_of("model.layers.1.self_attn.o_proj") == Quantization(64, 6)
    assert config.quantization_of("model.layers.2.mlp.experts.down_proj") == Quantization(32, 5)
    assert tensors["model.layers.3.self_attn.q_proj.weight"].dtype == "BF16"
    assert tensors["model.embed_tokens.weight"].shape == (320, 64 * 3 // 32)
    assert json.loads((tmp_path / "model" / "provenance.json").read_text())["recipe"] == "own"


@pytest.mark.parametrize("text", [OWN, PLAIN])
def test_the_result_is_what_mlx_lm_computes(source, tmp_path, text):
    from mlx_lm.utils import load_model

    (tmp_path / "own.toml").write_text(text)
    convert(source, tmp_path / "model", str(tmp_path / "own.toml"))
    theirs, _ = load_model(tmp_path / "model")
    theirs.set_dtype(mx.float32)
    ids = mx.array([[5, 6, 7]])  # so near to each other that the rounding of the rotary embedding's ramp hardly shows
    ours = gptoss_mlx.load(tmp_path / "model")(ids)
    assert mx.linalg.norm(ours - theirs(ids)) < 0.1 * mx.linalg.norm(ours)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("experts = ", "not a recipe in TOML"),
        (PLAIN + "router = 'bf16'", "has the key 'router'"),
        (PLAIN.replace('head = "bf16"', ""), "lacks head"),
        (PLAIN.replace('head = "bf16"', 'head = "q4"'), "head is 'q4'"),
        (PLAIN.replace('head = "bf16"', "head = { bits = 7, group_size = 64 }"), "bits of 2, 3, 4"),
        (PLAIN.replace('head = "bf16"', "head = { bits = 4.0, group_size = 64 }"), "head is"),
        (PLAIN.replace('head = "bf16"', "head = { bits = 4 }"), "head is"),
        (PLAIN + "modules = 3", "not a table"),
        (PLAIN + "[modules]\n'model.layers.9.*' = 'mxfp4'", "no module of this model matches model.layers.9"),
    ],
)
def test_refused(source, tmp_path, text, complaint):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(GptOssError, match=complaint) as error:
        convert(source, tmp_path / "model", str(tmp_path / "own.toml"))
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.toml"]


def test_no_such_file():
    with pytest.raises(GptOssError, match=r"cannot read the recipe nothing\.toml"):
        recipe_named("nothing.toml")
