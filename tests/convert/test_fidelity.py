"""The FP32 network against transformers' logits and the engine's; what is measured with it against plain formulas."""

import json
import math
import os
import signal
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import zygote
from checkpoints import config_of, tensors_of, write_checkpoint
from convert.test_sources import CONFIG
from golden.cases import CASES, prompt_of
from gptoss_convert import RECIPES, affine, convert, fidelity, reference_network
from gptoss_convert.importance import FLOOR, SHARED_TOKENS, importance
from gptoss_convert.reference_network import ConvertedWeights, Network, SourceWeights
from gptoss_convert.sources import Source
from gptoss_mlx import kernels
from gptoss_mlx.demo import CHECKPOINT
from gptoss_mlx.engine import generate
from gptoss_mlx.engine.builtin_text import TEXT as TEXT_FILE
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.model.bf16 import bf16_to_f32
from gptoss_mlx.model.config import AFFINE_BITS, AFFINE_GROUP_SIZES

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "logits.npz")
TEXT = TEXT_FILE.read_text(encoding="utf-8")
EVERYTHING = slice(None)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The embedded model with recipes of each kind, compared with its source."""
    root, source = tmp_path_factory.mktemp("demo"), Source(CHECKPOINT)
    found = {}
    for recipe in ("mxfp4-bf16", "mxfp4-q8", "mxfp4-q4", "q4"):
        convert(CHECKPOINT, root / recipe, recipe)
        found[recipe] = fidelity.compare(source, root / recipe, TEXT, 100)
    return found


def logits_of_engine(folder, ids):
    """[windows, length] -> [windows * length, vocabulary], in MLX's own operations."""
    with kernels.off():
        model = generate.load(folder)
    return np.concatenate([np.array(model(mx.array(window[None]))[0]) for window in ids])


def relative(got, right):
    return np.abs(got - right).max() / np.abs(right).max()


# A window has 512 tokens at most, so nothing is to be seen past 4096.
@pytest.mark.parametrize("name", sorted(CASES.keys() - {"past_4096"}))
def test_logits_equal_those_of_transformers(name, tmp_path):
    case = CASES[name]
    source = Source(write_checkpoint(tmp_path, config_of(**case.config), case.seed))
    network = Network(SourceWeights(source))
    logits = network.logits(network.hidden(np.array([prompt_of(case)])), EVERYTHING)
    assert relative(logits[case.positions], GOLDEN[name]) < 1e-4


@pytest.mark.parametrize("recipe", RECIPES)
def test_logits_equal_those_of_the_engine(every_form, recipe):
    ids = np.array(prompt_of(CASES["published_shape"])[:160]).reshape(2, 80)
    network = Network(ConvertedWeights(every_form[recipe]))
    assert relative(network.logits(network.hidden(ids), EVERYTHING), logits_of_engine(every_form[recipe], ids)) < 1e-4


@pytest.mark.parametrize("layout", ["original", "plain"])
def test_every_layout_has_the_same_values(every_form, layout):
    weights = [SourceWeights(Source(every_form[name])) for name in ("published", layout)]
    assert weights[0].shapes == weights[1].shapes
    for name in weights[0].shapes:
        assert np.array_equal(weights[0].values(name), weights[1].values(name)), name


@pytest.mark.parametrize("group_size", AFFINE_GROUP_SIZES)
@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_affine_values_are_those_of_mlx(bits, group_size):
    weight, scales, biases = mx.quantize(mx.random.normal((7, 384)), group_size=group_size, bits=bits)
    right = np.array(mx.dequantize(weight, scales, biases, group_size=group_size, bits=bits))
    ours = affine.dequantized(np.array(weight), np.array(scales), np.array(biases), group_size, bits)
    assert np.allclose(ours, right, rtol=0, atol=1e-6 * np.abs(right).max())


@pytest.mark.parametrize("count", [2, 513, 514, 900, 1025])
def test_windows(every_form, count):
    source, text = Source(every_form["published"]), TEXT[:count]
    ids = Tokenizer.load(every_form["published"]).encode(text)
    assert len(ids) == count
    inputs, following = reference_network.windows(source, text, 10**6)
    assert inputs.shape[1] <= reference_network.WINDOW
    assert count - 1 - len(inputs) < inputs.size <= count - 1
    assert inputs.ravel().tolist() == ids[: inputs.size]
    assert following.ravel().tolist() == ids[1 : inputs.size + 1]


def test_a_lossless_conversion_loses_nothing(every_form, demo):
    for found in (
        demo["mxfp4-bf16"],
        fidelity.compare(Source(every_form["published"]), every_form["mxfp4-bf16"], TEXT, 100),
    ):
        assert all(tensor.exact and tensor.relative == 0 for tensor in found.tensors)
        predictions = found.predictions
        assert (predictions.kl_mean, predictions.kl_p99, predictions.same_top) == (0, 0, 1)
        assert predictions.source_perplexity == predictions.model_perplexity


