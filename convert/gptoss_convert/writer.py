"""Named arrays -> safetensors shards that can be mapped without a copy, in a folder that appears whole or not at all.

Each shard's JSON header is padded with spaces, the one padding that the format allows, until the file is a whole number
of 16 KiB pages. Tensors end on a page then, so those whose sizes are multiples of 64 bytes, in a published model all,
start at multiples of 64. Others come first in their shard, by size of element, which keeps each aligned to its own
elements. Metal adopts such a map as it is. Knows nothing about models or quantization.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gptoss_mlx.errors import GptOssError
from gptoss_mlx.files import lock, open_own_folder, sweep, sync, unlinked
from gptoss_mlx.model.checkpoint import INDEX
from gptoss_mlx.model.model_store import partial_folder
from gptoss_mlx.model.safetensors import ITEM_SIZE
from gptoss_mlx.untrusted import os_error_text

from . import journal

ALIGNMENT = 64
PAGE = 16_384
SHARD_LIMIT = 4 * 2**30


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]


@dataclass
class _PlannedShard:
    tensors: list[Planned]
    path: Path
    header: bytes = b""
    starts: dict[str, int] = field(default_factory=dict)
    size: int = 0
    """Of the file, in bytes."""
    missing: int = 0
    """Bytes of tensors not written yet."""

    def lay_out(self) -> None:
        """Fix every tensor's place, and with them the header."""
        self.tensors.sort(key=lambda tensor: (tensor.nbytes % ALIGNMENT == 0, ITEM_SIZE[tensor.dtype]))
        entries: dict[str, object] = {"__metadata__": {"format": "mlx"}}
        offset = 0
        for tensor in self.tensors:
            end = offset + tensor.nbytes
            entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text) + offset) % PAGE)
        self.header = struct.pack("<Q", len(text)) + text
        offset = len(self.header)
        for tensor in self.tensors:
            self.starts[tensor.name] = offset
            offset += tensor.nbytes
        self.size, self.missing = offset, offset - len(self.header)


class Writer:
    """Writes planned tensors, in any order and in parts; a shard is finished when the last of its bytes is there."""

    def __init__(
        self,
        folder: Path,
        runs: Sequence[Sequence[Planned]],
        *,
        alone: Callable[[str], bool] = lambda name: False,
        limit: int = SHARD_LIMIT,
        on_shard: Callable[[Path], None] = lambda path: None,
    ):
        """The tensors of a run lie next to each other in one file, if the size of each is a multiple of 64 bytes.
        `alone` picks runs, by their first names, for a last shard of their own; `on_shard` is called with each finished
        file."""
        groups = _divided([run for run in runs if not alone(run[0].name)], limit) + _divided(
            [run for run in runs if alone(run[0].name)], limit
        )
        names = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
        self.shards = [_PlannedShard(group, folder / name) for group, name in zip(groups, names, strict=True)]
        for shard in self.shards:
            shard.lay_out()
        self.total = sum(shard.size for shard in self.shards)
        self._folder, self._on_shard = folder, on_shard
        self._planned = {tensor.name: tensor for run in runs for tensor in run}
        self._shard_of = {tensor.name: shard for shard in self.shards for tensor in shard.tensors}
        self._written = dict.fromkeys(self._shard_of, 0)
        self._open: dict[Path, int] = {}

    def write(self, name: str, array: np.ndarray) -> None:
        """Append `array`, the next rows of the tensor `name`."""
        shard = self._shard_of[name]
        if shard.path not in self._open:
            self._open[shard.path] = unlinked(os.fspath(shard.path), os.O_WRONLY | os.O_CREAT)
            os.ftruncate(self._open[shard.path], shard.size)
            _write_all(self._open[shard.path], shard.header, 0)
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        _write_all(self._open[shard.path], data.data, shard.starts[name] + self._written[name])
        self._count(shard, name, data.size)

    def resume(self, names: Sequence[str]) -> bool:
        """Count these tensors as written by an earlier run; False, and none counted, if their files are not there."""
        shards = {self._shard_of[name].path: self._shard_of[name] for name in names}
        if not all(path.is_file() and path.stat().st_size == shard.size for path, shard in shards.items()):
            return False
        for name in names:
            self._count(self._shard_of[name], name, self._planned[name].nbytes)
        return True

    def _count(self, shard: _PlannedShard, name: str, count: int) -> None:
        self._written[name] += count
        shard.missing -= count
        if shard.missing == 0:
            self._close(shard.path)
            self._on_shard(shard.path)

    @property
    def paths(self) -> list[Path]:
        return [shard.path for shard in self.shards]

    def files_of(self, names: Sequence[str]) -> set[Path]:
        """The files that these tensors lie in."""
        return {self._shard_of[name].path for name in names}

    def write_index(self) -> None:
        """Write the index. Every planned byte must have been written."""
        unfinished = [shard.path.name for shard in self.shards if shard.missing]
        if unfinished:
            raise AssertionError(f"not all of {unfinished[0]} was written")
        weight_map = {tensor.name: shard.path.name for shard in self.shards for tensor in shard.tensors}
        size = sum(tensor.nbytes for shard in self.shards for tensor in shard.tensors)
        write_json(self._folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})

    def close(self) -> None:
        """Release files that an error left open."""
        for path in list(self._open):
            self._close(path)

    def _close(self, path: Path) -> None:
        if path in self._open:
            os.close(self._open.pop(path))


def _divided(runs: list[Sequence[Planned]], limit: int) -> list[list[Planned]]:
    """The tensors of consecutive runs in groups whose files stay within `limit` bytes."""
    groups: list[list[Planned]] = []
    size = limit
    for run in runs:
        # The header: a few hundred bytes for each tensor, and the padding to a page.
        cost = sum(tensor.nbytes + 512 for tensor in run)
        if size + cost + PAGE > limit:
            groups.append([])
            size = 0
        groups[-1].extend(run)
        size += cost
    return groups


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view[: 64 * 2**20], offset)
        view, offset = view[written:], offset + written


def write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def folder_appearing_at(dest: Path, is_ours: Callable[[str], object]) -> Iterator[Path]:
    """A hidden folder beside `dest` that takes its name when the block succeeds.

    If the block fails, the folder stays if it holds a journal, for the next run to resume, and is removed if it does
    not. Raises GptOssError where `dest` exists or another run is making it, and where the hidden folder is a link,
    another user's, or holds a name that `is_ours` does not know: nothing in it is touched then.
    """
    dest = dest.absolute()
    if dest.exists() or dest.is_symlink():
        raise GptOssError(f"{dest} exists already: remove it, or choose another name")
    partial = partial_folder(dest)
    try:
        descriptor = open_own_folder(partial)
    except OSError as error:
        raise GptOssError(f"cannot write {partial}: {os_error_text(error)}") from None
    try:
        if strange := [path.name for path in partial.iterdir() if not is_ours(path.name)]:
            raise GptOssError(f"{partial} holds {strange[0]}, which no conversion has written: move it elsewhere")
        if lock(descriptor) is False:
            raise GptOssError(f"another conversion to {dest} is running")
        sweep(partial)
        try:
            yield partial
            sync(descriptor)
            partial.rename(dest)
        except BaseException:
            if not (partial / journal.NAME).exists():
                shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def clear(folder: Path) -> None:
    """Remove the files in `folder`; folders in it stay."""
    for path in folder.iterdir():
        if not path.is_dir():
            path.unlink(missing_ok=True)  # as `remove_tree` says
