"""Plans for models that are not here: those of the folders that conversions write; and the choice of a recipe."""

import re
import time
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from checkpoints import config_of as small_config
from checkpoints import write_checkpoint
from gptoss_convert import RECIPES, convert, pipeline
from gptoss_convert.choice import CHOICES, CONTEXT, choose
from gptoss_convert.journal import recipe_in
from gptoss_convert.published import SHAPES, config_in, config_of, headers_of, published_headers, weights_of
from gptoss_convert.random_weights import parse_shape, random_folder
from gptoss_convert.recipes import DIVERGENCE
from gptoss_mlx.bench.roofline import Workload
from gptoss_mlx.device import BACKENDS
from gptoss_mlx.memory.devices import Device
from gptoss_mlx.memory.estimate import MemoryEstimate, ModelHeaders
from gptoss_mlx.memory.plan import BudgetTooSmall, make_plan, undiminished
from gptoss_mlx.model.config import ModelConfig
from gptoss_mlx.model.kv_cache import KVCache

GB = 10**9
ROOT = Path(__file__).parents[2]
# Sizes of the published ones that are not round in any unit: what is aligned differs from what is not.
SMALL = small_config(hidden_size=192, intermediate_size=128, num_local_experts=8, vocab_size=512)
DEVICES = ("mac-16gb", "mac-24gb", "mac-128gb", "android-16gb")


def assert_same(headers: ModelHeaders, folder: Path) -> None:
    """In every tensor, in the sizes of the files, and in every row of every plan."""
    written = ModelHeaders.of_folder(folder)
    assert headers.checkpoint.tensors == written.checkpoint.tensors
    assert {name: path.name for name, path in headers.checkpoint.file_of.items()} == {
        name: path.name for name, path in written.checkpoint.file_of.items()
    }
    assert headers.config == written.config
    assert headers.file_bytes == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    for name in DEVICES:
        ours, theirs = (make_plan(each, Device.named(name)) for each in (headers, folder))
        assert replace(ours, model="") == replace(theirs, model="")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_plan_is_that_of_the_converted_folder(tmp_path, recipe):
    source = write_checkpoint(tmp_path / "source", SMALL)
    convert(source, tmp_path / "model", recipe)
    tokenizer = (source / "tokenizer.json").stat().st_size
    headers = headers_of("x", SMALL, weights_of(SMALL), RECIPES[recipe], tokenizer)
    assert_same(headers, tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["mxfp4-q4", "mxfp4-q8"])
def test_the_plan_is_that_of_a_folder_of_published_size(recipe):
    """Two layers of gpt-oss-20b, really written."""
    shape = parse_shape("gpt-oss-20b:2")
    with random_folder(shape, recipe) as folder:
        assert_same(headers_of("x", shape.config, weights_of(shape.config), RECIPES[recipe], 0), folder)


# total_size in the index of the published checkpoints.
@pytest.mark.parametrize(("name", "size"), [("gpt-oss-20b", 13_761_264_768), ("gpt-oss-120b", 65_248_815_744)])
def test_the_published_weights_have_their_published_size(name, size):
    from gptoss_convert.layouts import PUBLISHED
    from gptoss_convert.writer import Planned

    forms = PUBLISHED.tensors(ModelConfig.from_dict(config_of(*SHAPES[name])))
    assert sum(Planned(tensor, *form).nbytes for tensor, form in forms.items()) == size


def test_repositories_whose_shapes_are_known():
    assert config_in("openai/gpt-oss-20b") == config_in("openai/gpt-oss-safeguard-20b") == config_of(24, 32)
    assert config_in("openai/gpt-oss-120b")["num_local_experts"] == 128
    for other in ("gpt-oss-20b", "somebody/gpt-oss-20b", "openai/gpt-oss-20b-tuned", "openai/whisper"):
        assert config_in(other) is None


@pytest.mark.parametrize("backend", ["gpu", "kernels", "cpu"])
def test_undiminished_is_the_plan_that_gives_up_nothing(backend):
    gpu = None if backend != "gpu" else 90 * GB
    device = Device("large", 90 * GB, gpu, backend)
    headers = published_headers("openai/gpt-oss-20b")("mxfp4-q8")
    plan = make_plan(headers, device, context=CONTEXT)
    needed = undiminished(MemoryEstimate(headers), device, CONTEXT)
    assert plan.attempts == (needed,)
    assert (needed.bytes, needed.gpu_bytes) == (plan.total, plan.on_gpu)


def test_what_a_token_reads_is_what_the_benchmark_counts():
    headers = published_headers("openai/gpt-oss-20b")("mxfp4-q8")
    cache = KVCache(headers.config, [mx.bfloat16] * headers.config.num_layers, 4096)
    read = Workload(headers.checkpoint.tensors, headers.config, cache).stage_bytes(0)
    assert MemoryEstimate(headers).token_bytes == pytest.approx(sum(read.values()), rel=1e-3)


