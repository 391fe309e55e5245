"""Model cards and uploads: what the hub's stand-in has afterwards, byte for byte."""

import hashlib
import json
import socket

import pytest
from huggingface_hub import ModelCard, constants

from checkpoints import add_apple_doubles, config_of, write_checkpoint
from gptoss_convert import convert
from gptoss_convert.publishing import contents, model_card, upload
from gptoss_mlx.errors import GptOssError

from .hub import TOKEN, serving, use

SOURCE, TARGET = "somebody/small-gpt-oss", "somebody/small-gpt-oss-q4"
LICENSE = "\n   Apache License\n   Version 2.0, January 2004\n"
FIDELITY = {
    "tokens": 1024,
    "kl_mean": 0.0123456,
    "kl_p99": 0.2,
    "source_perplexity": 7.5,
    "model_perplexity": 7.625,
    "same_top": 0.9625,
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    source = write_checkpoint(root / "source", config_of())
    (source / "LICENSE").write_text(LICENSE)
    convert(source, root / "model")
    made = json.loads((root / "model" / "provenance.json").read_text())
    made["source"] = {"id": SOURCE, "revision": "0123abcd"}
    (root / "model" / "provenance.json").write_text(json.dumps(made))
    (root / "model" / "notes.txt").write_text("not for the hub")
    return root / "model"


@pytest.fixture
def folder(converted, tmp_path):
    """A copy that a test may change."""
    (tmp_path / "model").mkdir()
    for path in converted.iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "model"


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "empty").mkdir()
    with serving(tmp_path / "empty", "nobody/nothing") as hub:
        yield hub


@pytest.fixture
def here(hub, tmp_path, monkeypatch):
    use(hub, monkeypatch, tmp_path / "cache")
    return hub


@pytest.fixture
def online(run, hub, tmp_path):
    """The command, with the stand-in as its hub. Without the Xet protocol, which it does not speak."""

    def online(*args, **changes):
        settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        return run(*args, **(settings | {"HF_TOKEN": TOKEN} | changes))

    return online


class TestCard:
    def test_front_matter(self, converted):
        data = ModelCard(model_card(converted, TARGET)).data
        shown = data.to_dict()
        wanted = {"license": "apache-2.0", "library_name": "mlx", "pipeline_tag": "text-generation"}
        assert {name: shown[name] for name in wanted} == wanted
        assert data.base_model == SOURCE
        assert data.base_model_relation == "quantized"
        assert data.tags == ["mlx", "gpt-oss", "mxfp4-q4"]

    def test_text(self, converted):
        card = model_card(converted, TARGET)
        assert f"[{SOURCE}](https://huggingface.co/{SOURCE}), revision `0123abcd`" in card
        assert "the recipe `mxfp4-q4` (experts as published, all else 4-bit)" in card
        assert "| experts | 0.40 M | 0.20 M |" in card
        assert "4.43 | MXFP4 |" in card
        assert "mlx_lm.chat --model somebody/small-gpt-oss-q4" in card
        assert "gptoss-mlx chat ./small-gpt-oss-q4" in card
        for path in converted.glob("*.safetensors"):
            assert f"| this: {path.name} | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |" in card
        assert "source: model-00000-of-00001.safetensors" in card
        assert "Fidelity" not in card

    def test_fidelity(self, folder):
        (folder / "fidelity.json").write_text(json.dumps(FIDELITY))
        card = model_card(folder, TARGET)
        assert "On 1,024 tokens" in card
        assert "| KL divergence from the source, mean | 0.01235 nats a token |" in card
        assert "| perplexity of this model | 7.6250 |" in card
        assert "| the same likeliest token | 96.25% |" in card
        (folder / "fidelity.json").write_text(json.dumps(FIDELITY | {"kl_mean": "small"}))
        with pytest.raises(GptOssError, match="no number 'kl_mean'"):
            model_card(folder, TARGET)

    def test_a_local_source_and_other_licenses(self, folder):
        made = json.loads((folder / "provenance.json").read_text())
        (folder / "provenance.json").write_text(
            json.dumps(made | {"source": {"id": "my|model\n# x", "revision": None}})
        )
        (folder / "LICENSE").write_text("All mine.")
        card = model_card(folder, TARGET)
        data = ModelCard(card).data
        assert data.license == "other"
        assert data.base_model is None
        assert "\nmy model # x for [MLX]" in card
        (folder / "LICENSE").unlink()
        assert ModelCard(model_card(folder, TARGET)).data.license is None

    @pytest.mark.parametrize(
        "made", [{}, {"source": 3, "recipe": [], "tool": None, "sha256": "x"}, {"source": {"id": 3}}]
    )
    def test_odd_provenance(self, folder, made):
        (folder / "provenance.json").write_text(json.dumps(made))
        assert "# small-gpt-oss-q4" in model_card(folder, TARGET)

    def test_a_card_of_ones_own_is_kept(self, folder):
        assert isinstance(contents(folder, TARGET)["README.md"], bytes)
        (folder / "README.md").write_text("# Mine")
        assert contents(folder, TARGET)["README.md"] == folder / "README.md"

    def test_files_of_the_system_stay_here(self, folder):
        ours = contents(folder, TARGET)
        add_apple_doubles(folder)
        assert contents(folder, TARGET) == ours

    def test_what_is_no_conversion(self, folder, tmp_path):
        with pytest.raises(GptOssError, match="give OWNER/NAME"):
            contents(folder, "name")
        (folder / "provenance.json").unlink()
        with pytest.raises(GptOssError, match="not converted by gptoss-mlx"):
            contents(folder, TARGET)


