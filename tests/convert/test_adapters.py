"""LoRA adapters: what PEFT and MLX-LM save merges as they merge it, and whatever does not fit is refused by name."""

import hashlib
import json
import re
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from checkpoints import config_of, write_checkpoint, write_safetensors
from golden.make_adapters import CASES, CONFIG, GOLDEN, SEED
from gptoss_convert import convert, peft_adapters
from gptoss_convert.adapters import open_adapter
from gptoss_convert.canonical_weights import Plain, Rows
from gptoss_convert.lora import Adapter
from gptoss_convert.sources import Source
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.model.checkpoint import Checkpoint, Shard
from gptoss_mlx.model.config import ModelConfig

PEFT, MLX = "adapter_model.safetensors", "adapters.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    return Source(write_checkpoint(tmp_path_factory.mktemp("source"), CONFIG, SEED))


def tensors_in(path: Path) -> dict[str, tuple[np.ndarray, str]]:
    shard = Shard(path)
    checkpoint = Checkpoint(dict.fromkeys(shard.header.tensors, shard), path.parent)
    return {name: (checkpoint.view(name).copy(), tensor.dtype) for name, tensor in checkpoint.tensors.items()}


def canonical(merged: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """transformers' weights under their canonical names: experts outputs first, gate and up apart."""
    weights = {}
    for name, values in merged.items():
        stack = values.swapaxes(1, 2) if values.ndim == 3 else values
        if name.endswith("gate_up_proj"):
            weights[name.replace("gate_up", "gate")], weights[name.replace("gate_up", "up")] = (
                stack[:, ::2],
                stack[:, 1::2],
            )
        else:
            weights[name.removesuffix(".weight")] = stack
    return weights


@pytest.mark.parametrize("case", CASES)
def test_peft_adapters_merge_as_peft_merges_them(source, case):
    adapter = open_adapter(GOLDEN / case, source.config)
    wanted = canonical({name: array for name, (array, _) in tensors_in(GOLDEN / case / "merged.safetensors").items()})
    assert set(adapter.modules) == wanted.keys()
    for item in source.weights():
        assert adapter.changes(item) == (item.module in wanted)
        if adapter.changes(item):
            parts = [adapter.merged(item, rows) for rows in (slice(0, 1), slice(1, None))]
            assert all(part.dtype == np.float32 for part in parts)
            assert np.abs(np.concatenate(parts) - wanted[item.module]).max() < 2e-6


KEYS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.experts.{name}_proj" for name in ("gate", "up", "down")]
KEYS += ["mlp.router", "model.embed_tokens", "lm_head"]


@pytest.fixture(scope="module")
def mlx_adapter(source, tmp_path_factory):
    """What MLX-LM's trainer saves, and the weights that MLX-LM fuses it into, float32."""
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model, save_config

    root = tmp_path_factory.mktemp("mlx")
    convert(source.folder, root / "model", "mxfp4-bf16")
    model, _ = load_model(root / "model")
    model.freeze()
    settings = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 3, "scale": 0.7, "dropout": 0.0}}
    settings["lora_parameters"]["keys"] = KEYS
    linear_to_lora_layers(model, settings["num_layers"], settings["lora_parameters"])
    random = np.random.RandomState(3)
    trained = {name: random.standard_normal(v.shape) / 4 for name, v in tree_flatten(model.trainable_parameters())}
    model.load_weights([(name, mx.array(values, mx.float32)) for name, values in trained.items()], strict=False)
    (root / "adapter").mkdir()
    mx.save_safetensors(str(root / "adapter" / MLX), dict(tree_flatten(model.trainable_parameters())))
    save_config(dict(settings), root / "adapter" / "adapter_config.json")

    fused = {name: module.fuse(dequantize=True) for name, module in model.named_modules() if hasattr(module, "fuse")}
    return root / "adapter", {name: np.array(m.weight.astype(mx.float32)) for name, m in fused.items()}


def test_mlx_lm_adapters_merge_as_mlx_lm_fuses_them(source, mlx_adapter):
    """MLX-LM rounds the change and the sum to BF16, each to 8 bits."""
    folder, fused = mlx_adapter
    adapter = open_adapter(folder, source.config)
    assert set(adapter.modules) == fused.keys()
    assert len(fused) == len(KEYS)
    for item in source.weights():
        if adapter.changes(item):
            merged, before = adapter.merged(item, slice(None)), item.as_f32(slice(None))
            rounding = (np.abs(merged - before) + np.abs(merged)) * 2**-8
            assert (np.abs(merged - fused[item.module]) <= rounding).all(), item.module
            assert np.abs(merged - before).max() > 0.2


