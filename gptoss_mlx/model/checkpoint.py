"""The safetensors files of a folder -> named arrays: one map for each file, and an array for each tensor asked for.

Nothing in a file is trusted before `safetensors` has checked its whole header. Knows nothing about gpt-oss, its tensor
names or the network.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import utf8_path
from ..kernels import bus_error, compiled, native
from ..untrusted import MAX_JSON, lexists, os_error_text, read_json
from .safetensors import ITEM_SIZE, NUMPY_DTYPE, CheckpointError, Header, TensorInfo, as_array, read_header

if TYPE_CHECKING:
    import mlx.core as mx

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_EXAMPLE = "model-00001-of-00002.safetensors"
SHARD_NAME = re.compile(r"([^.].*)-(\d{5})-of-(\d{5})\.safetensors", re.ASCII)
MAX_HEADERS = 4 * MAX_JSON  # of a folder: a thousand links to one file would be a thousand headers in memory

FLOATS = ("BF16", "F16", "F32")  # in which a gpt-oss weight may be stored without quantization


class Shard:
    """One safetensors file, mapped on first use; with a `header` at hand, the file may come later."""

    def __init__(self, path: Path, header: Header | None = None):
        self.path = path
        self.header = header or read_header(path)
        self._size = max((tensor.end for tensor in self.header.tensors.values()), default=0)
        self._arrays: dict[str, mx.array] = {}

    def check_size(self) -> None:
        """Raise CheckpointError if the file has shrunk: reading past the end of a truncated map raises SIGBUS.

        That becomes unlikely, not impossible: a file that shrinks after the check ends the process, with the message of
        `bus_error`.
        """
        try:
            size = self.path.stat().st_size
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}") from None
        if size < self._size:
            raise CheckpointError(f"{self.path} has become shorter while it was in use: {size} bytes of {self._size}")

    @cached_property
    def bytes(self) -> np.ndarray:
        """uint8 [file size], read-only: a map, not a copy."""
        bus_error.end_in_order()
        try:
            mapped = np.memmap(self.path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot map {self.path}: {os_error_text(error)}") from None
        self.check_size()
        return mapped

    @cached_property
    def is_aligned(self) -> bool:
        """Whether each tensor starts at a multiple of its element's size. Other programs' need not."""
        return all(tensor.start % ITEM_SIZE[tensor.dtype] == 0 for tensor in self.header.tensors.values())

    def can_be_mapped(self, unit: int | None) -> bool:
        """Whether arrays can be views of the file for a backend with this `map_unit`; else MLX reads copies."""
        return unit is not None and self._size % unit == 0 and self.is_aligned

    @cached_property
    def windows(self) -> Windows | None:
        """Parts of the map as MLX arrays, where MLX adopts host memory (Metal, whole pages) or the kernels do (CPU)."""
        from ..device import METAL_PAGE, backend, lays_out_arrays

        unit = backend().map_unit
        if unit and not lays_out_arrays():
            return _page_windows(self.bytes) if self.can_be_mapped(METAL_PAGE) else None
        if not self.can_be_mapped(unit):
            return None
        bus_error.end_in_order()
        try:
            words = compiled().map_file(utf8_path(self.path))
        except RuntimeError as error:
            raise CheckpointError(str(error)) from None
        self.check_size()
        return lambda start, end: words[start // 4 : -(-end // 4)]

    def array(self, name: str) -> mx.array:
        """A tensor as an MLX array, made when it is first asked for: Metal counts all that is adopted as in use. A view
        of the map where MLX adopts it, else read when it is first used. Raises CheckpointError."""
        tensor = self.header.tensors[name]
        _check_length(self.path, tensor)
        if name not in self._arrays:
            mapped = self.windows and _view_of(self.path, self.windows, tensor)
            self._arrays[name] = self._unmapped.pop(name) if mapped is None else mapped
        return self._arrays[name]

    def joined(self, tensors: Sequence[TensorInfo]) -> mx.array:
        """Tensors that follow each other, as one: alone, each is a part of it, and neither adopted nor read again."""
        import mlx.core as mx

        first, rows = tensors[0], [tensor.shape[0] for tensor in tensors]
        if self.windows:
            whole = TensorInfo(first.name, first.dtype, (sum(rows), *first.shape[1:]), first.start, tensors[-1].end)
            array = _view_of(self.path, self.windows, whole)
        else:
            array = mx.concatenate([self.array(tensor.name) for tensor in tensors])
        for tensor, end in zip(tensors, accumulate(rows), strict=True):
            self._arrays[tensor.name] = array[end - tensor.shape[0] : end]
        return array

    @cached_property
    def _unmapped(self) -> dict[str, mx.array]:
        """The tensors that nobody has asked for, as arrays that MLX has not read yet."""
        import mlx.core as mx

        for tensor in self.header.tensors.values():
            _check_length(self.path, tensor)
        try:
            arrays = mx.load(utf8_path(self.path))
        except (RuntimeError, ValueError) as error:  # a dtype or a shape that MLX does not have
            raise CheckpointError(f"cannot load {self.path}: {error}") from None
        assert isinstance(arrays, dict)
        return arrays

    def mapped(self, name: str) -> Any:
        """A tensor for the kernels alone, mapped apart from MLX, which neither counts nor wires it: their `Tensor`.
        Raises CheckpointError."""
        tensor = self.header.tensors[name]
        dtype = _mlx_dtype(self.path, tensor)
        _check_length(self.path, tensor)
        bus_error.end_in_order()
        try:
            mapped = compiled().Tensor(utf8_path(self.path), tensor.start, dtype, list(tensor.shape))
        except RuntimeError as error:
            raise CheckpointError(str(error)) from None
        self.check_size()
        return mapped


# Bytes start..end of a file -> uint32 of the words that they lie in: as bytes, a shard of 4 GiB would be too large for
# MLX's 32-bit shapes.
Windows = Callable[[int, int], "mx.array"]


def _page_windows(data: np.ndarray) -> Windows | None:
    """Windows on a mapped file for Metal, which adopts whole pages; None where it does not. Each is a buffer of its
    own: the GPU's limit counts whole buffers that are touched, and not all experts need be, for example."""
    import mlx.core as mx

    from ..device import METAL_PAGE

    def window(start: int, end: int) -> mx.array:
        first = start // METAL_PAGE * METAL_PAGE
        pages = data[first : -(-end // METAL_PAGE) * METAL_PAGE]
        words = mx.from_dlpack(pages.view(np.uint32), copy=False)
        return words[(start - first) // 4 : -(-(end - first) // 4)]

    try:
        window(0, METAL_PAGE)
    except ValueError:
        return None
    return window


def _check_length(path: Path, tensor: TensorInfo) -> None:
    if math.prod(tensor.shape) >= 2**31:
        raise CheckpointError(f"{path}: {tensor.name!r} is {list(tensor.shape)}, too large for MLX")


def _mlx_dtype(path: Path, tensor: TensorInfo) -> mx.Dtype:
    """The dtype of a tensor that can be mapped. Raises CheckpointError."""
    import mlx.core as mx

    dtype = {"U8": mx.uint8, "BF16": mx.bfloat16, "F16": mx.float16, "U32": mx.uint32, "F32": mx.float32}
    if tensor.start % ITEM_SIZE[tensor.dtype] or tensor.dtype not in dtype:
        raise CheckpointError(f"{path}: {tensor.name!r} cannot be mapped: {tensor.dtype} at byte {tensor.start}")
    return dtype[tensor.dtype]


def _view_of(path: Path, windows: Windows, tensor: TensorInfo) -> mx.array:
    dtype = _mlx_dtype(path, tensor)
    run = windows(tensor.start, tensor.end).view(dtype)
    first = tensor.start % 4 // ITEM_SIZE[tensor.dtype]
    return run[first : first + math.prod(tensor.shape)].reshape(tensor.shape)


class Checkpoint:
    """The tensors of a folder, by name, over one or several safetensors files."""

    def __init__(self, shards: Mapping[str, Shard], folder: Path):
        """`shards` maps each tensor's name to its file; `open` makes it from a folder."""
        self.folder, self._shards = folder, shards
        self.tensors = {name: shard.header.tensors[name] for name, shard in shards.items()}
        self.file_of = {name: shard.path for name, shard in shards.items()}

    def __repr__(self) -> str:
        size = sum(tensor.nbytes for tensor in self.tensors.values())
        return f"Checkpoint({str(self.folder)!r}, {len(self.tensors):,} tensors, {size:,} bytes)"

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the index, if there is one, and every header of the model in `folder`. Raises CheckpointError."""
        index = folder / INDEX
        weight_map = checked_index(index, read_json(index, CheckpointError)) if lexists(index) else None
        shards: dict[str, Shard] = {}
        headers = 0
        for file in weight_files(folder, _names_in(folder), weight_map):
            shards[file] = Shard(folder / file)
            headers += shards[file].header.nbytes
            if headers > MAX_HEADERS:
                raise CheckpointError(f"{folder} has more than {MAX_HEADERS:,} bytes of headers: not a gpt-oss model")
        return cls.placed(folder, weight_map, shards)

    @classmethod
    def placed(cls, folder: Path, weight_map: Mapping[str, str] | None, shards: Mapping[str, Shard]) -> Checkpoint:
        """The tensors of `shards`, by file name. The `weight_map` of an index must fit them, unless other files were
        chosen than it names. Raises CheckpointError."""
        if weight_map is None or set(weight_map.values()) != shards.keys():
            return cls(_found_in(folder, shards), folder)
        for name, file in weight_map.items():
            if name not in shards[file].header.tensors:
                raise CheckpointError(f"{folder / INDEX} places {name!r} in {file}, which does not have it")
        for file, shard in shards.items():
            for name in shard.header.tensors:
                if weight_map.get(name) != file:
                    raise CheckpointError(f"{folder / file} has {name!r}, which {INDEX} does not place there")
        return cls({name: shards[file] for name, file in weight_map.items()}, folder)

    def renamed(self, names: Mapping[str, str]) -> Checkpoint:
        """The same tensors by other names; `names` maps a new name to the one in the files."""
        twin = Checkpoint({}, self.folder)
        twin._shards = {name: self._shards[old] for name, old in names.items()}
        twin.tensors = {name: self.tensors[old] for name, old in names.items()}
        twin.file_of = {name: self.file_of[old] for name, old in names.items()}
        return twin

    def view(self, name: str) -> np.ndarray:
        """The tensor as a read-only NumPy view of the map (BF16 as uint16): pages are read on first use. Raises
        CheckpointError."""
        tensor = self.tensors[name]
        self._shards[name].check_size()
        return as_array(self.file_of[name], tensor, self._shards[name].bytes[tensor.start : tensor.end])

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the tensor (BF16 as uint16), read and not mapped, so that an error of the disk does not
        end the process. Raises CheckpointError."""
        tensor, path = self.tensors[name], self.file_of[name]
        rows = np.empty((stop - start, *tensor.shape[1:]), NUMPY_DTYPE[tensor.dtype])
        row_bytes = tensor.nbytes // tensor.shape[0]
        position, left = tensor.start + start * row_bytes, rows.reshape(-1).view(np.uint8).data
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(position)
                while left:
                    if not (count := file.readinto(left)):
                        raise CheckpointError(f"{path} has become shorter while it was read")
                    left = left[count:]
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
        return rows

    def array(self, name: str) -> mx.array:
        """The tensor as an MLX array, without a copy where the device allows that. Raises CheckpointError."""
        return self._shards[name].array(self.tensors[name].name)

    def mapped(self, name: str) -> Any:
        """The tensor for the kernels alone: see `Shard.mapped`. Raises CheckpointError."""
        return self._shards[name].mapped(self.tensors[name].name)

    def are_adjacent(self, names: Sequence[str]) -> bool:
        """Whether these tensors follow each other in one file, and differ in nothing but their first dimension."""
        places = [
            (self.file_of[name], tensor.dtype, tensor.shape[1:], tensor.start, tensor.end)
            for name in names
            if (tensor := self.tensors.get(name))
        ]
        return len(places) == len(names) and all(
            (*form, end) == (*next_form, next_start)
            for (*form, _, end), (*next_form, next_start, _) in pairwise(places)
        )

    def joined(self, names: Sequence[str]) -> mx.array:
        """Tensors that `are_adjacent`, one after the other along the first dimension. What `array` makes of them later
        are parts of it. Raises CheckpointError."""
        if len(names) == 1:
            return self.array(names[0])
        return self._shards[names[0]].joined([self.tensors[name] for name in names])

    @property
    def is_mapped(self) -> bool:
        """Whether arrays are views of the files, not copies."""
        return all(shard.windows is not None for shard in set(self._shards.values()))

    def can_be_mapped(self, name: str, unit: int | None) -> bool:
        """Whether the tensor's array can be such a view, for a backend with this `map_unit`: from the header alone."""
        return self._shards[name].can_be_mapped(unit)

    def rows(self, name: str, *, on_gpu: bool) -> Callable[[mx.array], mx.array]:
        """A look-up of rows of a matrix: integers [...] -> [..., columns]. The caller checks that they are in range.

        The whole matrix counts as the GPU's if that looks them up. Otherwise the CPU does, and what is not looked up
        never becomes resident; without the kernels, the integers are evaluated at each call.
        """
        import mlx.core as mx

        from ..device import backend

        if on_gpu:
            table = self.array(name)
            return lambda index: mx.take(table, index, axis=0)
        if native() and backend().map_unit is not None and self._shards[name].is_aligned:
            mapped, look_up = self.mapped(name), compiled().rows
            return lambda index: look_up(mapped, index.astype(mx.int32))

        def read(index: mx.array) -> mx.array:
            rows = mx.array(self.view(name)[np.asarray(index)])
            return rows.view(mx.bfloat16) if self.tensors[name].dtype == "BF16" else rows

        return read


def _names_in(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"cannot read {folder}: {error.strerror}") from None


def _found_in(folder: Path, shards: Mapping[str, Shard]) -> dict[str, Shard]:
    """Tensor name -> its shard, without an index. Raises CheckpointError for a tensor that two shards have."""
    found: dict[str, Shard] = {}
    for file, shard in shards.items():
        for name in shard.header.tensors:
            if name in found:
                raise CheckpointError(
                    f"{folder} has {name!r} twice, in {found[name].path.name} and in {file}: remove the file that does"
                    " not belong to the model"
                )
            found[name] = shard
    return found


def weight_files(where: Path | str, names: Set[str], weight_map: Mapping[str, str] | None) -> list[str]:
    """The files that hold the model, among the `names` of a folder or a repository: those that its index names; if they
    are not there, model.safetensors; without an index, that or the shards that are complete by their names.

    Raises CheckpointError, naming a missing file.
    """
    named, series = set((weight_map or {}).values()), _series(names)
    # An index that names only some of the shards of a model does not count.
    partial = any(named & shards and not named >= names & shards for shards in series)
    if named and named <= names and not partial:
        return sorted(named)
    if SINGLE in names:
        return [SINGLE]
    whole = [sorted(shards) for shards in series if shards <= names]
    if whole and not named <= names:
        raise CheckpointError(
            f"{where} lacks {min(named - names)}, which {INDEX} names: if {whole[0][0]} and what belongs to it are the"
            f" model, remove {INDEX}"
        )
    if len(whole) > 1:
        raise CheckpointError(f"{where} has the shards of {len(whole)} models, and no {INDEX}: leave those of one")
    if whole:
        return whole[0]
    for shards, whose in ((named, f"which {INDEX} names"), *((shards, "one of its shards") for shards in series)):
        if missing := sorted(shards - names):
            others = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
            raise CheckpointError(f"{where} lacks {missing[0]}{others}, {whose}: an incomplete download?")
    raise CheckpointError(f"{where} has neither {INDEX} nor {SINGLE}, nor shards such as {SHARD_EXAMPLE}")


def _series(names: Set[str]) -> list[Set[str]]:
    """For each model that has shards among these files, by their names, the names of all its shards."""
    numbers: dict[tuple[str, str], set[int]] = {}
    for match in filter(None, map(SHARD_NAME.fullmatch, names)):
        numbers.setdefault((match[1], match[3]), set()).add(int(match[2]))
    # The published checkpoints count from 0 to the number after "of", others from 1.
    return [
        {f"{stem}-{number:05d}-of-{last}.safetensors" for number in range(0 if 0 in here else 1, int(last) + 1)}
        for (stem, last), here in sorted(numbers.items())
    ]


def checked_index(path: Path, index: Any) -> dict[str, str]:
    """The weight_map of a parsed index: tensor name -> the name of its file. Raises CheckpointError."""
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path} is malformed: it has no weight_map")
    if not weight_map:
        raise CheckpointError(f"{path} lists no tensors: remove it if the weights beside it are complete")
    for name, file in weight_map.items():
        # A file name that leaves the folder is never followed.
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
            raise CheckpointError(f"{path} places {name!r} in {file!r}, which is not a file name")
    return weight_map
