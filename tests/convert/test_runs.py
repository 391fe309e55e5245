"""Where tensors lie in converted files: those that a GPU reads in one product follow each other."""

import mlx.core as mx
import pytest

from checkpoints import config_of, write_checkpoint
from gptoss_convert import convert
from gptoss_convert.quantize import in_runs
from gptoss_convert.writer import Planned
from gptoss_mlx import device
from gptoss_mlx.model.recognition import open_converted
from gptoss_mlx.model.weights import PARTS, Weights


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("source"), config_of(num_hidden_layers=2), shards=2)


def weights_of(folder):
    config, checkpoint = open_converted(folder)
    return Weights(checkpoint, config, device.backend().dtype)


def joined_modules(config):
    """Of each layer: module -> its first dimension; and the others."""
    for layer in range(config.num_layers):
        path, counts = f"model.layers.{layer}", (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        heads = zip("qkv", counts, strict=True)
        yield {f"{path}.self_attn.{name}_proj": n * config.head_dim for name, n in heads}, [config.hidden_size]
        stacks = {f"{path}.mlp.experts.{name}_proj": config.num_experts for name in ("gate", "up")}
        yield stacks, [config.intermediate_size, config.hidden_size]


@pytest.mark.parametrize(("recipe", "limit"), [("mxfp4-q4", 2**32), ("q4", 80_000), ("mxfp4-bf16", 80_000)])
def test_joined_modules_are_one_view_of_one_file(source, tmp_path, recipe, limit):
    """However many files there are: a run is never divided."""
    convert(source, tmp_path / "model", recipe, shard_limit=limit)
    weights = weights_of(tmp_path / "model")
    assert (len(set(weights.checkpoint.file_of.values())) > 3) == (limit == 80_000)
    for sizes, rest in joined_modules(weights.config):
        matrix, bias = weights.joined(sizes, *rest)
        apart = [weights.matrix(module, size, *rest) for module, size in sizes.items()]
        for part in (part for part in PARTS if getattr(matrix, part) is not None):
            assert mx.array_equal(getattr(matrix, part), mx.concatenate([getattr(each, part) for each in apart]))
        biases = [weights.vector(f"{module}.bias", size, *rest[:-1]) for module, size in sizes.items()]
        assert mx.array_equal(bias, mx.concatenate(biases))


def test_in_another_order_they_are_not(source, tmp_path):
    """Sorted by name, as other programs save them: k, o, q, v."""
    convert(source, tmp_path / "model")
    for path in (tmp_path / "model").glob("*.safetensors"):
        mx.save_safetensors(str(path), dict(sorted(mx.load(str(path)).items())))
    weights = weights_of(tmp_path / "model")
    assert not any(weights.joined(sizes, *rest) for sizes, rest in joined_modules(weights.config))


def test_nor_in_other_forms(source, tmp_path):
    """A recipe may store q, k and v in forms of their own."""
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        """
        experts = "mxfp4"
        attention = { bits = 4, group_size = 64 }
        embedding = "bf16"
        head = "bf16"
        [modules]
        "*.k_proj" = "bf16"
        """
    )
    convert(source, tmp_path / "model", recipe)
    weights = weights_of(tmp_path / "model")
    (attention, rest), (experts, rest_of_experts), *_ = joined_modules(weights.config)
    assert weights.joined(attention, *rest) is None
    assert weights.joined(experts, *rest_of_experts) is not None


def test_a_run_begins_where_its_first_tensor_stands():
    names = [
        f"{module}.{part}" for module in ("a.q_proj", "a.o_proj", "a.v_proj", "a.k_proj") for part in ("weight", "bias")
    ]
    runs = in_runs([Planned(name, "BF16", (2, 2)) for name in ["norm.weight", *names]])
    assert [[tensor.name for tensor in run] for run in runs] == [
        ["norm.weight"],
        ["a.q_proj.weight", "a.k_proj.weight", "a.v_proj.weight"],
        ["a.q_proj.bias", "a.k_proj.bias", "a.v_proj.bias"],
        ["a.o_proj.weight"],
        ["a.o_proj.bias"],
    ]