def test_it_says_what_it_was_made_from(source):
    files = ("adapter_config.json", PEFT)
    wanted = {name: hashlib.sha256((GOLDEN / "experts" / name).read_bytes()).hexdigest() for name in files}
    assert open_adapter(GOLDEN / "experts", source.config).sha256 == wanted


def test_only_the_experts_asked_for_are_in_memory(tmp_path):
    config = ModelConfig.from_dict(
        config_of(num_hidden_layers=1, hidden_size=512, intermediate_size=512, num_local_experts=16)
    )
    module, ones = "model.layers.0.mlp.experts.down_proj", np.ones((16, 512, 512), np.uint16)
    tensors = {"a": np.ones((16, 8, 512), np.float32), "b": np.ones((16, 512, 8), np.float32)}
    write_safetensors(tmp_path / MLX, {f"{module}.lora_{half}": (array, "F32") for half, array in tensors.items()})
    (tmp_path / "adapter_config.json").write_text('{"lora_parameters": {"rank": 8, "scale": 0.5}}')
    adapter = open_adapter(tmp_path, config)
    tracemalloc.start()
    item = Plain(f"{module}.weight", Rows(ones.shape, lambda start, stop: ones[start:stop]))
    merged = adapter.merged(item, slice(4, 8))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert merged.shape == (4, 512, 512)
    assert np.allclose(merged, 4)
    assert peak < 2.2 * merged.nbytes


def changed(folder: Path, case: str, tensors=lambda tensors: None, **settings) -> Path:
    """A golden adapter with `tensors(name -> (array, dtype))` applied, and other settings."""
    folder.mkdir()
    held = tensors_in(GOLDEN / case / PEFT)
    tensors(held)
    write_safetensors(folder / PEFT, held)
    wanted = json.loads((GOLDEN / case / "adapter_config.json").read_text()) | settings
    (folder / "adapter_config.json").write_text(json.dumps(wanted))
    return folder


def assert_refused(folder: Path, config: ModelConfig, *parts: str) -> None:
    with pytest.raises(GptOssError) as error:
        open_adapter(folder, config)
    for part in (str(folder), *parts):
        assert part in str(error.value), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("peft_type", "LOHA"),
        ("peft_type", None),
        ("use_dora", True),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("init_lora_weights", "pissa"),
        ("fan_in_fan_out", True),
        ("trainable_token_indices", {"embed_tokens": [1]}),
        ("alora_invocation_tokens", [1, 2]),
        ("use_qalora", True),
        ("r", 0),
        ("r", "4"),
        ("r", True),
        ("r", 2**40),
        ("lora_alpha", None),
        ("lora_alpha", 10**30),
        ("alpha_pattern", {"q_proj": "a"}),
        ("alpha_pattern", {"(a+": 1}),
        ("rank_pattern", {"q_proj": 5, "(?P<a>x)(?P<a>y)": 1}),
        ("alpha_pattern", [1]),
        ("rank_pattern", {"q_proj": 5}),
    ],
)
def test_settings_that_are_not_plain_lora(source, tmp_path, name, value):
    named = {"alpha_pattern": ("lora_alpha", "alpha_pattern"), "rank_pattern": ("lora_A", "rank_pattern")}
    named = named.get(name, (name,))
    folder = changed(tmp_path / "adapter", "attention", **{name: value})
    with pytest.raises(GptOssError) as error:
        open_adapter(folder, source.config)
    assert any(part in str(error.value) for part in named), str(error.value)
    assert "\n" not in str(error.value)


def test_a_pattern_that_never_ends(source, tmp_path, monkeypatch):
    monkeypatch.setattr(peft_adapters, "MAX_MATCH_SECONDS", 0.3)
    folder = changed(tmp_path / "adapter", "attention", alpha_pattern={r"([a-z0-9_.]+)+!": 1})
    assert_refused(folder, source.config, "alpha_pattern", "takes too long")


def merged_by(adapter: Adapter, source: Source) -> dict[str, np.ndarray]:
    return {
        item.module: adapter.merged(item, slice(None)) for item in source.weights() if item.module in adapter.modules
    }


