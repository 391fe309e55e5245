"""What inspect says of every layout and recipe, and what verify finds."""

import json

import mlx.core as mx
import numpy as np
import pytest

from checkpoints import config_of, tensors_of
from gptoss_convert import RECIPES, convert
from gptoss_convert.inspection import BINS, Subject, inspect, statistics
from gptoss_convert.verification import verify
from gptoss_mlx.bench.roofline import Workload
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.model.checkpoint import Checkpoint
from gptoss_mlx.model.config import ModelConfig
from gptoss_mlx.model.kv_cache import KVCache
from memory.shapes import SIZES, converted_shape

CONFIG = config_of()


NAMES = ["published", "original", "plain", *RECIPES]


def parameters():
    """Counted from the published tensors: each byte of blocks is two weights, scales are none."""
    total = 0
    for name, (array, _) in tensors_of(CONFIG).items():
        total += 2 * array.size if name.endswith("_blocks") else 0 if name.endswith("_scales") else array.size
    return total


@pytest.mark.parametrize("name", NAMES)
def test_the_same_parameters_in_every_form(every_form, name):
    found = inspect(Subject.of_folder(every_form[name]))
    assert found.total("parameters") == parameters()
    assert found.total("bytes") == sum(t.nbytes for t in Checkpoint.open(every_form[name]).tensors.values())
    groups = {group.name: group for group in found.groups}
    assert groups["experts"].active == groups["experts"].parameters * 4 // 8
    assert groups["embeddings"].active == 0
    assert (found.layers, found.experts, found.experts_per_token, found.context) == (4, 8, 4, 131072)


@pytest.mark.parametrize("name", RECIPES)
def test_bytes_per_token_are_those_of_the_roofline(every_form, name):
    config = ModelConfig.load(every_form[name])
    cache = KVCache(config, [mx.bfloat16] * config.num_layers)
    token = Workload(Checkpoint.open(every_form[name]), config, cache).decode(0, 1).bytes
    own_keys_and_values = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2
    wanted = token - own_keys_and_values
    assert abs(inspect(Subject.of_folder(every_form[name])).total("bytes_per_token") - wanted) <= 8


def test_published_numbers(tmp_path):
    """The model card: 20.9 B and 3.6 B, 116.8 B and 5.1 B."""
    for name, total, active in (("20b", 20.9, 3.6), ("120b", 116.8, 5.1)):
        found = inspect(Subject.of_folder(converted_shape(tmp_path / name, *SIZES[name])))
        assert round(found.total("parameters") / 1e9, 1) == total
        assert round(found.total("active") / 1e9, 1) == active


def test_statistics(every_form):
    name = "model.layers.1.self_attn.sinks"
    values = (tensors_of(CONFIG)[name][0].astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    found = statistics(Subject.of_folder(every_form["published"]), name)
    assert (found.least, found.most) == (values.min(), values.max())
    assert np.isclose(found.mean, values.mean())
    assert np.isclose(found.deviation, values.std())
    assert sum(found.counts) == values.size
    assert len(found.counts) == BINS


def test_command(run, every_form):
    for name in NAMES:
        result = run("inspect", every_form[name])
        assert result.returncode == 0, result.stderr
        assert "experts a token" in result.stdout
    data = json.loads(run("inspect", every_form["mxfp4-q4"], "--json").stdout)
    assert data["total_parameters"] == parameters()
    assert data["provenance"]["recipe"] == "mxfp4-q4"
    assert "model.norm.weight" in run("inspect", every_form["published"], "--tensors").stdout
    listed = json.loads(run("inspect", every_form["published"], "--tensors", "--json").stdout)
    assert {tensor["name"] for tensor in listed} == set(tensors_of(CONFIG))
    assert "deviation" in run("inspect", every_form["published"], "--tensor", "lm_head.weight").stdout
    wrong = run("inspect", every_form["published"], "--tensor", "lm_head")
    assert wrong.returncode == 1
    assert "no tensor 'lm_head'; there are lm_head.weight" in wrong.stderr


class TestVerify:
    @pytest.fixture
    def folder(self, every_form, tmp_path):
        convert(every_form["published"], tmp_path / "model")
        return tmp_path / "model"

    def test_all_is_well(self, run, folder):
        assert verify(folder) == []
        result = run("verify", folder)
        assert (result.returncode, result.stdout) == (0, "every file matches its checksum\n")

    def test_a_flipped_bit_is_found_and_named(self, run, folder):
        path = sorted(folder.glob("*.safetensors"))[0]
        data = bytearray(path.read_bytes())
        data[-100] ^= 4
        path.write_bytes(data)
        assert verify(folder) == [f"{path.name} has changed since it was written: its SHA-256 differs"]
        result = run("verify", folder)
        assert result.returncode == 1
        assert path.name in result.stdout
        assert "is damaged" in result.stderr

    def test_files_that_lack_or_do_not_belong(self, folder):
        path = sorted(folder.glob("*.safetensors"))[0]
        path.rename(folder / "other.safetensors")
        assert verify(folder) == [f"{path.name} is missing", "other.safetensors does not belong to the conversion"]

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": {"../../etc/passwd": "0"}}', '{"sha256": {"a": 1}}'])
    def test_provenance_lies(self, folder, text):
        (folder / "provenance.json").write_text(text)
        with pytest.raises(GptOssError, match="provenance"):
            verify(folder)
