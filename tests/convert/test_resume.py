"""Conversions that are killed, interrupted, or meet a disk that fails: the same command goes on, to the same bytes."""

import errno
import os
import random
import shutil
import signal
import time

import pytest

import zygote
from checkpoints import config_of, write_checkpoint
from gptoss_convert import convert, pipeline, writer
from gptoss_mlx import load
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.model.checkpoint import Checkpoint
from gptoss_mlx.model.safetensors import CheckpointError

# A conversion that tells each step, and puts every unit on record.
SLOWLY = """
import sys, time
from gptoss_convert import convert, pipeline
pipeline.DURABLE = 1
def wait(step):
    print(step.stage, step.done, flush=True)
    time.sleep(0.003)
convert(sys.argv[1], sys.argv[2], on_progress=wait)
"""

FROM_SCRATCH = 1000  # bytes: more than the first step of a conversion with nothing on record, less than any unit


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("source"), config_of(), shards=3)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """What an uninterrupted conversion writes: name -> bytes."""
    folder = tmp_path_factory.mktemp("whole") / "dest"
    convert(source, folder)
    return contents(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(source, dest):
    return zygote.shared().open(["-c", SLOWLY, str(source), str(dest)], os.environ)


def assert_goes_on(source, dest, whole):
    steps = []
    convert(source, dest, on_progress=steps.append)
    assert steps[0].done > FROM_SCRATCH
    assert contents(dest) == whole


def assert_nothing_loads(folder):
    for journal in folder.glob(".dest*/journal.json"):
        with pytest.raises(GptOssError):
            load(journal.parent)


@pytest.mark.parametrize(("wanted_kills", "wanted_resumes"), [(3, 1), pytest.param(20, 6, marks=pytest.mark.slow)])
def test_killed_at_random_moments(source, whole, tmp_path, wanted_kills, wanted_resumes):
    moments = random.Random(5)
    dest = tmp_path / "dest"
    kills, resumes = 0, 0
    while kills < wanted_kills:
        process = start(source, dest)
        steps = [process.stdout.readline() for _ in range(moments.randint(1, 45))]
        resumes += steps[0].startswith("convert ") and int(steps[0].split()[1]) > FROM_SCRATCH
        time.sleep(moments.uniform(0, 0.01))
        process.kill()
        process.wait()
        process.stdout.close()
        if process.returncode == -signal.SIGKILL:
            kills += 1
            assert not dest.exists()
            assert_nothing_loads(tmp_path)
        else:
            assert contents(dest) == whole
            shutil.rmtree(dest)
    convert(source, dest)
    assert contents(dest) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["dest"]
    assert resumes >= wanted_resumes


def test_interrupted(source, whole, tmp_path):
    dest = tmp_path / "dest"
    process = start(source, dest)
    for _ in range(20):
        process.stdout.readline()
    with pytest.raises(GptOssError, match="another conversion"):
        convert(source, dest)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert_nothing_loads(tmp_path)
    assert_goes_on(source, dest, whole)


def test_the_command_says_how_to_go_on(command, environment, source, tmp_path):
    """The command itself, slowed down by its progress."""
    code = SLOWLY.replace("convert(sys.argv[1], sys.argv[2], on_progress=wait)", "").replace(
        "import sys", "import sys, gptoss_mlx.terminal.progress_bars"
    )
    code += """
from contextlib import nullcontext
gptoss_mlx.terminal.progress_bars.conversion_progress = lambda: nullcontext(wait)
from gptoss_mlx.cli import main
sys.argv = ["gptoss-mlx", "convert", *sys.argv[1:], "--recipe", "mxfp4-q4"]
main()
"""
    process = zygote.shared().open(["-c", code, str(source), str(tmp_path / "dest")], environment)
    for _ in range(20):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    kept, interrupted = filter(None, errors.splitlines())
    assert "the same command resumes" in kept
    assert str(tmp_path / ".dest.partial") in kept
    assert interrupted == "interrupted"


def failing(real, after, error):
    """`real`, which fails for good once it has been called for more than `after` bytes."""
    total = 0

    def call(descriptor, data, *rest):
        nonlocal total
        total += len(data)
        if total > after:
            raise error
        return real(descriptor, data, *rest)

    return call


def test_a_disk_that_fills_up_in_the_middle(source, whole, tmp_path, monkeypatch):
    dest = tmp_path / "dest"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(writer.os, "pwrite", failing(os.pwrite, 300_000, full))
        with pytest.raises(GptOssError, match=r"cannot write .*No space left on device.*run the same command again"):
            convert(source, dest)
    assert not dest.exists()
    assert_nothing_loads(tmp_path)
    assert_goes_on(source, dest, whole)


def test_a_source_that_cannot_be_read_in_the_middle(source, whole, tmp_path, monkeypatch):
    dest = tmp_path / "dest"
    read = Checkpoint.read

    def broken(self, name, start, stop):
        if name == "model.layers.2.self_attn.o_proj.weight":
            raise CheckpointError(f"cannot read {self.file_of[name]}: Input/output error")
        return read(self, name, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "read", broken)
        with pytest.raises(GptOssError, match="Input/output error"):
            convert(source, dest)
    assert_goes_on(source, dest, whole)


@pytest.mark.parametrize("change", ["source", "recipe", "damage"])
def test_what_is_of_no_use_is_done_again(source, whole, tmp_path, monkeypatch, change):
    dest, copied = tmp_path / "dest", shutil.copytree(source, tmp_path / "copied")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(writer.os, "pwrite", failing(os.pwrite, 300_000, full))
        with pytest.raises(GptOssError):
            convert(copied, dest)
    recipe = "mxfp4-q4"
    if change == "source":
        write_checkpoint(copied, config_of(), seed=1, shards=3)
    elif change == "recipe":
        recipe = "mxfp4-q8"
    else:
        min((tmp_path / ".dest.partial").glob("*.safetensors")).write_bytes(b"")
    convert(copied, dest, recipe)
    convert(copied, tmp_path / "again", recipe)
    assert contents(dest) == contents(tmp_path / "again")
    assert pipeline.DURABLE > 10**6
