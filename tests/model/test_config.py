"""`config.json` is data from outside: what is wrong is said by the name of its field."""

import json

import pytest

from gptoss_mlx.model.config import ConfigError, ModelConfig, Quantization

PUBLISHED = {
    "model_type": "gpt_oss",
    "num_hidden_layers": 24,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 201088,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150000,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "max_position_embeddings": 131072,
    "swiglu_limit": 7.0,
}


def test_published_fields():
    config = ModelConfig.from_dict(PUBLISHED)
    assert config.layer_types == ("sliding_attention", "full_attention") * 12
    assert (config.rope.theta, config.rope.factor, config.rope.truncate) == (150000.0, 32.0, False)
    assert config.quantization_of("lm_head") is None


def test_newer_transformers_spelling_of_rope():
    fields = {name: value for name, value in PUBLISHED.items() if not name.startswith("rope_")}
    fields["rope_parameters"] = PUBLISHED["rope_scaling"] | {"rope_theta": 150000}
    assert ModelConfig.from_dict(fields) == ModelConfig.from_dict(PUBLISHED)


def test_quantization_overrides_by_module():
    entry = {"group_size": 64, "bits": 4, "lm_head": {"group_size": 64, "bits": 8}}
    entry["model.layers.0.mlp.experts.up_proj"] = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    config = ModelConfig.from_dict(PUBLISHED | {"quantization": entry})
    assert config.quantization_of("lm_head") == Quantization(64, 8)
    assert config.quantization_of("model.layers.0.mlp.experts.up_proj") == Quantization(32, 4, "mxfp4")
    assert config.quantization_of("model.embed_tokens") == Quantization(64, 4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "llama"),
        ("model_type", None),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 10**6),
        ("num_hidden_layers", True),
        ("hidden_size", "2880"),
        ("hidden_size", 2881),
        ("intermediate_size", 100),
        ("num_attention_heads", -1),
        ("num_key_value_heads", 7),
        ("head_dim", 63),
        ("vocab_size", 2**40),
        ("num_local_experts", None),
        ("num_experts_per_tok", 33),
        ("sliding_window", 12.5),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", float("nan")),
        ("swiglu_limit", float("inf")),
        ("layer_types", ["full_attention"]),
        ("layer_types", ["full_attention"] * 23 + ["chunked_attention"]),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "yarn"}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 0.5}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0, "truncate": "no"}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1.0, "beta_slow": 1.0}),
        ("rope_scaling", ["yarn"]),
        ("rope_theta", 0.5),
        ("quantization", 4),
        ("quantization", {"group_size": 64, "bits": 7}),
        ("quantization", {"group_size": 48, "bits": 4}),
        ("quantization", {"group_size": 64, "bits": 4, "mode": "mxfp4"}),
        ("quantization", {"group_size": 64, "bits": 4, "mode": "nvfp5"}),
    ],
)
def test_wrong_field_is_named(field, value):
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_dict(PUBLISHED | {field: value})
    assert field in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"model_type": ' * 100_000])
def test_file_that_is_no_object(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        ModelConfig.load(tmp_path)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="not a model folder"):
        ModelConfig.load(tmp_path)


def test_load(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    assert ModelConfig.load(tmp_path) == ModelConfig.from_dict(PUBLISHED)