ADAPTER_NAMES = {
    "attention": lambda name: name.replace(".weight", ".default.weight"),
    "experts": lambda name: name.replace(".weight", ".my_adapter.weight"),
    "experts_apart": lambda name: name.replace(".weight", ".default.weight"),
    "patterns": lambda name: re.sub(
        r"(_embedding_[AB])$", r"\1.default", re.sub(r"(lora_[AB])\.weight", r"\1.default.weight", name)
    ),
}


@pytest.mark.parametrize("case", ADAPTER_NAMES)
def test_tensors_whose_names_hold_the_adapters_name(source, tmp_path, case):
    def rename(tensors):
        for name in list(tensors):
            tensors[ADAPTER_NAMES[case](name)] = tensors.pop(name)
        assert any("default" in name or "my_adapter" in name for name in tensors)

    merged = merged_by(open_adapter(changed(tmp_path / "adapter", case, rename), source.config), source)
    wanted = merged_by(open_adapter(GOLDEN / case, source.config), source)
    assert merged.keys() == wanted.keys()
    assert all(np.array_equal(merged[module], wanted[module]) for module in wanted)


def test_several_adapters_in_one(source, tmp_path):
    def rename(tensors):
        for number, name in enumerate(list(tensors)):
            tensors[name.replace(".weight", f".adapter{number % 2}.weight")] = tensors.pop(name)

    folder = changed(tmp_path / "adapter", "attention", rename)
    assert_refused(folder, source.config, "several adapters: adapter0, adapter1")


def tinkers(folder: Path, config: ModelConfig, **changes) -> tuple[Path, dict[str, np.ndarray]]:
    """An adapter as Tinker saves one: the outer half of the experts is one for all; and what it adds, by module."""
    folder.mkdir()
    random, rank, scale = np.random.RandomState(4), 3, 7 / 5
    hidden, inner, experts = config.hidden_size, config.intermediate_size, config.num_experts
    queries = config.num_heads * config.head_dim
    tensors, added = {}, {}
    shapes = {
        "model.layers.0.attn.q_proj": ("model.layers.0.self_attn.q_proj", (rank, hidden), (queries, rank)),
        "model.layers.1.attn.o_proj": ("model.layers.1.self_attn.o_proj", (rank, queries), (hidden, rank)),
        "model.unembed_tokens": ("lm_head", (2 * rank, hidden), (config.vocab_size, 2 * rank)),
    }
    for name, path, a, b in (
        ("w1", "gate_proj", (1, rank, hidden), (experts, inner, rank)),
        ("w3", "up_proj", (1, rank, hidden), (experts, inner, rank)),
        ("w2", "down_proj", (experts, rank, inner), (1, hidden, rank)),
    ):
        shapes[f"model.layers.1.mlp.experts.{name}"] = (f"model.layers.1.mlp.experts.{path}", a, b)
    for name, (module, *sides) in shapes.items():
        a, b = (random.standard_normal(shape).astype(np.float32) / 4 for shape in sides)
        tensors |= {f"base_model.model.{name}.lora_A.weight": (a, "F32")}
        tensors |= {f"base_model.model.{name}.lora_B.weight": (b, "F32")}
        added[module] = scale * b @ a
    write_safetensors(folder / PEFT, tensors | changes)
    (folder / "adapter_config.json").write_text('{"lora_alpha": 7, "r": 5}')
    return folder, added


def test_adapters_of_tinker(source, tmp_path):
    """Which of w1 and w3 is the gate, and that the scale is lora_alpha / r, is as Tinker's own merge has it."""
    folder, added = tinkers(tmp_path / "adapter", source.config)
    adapter = open_adapter(folder, source.config)
    assert set(adapter.modules) == added.keys()
    for item in source.weights():
        if item.module in added:
            merged = np.concatenate([adapter.merged(item, rows) for rows in (slice(0, 1), slice(1, None))])
            assert np.abs(merged - item.as_f32(slice(None)) - added[item.module]).max() < 2e-6
    short = np.zeros((3, 32, 3), np.float32), "F32"
    name = "base_model.model.model.layers.1.mlp.experts.w1.lora_B.weight"
    assert_refused(tinkers(tmp_path / "short", source.config, **{name: short})[0], source.config, name, "[3, 32, 3]")
    other = replace(source.config, hidden_size=64)
    assert_refused(tinkers(tmp_path / "other", source.config)[0], other, "attn.q_proj.lora_A.weight", "[3, 64]")


