"""Disks of a Mac: attributes in files beside others, whose names begin with `._`, and a drive with its own memory."""

import fcntl
import os
import re
import sys
from pathlib import Path

import pytest

from checkpoints import config_of, write_checkpoint
from gptoss_convert import convert, pipeline, writer
from gptoss_convert.publishing import contents
from gptoss_convert.verification import verify
from gptoss_mlx import files, load
from gptoss_mlx.evaluation.journal import model_key
from gptoss_mlx.memory.plan import EngineConfig
from gptoss_mlx.model.checkpoint import Checkpoint
from gptoss_mlx.model.recognition import has_weights, model_folder

PACKAGES = [Path(files.__file__).parent, Path(writer.__file__).parent]
APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        "


def with_doubles(folder):
    for path in list(folder.iterdir()):
        path.with_name(f"._{path.name}").write_bytes(APPLE_DOUBLE)
    return folder


@pytest.fixture
def twins_vanish(monkeypatch):
    """As on such a disk: with a file, the one of its attributes goes."""
    real = os.unlink

    def unlink(path, *, dir_fd=None):
        real(path, dir_fd=dir_fd)
        folder, name = os.path.split(path)
        if not name.startswith("._") and os.access(twin := os.path.join(folder, f"._{name}"), os.F_OK, dir_fd=dir_fd):
            real(twin, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return with_doubles(write_checkpoint(tmp_path_factory.mktemp("source"), config_of(), shards=3))


def test_attributes_beside_a_model(source, tmp_path):
    folder = tmp_path / "model"
    convert(source, folder)
    settings = EngineConfig(context=128, kv_bits=16, prefill_chunk=64)
    key, uploaded = model_key(folder, settings), contents(folder, "somebody/model").keys()
    assert with_doubles(model_folder(folder)) == folder
    assert verify(folder) == []
    assert contents(folder, "somebody/model").keys() == uploaded
    assert model_key(folder, settings) == key
    assert {path.name for path in Checkpoint.open(folder).file_of.values()} <= uploaded
    assert len(load(folder, settings).network.layers) == config_of()["num_hidden_layers"]


@pytest.mark.parametrize("files", [[], ["README.md", "._model.safetensors"], ["adapter_model.safetensors"]])
def test_attributes_are_no_weights(files):
    assert not has_weights([*files, *(f"._{name}" for name in files)])


def test_a_conversion_resumes_beside_attributes(source, tmp_path, monkeypatch, twins_vanish):
    monkeypatch.setattr(pipeline, "DURABLE", 1)
    partial = tmp_path / ".dest.partial"

    def stop(step):
        if (partial / "journal.json").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "dest", on_progress=stop)
    with_doubles(partial)
    convert(source, tmp_path / "dest")
    assert verify(tmp_path / "dest") == []


@pytest.mark.parametrize("remove", [files.remove_tree, writer.clear])
def test_files_that_go_with_others(tmp_path, twins_vanish, remove):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}").touch()
    remove(with_doubles(folder))
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("refused", [False, True])
def test_what_is_on_the_disk_is_not_in_its_memory(tmp_path, monkeypatch, refused):
    asked = []

    def control(descriptor, command):
        asked.append((os.fstat(descriptor).st_ino, command))
        if refused:
            raise OSError

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    files.replace_file(tmp_path / "file", "text")
    assert asked == [((tmp_path / "file").stat().st_ino, 51)]
    assert (tmp_path / "file").read_text() == "text"


def test_one_function_writes_to_the_disk():
    callers = [
        path.name
        for folder in PACKAGES
        for path in folder.rglob("*.py")
        if re.search(r"\bos\.f(data)?sync\b", path.read_text())
    ]
    assert callers == ["files.py"]


def test_no_pattern_takes_attributes_for_weights():
    for folder in PACKAGES:
        for path in folder.rglob("*.py"):
            assert not re.search(r"""glob\(f?["']\*""", path.read_text()), path
