"""The record of an interrupted conversion: a small file in its unfinished folder, so that the same command resumes.

The file is replaced as a whole, and only after the work that it records has reached the disk. Knows nothing about
tensors.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from gptoss_mlx.files import replacing

NAME = "journal.json"


def recipe_in(folder: Path) -> str | None:
    """The name of the recipe with which the conversion in this unfinished folder began; None if there is no record."""
    try:
        name = json.loads((folder / NAME).read_text(encoding="utf-8"))["key"]["recipe"]["name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) else None


class ConversionJournal:
    """Steps of a conversion and checksums of files, for the conversion that `key` describes."""

    def __init__(self, folder: Path, key: dict[str, Any]):
        """Reads the record in `folder`; starts an empty one where there is none, or that of another conversion."""
        self.path, self.key = folder / NAME, json.loads(json.dumps(key))
        self.done = 0
        """Steps whose output is on the disk."""
        self.digests: dict[str, str] = {}
        """SHA-256 of whole files, by name."""
        self.found = False
        """Whether there was a record of this conversion."""
        self._lock = threading.Lock()
        self._load()

    def _load(self) -> None:
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            done, digests = data["done"], data["sha256"]
            if data["key"] == self.key and isinstance(done, int) and isinstance(digests, dict):
                self.done, self.digests, self.found = done, digests, True
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass

    def forget(self) -> None:
        """Start an empty record: earlier work cannot be used."""
        self.done, self.digests, self.found = 0, {}, False
        self.path.unlink(missing_ok=True)

    def add_digest(self, name: str, digest: str) -> None:
        """Kept with the next record."""
        with self._lock:
            self.digests[name] = digest

    def record(self, done: int) -> None:
        """The first `done` steps are on the disk."""
        with self._lock:
            self.done = done
            text = json.dumps({"key": self.key, "done": done, "sha256": self.digests})
        # Private, because what others may read depends on the umask, which is the whole process's.
        with replacing(self.path, private=True) as file:
            file.write(text.encode())
