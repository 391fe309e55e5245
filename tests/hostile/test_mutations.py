"""Good files with something in them changed: every reader answers, or raises a GptOssError that can be shown."""

import json
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zygote
from checkpoints import config_of, write_checkpoint
from gptoss_convert import convert
from gptoss_convert.inspection import Subject, statistics
from gptoss_convert.inspection import inspect as inspect_subject
from gptoss_convert.sources import Source
from gptoss_convert.verification import verify
from gptoss_mlx.engine.generate import _stop_ids
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.memory.plan import Device, make_plan
from gptoss_mlx.model.checkpoint import Checkpoint
from gptoss_mlx.model.safetensors import ITEM_SIZE
from hostile.checks import check_config, check_header, config_seeds, file_of, header_seeds
from hostile.folders import CONFIG, INDEX, PROVENANCE, STOPS, TOKENIZER, header_of, rewrite, shard
from hostile.mutations import mutated, text_of

EXAMPLES = settings().max_examples  # of the profile; a busy machine may be slow to make them


def examples(factor: int) -> settings:
    return settings(max_examples=factor * EXAMPLES, suppress_health_check=[HealthCheck.too_slow])


MANY = examples(2)
RANDOM = st.randoms(use_true_random=False)


def inspect(folder):
    return inspect_subject(Subject.of_folder(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A converted folder of one shard; each test restores what it changes."""
    root = tmp_path_factory.mktemp("mutated")
    convert(write_checkpoint(root / "source", config_of(num_hidden_layers=1)), root / "model", "mxfp4-bf16")
    return root / "model"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("source") / "model", config_of(num_hidden_layers=1), shards=1)


def answered(read, *arguments):
    """Call a reader; the only exception that it may raise is one that can be shown."""
    try:
        read(*arguments)
    except GptOssError as error:
        message = str(error)
    else:
        return
    assert message.isprintable()
    assert len(message) < 1500


def times_mutated(value, random):
    for _ in range(random.randrange(1, 4)):
        value = mutated(value, random)
    return text_of(value)


LIMITS = """
import resource, sys, time
from pathlib import Path
from gptoss_mlx.model.safetensors import read_header
from gptoss_mlx.errors import GptOssError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

before, started = peak(), time.process_time()
try:
    read_header(Path(sys.argv[1]))
except GptOssError:
    print(time.process_time() - started, peak() - before)
"""


@pytest.mark.parametrize("size", [4 * 2**20, 10**8])
def test_what_the_worst_header_takes(tmp_path, size):
    """Empty lists: three bytes of JSON that Python needs seventy for."""
    path = tmp_path / "model.safetensors"
    rewrite(path, b'{"a": [' + b"[]," * ((size - 16) // 3) + b"[]]}", b"")
    done = zygote.shared().run(["-c", LIMITS, str(path)], "", os.environ, timeout=100)
    seconds, peak = map(float, done.stdout.split())
    assert seconds < 5
    assert peak < 200e6


class TestHeader:
    @given(RANDOM, st.sampled_from(header_seeds()[:2]))
    @examples(5)
    def test_changed_json(self, tmp_path_factory, random, seed):
        path = tmp_path_factory.getbasetemp() / "header.safetensors"
        path.write_bytes(file_of(seed[:3] + times_mutated(json.loads(seed[3:]), random).encode()))
        check_header(path)

    @given(st.sampled_from(header_seeds()), st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=4))
    @MANY
    def test_changed_bytes(self, tmp_path_factory, seed, changes):
        path = tmp_path_factory.getbasetemp() / "header.safetensors"
        data = bytearray(file_of(seed))
        for place, value in changes:
            data[place % len(data)] = value
        path.write_bytes(data)
        check_header(path)

    @given(RANDOM)
    @MANY
    def test_in_a_folder(self, folder, random):
        path = shard(folder)
        good = path.read_bytes()
        header, data = header_of(path)
        try:
            rewrite(path, times_mutated(header, random).encode(), data)
            for read in (Checkpoint.open, inspect):
                answered(read, folder)
            answered(make_plan, folder, Device.named("mac-16gb"))
            answered(lambda folder: statistics(Subject.of_folder(folder), "model.norm.weight"), folder)
        finally:
            path.write_bytes(good)


@given(RANDOM, st.sampled_from(config_seeds()))
@examples(10)
def test_config(random, seed):
    check_config(times_mutated(json.loads(seed), random).encode())


@pytest.mark.parametrize(
    ("name", "readers"),
    [
        (INDEX, [Checkpoint.open, inspect]),
        (CONFIG, [inspect, lambda folder: make_plan(folder, Device.named("mac-16gb"))]),
        (PROVENANCE, [inspect, verify]),
        (STOPS, [_stop_ids]),
        (TOKENIZER, [lambda folder: Tokenizer.load(folder).encode("Hello <|end|>\n")]),
    ],
)
@given(random=RANDOM)
@MANY
def test_small_files(folder, name, readers, random):
    path = folder / name
    good = path.read_text()
    try:
        path.write_bytes(times_mutated(json.loads(good), random).encode())
        for read in readers:
            answered(read, folder)
    finally:
        path.write_text(good)


@given(RANDOM)
@MANY
def test_sources(source, random):
    path = source / CONFIG
    good = path.read_text()
    try:
        path.write_bytes(times_mutated(json.loads(good), random).encode())
        answered(Source, source)
    finally:
        path.write_text(good)


def test_snapshots_of_the_hub_are_links(source, tmp_path):
    """Every file of one is a relative link to a blob, which has no name of its own."""
    snapshot = tmp_path / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(sorted(source.iterdir())):
        shutil.copy(path, tmp_path / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert inspect(snapshot).layers == 1
    assert len(Source(snapshot).shards) == 1


def test_a_file_that_ends_within_a_word(tmp_path):
    """What is mapped is counted in words of four bytes."""
    header = {"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}
    padding = b" " * (-(8 + len(text_of(header))) % 4)
    rewrite(tmp_path / "model.safetensors", text_of(header).encode() + padding, b"\1\2\3")
    assert Checkpoint.open(tmp_path).array("a").tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F64"])
def test_dtypes_that_gpt_oss_does_not_use(tmp_path, dtype):
    size = 3 * ITEM_SIZE[dtype]
    header = {"a": {"dtype": dtype, "shape": [3], "data_offsets": [0, size]}}
    rewrite(tmp_path / "model.safetensors", header, bytes(size))
    for read in (Checkpoint.view, Checkpoint.array):
        answered(read, Checkpoint.open(tmp_path), "a")


def test_a_tensor_too_large_for_mlx(tmp_path):
    """As large as a file without blocks can be: nothing of it is read."""
    header = {"a": {"dtype": "U8", "shape": [2**33], "data_offsets": [0, 2**33]}}
    path = tmp_path / "model.safetensors"
    rewrite(path, text_of(header).encode() + b" " * (-(8 + len(text_of(header))) % 4), b"")
    os.truncate(path, path.stat().st_size + 2**33)
    checkpoint = Checkpoint.open(tmp_path)
    with pytest.raises(GptOssError, match="too large"):
        checkpoint.array("a")


def test_a_file_that_shrinks_while_it_is_used(source, tmp_path):
    """Before it is mapped, and after: a read behind the end of a map would end the process."""
    folder = shutil.copytree(source, tmp_path / "model")
    one, two = Checkpoint.open(folder), Checkpoint.open(folder)
    assert two.view("model.norm.weight").size == 64
    path = shard(folder)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)
    for checkpoint in (one, two):
        with pytest.raises(GptOssError, match="has become shorter"):
            checkpoint.view("model.norm.weight")
    with pytest.raises(GptOssError, match="has become shorter"):
        one.array("model.norm.weight")
