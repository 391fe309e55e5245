"""Sources in F16 and F32, all of them or some tensors: converted, and what was rounded is said."""

import json
import re

import mlx.core as mx
import numpy as np
import pytest

from checkpoints import config_of, tensors_of, write_safetensors, write_tokenizer
from golden.make_logits import dequantized
from gptoss_convert import RECIPES, convert
from gptoss_convert.hub import Repository
from gptoss_convert.inspection import Subject, inspect
from gptoss_convert.sources import Source
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.model.checkpoint import Checkpoint

from .hub import serving, use
from .test_sources import original_tensors, same_tensors

CONFIG = config_of(num_hidden_layers=2)
NUMPY = {"F16": np.float16, "F32": np.float32}
SMALL = ("router", "norm", "sinks", "bias")


def bf16(values):
    """float32 -> the nearest BF16, ties to even, as MLX rounds; its bits."""
    return np.array(mx.array(values).astype(mx.bfloat16).view(mx.uint16))


def plain_tensors():
    """Float32 of every tensor, the experts inputs first; none that BF16 holds."""
    random = np.random.RandomState(11)
    values = dequantized(tensors_of(CONFIG))
    return {name: (v * (1 + random.uniform(-0.01, 0.01, v.shape))).astype(np.float32) for name, v in values.items()}


def published_tensors():
    """The same with the experts in MXFP4."""
    plain = plain_tensors()
    return {
        name: (array if dtype == "U8" else plain[name], dtype) for name, (array, dtype) in tensors_of(CONFIG).items()
    }


def stored(values, dtype):
    return (bf16(values), "BF16") if dtype == "BF16" else (values.astype(NUMPY[dtype]), dtype)


def _widened(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def as_f32(array, dtype):
    return (array, dtype) if dtype == "U8" else (_widened(array), "F32")


def write(folder, tensors, config=CONFIG):
    folder.mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", tensors)
    config = {name: value for name, value in config.items() if name != "quantization_config"}
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    write_tokenizer(folder)
    return folder


def published(folder, dtype_of):
    tensors = {name: (v, "U8") if kind == "U8" else stored(v, dtype_of(name)) for name, (v, kind) in ALL.items()}
    return write(folder, tensors)


def plain(folder, dtype_of):
    return write(folder, {name: stored(values, dtype_of(name)) for name, values in PLAIN.items()})


ALL, PLAIN = published_tensors(), plain_tensors()
FORMS = {
    "F32": lambda name: "F32",
    "F16": lambda name: "F16",
    "routers, norms, sinks and biases in F32": lambda name: "F32" if any(part in name for part in SMALL) else "BF16",
    "every other in F16": lambda name: ("F16", "F32", "BF16")[len(name) % 3],
}
CASES = [(layout, form) for layout in (published, plain) for form in FORMS]


@pytest.mark.parametrize(("layout", "form"), CASES)
@pytest.mark.parametrize("recipe", ["mxfp4-bf16", "mxfp4-q4"])
def test_values_are_those_of_the_source_rounded_once(tmp_path, layout, form, recipe):
    source = layout(tmp_path / "source", FORMS[form])
    heard = []
    convert(source, tmp_path / "model", recipe, on_note=heard.append)
    result = Checkpoint.open(tmp_path / "model")
    provenance = json.loads((tmp_path / "model" / "provenance.json").read_text())["rounded_to_bf16"]
    named = {name: dtype for dtype, names in provenance.items() for name in names}
    for name, values in PLAIN.items():
        if ".experts." in name or name not in result.tensors or result.tensors[name].dtype != "BF16":
            continue
        dtype = FORMS[form](name)
        right = bf16(values if dtype == "BF16" else values.astype(NUMPY[dtype]).astype(np.float32))
        assert np.array_equal(result.view(name), right), name
        assert named.get(name, "BF16") == dtype
    assert all(result.tensors[name].dtype == "BF16" for name in named)
    assert {re.search("are in (F16|F32)", text)[1] for text in heard} == set(provenance)
    assert all("rounded to BF16" in text and str(source) in text for text in heard)
    assert any(text.startswith(f"{len(names)} tensor") for names in provenance.values() for text in heard)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_quantized_is_so_from_its_own_values(tmp_path, form):
    """Not from what BF16 would make of them."""
    found = {item.name: item.as_f32(slice(None)) for item in Source(plain(tmp_path / "source", FORMS[form])).weights()}
    path = "model.layers.1.mlp.experts"
    for name, part in (("down_proj", slice(None)), ("gate_up_proj", slice(0, None, 2))):
        values = stored(PLAIN[f"{path}.{name}"], FORMS[form](f"{path}.{name}"))[0]
        right = _widened(values) if values.dtype == np.uint16 else values.astype(np.float32)
        canonical = name.replace("gate_up", "gate")
        assert np.array_equal(found[f"{path}.{canonical}.weight"], right.swapaxes(1, 2)[:, part])


def test_what_bf16_holds_is_unchanged_and_said_to_be_exact(tmp_path):
    """As when a BF16 model is saved in F32: the same bytes as from BF16."""
    exact = tensors_of(CONFIG)
    wider = {name: as_f32(*tensor) for name, tensor in exact.items()}
    for name, tensors in (("bf16", exact), ("f32", wider)):
        convert(write(tmp_path / name, tensors), tmp_path / f"{name}-model", "mxfp4-bf16")
    assert same_tensors(tmp_path / "f32-model", tmp_path / "bf16-model")
    report = convert(tmp_path / "f32", tmp_path / "again", "mxfp4-bf16", verify=True)
    assert all(each.exact for each in report.fidelity.tensors)


def test_what_was_rounded_is_not_said_to_be_exact(tmp_path):
    source = published(tmp_path / "source", FORMS["routers, norms, sinks and biases in F32"])
    report = convert(source, tmp_path / "model", "mxfp4-bf16", verify=True)
    exact = {each.name: each.exact for each in report.fidelity.tensors}
    assert not exact["model.layers.0.mlp.router.weight"]
    assert not exact["model.norm.weight"]
    assert exact["lm_head.weight"]
    assert exact["model.layers.0.mlp.experts.down_proj.weight"]


def test_original(tmp_path):
    tensors = {name: as_f32(*tensor) for name, tensor in original_tensors().items()}
    convert(write(tmp_path / "source", tensors, config_of()), tmp_path / "model", "mxfp4-bf16")
    convert(write(tmp_path / "right", tensors_of(config_of()), config_of()), tmp_path / "right-model", "mxfp4-bf16")
    assert same_tensors(tmp_path / "model", tmp_path / "right-model")


@pytest.mark.parametrize("bits", [0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x00008000, 0x807F8000, 0x5D7F7FFF])
def test_ties_go_to_even(tmp_path, bits):
    tensors = dict(ALL)
    values = np.full(64, bits, np.uint32).view(np.float32)
    tensors["model.norm.weight"] = (values, "F32")
    tensors = {name: stored(v, "F32") if kind == "BF16" else (v, kind) for name, (v, kind) in tensors.items()}
    convert(write(tmp_path / "source", tensors), tmp_path / "model")
    assert np.array_equal(Checkpoint.open(tmp_path / "model").view("model.norm.weight"), bf16(values))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**60])
