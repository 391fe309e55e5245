"""The tokenizer of a source: one that lacks is said, one that cannot be it is refused, before weights are touched."""

import json

import pytest

from checkpoints import config_of, write_checkpoint, write_tokenizer
from gptoss_convert import convert
from gptoss_mlx.demo import CHECKPOINT
from gptoss_mlx.errors import GptOssError

from .hub import serving, use
from .test_sources import bf16_folder, original_folder

CONFIG = config_of(num_hidden_layers=2)
REPOSITORY = "somebody/model"


def without_specials(text):
    return json.dumps(json.loads(text) | {"added_tokens": []})


def without_call(text):
    data = json.loads(text)
    kept = [token for token in data["added_tokens"] if token["content"] != "<|call|>"]
    return json.dumps(data | {"added_tokens": kept})


def with_harmony_beyond_the_vocabulary(text):
    data = json.loads(text)
    moved = [token | {"id": token["id"] + 100} for token in data["added_tokens"]]
    data["model"]["vocab"] |= {f"spare{number}": number for number in range(256, 356)}
    return json.dumps(data | {"added_tokens": moved})


WRONG = {
    "an empty object": (lambda text: "{}", "cannot read"),
    "nothing": (lambda text: "", "empty"),
    "truncated": (lambda text: text[: len(text) // 2], "cannot read"),
    "a list": (lambda text: "[]", "cannot read"),
    "a pointer of git": (lambda text: "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "cannot read"),
    "no special tokens": (without_specials, "no special token <|start|>"),
    "no token for calls": (without_call, "no special token <|call|>"),
    "of a larger model": (lambda text: (CHECKPOINT / "tokenizer.json").read_text(), "it is another model's"),
    "special tokens beyond the vocabulary": (with_harmony_beyond_the_vocabulary, "it is another model's"),
}


@pytest.fixture
def source(tmp_path):
    return write_checkpoint(tmp_path / "source", CONFIG)


@pytest.fixture
def hub(source, tmp_path, monkeypatch):
    with serving(source, REPOSITORY) as hub:
        use(hub, monkeypatch, tmp_path / "cache")
        yield hub


def assert_refused(source, dest, sentence):
    steps = []
    with pytest.raises(GptOssError, match=sentence) as error:
        convert(source, dest, on_progress=steps.append)
    assert "openai/gpt-oss-20b" in str(error.value) or "another model's" in str(error.value)
    assert not steps
    assert [path.name for path in dest.parent.iterdir() if dest.name in path.name] == []


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_one_is_refused(source, tmp_path, wrong):
    change, sentence = WRONG[wrong]
    path = source / "tokenizer.json"
    path.write_text(change(path.read_text()))
    assert_refused(source, tmp_path / "model", sentence)


def test_a_link_that_leads_nowhere_is_none(source, tmp_path):
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.json").symlink_to("nowhere")
    assert_refused(source, tmp_path / "model", "leads nowhere")


@pytest.mark.parametrize("layout", [bf16_folder, original_folder, lambda folder: write_checkpoint(folder, CONFIG)])
def test_one_that_lacks_is_said_before_the_conversion(run, tmp_path, layout):
    source = layout(tmp_path / "source")
    for folder in (source, source.parent):
        (folder / "tokenizer.json").unlink(missing_ok=True)
    heard = []
    convert(source, tmp_path / "model", on_note=heard.append, on_progress=heard.append)
    assert "has no tokenizer.json" in heard[0]
    assert f"hf download openai/gpt-oss-20b tokenizer.json --local-dir {tmp_path / 'model'}" in heard[0]
    write_tokenizer(tmp_path / "model")
    assert run("generate", tmp_path / "model", "-p", "x", "--max-tokens", "2", "--temperature", "0").stdout


def test_the_command_says_it_first(run, source, tmp_path):
    (source / "tokenizer.json").unlink()
    result = run("convert", source, tmp_path / "model")
    assert result.returncode == 0
    assert result.stderr.startswith(f"note: {source} has no tokenizer.json")


@pytest.mark.parametrize("options", [{"verify": True}, {"calibration": "some text"}])
def test_where_a_text_is_read_one_that_lacks_is_refused(source, tmp_path, options):
    (source / "tokenizer.json").unlink()
    with pytest.raises(GptOssError, match=r"has no tokenizer\.json.*openai/gpt-oss-20b"):
        convert(source, tmp_path / "model", **options)


@pytest.mark.parametrize(("text", "refused"), [("{}", True), (None, False)])
def test_from_the_hub_before_the_weights_come(source, hub, tmp_path, text, refused):
    (source / "tokenizer.json").unlink()
    if text:
        (source / "tokenizer.json").write_text(text)
    come = []

    def note(text):
        come.append([request.what for request in hub.log if (request.sent or 0) > 100_000])

    if refused:
        assert_refused(REPOSITORY, tmp_path / "model", "cannot read")
        assert not [request for request in hub.log if request.sent > 100_000]
    else:
        convert(REPOSITORY, tmp_path / "model", on_note=note)
        assert come == [[]]


@pytest.mark.parametrize("text", [None, "{}", '{"eos_token_id": null}', "no JSON"])
def test_mlx_lm_stops_where_the_tokenizer_says(source, tmp_path, text):
    """Also where no generation_config.json lists the tokens that end an answer."""
    from mlx_lm.utils import load_config

    (source / "generation_config.json").unlink()
    if text:
        (source / "generation_config.json").write_text(text)
    config = json.loads((source / "config.json").read_text())
    del config["eos_token_id"]
    (source / "config.json").write_text(json.dumps(config))
    convert(source, tmp_path / "model")
    assert sorted(load_config(tmp_path / "model")["eos_token_id"]) == [256, 257, 263]