@pytest.mark.parametrize("layout", ["original", "plain"])
def test_the_layout_of_the_source_makes_no_difference(every_form, layout):
    found = fidelity.compare(Source(every_form[layout]), every_form["mxfp4-bf16"], TEXT, 100)
    assert all(tensor.exact for tensor in found.tensors)
    assert found.predictions.kl_mean < 1e-7


def test_fewer_bits_diverge_more(demo):
    kl = [demo[recipe].predictions.kl_mean for recipe in ("q4", "mxfp4-q4", "mxfp4-q8")]
    assert kl[0] > kl[1] > kl[2] > 0
    tops = [demo[recipe].predictions.same_top for recipe in ("q4", "mxfp4-q8")]
    assert tops[0] < tops[1] < 1


def test_groups(demo):
    groups = {group.name: group for group in demo["mxfp4-q4"].groups}
    assert {name for name, group in groups.items() if group.exact} == {"experts", "routers", "norms and sinks"}
    attention = groups["attention"]
    assert (attention.tensors, attention.exact_tensors) == (32, 16)
    members = [tensor for tensor in demo["mxfp4-q4"].tensors if ".self_attn." in tensor.name]
    assert attention.worst == max(members, key=lambda tensor: tensor.relative).name
    assert 0 < attention.relative < max(tensor.relative for tensor in members)
    assert not {group.name: group for group in demo["q4"].groups}["experts"].exact


def test_errors_of_tensors_are_those_of_the_formula(every_form, monkeypatch):
    monkeypatch.setattr(fidelity, "CHUNK", 2000)
    found = fidelity.compare(Source(every_form["published"]), every_form["q4"], TEXT, 10)
    tensors, model = {tensor.name: tensor for tensor in found.tensors}, ConvertedWeights(every_form["q4"])
    for module in ("lm_head", "model.layers.2.self_attn.o_proj"):
        right = bf16_to_f32(tensors_of(CONFIG)[f"{module}.weight"][0]).astype(np.float64)
        parts = [mx.load(str(path)) for path in every_form["q4"].glob("*.safetensors")]
        parts = {name: array for shard in parts for name, array in shard.items()}
        line = [parts[f"{module}.{part}"].astype(mx.float32) for part in ("scales", "biases")]
        difference = np.array(mx.dequantize(parts[f"{module}.weight"], *line, group_size=64, bits=4)) - right
        tensor = tensors[f"{module}.weight"]
        assert math.isclose(tensor.relative, np.linalg.norm(difference) / np.linalg.norm(right), rel_tol=1e-5)
        assert math.isclose(tensor.largest, np.abs(difference).max(), rel_tol=1e-5)
    name = "model.layers.3.mlp.experts.up_proj.weight"
    difference = model.values(name) - SourceWeights(Source(every_form["published"])).values(name)
    assert math.isclose(tensors[name].error, np.linalg.norm(difference), rel_tol=1e-5)


@pytest.mark.parametrize("values", [3000, fidelity.CHUNK])
def test_predictions_are_those_of_the_formula(every_form, monkeypatch, values):
    """Against whole logits of the engine, in float64."""
    monkeypatch.setattr(fidelity, "CHUNK", values)
    monkeypatch.setattr(reference_network, "WINDOW", 100)
    source = Source(every_form["published"])
    found = fidelity.compare(source, every_form["q4"], TEXT, 198).predictions
    ids, following = reference_network.windows(source, TEXT, 198)
    assert (ids.shape, found.tokens) == ((2, 99), 198)
    p, q = (logits_of_engine(every_form[name], ids).astype(np.float64) for name in ("mxfp4-bf16", "q4"))
    p, q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (p, q))
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    assert math.isclose(found.kl_mean, kl.mean(), rel_tol=1e-3)
    assert math.isclose(found.kl_p99, np.percentile(kl, 99), rel_tol=1e-3)
    assert math.isclose(found.same_top, (p.argmax(axis=1) == q.argmax(axis=1)).mean(), abs_tol=1 / 100)
    for perplexity, x in ((found.source_perplexity, p), (found.model_perplexity, q)):
        right = np.exp(-x[np.arange(198), following.ravel()].mean())
        assert math.isclose(perplexity, right, rel_tol=1e-3)