@pytest.mark.parametrize("value", [float("nan"), 10**400])
def test_settings_that_are_no_numbers(source, tmp_path, value):
    folder = changed(tmp_path / "adapter", "attention", lora_alpha=value)
    with pytest.raises(GptOssError, match=r"cannot read .*adapter_config\.json: .*number"):
        open_adapter(folder, source.config)


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"
EXPERTS = "base_model.model.model.layers.1.mlp.experts"


def test_tensors_that_do_not_fit(source, tmp_path):
    def refused(number, case, change, *parts, **settings):
        assert_refused(changed(tmp_path / f"{number}", case, change, **settings), source.config, *parts)

    def rename(old, new):
        return lambda tensors: tensors.update({new: tensors.pop(old)})

    def put(name, value):
        return lambda tensors: tensors[name][0].__setitem__((0, 0), value)

    refused(1, "attention", lambda t: t.pop(f"{Q_PROJ}.lora_B.weight"), f"{Q_PROJ}.lora_B.weight", "incomplete")
    refused(2, "attention", lambda t: t.pop(f"{Q_PROJ}.lora_A.weight"), f"{Q_PROJ}.lora_A.weight", "incomplete")
    magnitude = f"{Q_PROJ}.lora_magnitude_vector"
    refused(3, "attention", lambda t: t.update({magnitude: (np.ones(4, np.float32), "F32")}), magnitude)
    bare = f"{Q_PROJ.removeprefix('base_model.')}.lora_A.weight"
    refused(4, "attention", rename(f"{Q_PROJ}.lora_A.weight", bare), bare, "not a tensor of a plain LoRA adapter")
    refused(5, "attention", put(f"{Q_PROJ}.lora_A.weight", np.nan), f"{Q_PROJ}.lora_A.weight", "not a number")
    refused(6, "patterns", put(f"{Q_PROJ.replace('.q', '.k')}.lora_B.weight", np.inf), "k_proj", "not a number")
    refused(7, "experts", put(f"{EXPERTS}.lora_B.weight", 0x7F80), f"{EXPERTS}.lora_B.weight", "not a number")
    whole = {f"{Q_PROJ}.lora_A.weight": (np.zeros((4, 32), np.uint32), "U32")}
    refused(8, "attention", lambda t: t.update(whole), f"{Q_PROJ}.lora_A.weight", "U32")
    turned = {f"{Q_PROJ}.lora_A.weight": (np.zeros((32, 4), np.float32), "F32")}
    refused(9, "attention", lambda t: t.update(turned), f"{Q_PROJ}.lora_A.weight", "[32, 4]", "[4, 32]")
    refused(10, "attention", lambda t: t.clear(), "no tensors")

    def another_gate_up(tensors):
        for half in ("A", "B"):
            tensors[f"{EXPERTS}.lora_{half}.weight"] = tensors[f"{EXPERTS}.base_layer.lora_{half}.weight"]

    refused(11, "experts", another_gate_up, EXPERTS, "a second time")

    def expert_of_a_larger_model(tensors):
        for half in ("A", "B"):
            name = f"{EXPERTS}.gate_up_projs.1.lora_{half}.weight"
            tensors[name.replace(".1.lora", ".2.lora")] = tensors.pop(name)

    refused(12, "experts_apart", expert_of_a_larger_model, f"{EXPERTS}.gate_up_projs.2", "another model")
    refused(13, "experts", lambda t: t, "lora_A.weight", "[6, 32]", r=4)
    refused(14, "patterns", lambda t: [t.pop(name) for name in list(t) if "lm_head.lora" in name], "lm_head.base_layer")


def test_experts_whose_inputs_and_outputs_cannot_be_told_apart(source, tmp_path):
    """Of the square down_proj alone, inputs and outputs may be swapped; with gate_up_proj beside it, that one tells."""

    def down_alone(tensors):
        gate_up = next(
            stem
            for stem in (EXPERTS, f"{EXPERTS}.base_layer")
            if tensors[f"{stem}.lora_B.weight"][0].shape[0] == 2 * CONFIG["intermediate_size"]
        )
        for half in ("A", "B"):
            del tensors[f"{gate_up}.lora_{half}.weight"]

    assert_refused(changed(tmp_path / "square", "experts", down_alone), source.config, EXPERTS, "swapped")


