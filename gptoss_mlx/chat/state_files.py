"""The KV cache of one session on disk: a folder of safetensors files, each a chunk of positions.

A turn adds the chunk that is new; chunks of another conversation are removed. Each names the model and, by a SHA-256 of
all ids before it, the prompt that it continues: so nothing has to agree with any other file, and a file that does not
fit, or was removed, counts as missing. Where a chunk ends in a snapshot, it has the rings of the sliding layers too,
and decoding can continue from there. A CRC-32 of its arrays, in the metadata, shows whether they have changed.

    000000812-000001044.safetensors: ids [end - start] uint32, `full.*` and `ring.*` as `kv_cache.KVCache` names them
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from weakref import WeakKeyDictionary

import mlx.core as mx
import numpy as np

from ..device import backend
from ..engine.generate import Model
from ..engine.mlx_errors import mlx_errors
from ..engine.prompt_cache import PromptCache, common_prefix
from ..errors import GptOssError
from ..files import replacing, utf8_path
from ..model.kv_cache import KV_CHUNK, MAX_SNAPSHOTS, Snapshot
from ..model.safetensors import read_header
from ..untrusted import os_error_text
from .store import clear

FORMAT = "gptoss-mlx KV state 2"
CHECKSUM = "crc32"
SUFFIX = ".safetensors"

GONE = "its KV cache is gone"
ANOTHER_MODEL = "its KV cache is of another model or recipe"
UNREADABLE = "its KV cache cannot be read"
DAMAGED = "its KV cache is damaged"


class StateFiles:
    """The part of a prompt cache that is in `folder`. One process at a time may write there; any may remove files."""

    def __init__(self, folder: Path, model: Model):
        """Raises GptOssError where the model's files cannot be read."""
        self.folder, self.model = folder, model
        self._fingerprint = fingerprint(model)
        self._empty = model.make_cache()
        self._chunks: list[tuple[int, int]] = []  # start and end, without gaps
        self._offsets: list[int] = []  # of snapshots
        self._ids: list[int] = []
        self._before = _sha256(())  # of these ids
        self.missing: str | None = GONE
        """The reason, in words, why `load` found nothing to use; also where it found something damaged."""

    def scan(self) -> None:
        """Find out what is saved, by headers and ids alone; whether the rest is as it was written, only `load` sees."""
        self._forget()
        with suppress(_Unusable, GptOssError, RuntimeError):
            for path in self._paths():
                self._add(self._open(path))

    def cached_of(self, ids: Sequence[int]) -> int:
        """How many of `ids` can be had from what is known to be saved."""
        same = common_prefix(self._ids, ids)
        return max((offset for offset in self._offsets if offset <= same), default=0)

    def load(self, prompt_cache: PromptCache, ids: Sequence[int] | None = None) -> int:
        """Load a saved cache, or what it is known to have of `ids`, positioned at a snapshot; returns its positions, 0
        where nothing can be used."""
        prompt_cache.clear()
        limit = self.model.context if ids is None else self.cached_of(ids)
        self._forget()
        snapshots: list[Snapshot] = []
        why = GONE
        for path in self._paths():
            why = UNREADABLE
            try:
                chunk = self._open(path)
                if chunk.end > limit:
                    break
                if _checksum(chunk.arrays) != chunk.checksum:
                    raise _Unusable(DAMAGED)
                prompt_cache.cache.restore(chunk.start, chunk.full)
            except _Unusable as unusable:
                why = unusable.why
                break
            except (GptOssError, RuntimeError):
                break
            self._add(chunk)
            if chunk.rings:
                if len(snapshots) == MAX_SNAPSHOTS:  # as many as are kept in memory, also while this goes on
                    del snapshots[1]
                snapshots.append(Snapshot(chunk.end, chunk.rings))
        prompt_cache.adopt(self._ids, snapshots)
        self.missing = why if why == DAMAGED or not snapshots else None
        return prompt_cache.cache.offset

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"[!.]*{SUFFIX}"))

    def _open(self, path: Path) -> _Chunk:
        """A file that continues what is known, its arrays not read yet. Raises _Unusable, GptOssError, RuntimeError."""
        header = read_header(path)
        if header.metadata.get("model", self._fingerprint) != self._fingerprint:
            raise _Unusable(ANOTHER_MODEL)
        start, ids = len(self._ids), header.tensors.get("ids")
        length = ids.shape[0] if ids and ids.dtype == "U32" and len(ids.shape) == 1 else 0
        metadata = dict(header.metadata)
        checksum = metadata.pop(CHECKSUM, None)
        if metadata != self._metadata() or not 0 < length <= self.model.context - start:
            raise _Unusable(UNREADABLE)
        arrays = mx.load(utf8_path(path))
        assert isinstance(arrays, dict)
        chunk = _Chunk(start, np.array(arrays["ids"]).tolist(), arrays, checksum)
        empty, rings = self._empty, chunk.rings
        if _forms(chunk.full) != empty.chunk_forms(length) or (rings and _forms(rings) != empty.ring_forms()):
            raise _Unusable(UNREADABLE)
        return chunk

    @mlx_errors()
    def save(self, prompt_cache: PromptCache) -> None:
        """Bring the folder up to the last snapshot; a cache that holds nothing, as an error leaves it, changes nothing.
        Raises GptOssError, and then the files there can still be used."""
        if not prompt_cache.ids:
            return
        same = common_prefix(self._ids, prompt_cache.ids)
        try:
            saved = takewhile(lambda chunk: chunk[1] <= same and self._path(*chunk).is_file(), self._chunks)
            self._chunks = list(saved)
            start = self._chunks[-1][1] if self._chunks else 0
            self._ids, self._before = prompt_cache.ids[:start], _sha256(prompt_cache.ids[:start])
            self._offsets = [offset for offset in self._offsets if offset <= start]
            # All others: of the conversation before, of another model, of a killed process.
            clear(self.folder, but=[self._path(*chunk) for chunk in self._chunks])
            for snapshot in prompt_cache.snapshots:
                while start < snapshot.offset:
                    end = min(start + KV_CHUNK, snapshot.offset)
                    self._save(start, end, prompt_cache, snapshot if end == snapshot.offset else None)
                    start = end
        except OSError as error:
            raise GptOssError(f"cannot save the KV cache in {self.folder}: {os_error_text(error)}") from None

    def _save(self, start: int, end: int, prompt_cache: PromptCache, snapshot: Snapshot | None) -> None:
        """Raises OSError."""
        ids = prompt_cache.ids[start:end]
        arrays = {"ids": mx.array(ids, mx.uint32)}
        arrays |= {f"full.{name}": part for name, part in prompt_cache.cache.chunk(start, end).items()}
        arrays |= {f"ring.{name}": ring for name, ring in (snapshot.rings if snapshot else {}).items()}
        checksum = _checksum(arrays)
        with replacing(self._path(start, end), private=True) as file:
            mx.save_safetensors(file, arrays, self._metadata() | {CHECKSUM: checksum})
        self._add(_Chunk(start, ids, arrays, checksum))

    def _forget(self) -> None:
        self._chunks, self._offsets, self._ids, self._before = [], [], [], _sha256(())

    def _add(self, chunk: _Chunk) -> None:
        self._chunks.append((chunk.start, chunk.end))
        self._offsets += [chunk.end] if chunk.rings else []
        self._ids += chunk.ids
        self._before.update(_bytes(chunk.ids))

    def _path(self, start: int, end: int) -> Path:
        return self.folder / f"{start:09}-{end:09}{SUFFIX}"

    def _metadata(self) -> dict[str, str]:
        """That of the next chunk."""
        return {"format": FORMAT, "model": self._fingerprint, "before": self._before.hexdigest()}


