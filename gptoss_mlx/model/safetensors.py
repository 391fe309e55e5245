"""One safetensors file: its header, checked before anything in the file is trusted.

The format: 8 bytes, little endian, the length N of the header; N bytes of JSON, name -> {dtype, shape, data_offsets},
padded with spaces; then the tensors without gaps (github.com/huggingface/safetensors). Knows nothing about gpt-oss, and
of its dtypes only which ones it uses.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import GptOssError
from ..untrusted import MAX_JSON, open_regular, os_error_text, parse_json

MAX_RANK = 8  # of a tensor; gpt-oss has 4

ITEM_SIZE = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2}
ITEM_SIZE |= {"BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8}

# The first bytes of other formats, and their names. Read as the length of a header, each would be larger than any file.
OTHER_FORMATS = {
    b"version ": "a Git LFS pointer: `git lfs pull` fetches the file itself",
    b"GGUF": "a GGUF file, which llama.cpp runs",
    b"PK\x03\x04": "a file of PyTorch's, or an archive: save the model in safetensors",
    b"<!doctyp": "a web page: download it again",
    b"<!DOCTYP": "a web page: download it again",
    b"<html": "a web page: download it again",
}

# The dtypes that a gpt-oss checkpoint or its conversion may hold. NumPy has no bfloat16: its bits, as uint16.
NUMPY_DTYPE = {"U8": np.uint8, "BF16": np.uint16, "F16": np.float16, "U32": np.uint32, "F32": np.float32}


class CheckpointError(GptOssError):
    """A file that is missing, truncated or malformed; the message names the file, and the tensor where there is one."""


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `start` and `end` are byte offsets from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    nbytes: int


def read_header(path: Path) -> Header:
    """Read and check the whole header of a safetensors file; no tensor data is read. Raises CheckpointError."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            text = file.read(header_length(path, file.read(8), size))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {os_error_text(error)}") from None
    return parse_header(path, text, size)


def header_length(path: Path, prefix: bytes, size: int) -> int:
    """The length N in the first 8 bytes of a file of `size` bytes. Raises CheckpointError."""
    if len(prefix) < 8:
        raise CheckpointError(f"{path} has {size} bytes: not a safetensors file, or a truncated one")
    if other := next((what for start, what in OTHER_FORMATS.items() if prefix.startswith(start)), None):
        raise CheckpointError(f"{path} is not a safetensors file but {other}")
    (length,) = struct.unpack("<Q", prefix)
    if 8 + length > size:
        raise CheckpointError(
            f"{path} says that its header has {length} bytes, in a file of {size}: corrupt or truncated"
        )
    if length > MAX_JSON:
        raise CheckpointError(f"{path} has a malformed header: more than {MAX_JSON:,} bytes of JSON")
    return length


def parse_header(path: Path, text: bytes, size: int) -> Header:
    """Check the N bytes of JSON of a file of `size` bytes, which can be elsewhere. Raises CheckpointError."""
    try:
        entries = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path} has a malformed header: {error}") from None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path} has a malformed header: not a JSON object")
    metadata = entries.pop("__metadata__", None) or {}  # MLX writes null
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path} has malformed __metadata__: not a map of strings")
    data = 8 + len(text)
    tensors = {name: _tensor_info(path, name, entry, data) for name, entry in entries.items()}
    _check_layout(path, tensors, data, size)
    return Header(tensors, metadata, data)


def _tensor_info(path: Path, name: str, entry: Any, data: int) -> TensorInfo:
    if not isinstance(entry, dict):
        raise CheckpointError(f"{path}: the entry of {name!r} is not a JSON object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        raise CheckpointError(f"{path}: {name!r} has the unknown dtype {dtype!r}")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(_is_whole(size, 1) for size in shape):
        raise CheckpointError(f"{path}: {name!r} has the malformed shape {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_whole(offset, 0) for offset in offsets):
        raise CheckpointError(f"{path}: {name!r} has the malformed data_offsets {offsets!r}")
    start, end = offsets
    if end - start != math.prod(shape) * ITEM_SIZE[dtype]:
        raise CheckpointError(f"{path}: {name!r} has {end - start} bytes, which is not {dtype} {shape}")
    return TensorInfo(name, dtype, tuple(shape), data + start, data + end)


def _is_whole(value: Any, minimum: int) -> bool:
    """A number of JSON, which is no bool."""
    return type(value) is int and minimum <= value < 2**63


def _check_layout(path: Path, tensors: Mapping[str, TensorInfo], data: int, size: int) -> None:
    """The tensors must fill the file from the end of the header to its last byte, without gaps or overlaps."""
    position = data
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != position:
            raise CheckpointError(
                f"{path}: {tensor.name!r} starts at byte {tensor.start} instead of {position}: overlap or gap"
            )
        position = tensor.end
    if position > size:
        raise CheckpointError(f"{path} is truncated: it has {size} bytes of {position}")
    if position < size:
        raise CheckpointError(f"{path} has {size - position} bytes after its last tensor: corrupt")


def as_array(path: Path, tensor: TensorInfo, data: np.ndarray) -> np.ndarray:
    """A view of a tensor's bytes, uint8 [nbytes], as its own dtype and shape. Raises CheckpointError."""
    if tensor.dtype not in NUMPY_DTYPE:
        raise CheckpointError(f"{path}: {tensor.name!r} is {tensor.dtype}, which gpt-oss does not use")
    return data.view(NUMPY_DTYPE[tensor.dtype]).reshape(tensor.shape)
