"""Names of models, as people write them, and the folders that they stand for."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from checkpoints import config_of, write_checkpoint
from gptoss_convert import RECIPES
from gptoss_mlx import GptOssError, load
from gptoss_mlx.model import other_programs
from gptoss_mlx.model.installed import make_models_folder
from gptoss_mlx.model.model_store import (
    TAGS,
    ModelMissing,
    ModelName,
    converted,
    display_name,
    hub_id,
    kept_at,
    last_used,
    models_folder,
    resolve,
    stamp_of,
    tag_of,
    user_file,
)

NAMES = {
    "gpt-oss-20b": "gpt-oss-20b",
    "gpt-oss:20b": "gpt-oss-20b",
    "gpt-oss": "gpt-oss-20b",
    "gpt-oss:latest": "gpt-oss-20b",
    "gpt-oss-20b:latest": "gpt-oss-20b",
    "openai/gpt-oss-20b": "gpt-oss-20b",
    "GPT-OSS-20B": "gpt-oss-20b",
    "hf.co/openai/gpt-oss-120b": "gpt-oss-120b",
    "https://huggingface.co/openai/gpt-oss-120b": "gpt-oss-120b",
    "ollama.com/library/gpt-oss:120b": "gpt-oss-120b",
    "gpt-oss-safeguard:20b": "openai/gpt-oss-safeguard-20b",
    "gpt-oss-20b:q8": "gpt-oss-20b:q8",
    "gpt-oss:20b:Q8": "gpt-oss-20b:q8",
    "openai/gpt-oss-20b:mxfp4-q8": "gpt-oss-20b:q8",
    "gpt-oss-20b:q4": "gpt-oss-20b:q4",
    "gpt-oss-20b:mxfp4-q4": "gpt-oss-20b:q4",
    "gpt-oss-20b:mine": "gpt-oss-20b:mine",
    "Somebody/Tuned:mixed": "Somebody/Tuned:mixed",
}
NO_NAMES = [
    "gpt-oss:30b",
    "gpt-oss-20b:",
    "gpt-oss-20b:a/b",
    "gpt-oss-20b:a--b",
    "llama",
    "a/b/c",
    ".a/b",
    "a/b:\x1b[2J",
]


@pytest.mark.parametrize(("written", "name"), NAMES.items())
def test_names_that_people_bring(written, name):
    parsed = ModelName.parse(written)
    assert str(parsed) == name
    assert ModelName.of_folder(parsed.folder) == parsed


@pytest.mark.parametrize("written", NO_NAMES)
def test_what_is_no_name(written):
    assert ModelName.parse(written) is None


def test_each_recipe_has_one_tag():
    assert sorted(TAGS.values()) == sorted(RECIPES)
    for recipe in RECIPES:
        assert ModelName.parse(f"gpt-oss-20b:{tag_of(recipe)}").recipe == recipe
    assert tag_of("~/recipes/my own.toml") == "my-own"
    with pytest.raises(GptOssError, match="name of another recipe"):
        tag_of("q8.toml")


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A user without variables and without models; returns the folder for models, which is not there yet."""
    for name in ("GPTOSS_MLX_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "platform", "linux")
    return tmp_path / "data" / "gptoss-mlx" / "models"


def model(folder: Path, recipe: str = "mxfp4-q4") -> Path:
    """The names of a converted model's files, and its recipe."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "provenance.json").write_text(json.dumps({"recipe": recipe, "source": {"id": "openai/gpt-oss-20b"}}))
    return folder


def test_where_models_are(place, monkeypatch, tmp_path):
    assert models_folder() == place
    monkeypatch.delenv("XDG_DATA_HOME")
    assert models_folder() == tmp_path / ".local/share/gptoss-mlx/models"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert models_folder() == tmp_path / "Library/Application Support/gptoss-mlx/models"
    monkeypatch.setenv("GPTOSS_MLX_HOME", str(tmp_path / "own"))
    assert models_folder() == tmp_path / "own"


def test_recipes_side_by_side(place):
    with pytest.raises(ModelMissing, match=r"`gptoss-mlx convert openai/gpt-oss-20b --recipe mxfp4-q8`") as missing:
        resolve("gpt-oss:20b:q8")
    assert missing.value.folder == place / "openai--gpt-oss-20b--q8"
    q8 = model(place / "openai--gpt-oss-20b--q8", "mxfp4-q8")
    assert resolve("gpt-oss-20b:q8") == resolve("openai/gpt-oss-20b:mxfp4-q8") == resolve("gpt-oss-20b") == q8
    plain = model(place / "openai--gpt-oss-20b", "mxfp4-mixed")
    assert resolve("gpt-oss-20b") == resolve("gpt-oss-20b:mixed") == plain
    with pytest.raises(ModelMissing):
        resolve("gpt-oss-20b:q4")
    with pytest.raises(GptOssError, match="tags of recipes are q4, q8"):
        resolve("gpt-oss-20b:q9")
    mine = model(place / "openai--gpt-oss-20b--mine", "mine")
    assert resolve("gpt-oss-20b:mine") == mine
    assert converted() == ["gpt-oss-20b", "gpt-oss-20b:mine", "gpt-oss-20b:q8"]
    assert [display_name(folder) for folder in (q8, plain)] == ["gpt-oss-20b:q8", "gpt-oss-20b"]


def test_a_name_without_a_tag_is_the_recipe_used_last(place):
    folders = [model(place / f"openai--gpt-oss-20b--{tag}", TAGS[tag]) for tag in ("bf16", "q4", "q8")]
    for second, folder in enumerate(folders):
        stamp_of(folder).touch()
        os.utime(stamp_of(folder), (1 + second % 2, 1 + second % 2))
    assert resolve("gpt-oss-20b") == folders[1]


def test_the_old_place_is_found(place, tmp_path):
    old = model(tmp_path / ".cache/gptoss-mlx/openai--gpt-oss-20b")
    assert resolve("gpt-oss-20b") == old
    (old.parent / "last-model").write_text(str(old))
    assert last_used() == old
    unfinished = old.parent / ".openai--gpt-oss-120b.partial"
    unfinished.mkdir()
    assert kept_at("openai/gpt-oss-120b") == old.parent / "openai--gpt-oss-120b"
    assert kept_at("openai/gpt-oss-120b", "q8") == place / "openai--gpt-oss-120b--q8"
    # A path that was written down before a move leads to where the model is now.
    place.mkdir(parents=True)
    old.rename(place / old.name)
    assert resolve(str(old)) == last_used() == place / old.name
    with pytest.raises(GptOssError, match="no model"):
        resolve(str(old.parent / "elsewhere" / old.name))


def test_small_files_leave_the_cache(place, tmp_path):
    old = tmp_path / ".cache" / "gptoss-mlx"
    old.mkdir(parents=True)
    new = place.parent
    assert user_file("history") == new / "history"
    (old / "history").write_text("older")
    assert user_file("history").read_text() == "older"
    assert list(old.iterdir()) == []
    (old / "history").write_text("of an older version")
    assert user_file("history").read_text() == "older"


def test_a_small_file_that_cannot_be_moved_counts(place, tmp_path):
    old = tmp_path / ".cache" / "gptoss-mlx" / "last-model"
    old.parent.mkdir(parents=True)
    old.write_text(str(tmp_path))
    (tmp_path / "data").write_text("a file in the place of the folder")
    assert user_file("last-model") == old
    assert last_used() == tmp_path


def test_text_that_is_no_name_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "OpenAI" / "gpt-oss-20b").mkdir(parents=True)
    assert hub_id("gpt-oss:120b") == "openai/gpt-oss-120b"
    for text in ("OpenAI/gpt-oss-20b", "./x", "somebody/tuned", "gpt-oss-20b:q8"):
        assert hub_id(text) == text


# Models of other programs.


@pytest.fixture(scope="module")
def made_by_mlx_lm(tmp_path_factory):
    from mlx_lm.convert import convert as mlx_lm_convert

    root = tmp_path_factory.mktemp("mlx-lm")
    write_checkpoint(root / "source", config_of())
    mlx_lm_convert(str(root / "source"), str(root / "made"), quantize=True)
    return root / "made"


def test_a_model_of_mlx_lm_in_the_hubs_cache(place, tmp_path, made_by_mlx_lm):
    repository = tmp_path / ".cache/huggingface/hub/models--mlx-community--gpt-oss-20b-MXFP4-Q4"
    folder = shutil.copytree(made_by_mlx_lm, repository / "snapshots" / "abc")
    model(repository / "snapshots" / "a-newer-one-without-weights")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    name = "mlx-community/gpt-oss-20b-MXFP4-Q4"
    assert other_programs.models() == [other_programs.OtherModel(name, folder, "MLX-LM")]
    assert load(name).path == folder
    assert display_name(folder) == "gpt-oss-20b-MXFP4-Q4"
    with pytest.raises(ModelMissing):
        resolve("gpt-oss-20b")


def test_lm_studios_folders(place, tmp_path, made_by_mlx_lm):
    for root, name in ((".lmstudio", "a/one"), (".cache/lm-studio", "b/two")):
        shutil.copytree(made_by_mlx_lm, tmp_path / root / "models" / name)
    assert [(found.name, found.program) for found in other_programs.models()] == [
        ("a/one", "LM Studio"),
        ("b/two", "LM Studio"),
    ]
    assert resolve("b/two") == tmp_path / ".cache/lm-studio/models/b/two"


@pytest.mark.parametrize("lack", ["weights", "config.json", "quantization", "gpt-oss", "JSON", "index", "name"])
def test_what_does_not_load_here_is_no_model(place, tmp_path, made_by_mlx_lm, lack):
    folder = shutil.copytree(made_by_mlx_lm, tmp_path / ".lmstudio/models/a/one")
    config = json.loads((folder / "config.json").read_text())
    match lack:
        case "weights":
            next(folder.glob("*.safetensors")).unlink()
        case "config.json":
            (folder / "config.json").unlink()
        case "quantization":
            del config["quantization"]
            (folder / "config.json").write_text(json.dumps(config))
        case "gpt-oss":
            (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
        case "JSON":
            (folder / "config.json").write_text("[" * 100_000)
        case "index":
            (folder / other_programs.INDEX).write_text('{"weight_map": {"a": {"b": 1}}}')
        case "name":
            (folder / other_programs.INDEX).write_text(json.dumps({"weight_map": {"a": "x" * 300}}))
    assert other_programs.models() == []


# Time Machine, with a stand-in for its program: not measured on a Mac.


def test_a_mac_is_told_to_leave_models_out_of_backups(place, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "tmutil"
    program.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/told"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    make_models_folder()
    assert place.is_dir()
    assert not (tmp_path / "told").exists()
    monkeypatch.setattr(sys, "platform", "darwin")
    for _ in range(2):
        make_models_folder()
    assert (tmp_path / "told").read_text() == f"addexclusion {models_folder()}\n"
    program.unlink()
    shutil.rmtree(models_folder())
    make_models_folder()  # also without the program
    monkeypatch.setenv("GPTOSS_MLX_HOME", str(tmp_path / "own"))  # where sessions are too
    make_models_folder()
    assert (tmp_path / "told").read_text().count("\n") == 1
