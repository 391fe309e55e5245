"""A source's config.json in other spellings than the published one: MLX-LM computes the same from what is converted."""

import json

import mlx.core as mx
import numpy as np
import pytest

from checkpoints import config_of, tensors_of, write_checkpoint, write_safetensors
from gptoss_convert import RECIPES, convert
from gptoss_mlx import kernels
from gptoss_mlx.engine import generate
from gptoss_mlx.model.config import ConfigError, ModelConfig
from mlx_lm_oracle import mlx_lm_model

from .parameters import with_slow
from .test_sources import bf16_folder, original_folder

CONFIG = config_of(num_hidden_layers=3, initial_context_length=4096)
IDS = mx.array([np.random.RandomState(8).randint(0, 250, 132).tolist()])
SCALING = CONFIG["rope_scaling"]
THETA = {"rope_theta": 150000.0}


def without(*names, **changes):
    return {name: value for name, value in CONFIG.items() if name not in names} | changes


NO_ROPE = without("rope_theta", "rope_scaling", "torch_dtype", dtype="bfloat16")
# As transformers 5 saves it, and in all other ways in which the same can be said.
SPELLINGS = {
    "transformers 5": NO_ROPE | {"rope_parameters": SCALING | THETA},
    "transformers 5 with nulls": NO_ROPE
    | {"rope_scaling": None, "rope_theta": None}
    | {"rope_parameters": SCALING | THETA | {"attention_factor": None, "mscale": None, "partial_rotary_factor": None}},
    "theta beside rope_parameters": NO_ROPE | THETA | {"rope_parameters": SCALING},
    "an entry for each kind of layer": NO_ROPE
    | {"rope_parameters": dict.fromkeys(["full_attention", "sliding_attention"], SCALING | THETA)},
    "theta within rope_scaling": without("rope_theta", rope_scaling=SCALING | THETA),
    "type for rope_type": without("rope_scaling")
    | {"rope_scaling": {"type": "yarn"} | {name: v for name, v in SCALING.items() if name != "rope_type"}},
    "the usual attention factor": without(rope_scaling=SCALING | {"attention_factor": 1.3465735902799727}),
    "no betas, no original context": without(rope_scaling={"rope_type": "yarn", "factor": 32.0}),
    "nothing about rope": NO_ROPE,
    "the original's names": without("num_local_experts", "num_experts_per_tok", num_experts=8, experts_per_token=4),
    "no kinds of layers, an odd number of them": without("layer_types"),
    "nothing that is as usual": without(
        "layer_types", "head_dim", "sliding_window", "rms_norm_eps", "swiglu_limit", "num_experts_per_tok"
    )
    | {"experts_per_token": 4},
    "another dtype": without(torch_dtype="float32"),
    "what another program wrote": without(
        quantization={"group_size": 64, "bits": 2}, quantize_activations=True, model_file="model.py", text_config={}
    ),
}
LIKE_OTHERS = (
    "transformers 5 with nulls",
    "theta beside rope_parameters",
    "theta within rope_scaling",
    "the usual attention factor",
    "no betas, no original context",
    "nothing about rope",
    "another dtype",
)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    write_checkpoint(root / "source", CONFIG)
    convert(root / "source", root / "model", "mxfp4-bf16")
    return root


@pytest.fixture(scope="module")
def right(published):
    return logits_in_mlx_lm(published / "model")


def config_in(folder):
    return json.loads((folder / "config.json").read_text())


def logits_in_mlx_lm(folder):
    return np.array(mlx_lm_model(folder)(IDS)[0])


def logits_here(folder):
    with kernels.off():
        return np.array(generate.load(folder)(IDS)[0])


def assert_close(got, right):
    assert np.abs(got - right).max() < 1e-4 * np.abs(right).max()


@pytest.mark.parametrize("spelling", with_slow(SPELLINGS, LIKE_OTHERS))
def test_every_spelling_is_the_same_model(published, right, tmp_path, spelling):
    source = write_checkpoint(tmp_path / "source", CONFIG)
    (source / "config.json").write_text(json.dumps(SPELLINGS[spelling]))
    convert(source, tmp_path / "model", "mxfp4-bf16")
    assert_close(logits_in_mlx_lm(tmp_path / "model"), right)
    # Also where a folder that MLX-LM runs has this config.json.
    config = config_in(tmp_path / "model")
    spelled = {name: v for name, v in SPELLINGS[spelling].items() if "quantization" not in name}
    (tmp_path / "model" / "config.json").write_text(json.dumps(spelled | {"quantization": config["quantization"]}))
    assert_close(logits_here(tmp_path / "model"), right)


