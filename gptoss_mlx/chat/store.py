"""Sessions on disk: of each a readable transcript, NAME.json, and beside it the KV state, the folder NAME.kv.

Knows names and files; what is in them, `transcript` and `state_files` know. A state can be thrown away at any time, and
is, the oldest first, when all of them take more than they may: a session without one is read again.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import GptOssError

NAME = re.compile(r"[^\W_][\w .,+-]{0,79}")


def sessions_folder() -> Path:
    """Where the platform keeps what programs made for a person; with GPTOSS_MLX_HOME, there."""
    if own := os.environ.get("GPTOSS_MLX_HOME"):
        return Path(own) / "sessions"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "gptoss-mlx" / "sessions"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "gptoss-mlx" / "sessions"


@dataclass(frozen=True)
class Kept:
    """A session in a store."""

    name: str
    transcript: Path
    state: Path
    """A folder; it need not exist."""

    @property
    def changed(self) -> float:
        """When the conversation last changed, as seconds since 1970."""
        try:
            return self.transcript.stat().st_mtime
        except OSError:  # deleted meanwhile
            return 0.0

    @property
    def state_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.state.glob("*") if path.is_file())


class Store:
    def __init__(self, folder: Path):
        self.folder = folder

    def __iter__(self) -> Iterator[Kept]:
        """All sessions, the latest first."""
        found = [self._kept(path.stem) for path in self.folder.glob("*.json") if not path.name.startswith(".")]
        return iter(sorted(found, key=lambda kept: (-kept.changed, kept.name)))

    def find(self, name: str = "") -> Kept:
        """By its name or the beginning of it; without one, the latest. Raises GptOssError."""
        kept = list(self)
        if not kept:
            raise GptOssError(f"there are no sessions yet in {self.folder}")
        if not name:
            return kept[0]
        found = [each for each in kept if each.name == name] or [each for each in kept if each.name.startswith(name)]
        if not found:
            raise GptOssError(f"there is no session {name!r}: `gptoss-mlx sessions` lists them")
        if len(found) > 1:
            raise GptOssError(f"several sessions begin with {name!r}: {', '.join(each.name for each in found[:5])}")
        return found[0]

    def new(self, title: str) -> Kept:
        """A session that is not there yet, named after `title`."""
        words = "-".join(re.findall(r"[^\W_]+", title.lower()))[:40].rstrip("-") or "session"
        names = (words if count == 1 else f"{words}-{count}" for count in range(1, sys.maxsize))
        return next(kept for kept in map(self._kept, names) if not kept.transcript.exists() and not kept.state.exists())

    def rename(self, kept: Kept, name: str) -> Kept:
        """Raises GptOssError where the name cannot be had."""
        if not NAME.fullmatch(name):
            raise GptOssError(f"{name!r} is no name for a session: letters, digits, blanks and . , + - _, at most 80")
        renamed = self._kept(name)
        if renamed.transcript.exists() or renamed.state.exists():
            raise GptOssError(f"there is a session {name!r} already")
        try:
            if kept.state.exists():
                kept.state.rename(renamed.state)
            kept.transcript.rename(renamed.transcript)
        except OSError as error:
            raise GptOssError(f"cannot rename {kept.transcript}: {error.strerror}") from None
        return renamed

    def delete(self, kept: Kept) -> None:
        """Raises GptOssError."""
        try:
            shutil.rmtree(kept.state, ignore_errors=True)
            kept.transcript.unlink()
        except OSError as error:
            raise GptOssError(f"cannot delete {kept.transcript}: {error.strerror}") from None

    def bound_states(self, limit: int, newest: Kept) -> None:
        """Throw KV states away, the oldest first and `newest` last, until they take no more than `limit` bytes."""
        others = [kept for kept in self if kept != newest]
        sizes = {kept.name: kept.state_bytes for kept in (newest, *others)}
        for kept in (*reversed(others), newest):
            if sum(sizes.values()) <= limit:
                return
            remove_state(kept.state)
            sizes[kept.name] = 0

    def _kept(self, name: str) -> Kept:
        return Kept(name, self.folder / f"{name}.json", self.folder / f"{name}.kv")


def remove_state(folder: Path) -> None:
    """Remove a KV state; the folder stays, because it is what a process locks."""
    for path in folder.glob("*"):
        path.unlink(missing_ok=True)