def refusal(source, folder, text=TEXT):
    with pytest.raises(GptOssError) as error:
        fidelity.compare(Source(source), folder, text, 50)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_no_conversion_of_the_source_is_refused(every_form, tmp_path):
    other = write_checkpoint(tmp_path / "other", config_of(hidden_size=128))
    convert(other, tmp_path / "model")
    assert "is not a conversion of" in refusal(every_form["published"], tmp_path / "model")
    assert "hidden_size is 128, and the source's is 64" in refusal(every_form["published"], tmp_path / "model")
    assert "is a published checkpoint: run" in refusal(every_form["published"], every_form["published"])
    assert "converted already" in refusal(every_form["q4"], every_form["q4"])
    assert "a prediction takes at least 2" in refusal(every_form["published"], every_form["q4"], "a")


def changed(folder, dest, name, value):
    """A copy of a converted folder in which every value of a tensor is `value`, as its bits."""
    dest.mkdir()
    for path in folder.iterdir():
        (dest / path.name).write_bytes(path.read_bytes())
    weights = ConvertedWeights(dest)
    tensor = weights._checkpoint.tensors[name]
    with weights._checkpoint.file_of[name].open("r+b") as file:
        file.seek(tensor.start)
        file.write(np.full(tensor.shape, value, {"BF16": np.uint16, "U8": np.uint8}[tensor.dtype]).tobytes())
    return dest


@pytest.mark.filterwarnings("error")
def test_a_corrupt_model_is_named(every_form, tmp_path):
    model = changed(every_form["mxfp4-q4"], tmp_path / "nan", "lm_head.scales", 0x7FC0)
    assert f"{model}: 'lm_head.weight' has values that are not finite" in refusal(every_form["published"], model)
    model = changed(every_form["mxfp4-q4"], tmp_path / "infinite", "lm_head.scales", 0x7F7F)
    assert "'lm_head.weight' has values that are not finite" in refusal(every_form["published"], model)
    name = "model.layers.1.mlp.experts.up_proj"
    model = changed(every_form["mxfp4-q4"], tmp_path / "scale", f"{name}.scales", 255)
    assert f"'{name}.weight' has a scale that is not a number" in refusal(every_form["published"], model)
    model = changed(every_form["mxfp4-q4"], tmp_path / "large", "model.norm.weight", 0x7F7F)
    assert "logits are not finite" in refusal(every_form["published"], model)


MEASURED = """
import sys
from pathlib import Path
from gptoss_convert import fidelity
fidelity.CHUNK = 2**16
from gptoss_convert.sources import Source
from gptoss_mlx.engine.builtin_text import TEXT
from gptoss_mlx.memory.system import proc_bytes
peak = 0
def sample(step):
    global peak
    peak = max(peak, proc_bytes("self/status").get("RssAnon", 0))
fidelity.compare(Source(Path(sys.argv[1])), Path(sys.argv[2]), TEXT.read_text(encoding="utf-8"), 32, sample)
print(peak)
"""


def test_memory_does_not_grow_with_layers_or_experts(tmp_path):
    peaks = []
    for layers, experts in ((2, 8), (3, 32)):
        config = config_of(
            num_hidden_layers=layers, num_local_experts=experts, hidden_size=256, intermediate_size=256, head_dim=32
        )
        source = write_checkpoint(tmp_path / f"source{layers}", config)
        convert(source, tmp_path / f"model{layers}")
        words = ["-c", MEASURED, str(source), str(tmp_path / f"model{layers}")]
        peaks.append(int(zygote.shared().run(words, "", os.environ, timeout=100).stdout))
    if not peaks[0]:
        pytest.skip("this system does not tell anonymous memory")
    assert peaks[1] < peaks[0] + 16 * 2**20


SHOWN_AT_ONCE = """
from gptoss_mlx.cli import main
from gptoss_mlx.terminal import progress_bars
progress_bars.SHOWN_AFTER = 0
main()
"""


class TestCommand:
    def test_help(self, run):
        assert "Example: gptoss-mlx compare" in run("compare", "--help").stdout

    def test_tables(self, run, every_form):
        result = run("compare", every_form["published"], every_form["mxfp4-q4"], "--tokens", 20, "--tensors")
        assert result.returncode == 0, result.stderr
        for part in ("16 of 32", "KL divergence, mean", "layers.3.mlp.router", "20 tokens of text"):
            assert part in result.stdout

    def test_json_on_a_text_of_ones_own(self, run, every_form, tmp_path):
        (tmp_path / "text").write_text("a text of 21 letters.", encoding="utf-8")
        args = ["compare", every_form["published"], every_form["q4"], "--text", tmp_path / "text", "--json"]
        data = json.loads(run(*args).stdout)
        assert data["tokens"] == 20
        assert data["kl_mean"] > 0
        assert [family["name"] for family in data["families"]][:2] == ["experts", "attention"]
        assert len(data["tensors"]) == len(SourceWeights(Source(every_form["published"])).shapes)

    def test_errors(self, run, every_form, tmp_path):
        (tmp_path / "latin").write_bytes(b"caf\xe9 au lait")
        for options, message in (
            ([every_form["published"], tmp_path / "none"], "there is no model"),
            ([tmp_path, every_form["q4"]], "has no config.json"),
            ([every_form["published"], every_form["q4"], "--text", tmp_path / "none"], "cannot read"),
            ([every_form["published"], every_form["q4"], "--text", tmp_path / "latin"], "is not text in UTF-8"),
        ):
            result = run("compare", *options)
            assert result.returncode == 1
            assert message in result.stderr
            assert result.stderr.count("\n") == 1

    def test_ctrl_c(self, environment, every_form, tmp_path):
        """While it computes: progress is shown at once here."""
        (tmp_path / "text").write_text(TEXT * 8)
        args = ["compare", every_form["published"], every_form["q4"], "--text", tmp_path / "text", "--tokens", "30000"]
        process = zygote.shared().open(["-c", SHOWN_AT_ONCE, *map(str, args)], environment)
        assert process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1].splitlines()[-1] == "interrupted"
        assert process.returncode == 130