@pytest.mark.parametrize("recipe", with_slow(RECIPES, ("mxfp4-q8", "mxfp4-q4-small", "mxfp4-mixed")))
def test_every_recipe(published, tmp_path, recipe):
    """The bytes are those of the published spelling, and MLX-LM agrees with us on what they compute."""
    source = write_checkpoint(tmp_path / "source", CONFIG)
    convert(source, tmp_path / "right", recipe)
    (source / "config.json").write_text(json.dumps(SPELLINGS["transformers 5"]))
    convert(source, tmp_path / "model", recipe)
    for path in (tmp_path / "right").glob("*.safetensors"):
        assert (tmp_path / "model" / path.name).read_bytes() == path.read_bytes()
    assert config_in(tmp_path / "model") == config_in(tmp_path / "right")
    assert_close(logits_in_mlx_lm(tmp_path / "model"), logits_here(tmp_path / "model"))


def bf16_of_transformers_5(folder):
    bf16_folder(folder)
    config = config_in(folder)
    scaling, theta = config.pop("rope_scaling"), config.pop("rope_theta")
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": scaling | {"rope_theta": theta}}))
    return folder


@pytest.mark.parametrize("layout", [original_folder, bf16_folder, bf16_of_transformers_5])
def test_every_layout(tmp_path, layout):
    convert(layout(tmp_path / "source"), tmp_path / "model", "mxfp4-bf16")
    write_checkpoint(tmp_path / "published", config_of())
    convert(tmp_path / "published", tmp_path / "right", "mxfp4-bf16")
    assert_close(logits_in_mlx_lm(tmp_path / "model"), logits_in_mlx_lm(tmp_path / "right"))


def test_plain_rotary_embedding_stays_plain(published, right, tmp_path):
    source = write_checkpoint(tmp_path / "source", CONFIG)
    (source / "config.json").write_text(json.dumps(NO_ROPE | {"rope_parameters": {"rope_type": "default"} | THETA}))
    convert(source, tmp_path / "model", "mxfp4-bf16")
    theirs = logits_in_mlx_lm(tmp_path / "model")
    assert_close(logits_here(tmp_path / "model"), theirs)
    assert np.abs(theirs - right).max() > 0.01 * np.abs(right).max()


def test_a_head_that_is_the_embedding(tmp_path):
    """As transformers saves tied weights: once."""
    config = without(tie_word_embeddings=True)
    tensors = tensors_of(config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    for name in ("tied", "apart"):
        source = write_checkpoint(tmp_path / name, config, shards=1)
        kept = {key: value for key, value in tensors.items() if name == "apart" or key != "lm_head.weight"}
        (source / "model.safetensors.index.json").unlink()
        next(source.glob("*.safetensors")).unlink()
        write_safetensors(source / "model.safetensors", kept)
        convert(source, tmp_path / f"{name}-model", "mxfp4-bf16")
    assert config_in(tmp_path / "tied-model")["tie_word_embeddings"] is False
    assert_close(logits_in_mlx_lm(tmp_path / "tied-model"), logits_in_mlx_lm(tmp_path / "apart-model"))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_is_written_is_what_was_read(spelling):
    """But for how weights are stored, which is no part of it."""
    config = ModelConfig.from_dict({name: v for name, v in SPELLINGS[spelling].items() if "quantization" not in name})
    assert ModelConfig.from_dict(json.loads(json.dumps(config.published()))) == config


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rope_scaling": SCALING | {"attention_factor": 1.0}}, "attention factor"),
        ({"rope_scaling": SCALING | {"mscale": 1.0, "mscale_all_dim": 1.0}}, "attention factor"),
        ({"rope_scaling": SCALING | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (
            {"rope_scaling": {"full_attention": SCALING, "sliding_attention": {"rope_type": "default"}}},
            "types of layers",
        ),
        ({"rope_scaling": {"full_attention": None}}, "types of layers"),
        ({"swiglu_alpha": 1.0}, "swiglu_alpha"),
    ],
)
def test_what_this_program_would_compute_otherwise_is_refused(changes, field):
    with pytest.raises(ConfigError, match=field):
        ModelConfig.from_dict(CONFIG | changes)
