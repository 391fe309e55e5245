"""The KV state of one session on disk: a folder of safetensors files, each a stretch of positions.

A turn adds the stretch that is new; what is no longer part of the conversation is removed. A stretch names the model
and says, by a SHA-256 of all ids before it, what it continues: so nothing has to agree with any other file, and what
does not fit, or was removed by others, is as good as not there. Where a stretch ends in a mark, it holds the rings of
the sliding layers too; the state can go on from there. A CRC-32 of its arrays, in the metadata, tells whether they are
still what was written.

    000000812-000001044.safetensors: ids [end - start] uint32, `full.*` and `ring.*` as `cache.Cache` names them
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..device import backend
from ..engine.generate import Model
from ..engine.prompt_cache import PromptCache, common_prefix
from ..errors import GptOssError
from ..files import replacing, utf8_path
from ..model.checkpoint import read_header
from ..model.kv_cache import KV_CHUNK, KVCache, Snapshot
from ..untrusted import os_error_text
from .store import clear

FORMAT = "gptoss-mlx KV state 2"
CHECKSUM = "crc32"
SUFFIX = ".safetensors"

GONE = "its KV state is gone"
ANOTHER_MODEL = "its KV state is of another model or recipe"
UNREADABLE = "its KV state cannot be read"
DAMAGED = "its KV state is damaged"


class StateFiles:
    """What of a timeline is in `folder`. Only one process at a time may write there; any may remove what it finds."""

    def __init__(self, folder: Path, model: Model):
        """Raises GptOssError where the model's files cannot be read."""
        self.folder, self.model = folder, model
        self._fingerprint = fingerprint(model)
        self._chunks: list[tuple[int, int]] = []  # start and end, without gaps
        self._ids: list[int] = []
        self.missing: str | None = GONE
        """Why `load` found nothing to use, or that something was damaged, in words."""

    def load(self, prompt_cache: PromptCache) -> int:
        """Be the state that was kept, up to its last mark; returns its positions, 0 where nothing can be used."""
        prompt_cache.clear()
        snapshots: list[Snapshot] = []
        why = GONE
        for path in sorted(self.folder.glob(f"[!.]*{SUFFIX}")):
            why = UNREADABLE
            try:
                snapshot = self._load(path, prompt_cache.cache)
            except _Unusable as unusable:
                why = unusable.why
                break
            except (GptOssError, RuntimeError):
                break
            snapshots += [snapshot] if snapshot else []
        prompt_cache.adopt(self._ids, snapshots)
        self.missing = why if why == DAMAGED or not snapshots else None
        return prompt_cache.cache.offset

    def _load(self, path: Path, cache: KVCache) -> Snapshot | None:
        """Append a stretch to the cache; its mark, if it ends in one."""
        header = read_header(path)
        if header.metadata.get("model", self._fingerprint) != self._fingerprint:
            raise _Unusable(ANOTHER_MODEL)
        start, ids = len(self._ids), header.tensors.get("ids")
        length = ids.shape[0] if ids and ids.dtype == "U32" and len(ids.shape) == 1 else 0
        metadata = dict(header.metadata)
        checksum = metadata.pop(CHECKSUM, None)
        if metadata != self._metadata(start) or not 0 < length <= cache.context - start:
            raise _Unusable(UNREADABLE)
        arrays = mx.load(utf8_path(path))
        full, rings = _part(arrays, "full."), _part(arrays, "ring.")
        if _forms(full) != cache.chunk_forms(length) or (rings and _forms(rings) != cache.ring_forms()):
            raise _Unusable(UNREADABLE)
        if _checksum(arrays) != checksum:
            raise _Unusable(DAMAGED)
        cache.restore(start, full)
        self._ids += arrays["ids"].tolist()
        self._chunks.append((start, start + length))
        return Snapshot(start + length, rings) if rings else None

    def save(self, prompt_cache: PromptCache) -> None:
        """Make the folder hold the state up to the last mark. Raises GptOssError; what is there then can be used."""
        same = common_prefix(self._ids, prompt_cache.ids)
        try:
            held = takewhile(lambda chunk: chunk[1] <= same and self._path(*chunk).is_file(), self._chunks)
            self._chunks = list(held)
            start = self._chunks[-1][1] if self._chunks else 0
            self._ids = prompt_cache.ids[:start]
            # What has another content: of the conversation before, of another model, of a killed process.
            clear(self.folder, but=[self._path(*chunk) for chunk in self._chunks])
            for snapshot in prompt_cache.snapshots:
                while start < snapshot.offset:
                    end = min(start + KV_CHUNK, snapshot.offset)
                    self._save(start, end, prompt_cache, snapshot if end == snapshot.offset else None)
                    start = end
        except OSError as error:
            raise GptOssError(f"cannot keep the KV state in {self.folder}: {os_error_text(error)}") from None

    def _save(self, start: int, end: int, prompt_cache: PromptCache, snapshot: Snapshot | None) -> None:
        """Raises OSError."""
        ids = prompt_cache.ids[start:end]
        arrays = {"ids": mx.array(ids, mx.uint32)}
        arrays |= {f"full.{name}": part for name, part in prompt_cache.cache.chunk(start, end).items()}
        arrays |= {f"ring.{name}": ring for name, ring in (snapshot.rings if snapshot else {}).items()}
        metadata = self._metadata(start) | {CHECKSUM: _checksum(arrays)}
        with replacing(self._path(start, end), private=True) as file:
            mx.save_safetensors(file, arrays, metadata)
        self._chunks.append((start, end))
        self._ids += ids

    def _path(self, start: int, end: int) -> Path:
        return self.folder / f"{start:09}-{end:09}{SUFFIX}"

    def _metadata(self, start: int) -> dict[str, str]:
        return {"format": FORMAT, "model": self._fingerprint, "before": _digest(self._ids[:start])}


class _Unusable(Exception):
    """A file that holds something else; `why`, in words."""

    def __init__(self, why: str):
        self.why = why


def fingerprint(model: Model) -> str:
    """Differs where a KV state could differ: another model, another recipe, another form of keys and values. Raises
    GptOssError."""
    digest = hashlib.sha256(f"{backend().name} {model.settings.kv_bits}".encode())
    try:
        for name in ("config.json", "tokenizer.json", "provenance.json"):
            path = model.path / name
            digest.update(name.encode() + (path.read_bytes() if path.is_file() else b""))
        for path in sorted(model.path.glob(f"[!.]*{SUFFIX}")):
            status = path.stat()
            # Which conversion it was, where there is no provenance.json with its checksums.
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    except OSError as error:
        raise GptOssError(f"cannot read the model in {model.path}: {os_error_text(error)}") from None
    return digest.hexdigest()


def _digest(ids: Sequence[int]) -> str:
    return hashlib.sha256(np.array(ids, np.uint32).tobytes()).hexdigest()


def _checksum(arrays: Mapping[str, mx.array]) -> str:
    """CRC-32 of names and bytes, which are evaluated for it, an array at a time."""
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(memoryview(mx.contiguous(arrays[name]).view(mx.uint8)), zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def _part(arrays: dict[str, mx.array], prefix: str) -> dict[str, mx.array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _forms(arrays: dict[str, mx.array]) -> dict[str, tuple[tuple[int, ...], mx.Dtype]]:
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}
