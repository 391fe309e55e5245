"""A safetensors file is untrusted: every lie that a header can tell is refused, with the file's name."""

import json
import struct

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx import kernels
from gptoss_mlx.device import METAL_PAGE
from gptoss_mlx.model.checkpoint import Checkpoint
from gptoss_mlx.model.safetensors import CheckpointError, read_header


def entry(dtype="BF16", shape=(2, 2), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def write(path, header, data=bytes(8), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (b"not json", "malformed header"),
        (b"\xff\xfe", "malformed header"),
        (b"[1]", "not a JSON object"),
        (b"[" * 200_000, "malformed header"),
        (b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2), "occurs twice"),
        ({"a": 3}, "not a JSON object"),
        ({"a": entry(dtype="BF17")}, "unknown dtype"),
        ({"a": entry(dtype=["BF16"])}, "unknown dtype"),
        ({"a": entry(shape=(-2, -2))}, "malformed shape"),
        ({"a": entry(shape=(2.0, 2))}, "malformed shape"),
        ({"a": entry(shape=(True, 4))}, "malformed shape"),
        ({"a": entry(offsets=(0,))}, "malformed data_offsets"),
        ({"a": entry(offsets=(-8, 0))}, "malformed data_offsets"),
        ({"a": entry(offsets=(8, 0))}, "which is not BF16"),
        ({"a": entry(shape=(3, 2))}, "which is not BF16"),
        ({"a": entry(shape=(2**40, 2**40))}, "which is not BF16"),
        ({"a": entry(offsets=(8, 16))}, "overlap or gap"),
        ({"a": entry(shape=(4, 2), offsets=(0, 16))}, "truncated"),
        ({"a": entry(shape=(2,), offsets=(0, 4))}, "after its last tensor"),
        ({"a": entry(), "b": entry(shape=(2,), offsets=(4, 8))}, "overlap or gap"),
        ({"a": entry(), "__metadata__": {"format": 3}}, "__metadata__"),
        ({}, "after its last tensor"),
    ],
)
def test_header_lies(tmp_path, header, complaint):
    path = write(tmp_path / "model.safetensors", header)
    with pytest.raises(CheckpointError, match=complaint) as error:
        read_header(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("length", [2**64 - 1, 10**9, 200])
def test_header_length_beyond_the_file(tmp_path, length):
    path = write(tmp_path / "model.safetensors", {"a": entry()}, length=length)
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        read_header(path)


@pytest.mark.parametrize("data", [b"", b"\x01", bytes(7)])
def test_file_shorter_than_its_prefix(tmp_path, data):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="truncated"):
        read_header(path)


def test_unreadable(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        read_header(tmp_path / "model.safetensors")


@given(st.binary(max_size=300), st.integers(0, 400))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_refused_or_read(tmp_path_factory, data, length):
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + data)
    try:
        header = read_header(path)
    except CheckpointError:
        return
    assert all(tensor.end <= path.stat().st_size for tensor in header.tensors.values())


@pytest.fixture
def folder(tmp_path):
    """Two shards written by MLX: float32, uint8 and bfloat16."""
    one = {"a": mx.arange(6, dtype=mx.float32).reshape(2, 3), "b": mx.array([1, 2, 3], mx.uint8)}
    two = {"table": mx.arange(40).reshape(10, 4).astype(mx.bfloat16)}
    mx.save_safetensors(str(tmp_path / "one.safetensors"), one)
    mx.save_safetensors(str(tmp_path / "two.safetensors"), two)
    weight_map = {"a": "one.safetensors", "b": "one.safetensors", "table": "two.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def test_arrays_and_views(folder):
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.array("a").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert checkpoint.view("b").tolist() == [1, 2, 3]
    assert not checkpoint.view("b").flags.writeable
    assert checkpoint.array("table").dtype == mx.bfloat16
    assert np.array_equal(checkpoint.view("table"), np.array(checkpoint.array("table").view(mx.uint16)))


def test_rows_of_a_table(folder):
    rows = Checkpoint.open(folder).rows("table", on_gpu=False)(mx.array([[9, 0]]))
    assert rows.dtype == mx.bfloat16
    assert rows.tolist() == [[[36, 37, 38, 39], [0, 1, 2, 3]]]


@pytest.mark.parametrize("on_gpu", [False, True])
def test_rows_of_a_converted_table(demo_folder, computing, on_gpu):
    checkpoint, index = Checkpoint.open(demo_folder), mx.array([[5, 0], [255, 5]])
    for part in ("weight", "scales"):
        name = f"model.embed_tokens.{part}"
        rows = checkpoint.rows(name, on_gpu=on_gpu)(index)
        bits = rows.view(mx.uint16) if rows.dtype == mx.bfloat16 else rows
        assert np.array_equal(np.array(bits), checkpoint.view(name)[np.array(index)])


def test_a_row_that_is_not_there(demo_folder):
    if not kernels.native():
        pytest.skip(kernels.why_not_native())
    rows = Checkpoint.open(demo_folder).rows("model.embed_tokens.weight", on_gpu=False)
    for index in (-1, 10**6):
        with pytest.raises(RuntimeError, match=f"there is no row {index}"):
            mx.eval(rows(mx.array([index])))


@pytest.mark.parametrize(
    ("weight_map", "complaint"),
    [
        ({"a": "../one.safetensors"}, "not a file name"),
        ({"a": "/etc/passwd"}, "not a file name"),
        ({"a": ".."}, "not a file name"),
        ({"a": 7}, "not a file name"),
        ({"a": "three.safetensors"}, "lacks three.safetensors"),
        ({"c": "one.safetensors"}, "does not have it"),
        ({"a": "one.safetensors"}, "does not place there"),
        ([], "malformed"),
    ],
)
def test_index_lies(folder, weight_map, complaint):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=complaint):
        Checkpoint.open(folder)


def test_no_weights_at_all(tmp_path):
    with pytest.raises(CheckpointError, match="neither"):
        Checkpoint.open(tmp_path)


def test_windows_on_a_file_are_whole_pages(demo_folder, monkeypatch):
    """As Metal adopts them: each tensor in a buffer of its own, of whole pages."""
    sizes = []

    def adopt(pages, copy):
        assert copy is False
        assert pages.ctypes.data % 4096 == 0  # the largest page that this machine can promise
        assert pages.nbytes % METAL_PAGE == 0
        sizes.append(pages.nbytes)
        return mx.array(pages)

    monkeypatch.setattr(mx, "from_dlpack", adopt)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.DeviceType.gpu))
    opened = Checkpoint.open(demo_folder)
    for name in opened.tensors:
        bits = opened.array(name)
        bits = bits.view(mx.uint16) if bits.dtype == mx.bfloat16 else bits
        assert np.array_equal(np.array(bits), opened.view(name))
    largest = max(tensor.nbytes for tensor in opened.tensors.values())
    assert max(sizes) <= largest + 2 * METAL_PAGE