@pytest.fixture(scope="module")
def found(every_form):
    return importance(Source(every_form["published"]), TEXT, 300)


class TestCalibration:
    def test_every_linear_map_has_positive_weights(self, found):
        layer = "model.layers.0"
        experts = {f"{layer}.mlp.experts.{name}_proj": (8, 64) for name in ("gate", "up", "down")}
        attention = {f"{layer}.self_attn.{name}_proj": (256 if name == "o" else 64,) for name in "qkvo"}
        wanted = experts | attention | {f"{layer}.mlp.router": (64,), "lm_head": (64,)}
        first = {name: array for name, array in found.items() if not name.startswith("model.") or layer in name}
        assert {name: array.shape for name, array in first.items()} == wanted
        assert all(array.dtype == np.float32 and (array > 0).all() for array in found.values())

    def test_they_are_means_of_squares(self, every_form, found):
        """An expert's are those of its own tokens, and of SHARED_TOKENS that are like all tokens."""
        source = Source(every_form["published"])
        ids, _ = reference_network.windows(source, TEXT, 300)
        inputs = {}
        network = Network(SourceWeights(source), lambda module, expert, x: inputs.setdefault((module, expert), x))
        wanted = {"lm_head": np.square(network.hidden(ids)).mean(axis=0)}
        wanted["model.layers.2.self_attn.o_proj"] = np.square(inputs["model.layers.2.self_attn.o_proj", None]).mean(
            axis=0
        )
        module = "model.layers.1.mlp.experts.down_proj"
        of_all = np.concatenate([x for (name, _), x in inputs.items() if name == module])
        assert len(of_all) == 4 * 300
        counted = SHARED_TOKENS + len(inputs[module, 5])
        shared = SHARED_TOKENS * np.square(of_all).mean(axis=0)
        wanted[module] = (np.square(inputs[module, 5]).sum(axis=0) + shared) / counted
        for name, squares in wanted.items():
            got = found[name][5] if name == module else found[name]
            assert np.allclose(got, squares + FLOOR * squares.mean(), rtol=1e-4)

    def test_progress(self, every_form):
        seen = []
        importance(Source(every_form["published"]), "text", 3, seen.append)
        assert [4 * step.done / step.total for step in seen] == [1, 2, 3, 4]

    def test_experts_that_see_nothing_get_the_mean(self, every_form):
        """One token goes to 4 of 8 experts: the others have what all have on average."""
        found = importance(Source(every_form["published"]), "ab", 1)["model.layers.0.mlp.experts.up_proj"]
        router = importance(Source(every_form["published"]), "ab", 1)["model.layers.0.mlp.router"]
        assert np.allclose(found, router, rtol=1e-5)

    def test_outputs_are_nearer_with_them(self):
        """On real activations, of a text that the weights did not come from: those of the embedded model's experts."""
        source = Source(CHECKPOINT)
        weights, half = SourceWeights(source), len(TEXT) // 2
        found = importance(source, TEXT[:half], 1000)
        inputs = {}
        network = Network(weights, lambda module, expert, x: inputs.setdefault((module, expert), x))
        network.hidden(reference_network.windows(source, TEXT[half:], 1000)[0])
        ratios = []
        for (module, expert), x in inputs.items():
            if not module.endswith(".down_proj"):
                continue
            values, errors = weights.values(f"{module}.weight", expert), []
            for squares in (None, found[module][expert]):
                weight, scales, biases = affine.quantized(values, 64, 4, squares)
                stored = affine.dequantized(weight, bf16_to_f32(scales), bf16_to_f32(biases), 64, 4)
                errors.append(np.linalg.norm(x @ (stored - values).T))
            ratios.append(errors[1] / errors[0])
        assert np.mean(ratios) < 0.98