class TestChoice:
    def chosen(self, device: Device, name: str = "gpt-oss-20b", **more):
        recipe, why = choose(published_headers(f"openai/{name}"), device, **more)
        assert why.startswith(f"recipe {recipe.name}, ")
        assert "\n" not in why
        return recipe.name, why

    @pytest.mark.parametrize("name", SHAPES)
    @pytest.mark.parametrize("backend", ["kernels", "gpu"])
    def test_the_most_faithful_that_fits(self, name, backend):
        """At the byte from which on each of them fits, and one below."""
        gpu = None if backend == "kernels" else 200 * GB
        device = Device("x", 200 * GB, gpu, backend)
        needed = {}
        for recipe in CHOICES:
            sizes = MemoryEstimate(published_headers(f"openai/{name}")(recipe))
            needed[recipe] = undiminished(sizes, device, CONTEXT).bytes
        assert sorted(needed.values(), reverse=True) == list(needed.values())
        for recipe, smaller in zip(CHOICES, (*CHOICES[1:], CHOICES[-1]), strict=True):
            for memory, expected in ((needed[recipe], recipe), (needed[recipe] - 1, smaller)):
                got, why = self.chosen(replace(device, memory=memory), name)
                assert got == expected
                assert ("keeps everything in memory with 16,384 tokens" in why) == (memory >= needed[CHOICES[-1]])
                assert f"KL {DIVERGENCE[expected]:.4f} " in why

    def test_a_recipe_that_is_chosen_keeps_everything_in_memory(self):
        for name in ("mac-8gb", "mac-16gb", "mac-24gb", "mac-64gb", "mac-96gb", "android-16gb", "android-24gb"):
            for model in SHAPES:
                device = Device.named(name)
                recipe, why = self.chosen(device, model)
                headers = published_headers(f"openai/{model}")(recipe)
                try:
                    whole = len(make_plan(headers, device, context=CONTEXT).attempts) == 1
                except BudgetTooSmall:
                    whole = False
                assert ("keeps everything" in why) == whole, (name, model)

    def test_macs(self):
        assert self.chosen(Device.named("mac-24gb"))[0] == "mxfp4-q8"
        recipe, why = self.chosen(Device.named("mac-16gb"))
        assert recipe == "mxfp4-q4"
        assert re.search(r"the smallest .* even it takes 1\d\.\d\d GB of 10\.6\d GB on the GPU;", why)

    def test_a_middle_one_says_why_not_the_better_one(self):
        device = Device("x", 200 * GB, None, "kernels")
        largest = undiminished(
            MemoryEstimate(published_headers("openai/gpt-oss-20b")("mxfp4-q8")), device, CONTEXT
        ).bytes
        _, why = self.chosen(replace(device, memory=largest - 10**6))
        assert "(mxfp4-mixed takes " in why
        assert "; mxfp4-q8 takes " in why

    def test_the_divergences_are_those_of_the_document(self):
        table = (ROOT / "docs" / "recipes.md").read_text()
        rows = re.findall(r"^\| `([\w-]+)` \| [\d.]+ MB \| [\d.]+ \| ([\d.]+) \|", table, re.MULTILINE)
        assert {name: float(divergence) for name, divergence in rows} == DIVERGENCE
        assert DIVERGENCE.keys() == RECIPES.keys()
        assert sorted(CHOICES, key=DIVERGENCE.get) == list(CHOICES)

    def test_a_conversion_that_was_interrupted_goes_on_with_its_recipe(self, tmp_path, monkeypatch):
        """Also where another one would be chosen now."""
        monkeypatch.setattr(pipeline, "DURABLE", 1)
        source = write_checkpoint(tmp_path / "source", small_config(), shards=3)

        def stop(step):
            if step.done > step.total / 2:
                while recipe_in(tmp_path / ".dest.partial") is None:
                    time.sleep(0.01)  # what is on record decides, and that is written in the background
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "dest", "mxfp4-q4", on_progress=stop)
        notes, steps = [], []
        report = convert(source, tmp_path / "dest", None, on_note=notes.append, on_progress=steps.append)
        assert report.recipe == "mxfp4-q4"
        assert notes == ["recipe mxfp4-q4, with which this conversion began"]
        assert steps[0].done > 1000  # more than a first step
        notes.clear()
        assert convert(source, tmp_path / "other", None, on_note=notes.append).recipe == "mxfp4-q8"
        assert notes[0].startswith("recipe mxfp4-q8, the most faithful ")


def test_every_backend_has_a_share_of_the_bandwidth():
    from gptoss_mlx.memory import speed

    assert speed.SHARE.keys() == speed.SOURCE.keys() == BACKENDS.keys()