@dataclass(frozen=True)
class _Chunk:
    """The content of one file. Arrays of a file that was opened are read when they are evaluated."""

    start: int
    ids: list[int]
    arrays: dict[str, mx.array]
    checksum: str | None

    @property
    def end(self) -> int:
        return self.start + len(self.ids)

    @property
    def full(self) -> dict[str, mx.array]:
        return _part(self.arrays, "full.")

    @property
    def rings(self) -> dict[str, mx.array]:
        """Empty where it does not end in a snapshot."""
        return _part(self.arrays, "ring.")


class _Unusable(Exception):
    """A file that cannot be used; `why`, in words."""

    def __init__(self, why: str):
        self.why = why


FINGERPRINTS: WeakKeyDictionary[Model, str] = WeakKeyDictionary()  # a tokenizer.json has 28 MB to digest


def fingerprint(model: Model) -> str:
    """Differs where a KV cache could differ: another model, another recipe, another form of keys and values. Raises
    GptOssError."""
    if model not in FINGERPRINTS:
        FINGERPRINTS[model] = _fingerprint(model)
    return FINGERPRINTS[model]


def _fingerprint(model: Model) -> str:
    digest = hashlib.sha256(f"{backend().name} {model.settings.kv_bits}".encode())
    try:
        for name in ("config.json", "tokenizer.json", "provenance.json"):
            path = model.path / name
            digest.update(name.encode() + (path.read_bytes() if path.is_file() else b""))
        for path in sorted(model.path.glob(f"[!.]*{SUFFIX}")):
            status = path.stat()
            # These tell conversions apart where there is no provenance.json with its checksums.
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    except OSError as error:
        raise GptOssError(f"cannot read the model in {model.path}: {os_error_text(error)}") from None
    return digest.hexdigest()


def _sha256(ids: Sequence[int]) -> hashlib._Hash:
    return hashlib.sha256(_bytes(ids))


def _bytes(ids: Sequence[int]) -> bytes:
    return np.array(ids, np.uint32).tobytes()


def _checksum(arrays: Mapping[str, mx.array]) -> str:
    """CRC-32 of names and bytes, which are evaluated for it, an array at a time."""
    total = 0
    for name in sorted(arrays):
        content = np.asarray(mx.contiguous(arrays[name]).view(mx.uint8)).data
        total = zlib.crc32(content, zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def _part(arrays: dict[str, mx.array], prefix: str) -> dict[str, mx.array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _forms(arrays: dict[str, mx.array]) -> dict[str, tuple[tuple[int, ...], mx.Dtype]]:
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}
