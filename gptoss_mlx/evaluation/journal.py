"""What an interrupted evaluation has measured, so that the same command goes on: a JSON line for each finished item.

The file is named after all that decides the results; another model, text or version has another one. Knows nothing
about what is measured.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx

from .. import kernels
from ..budget import Settings
from ..foreign import MAX_JSON, parse_json
from ..models import home

# Of a model's folder, what decides what it computes, beside its shards.
DECIDING = ("config.json", "generation_config.json", "tokenizer.json", "provenance.json")


class Journal:
    """Values of finished items, by name, for the evaluation that `key` describes."""

    def __init__(self, key: dict[str, Any]):
        """Takes up what there is for `key`; makes no file yet."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.path = home() / "evaluations" / f"{digest[:32]}.jsonl"
        self.values: dict[str, Any] = {}
        self._file: BinaryIO | None = None
        self._end = self._read() if self.path.is_file() else 0

    def _read(self) -> int:
        """Take up whole lines, and tell where they end: a process that was killed may have left a part of one."""
        end = 0
        with self.path.open("rb") as file:
            while (line := file.readline(MAX_JSON)).endswith(b"\n"):
                try:
                    ((name, value),) = parse_json(line).items()
                except (ValueError, AttributeError):
                    break
                self.values[name] = value
                end += len(line)
        return end

    def add(self, name: str, value: Any) -> None:
        """Keep the value of a finished item, which JSON can say, before this returns. Raises OSError."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            self._file.truncate(self._end)
        line = json.dumps({name: value})
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.values[name] = json.loads(line)[name]

    def forget(self, names: Iterable[str]) -> None:
        """Measure these again, in this run at least."""
        for name in names:
            self.values.pop(name, None)

    def remove(self) -> None:
        """All is done and told."""
        if self._file is not None:
            self._file.close()
        self.path.unlink(missing_ok=True)


def model_key(folder: Path, settings: Settings) -> dict[str, Any]:
    """What decides the bits that a model computes here. Shards count by size and time: reading them takes minutes."""
    native = kernels.native()
    shards = {path.name: path.stat() for path in sorted(folder.glob("*.safetensors"))}
    return {
        "gptoss-mlx": version("gptoss-mlx"),
        "mlx": mx.__version__,
        "device": mx.default_device().type.name,
        "kernels": [native.kernels_in_use(), native.threads()] if native else None,
        "kv_bits": settings.kv_bits,
        "prefill_chunk": settings.prefill_chunk,
        "cpu_expert_layers": settings.cpu_expert_layers,
        "files": {name: sha256(folder / name) for name in DECIDING if (folder / name).is_file()},
        "shards": {name: [status.st_size, status.st_mtime_ns] for name, status in shards.items()},
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