@pytest.mark.parametrize("dtype", ["F16", "F32"])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.experts.down_proj"])
def test_values_that_are_no_weights(tmp_path, value, dtype, name):
    """Of 2^60, F16 makes Inf."""
    values = PLAIN[name].copy()
    values.reshape(-1)[-1] = value
    with np.errstate(over="ignore"):
        tensors = {each: stored(values if each == name else v, dtype) for each, v in PLAIN.items()}
    with pytest.raises(GptOssError, match="not a number, or not below"):
        convert(write(tmp_path / "source", tensors), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("name", "dtype", "numpy"),
    [
        ("model.norm.weight", "F64", np.float64),
        ("model.norm.weight", "I8", np.int8),
        ("model.layers.0.mlp.experts.down_proj_scales", "I8", np.int8),
    ],
)
def test_other_dtypes_are_refused_by_name(tmp_path, name, dtype, numpy):
    array = ALL[name][0]
    tensors = {each: stored(v, "BF16") if kind == "BF16" else (v, kind) for each, (v, kind) in ALL.items()}
    tensors[name] = (np.zeros(array.shape, numpy), dtype)
    wanted = "U8" if name.endswith("scales") else "BF16 or F16 or F32"
    with pytest.raises(GptOssError, match=re.escape(f"{name!r} is {dtype}, and only {wanted} can be converted there")):
        convert(write(tmp_path / "source", tensors), tmp_path / "model")


def test_floats_of_8_bits_are_named_as_a_quantization(tmp_path):
    tensors = {each: stored(v, "BF16") if kind == "BF16" else (v, kind) for each, (v, kind) in ALL.items()}
    name = "model.layers.0.mlp.router.weight"
    tensors[name] = np.zeros(ALL[name][0].shape, np.uint8), "F8_E4M3"
    with pytest.raises(GptOssError, match=r"is quantized with FP8 \(F8_E4M3\), .*: convert the checkpoint from which"):
        convert(write(tmp_path / "source", tensors), tmp_path / "model")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs(tmp_path, recipe):
    import gptoss_mlx

    convert(plain(tmp_path / "source", FORMS["every other in F16"]), tmp_path / "model", recipe)
    logits = gptoss_mlx.load(tmp_path / "model")(mx.array([[1, 2, 3]]))
    assert mx.isfinite(logits).all()


def test_inspect_says_it(run, tmp_path):
    source = published(tmp_path / "source", FORMS["routers, norms, sinks and biases in F32"])
    convert(source, tmp_path / "model")
    text = " ".join(run("inspect", source).stdout.split())
    # In both layers: 2 norms, sinks, 4 biases of attention, 2 of the router, 2 of experts; and the last norm.
    assert "23 tensors (experts, attention, routers, norms and sinks) in F32: a conversion rounds to BF16" in text
    text = " ".join(run("inspect", tmp_path / "model").stdout.split())
    assert (
        "rounded to BF16: 25 tensors (experts, attention, routers, norms and sinks) that the source has in F32" in text
    )
    assert "a conversion rounds" not in text
    assert inspect(Subject.of_folder(source)).to_round.keys() == {"F32"}


def test_from_the_hub(tmp_path, monkeypatch):
    source = published(tmp_path / "source", FORMS["F16"])
    convert(source, tmp_path / "right")
    with serving(source, "somebody/model") as hub:
        use(hub, monkeypatch, tmp_path / "cache")
        assert inspect(Subject.of_repository(Repository.open("somebody/model"))).to_round.keys() == {"F16"}
        convert("somebody/model", tmp_path / "model")
    assert same_tensors(tmp_path / "model", tmp_path / "right")
