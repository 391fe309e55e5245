"""Sessions on disk: for each a readable transcript, NAME.json, and beside it the KV cache, the folder NAME.kv.

Knows names, files and locks; their content, `transcript` and `state_files` know. A saved KV cache can be removed at any
time, and is, the oldest first, when all of them exceed their limit: a session without one is prefilled again.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import GptOssError
from ..files import lock, open_own_folder, remove_tree, sweep
from ..model.model_store import data_home
from ..untrusted import os_error_text

NAME = re.compile(r"[^\W_][\w .,+-]{0,79}")
STATE_FILE = re.compile(r"\d{9}-\d{9}\.safetensors|\.\w{8}\.partial")  # of a KV cache: `state_files` writes them
MAX_NAME = 255 - len(".json")  # bytes: what file systems take


def sessions_folder() -> Path:
    """Raises GptOssError for a user without a home."""
    return data_home() / "sessions"


class InUse(GptOssError):
    """Another process, or another chat of this one, has locked the session."""


@dataclass(frozen=True)
class SessionEntry:
    """A session in a store."""

    name: str
    transcript: Path
    state: Path
    """The folder of the KV cache; it need not exist."""

    @property
    def changed(self) -> float:
        """When the conversation last changed, as seconds since 1970; 0 for a KV cache without a conversation."""
        try:
            return self.transcript.stat().st_mtime
        except OSError:
            return 0.0

    @property
    def state_bytes(self) -> int:
        """Bytes of the saved KV cache; 0 where it is gone."""
        total = 0
        with suppress(OSError), os.scandir(self.state) as entries:
            for entry in entries:
                with suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else 0
        return total


class Store:
    def __init__(self, folder: Path):
        self.folder = folder

    def __iter__(self) -> Iterator[SessionEntry]:
        """All sessions, the latest first."""
        found = [self.entry(path.stem) for path in self.folder.glob("[!.]*.json")]
        return iter(sorted(found, key=lambda entry: (-entry.changed, entry.name)))

    def find(self, name: str = "") -> SessionEntry:
        """By its name or the beginning of it; without one, the latest. Raises GptOssError."""
        entries = list(self)
        if not entries:
            raise GptOssError(f"there are no sessions yet in {self.folder}")
        if not name:
            return entries[0]
        exact = [entry for entry in entries if entry.name == name]
        found = exact or [entry for entry in entries if entry.name.startswith(name)]
        if not found:
            raise GptOssError(f"there is no session {name!r}: `gptoss-mlx sessions` lists them")
        if len(found) > 1:
            raise GptOssError(f"several sessions begin with {name!r}: {', '.join(each.name for each in found[:5])}")
        return found[0]

    def lock(self, entry: SessionEntry) -> SessionLock:
        """Keep others from changing a session. Raises InUse where another has locked it, GptOssError."""
        try:
            _make_private(self.folder)
            sweep(self.folder)
            return SessionLock(self, entry, _lock(entry))
        except OSError as error:
            raise GptOssError(f"cannot use {entry.state}: {os_error_text(error)}") from None

    def new(self, title: str) -> SessionLock:
        """A session that was not there yet, named after `title`. Raises GptOssError."""
        encoding = sys.getfilesystemencoding()  # of the locale, which may not have all letters
        title = title.lower().encode(encoding, "replace").decode(encoding)
        words = "-".join(re.findall(r"[^\W_]+", title))[:40].rstrip("-") or "session"
        taken = self.taken()
        for name in (words if count == 1 else f"{words}-{count}" for count in range(1, sys.maxsize)):
            if name.casefold() not in taken:
                with suppress(InUse):  # another process has just begun one of this name
                    lock = self.lock(self.entry(name))
                    if not lock.entry.transcript.exists():
                        return lock
                    lock.release()
        raise AssertionError("there is always another number")

    def taken(self, but: str | None = None) -> set[str]:
        """The names that are in use, but for one; as all letters are the same to some disks, in one form of them."""
        paths = [*self.folder.glob("[!.]*.json"), *self.folder.glob("[!.]*.kv")]
        return {path.stem.casefold() for path in paths if path.stem != but}

    def limit_states(self, limit: int, newest: SessionLock) -> None:
        """Remove saved KV caches, the oldest first and `newest` last, until they take no more than `limit` bytes; those
        that others have locked stay, and those that cannot be removed. Raises GptOssError for `newest`."""
        states = [self.entry(path.stem) for path in self.folder.glob("[!.]*.kv")]
        sizes = {entry: entry.state_bytes for entry in sorted(states, key=lambda entry: entry.changed)}
        for entry in [entry for entry in sizes if entry != newest.entry]:
            if sum(sizes.values()) <= limit:
                return
            with suppress(GptOssError), self.lock(entry) as lock:
                lock.remove_state()
                sizes[entry] = 0
        if sum(sizes.values()) > limit:
            newest.remove_state()

    def entry(self, name: str) -> SessionEntry:
        return SessionEntry(name, self.folder / f"{name}.json", self.folder / f"{name}.kv")


class SessionLock:
    """A session that nobody else changes, until `release` or the end of the process."""

    def __init__(self, store: Store, entry: SessionEntry, descriptor: int):
        """`descriptor`: that of the folder of the KV cache, which is locked as long as it is open."""
        self.entry, self._store = entry, store
        self._descriptor: int | None = descriptor

    def __enter__(self) -> SessionLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Unlock it; without a transcript, an empty folder is removed."""
        if self._descriptor is None:
            return
        with suppress(OSError):
            if not self.entry.transcript.exists() and _is_at(self._descriptor, self.entry.state):
                self.entry.state.rmdir()
        os.close(self._descriptor)
        self._descriptor = None

    def rename(self, name: str) -> None:
        """Raises GptOssError where the name is taken, or cannot be one."""
        if not NAME.fullmatch(name) or len(name.encode()) > MAX_NAME:
            rule = f"letters, digits, blanks and . , + - _, at most 80 of them and {MAX_NAME} bytes"
            raise GptOssError(f"{name!r} is no name for a session: use {rule}")
        if name.casefold() in self._store.taken(but=self.entry.name):
            raise GptOssError(f"there is a session {name!r} already")
        renamed = self._store.entry(name)
        try:
            self.entry.transcript.rename(renamed.transcript)
            self.entry.state.rename(renamed.state)
        except (OSError, UnicodeEncodeError) as error:
            raise GptOssError(f"cannot rename {self.entry.transcript}: {os_error_text(error)}") from None
        self.entry = renamed

    def delete(self) -> None:
        """Remove it and unlock it. Raises GptOssError."""
        try:
            self.entry.transcript.unlink(missing_ok=True)
            if self.entry.state.exists():
                clear(self.entry.state)
        except OSError as error:
            raise GptOssError(f"cannot delete {self.entry.transcript}: {os_error_text(error)}") from None
        self.release()

    def remove_state(self) -> None:
        """Raises GptOssError."""
        try:
            clear(self.entry.state)
        except OSError as error:
            raise GptOssError(f"cannot remove the KV cache {self.entry.state}: {os_error_text(error)}") from None


def clear(folder: Path, but: Collection[Path] = ()) -> None:
    """Remove the KV cache in a folder, `but` for some of its files, and nothing else; the folder stays, because it is
    what is locked. Raises OSError."""
    for path in {path for path in folder.iterdir() if STATE_FILE.fullmatch(path.name)}.difference(but):
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)


def _make_private(folder: Path) -> None:
    """Make a folder that only its owner can read; where a link leads, the owner has decided. Raises OSError."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with suppress(OSError):  # another's folder, or a disk that knows no owners
        if not folder.is_symlink():
            os.fchmod(descriptor, 0o700)
    os.close(descriptor)


def _lock(entry: SessionEntry) -> int:
    """Make and lock the folder of the KV cache. Raises InUse, OSError."""
    while True:
        descriptor = open_own_folder(entry.state, 0o700)
        try:
            with suppress(OSError):  # a disk that knows no owners
                os.fchmod(descriptor, 0o700)
            if lock(descriptor) is False:
                raise InUse(f"the session {entry.name!r} is in use by another gptoss-mlx")
            if _is_at(descriptor, entry.state):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the path still leads to what was opened: its last owner may have renamed or deleted it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
