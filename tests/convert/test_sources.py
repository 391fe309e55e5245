"""The layouts of a source: the same model, however it was saved, becomes the same folder."""

import json
import re
from functools import cache

import mlx.core as mx
import numpy as np
import pytest

import gptoss_mlx
from checkpoints import config_of, tensors_of, write_checkpoint, write_safetensors, write_tokenizer
from golden.make_logits import dequantized
from gptoss_convert import convert
from gptoss_convert.layouts import _ORIGINAL_NAMES
from gptoss_convert.mxfp4 import quantized
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.model.checkpoint import Checkpoint

CONFIG = config_of()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    write_checkpoint(root / "source", CONFIG)
    convert(root / "source", root / "model")
    return root / "model"


def original_tensors():
    """What the published tensors are called in `original/`, q, k and v in one."""
    tensors, published_name = {}, {published: original for original, published in _ORIGINAL_NAMES.items()}
    for name, (array, dtype) in tensors_of(CONFIG).items():
        layer, _, rest = name.removeprefix("model.layers.").partition(".")
        if not name.startswith("model.layers."):
            tensors[published_name[name]] = array, dtype
        elif rest.startswith(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")):
            tensors.setdefault(f"block.{layer}.attn.qkv.{rest.rpartition('.')[2]}", []).append(array)
        else:
            tensors[f"block.{layer}.{published_name[rest]}"] = array, dtype
    return {name: (np.concatenate(v), "BF16") if isinstance(v, list) else v for name, v in tensors.items()}


def original_folder(folder):
    """As in the published repositories: the tokenizer lies above."""
    (folder / "original").mkdir(parents=True)
    write_safetensors(folder / "original" / "model.safetensors", original_tensors())
    rope = CONFIG["rope_scaling"]
    config = {
        "num_hidden_layers": 4,
        "num_experts": 8,
        "experts_per_token": 4,
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 64,
        "swiglu_limit": 7.0,
        "head_dim": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 128,
        "initial_context_length": 4096,
        "rope_theta": 150000,
        "rope_scaling_factor": rope["factor"],
        "rope_ntk_alpha": 1,
        "rope_ntk_beta": 32,
    }
    (folder / "original" / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder / "original"


def bf16_folder(folder, change=lambda name, values: values):
    """As a fine-tune is saved: experts in BF16, inputs first."""
    folder.mkdir(parents=True)
    published = tensors_of(CONFIG)
    tensors = {name: v for name, v in published.items() if not name.endswith(("_blocks", "_scales"))}
    for name, values in dequantized(published).items():
        if name.endswith(("gate_up_proj", "down_proj")):
            bits = mx.array(change(name, values)).astype(mx.bfloat16).view(mx.uint16)
            tensors[name] = np.array(bits), "BF16"
    write_safetensors(folder / "model.safetensors", tensors)
    config = {name: value for name, value in CONFIG.items() if name != "quantization_config"}
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


def same_tensors(one, two):
    one, two = Checkpoint.open(one), Checkpoint.open(two)
    assert one.tensors.keys() == two.tensors.keys()
    return all(np.array_equal(one.view(name), two.view(name)) for name in one.tensors)


def test_original(published, tmp_path):
    convert(original_folder(tmp_path / "source"), tmp_path / "model")
    assert same_tensors(tmp_path / "model", published)
    assert (tmp_path / "model" / "tokenizer.json").is_file()
    ids = mx.array([[i % 250 for i in range(150)]])
    assert mx.array_equal(gptoss_mlx.load(tmp_path / "model")(ids), gptoss_mlx.load(published)(ids))


def test_mlx_lm_loads_what_came_from_original(tmp_path):
    from mlx_lm.utils import load_model

    convert(original_folder(tmp_path / "source"), tmp_path / "model")
    model, _ = load_model(tmp_path / "model")
    assert model(mx.array([[1, 2, 3]])).shape == (1, 3, CONFIG["vocab_size"])


def test_bf16_fine_tunes(published, tmp_path):
    """Of values that come from MXFP4 nothing is lost; a code may be written with another scale."""
    convert(bf16_folder(tmp_path / "source"), tmp_path / "model")
    one, two = Checkpoint.open(tmp_path / "model"), Checkpoint.open(published)
    assert one.tensors.keys() == two.tensors.keys()
    for name in one.tensors:
        if ".experts." not in name or name.endswith(".bias"):
            assert np.array_equal(one.view(name), two.view(name))
        elif name.endswith(".weight"):
            scales = name.replace(".weight", ".scales")
            values = [
                mx.dequantize(c.array(name), c.array(scales), group_size=32, bits=4, mode="mxfp4") for c in (one, two)
            ]
            assert mx.array_equal(*values)


def renamed(folder, rename, tensors=None):
    """The same checkpoint with other names, in one file."""
    write_checkpoint(folder, CONFIG)
    for path in folder.glob("model*"):
        path.unlink()
    tensors = tensors or tensors_of(CONFIG)
    write_safetensors(folder / "model.safetensors", {rename(name): value for name, value in tensors.items()})
    return folder


def after(prefix):
    return lambda name: prefix + name


RENAMED = {
    "torch.compile": after("_orig_mod."),
    "torch.compile of each layer": lambda name: re.sub(r"(layers\.\d+)", r"\1._orig_mod", name),
    "DDP": after("module."),
    "FSDP": lambda name: "_fsdp_wrapped_module." + re.sub(r"(layers\.\d+)", r"\1._fsdp_wrapped_module", name),
    "activation checkpoints": lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
    "PEFT": after("base_model.model."),
    "all of them": after("module._orig_mod.base_model.model."),
    "one module more": lambda name: name.replace("model.", "model.model.", 1),
    "a part of a larger model": after("language_model."),
    "a part of a larger model, as in transformers 5": lambda name: name.replace("model.", "model.language_model.", 1),
    "without a head around": lambda name: name.removeprefix("model."),
    "suffixes after another": lambda name: re.sub("_(blocks|scales)$", r"_blocks_\1", name),
    "suffixes twice": lambda name: re.sub("_(blocks|scales|bias)$", r"_\1_\1", name),
    "a router in a router": lambda name: name.replace(".router.", ".router.linear."),
}


@pytest.mark.parametrize("case", RENAMED)
def test_names_with_what_training_tools_put_there(published, tmp_path, case):
    convert(renamed(tmp_path / "source", RENAMED[case]), tmp_path / "model")
    assert same_tensors(tmp_path / "model", published)


def test_one_tensor_by_two_names_is_refused(tmp_path):
    tensors = tensors_of(CONFIG)
    source = renamed(
        tmp_path / "source", lambda name: name, tensors | {"module.lm_head.weight": tensors["lm_head.weight"]}
    )
    with pytest.raises(GptOssError, match=r"the same tensor twice: 'lm_head\.weight' and 'module\.lm_head"):
        convert(source, tmp_path / "model")


def linear(stack):
    """transformers multiplies by experts from the right; a linear layer has its outputs first."""
    return stack.swapaxes(1, 2) if stack.ndim == 3 else stack


def fused(part):
    return {"gate_up_proj": linear} if part == "gate_up" else {"down_proj": linear}


def split(part):
    if part == "down":
        return {"down_proj": linear}
    return {"gate_proj": lambda stack: linear(stack)[:, ::2], "up_proj": lambda stack: linear(stack)[:, 1::2]}


APART = {
    "a linear layer each": (fused, "{path}.{expert}.{name}.{kind}"),
    "Unsloth's": (fused, "{path}.{name}s.{expert}.{kind}"),
    "gate and up apart": (split, "{path}.{expert}.{name}.{kind}"),
    "LLM Compressor's": (split, "{path}.experts.{expert}.{name}.{kind}"),
    "trained with PEFT": (split, "base_model.model.{path}.{expert}.{name}.{kind}"),
}


def apart(tensors, parts_of, form):
    found = {}
    for name, (array, dtype) in tensors.items():
        if not (stack := re.fullmatch(r"(.*\.experts)\.(gate_up|down)_proj(_bias)?", name)):
            found[name] = array, dtype
            continue
        for part, cut in parts_of(stack[2]).items():
            for expert, values in enumerate(cut(array)):
                kind = "bias" if stack[3] else "weight"
                found[form.format(path=stack[1], expert=expert, name=part, kind=kind)] = values, dtype
    return found


@pytest.fixture(scope="module")
def fine_tune(tmp_path_factory):
    """Experts in BF16 that are not MXFP4's values, and what a recipe makes of them."""
    root, random = tmp_path_factory.mktemp("fine-tune"), np.random.RandomState(5)
    whole = bf16_folder(root / "whole", lambda _, v: v * (1 + 0.01 * random.standard_normal(v.shape)))

    @cache
    def converted(recipe):
        convert(whole, root / recipe, recipe)
        return root / recipe

    return whole, converted


@pytest.mark.parametrize("recipe", ["mxfp4-q4", "mxfp4-bf16", "q4"])
@pytest.mark.parametrize("case", APART)
def test_experts_apart(fine_tune, tmp_path, case, recipe):
    """The same bytes as of the same weights in stacks."""
    whole, converted = fine_tune
    checkpoint = Checkpoint.open(whole)
    tensors = {name: (checkpoint.view(name), tensor.dtype) for name, tensor in checkpoint.tensors.items()}
    source = renamed(tmp_path / "source", lambda name: name, apart(tensors, *APART[case]))
    convert(source, tmp_path / "model", recipe)
    assert same_tensors(tmp_path / "model", converted(recipe))


def test_experts_apart_are_all_there(tmp_path):
    source = tmp_path / "source"
    checkpoint = Checkpoint.open(bf16_folder(tmp_path / "whole"))
    tensors = {name: (checkpoint.view(name), tensor.dtype) for name, tensor in checkpoint.tensors.items()}
    tensors = apart(tensors, *APART["Unsloth's"])
    lost = tensors.pop("model.layers.2.mlp.experts.down_projs.7.bias")
    renamed(source, lambda name: name, tensors)
    with pytest.raises(GptOssError, match=r"lacks model\.layers\.2\.mlp\.experts\.7\.down_proj\.bias"):
        convert(source, tmp_path / "model")
    name = "model.layers.2.mlp.experts.gate_up_projs.7.weight"
    turned = tensors[name][0].T.copy(), "BF16"
    renamed(source, lambda name: name, tensors | {"model.layers.2.mlp.experts.down_projs.7.bias": lost, name: turned})
    with pytest.raises(GptOssError, match=r"gate_up_projs\.7\.weight' is \[64, 128\], and .* for \[128, 64\]"):
        convert(source, tmp_path / "model")


@pytest.mark.parametrize("recipe", ["mxfp4-q8", "q4"])
def test_bf16_fine_tunes_in_other_recipes(tmp_path, recipe):
    random = np.random.RandomState(5)
    source = bf16_folder(tmp_path / "source", lambda _, v: v * (1 + 0.01 * random.standard_normal(v.shape)))
    convert(source, tmp_path / "model", recipe)
    assert gptoss_mlx.load(tmp_path / "model")(mx.array([[1, 2, 3]])).shape == (1, 3, 320)


def test_our_mxfp4_is_nearer_than_mlx():
    mx.random.seed(3)
    values = (mx.random.normal((64, 2880)) * mx.exp(mx.random.normal((64, 1)))).astype(mx.bfloat16)

    def error(weight, scales):
        form = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
        return mx.linalg.norm(mx.dequantize(mx.array(weight), mx.array(scales), dtype=mx.float32, **form) - values)

    ours = error(*quantized(np.array(values.astype(mx.float32))))
    theirs = error(*mx.quantize(values, group_size=32, bits=4, mode="mxfp4"))
    assert ours < 0.98 * theirs


@pytest.mark.parametrize("scale", [0.0, 1e-36, 1e-30, 1e17])
def test_mxfp4_of_extremes(scale):
    values = (mx.linspace(-1, 1, 32) * scale).astype(mx.bfloat16)[None]
    weight, scales = quantized(np.array(values.astype(mx.float32)))
    stored = mx.dequantize(mx.array(weight), mx.array(scales), group_size=32, bits=4, mode="mxfp4", dtype=mx.float32)
    assert mx.isfinite(stored).all()
    assert (mx.abs(stored - values) <= 0.2 * mx.abs(values).max()).all()


def test_a_mixture_of_layouts_is_refused(tmp_path):
    folder = bf16_folder(tmp_path / "source")
    tensors = {name: (array, dtype) for name, (array, dtype) in tensors_of(CONFIG).items() if "_proj_" not in name}
    tensors |= {"block.0.attn.qkv.weight": (np.zeros((512, 64), np.uint16), "BF16")}
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(GptOssError, match="in the original layout: it lacks"):
        convert(folder, tmp_path / "model")


@pytest.mark.parametrize("value", [np.nan, -np.inf, 2.0**60])
def test_a_fine_tune_with_values_that_are_no_weights_is_refused(tmp_path, value):
    def broken(name, values):
        values = values.copy()
        values[0, 0, 0] = value
        return values

    source = bf16_folder(tmp_path / "source", broken)
    with pytest.raises(GptOssError, match="not a number"):
        convert(source, tmp_path / "model")
    assert not (tmp_path / "model").exists()