class TestUpload:
    def test_bytes_arrive(self, online, hub, converted):
        done = online("upload", converted, TARGET)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{hub.address}/{TARGET}\n"
        there = hub.uploaded[TARGET]
        assert there.pop("README.md").decode() == model_card(converted, TARGET)
        assert there == {path.name: path.read_bytes() for path in converted.iterdir() if path.suffix != ".txt"}
        assert [line.split(",")[0] for line in done.stderr.splitlines()] == ["README.md", *sorted(there, key=order)]

    def test_one_that_broke_off_goes_on(self, here, converted):
        here.room = 1
        with pytest.raises(GptOssError, match="run the same command again later to resume"):
            upload(converted, TARGET)
        assert here.uploaded[TARGET] == {}  # not half a model
        here.room = 1  # for the other shard; the first one is there
        upload(converted, TARGET)
        assert {path.name for path in converted.glob("*.safetensors")} < set(here.uploaded[TARGET])
        upload(converted, TARGET)  # sends no weights

    @pytest.mark.parametrize(
        ("token", "complaint"), [("", "needs a token"), ("hf_wrong", "`hf auth login` with a token that allows it")]
    )
    def test_tokens(self, here, converted, tmp_path, monkeypatch, token, complaint):
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        with pytest.raises(GptOssError, match=complaint):
            upload(converted, TARGET)

    def test_no_connection(self, here, converted, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(GptOssError, match="HF_HUB_OFFLINE is set"):
            upload(converted, TARGET)

    def test_damage_does_not_leave(self, here, folder):
        path = max(folder.glob("*.safetensors"))
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(GptOssError, match=f"is damaged, and was not uploaded: {path.name}"):
            upload(folder, TARGET)
        assert here.log == []

    def test_dry_run_opens_no_connection(self, run_here, converted, monkeypatch):
        def refuse(*args, **options):
            raise AssertionError("a connection")

        for name in ("create_connection", "getaddrinfo"):
            monkeypatch.setattr(socket, name, refuse)
        monkeypatch.setattr(socket.socket, "connect", refuse)
        done = run_here("upload", converted, TARGET, "--dry-run")
        assert done.returncode == 0
        printed = done.stdout
        assert printed.startswith(model_card(converted, TARGET))
        names = [line.split()[-1] for line in printed.splitlines()[-20:] if line.endswith(("json", "safetensors"))]
        assert names == sorted(names, key=order)
        assert "notes.txt" not in printed
        assert printed.endswith(f"in total, to {TARGET}\n")


def order(name):
    """Weights first, then JSON."""
    patterns = (".safetensors", ".json", ".jinja", "LICENSE")
    return next(place for place, end in enumerate(patterns) if name.endswith(end)), name
