"""Shards without an index, or with one that is not theirs: the model that they hold, or what exactly is wrong."""

import json
import re

import pytest

from checkpoints import add_apple_doubles, config_of, tensors_of, write_checkpoint, write_safetensors
from gptoss_convert import convert
from gptoss_convert.hub import Repository
from gptoss_convert.inspection import Subject, inspect
from gptoss_mlx.model.checkpoint import INDEX, Checkpoint
from gptoss_mlx.model.safetensors import CheckpointError

from .hub import serving, use
from .test_sources import same_tensors

CONFIG = config_of(num_hidden_layers=2)
TENSORS = tensors_of(CONFIG)
NAMES = list(TENSORS)
PUBLISHED = [f"model-0000{number}-of-00002.safetensors" for number in (0, 1, 2)]
USUAL = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def write(folder, files, names=NAMES):
    """The tensors `names` in consecutive parts, a file each."""
    for number, file in enumerate(files):
        part = names[len(names) * number // len(files) : len(names) * (number + 1) // len(files)]
        write_safetensors(folder / file, {name: TENSORS[name] for name in part})
    return folder


def index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def index_of(folder, *files):
    found = Checkpoint.open(folder).file_of
    index(folder, {name: path.name for name, path in found.items() if path.name in files})


def stale_index(folder):
    write(folder, ["model.safetensors"])
    index(folder, {name: USUAL[number % 3] for number, name in enumerate(NAMES)})


def stale_index_and_a_shard(folder):
    stale_index(folder)
    write(folder, USUAL[1:2], NAMES[:9])


def index_of_another_form(folder):
    write(folder, ["model.safetensors"])
    index(folder, {"model.layers.0.mlp.experts.gate_up_proj": USUAL[0], "lm_head.weight": USUAL[2]})


def index_without_a_shard(folder):
    index_of(write(folder, USUAL), *USUAL[:2])


def extra_file_outside_the_index(folder):
    index_of(write(folder, USUAL), *USUAL)
    write(folder, ["model-00001-of-00007.safetensors", "extra.safetensors"], NAMES[:2])


def apple_doubles(folder):
    add_apple_doubles(write(folder, USUAL))


def apple_doubles_and_an_index(folder):
    index_of(write(folder, PUBLISHED), *PUBLISHED)
    add_apple_doubles(folder)


USABLE = {
    "as published, without the index": lambda folder: write(folder, PUBLISHED),
    "counted from one, without the index": lambda folder: write(folder, USUAL),
    "one shard of one": lambda folder: write(folder, ["model-00001-of-00001.safetensors"]),
    "another stem": lambda folder: write(folder, [name.replace("model", "gpt-oss-20b") for name in USUAL]),
    "beside an adapter": lambda folder: write(write(folder, USUAL), ["adapter_model.safetensors"], NAMES[:2]),
    "a stale index beside the whole": stale_index,
    "a stale index and one of its shards beside the whole": stale_index_and_a_shard,
    "a stale index of another form beside the whole": index_of_another_form,
    "an index without one of the shards": index_without_a_shard,
    "files outside the index": extra_file_outside_the_index,
    "AppleDouble files": apple_doubles,
    "AppleDouble files and an index": apple_doubles_and_an_index,
}


def without(number, files):
    return lambda folder: (write(folder, files), (folder / files[number]).unlink())


def an_index_and_not_its_shard(folder):
    index_of(write(folder, USUAL), *USUAL)
    (folder / USUAL[1]).unlink()


def an_index_of_other_shards(folder):
    write(folder, PUBLISHED)
    index(folder, dict.fromkeys(NAMES, USUAL[0]))


def a_tensor_twice(folder):
    write(folder, USUAL)
    write(folder, USUAL[2:], [*NAMES[2 * len(NAMES) // 3 :], NAMES[0]])


def two_models(folder):
    write(write(folder, USUAL), PUBLISHED)


def an_index_of_nothing(folder):
    index(write(folder, USUAL), {})


WRONG = {
    "first shard missing": (without(0, USUAL), f"lacks {USUAL[0]}, one of its shards: an incomplete download"),
    "middle shard missing": (without(1, PUBLISHED), f"lacks {PUBLISHED[1]}, one of its shards"),
    "last shard missing": (without(2, PUBLISHED), f"lacks {PUBLISHED[2]}, one of its shards"),
    "two missing": (lambda folder: write(folder, USUAL[1:2]), f"lacks {USUAL[0]} and 1 more files, one of its shards"),
    "an indexed shard missing": (an_index_and_not_its_shard, f"lacks {USUAL[1]}, which {INDEX} names"),
    "an index of other shards": (an_index_of_other_shards, f"lacks {USUAL[0]}, which {INDEX} names: if {PUBLISHED[0]}"),
    "a tensor twice": (a_tensor_twice, f"'{NAMES[0]}' twice, in {USUAL[0]} and in {USUAL[2]}"),
    "two models": (two_models, "shards of 2 models"),
    "an index of nothing": (an_index_of_nothing, "lists no tensors"),
    "another name": (lambda folder: write(folder, ["weights.safetensors"]), "neither model.safetensors.index.json nor"),
}


@pytest.fixture
def source(tmp_path):
    """All of a source but its weights."""
    folder = write_checkpoint(tmp_path / "source", CONFIG)
    for path in (*folder.glob("*.safetensors"), folder / INDEX):
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    root = tmp_path_factory.mktemp("right")
    convert(write_checkpoint(root / "source", CONFIG), root / "model")
    return root / "model"


@pytest.mark.parametrize("case", USABLE)
def test_usable(source, right, tmp_path, case):
    USABLE[case](source)
    convert(source, tmp_path / "model")
    assert same_tensors(tmp_path / "model", right)
    assert inspect(Subject.of_folder(source)).total("parameters") > 0


@pytest.mark.parametrize("case", WRONG)
def test_wrong(source, tmp_path, case):
    change, sentence = WRONG[case]
    change(source)
    for use_it in (lambda: convert(source, tmp_path / "model"), lambda: Subject.of_folder(source)):
        with pytest.raises(CheckpointError, match=re.escape(sentence)):
            use_it()


@pytest.mark.parametrize("case", [*USABLE, *WRONG])
def test_the_same_from_the_hub(source, right, tmp_path, monkeypatch, case):
    (USABLE | WRONG)[case][0](source) if case in WRONG else USABLE[case](source)
    with serving(source, "somebody/model") as hub:
        use(hub, monkeypatch, tmp_path / "cache")
        if case in USABLE:
            convert("somebody/model", tmp_path / "model")
            assert same_tensors(tmp_path / "model", right)
        else:
            with pytest.raises(CheckpointError, match=re.escape(WRONG[case][1])):
                Subject.of_repository(Repository.open("somebody/model"))


@pytest.mark.parametrize("what", ["plan", "generate", "verify"])
def test_a_converted_folder_without_its_index(run, right, tmp_path, what):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in right.iterdir():
        if path.name != INDEX:
            (folder / path.name).symlink_to(path)
    add_apple_doubles(folder)
    result = run(what, folder, *(["-p", "x", "--max-tokens", "1", "--temperature", "0"] if what == "generate" else []))
    assert "stopped in the middle" in result.stderr if what == "generate" else result.stderr == ""