def test_adapters_of_other_models(source, tmp_path):
    """More layers, another width, other experts, another architecture: each is refused by the first name that tells."""
    config = source.config
    assert_refused(GOLDEN / "attention", replace(config, num_layers=1), "model.layers.1.self_attn", "another model")
    assert_refused(GOLDEN / "attention", replace(config, hidden_size=64), f"{Q_PROJ}.lora_A.weight", "[4, 32]")
    assert_refused(GOLDEN / "experts", replace(config, num_experts=4), "mlp.experts", "[6, 32]", "[12, 32]")
    assert_refused(GOLDEN / "experts", replace(config, intermediate_size=64), "mlp.experts", "fits no weight")
    assert_refused(GOLDEN / "patterns", replace(config, vocab_size=64), "lm_head")

    def dense(tensors):
        for half in ("A", "B"):
            name = f"{Q_PROJ}.lora_{half}.weight"
            tensors[name.replace("self_attn.q_proj", "mlp.gate_proj")] = tensors.pop(name)

    folder = changed(tmp_path / "dense", "attention", dense)
    assert_refused(folder, config, "model.layers.0.mlp.gate_proj", "another model")


def test_mlx_lm_adapters_that_do_not_fit(source, mlx_adapter, tmp_path):
    config, settings = source.config, json.loads((mlx_adapter[0] / "adapter_config.json").read_text())
    assert_refused(mlx_adapter[0], replace(config, num_layers=1), "model.layers.1", "another model")
    assert_refused(mlx_adapter[0], replace(config, num_experts=4), "mlp.", "lora_a")
    parameters = settings["lora_parameters"]
    wrong = [
        ({"fine_tune_type": "dora"}, "'dora'"),
        ({"fine_tune_type": "full"}, "'full'"),
        ({"lora_parameters": None}, "lora_parameters"),
        ({"lora_parameters": parameters | {"rank": 4}}, "lora_a"),
        ({"lora_parameters": parameters | {"scale": "20"}}, "scale"),
        ({"lora_parameters": parameters | {"rank": -1}}, "rank"),
    ]
    for number, (change, part) in enumerate(wrong):
        folder = Path(shutil.copytree(mlx_adapter[0], tmp_path / f"{number}"))
        (folder / "adapter_config.json").write_text(json.dumps(settings | change))
        assert_refused(folder, config, part)


def test_folders_that_are_no_adapters(source, tmp_path):
    config, golden = source.config, GOLDEN / "attention"
    assert_refused(tmp_path / "nothing", config, "not a folder")
    assert_refused(source.folder, config, "neither")
    (tmp_path / "pickle").mkdir()
    shutil.copy(golden / "adapter_config.json", tmp_path / "pickle")
    (tmp_path / "pickle" / "adapter_model.bin").write_bytes(b"\x80\x02")
    assert_refused(tmp_path / "pickle", config, "adapter_model.bin", "safetensors")
    two = changed(tmp_path / "two", "attention")
    shutil.copy(golden / PEFT, two / MLX)
    assert_refused(two, config, "two adapters")
    bare = changed(tmp_path / "bare", "attention")
    for text in (None, "{", "[1]", "[" * 100_000):
        (bare / "adapter_config.json").unlink(missing_ok=True)
        if text is not None:
            (bare / "adapter_config.json").write_text(text)
        assert_refused(bare, config, "adapter_config.json")
    cut = changed(tmp_path / "cut", "attention")
    (cut / PEFT).write_bytes((cut / PEFT).read_bytes()[:-1])
    assert_refused(cut, config, PEFT, "truncated")


def test_merged_values_that_are_no_weights(source, tmp_path):
    def enormous(tensors):
        for half in ("A", "B"):
            tensors[f"{Q_PROJ}.lora_{half}.weight"][0][:] = 1e30

    adapter = open_adapter(changed(tmp_path / "adapter", "attention", enormous), source.config)
    item = next(item for item in source.weights() if item.module == "model.layers.0.self_attn.q_proj")
    with pytest.raises(GptOssError, match=r"layers.0.self_attn.q_proj.* not below"):
        adapter.merged(item, slice(None))
    blocks = next(item for item in source.weights() if item.module == "model.layers.1.mlp.experts.up_proj")
    broken = replace(
        blocks, scales=blocks.scales.part(lambda scales: np.full_like(scales, 255), *blocks.scales.shape[1:])
    )
    with pytest.raises(GptOssError, match="up_proj has a scale that is not a number"):
        open_adapter(GOLDEN / "experts", source.config).merged(broken, slice(None))
