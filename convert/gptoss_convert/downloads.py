"""The shards of a source: all in a folder, or in a repository of the hub, from which they arrive one after the other.

A conversion waits for a shard before it reads it, and releases it after its last use: what was downloaded for it is
then deleted, so that a model needs the disk of its result and of a shard or two, not of itself twice.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gptoss_mlx.model.recognition import model_folder

from .sources import AUXILIARY_FILES, Source

if TYPE_CHECKING:
    from .hub import Fetched, Repository

SPARE = 64 * 2**20  # bytes of disk left free for small files


class ShardProvider(Protocol):
    source: Source
    identity: dict[str, str | None]
    """The source's entry in provenance.json."""
    files: Sequence[tuple[str, int, object]]
    """Name and size of each shard, and a value that differs when the shard has changed."""

    def begin(self, needed: Sequence[Path], on_read: Callable[[int, int], None]) -> list[int]:
        """These shards will be waited for, in this order; `on_read(done, total)` is called when bytes arrive. Returns
        the bytes of disk that each of them will take."""

    def wait_for(self, shard: Path, reserved: int) -> str | None:
        """Return when the shard is here: its SHA-256, if that is known. `reserved` bytes of disk have other uses."""

    def release(self, shard: Path) -> None:
        """The shard is not needed any more."""

    def close(self) -> None:
        """Nothing is needed any more."""


def provider_of(name: str | Path, revision: str | None, scratch: Path, keep: bool) -> ShardProvider:
    """A folder, or the hub repository of this id, whose files come into `scratch`, or with `keep` into the user's
    cache. Raises GptOssError."""
    folder = Path(os.path.expanduser(name))
    if os.path.lexists(folder):
        return LocalFolder(model_folder(folder), revision)
    from .hub import Repository

    return Download(Repository.open(str(name), revision), scratch, keep)


class LocalFolder:
    """All files are here, and stay."""

    def __init__(self, folder: Path, revision: str | None):
        self.source = Source(folder)
        self.identity: dict[str, str | None] = {"id": folder.resolve().name, "revision": revision}
        self.files: Sequence[tuple[str, int, object]] = [
            (path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in self.source.shards
        ]

    def begin(self, needed: Sequence[Path], on_read: Callable[[int, int], None]) -> list[int]:
        return [0 for _ in needed]

    def wait_for(self, shard: Path, reserved: int) -> None:
        pass

    def release(self, shard: Path) -> None:
        pass

    def close(self) -> None:
        pass


class Download:
    """A shard is fetched while the one before it is converted, if the disk has room for both."""

    def __init__(self, repository: Repository, scratch: Path, keep: bool):
        self._repository = repository
        self._folder = scratch / f"source-{repository.commit}"
        self._into = None if keep else self._folder
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", *AUXILIARY_FILES):
            if name in repository.files:
                fetched = repository.fetch(name, self._into)
                if not fetched.ours:
                    shutil.copyfile(fetched.path, self._folder / name)
        self.source = Source(self._folder, repository.checkpoint(self._folder))
        self.identity: dict[str, str | None] = {"id": repository.id, "revision": repository.commit}
        shards = [repository.files[path.name] for path in self.source.shards]
        self.files: Sequence[tuple[str, int, object]] = [(file.name, file.size, file.sha256) for file in shards]
        self._size = {self._folder / file.name: file.size for file in shards}
        self._worker = ThreadPoolExecutor(1)
        self._coming: dict[Path, Future[Fetched]] = {}
        self._done = self._total = 0
        self._closed = False

    def begin(self, needed: Sequence[Path], on_read: Callable[[int, int], None]) -> list[int]:
        self._needed, self._on_read = list(needed), on_read
        self._total = sum(self._size[path] for path in needed)
        self._done = sum(self._repository.arrived(path.name, self._into) for path in needed)
        return [self._size[path] for path in needed]

    def wait_for(self, shard: Path, reserved: int) -> str:
        self._start(shard)
        following = self._needed[self._needed.index(shard) + 1 :]
        if following and self._has_room_for(following[0], reserved):
            self._start(following[0])
        while not wait([self._coming[shard]], timeout=0.2).done:
            pass  # in steps, so that Ctrl-C is heard
        return self._coming[shard].result().sha256

    def _has_room_for(self, shard: Path, reserved: int) -> bool:
        return shutil.disk_usage(self._folder).free > self._size[shard] + reserved + SPARE

    def _start(self, shard: Path) -> None:
        if shard not in self._coming:
            self._coming[shard] = self._worker.submit(self._fetch, shard.name, self._read)

    def _read(self, count: int) -> None:
        if self._closed:
            raise CancelledError
        self._done += count
        self._on_read(self._done, self._total)

    def _fetch(self, name: str, on_read: Callable[[int], None]) -> Fetched:
        """Into the folder; a file of the user's cache is linked to."""
        link = self._folder / name
        if link.is_symlink():
            link.unlink()
        fetched = self._repository.fetch(name, self._into, on_read)
        if not fetched.ours:
            link.unlink(missing_ok=True)
            link.symlink_to(fetched.path)
        return fetched

    def release(self, shard: Path) -> None:
        shard.unlink(missing_ok=True)

    def close(self) -> None:
        self._closed = True
        self._worker.shutdown(wait=True, cancel_futures=True)
