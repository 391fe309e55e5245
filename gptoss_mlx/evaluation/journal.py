"""What an interrupted evaluation has measured, so that the same command continues it: a line for each finished item, a
checksum and JSON.

The file is named after all that decides the results; another model, text or version has another one. One process has it
at a time. Knows nothing about what is measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .. import device
from ..errors import GptOssError
from ..files import lock, sha256, sync, unlinked
from ..memory.estimate import EngineConfig
from ..model.model_store import home
from ..untrusted import os_error_text

# The files of a model's folder that decide what it computes, beside its shards.
DECIDING = ("config.json", "generation_config.json", "tokenizer.json", "provenance.json")
MAX_LINE = 16 * 2**20  # bytes: 50 for each token that is predicted of a window


class EvaluationJournal:
    """Values of finished items, by name, for the evaluation that `key` describes."""

    _file: BinaryIO  # since `open`

    def __init__(self, key: dict[str, Any]):
        """Touches no file yet."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.path = home() / "evaluations" / f"{digest[:32]}.journal"
        self.values: dict[str, Any] = {}

    def open(self) -> None:
        """Read what was kept, or begin. Raises GptOssError where another process has it or it cannot be written."""
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = open(self.path, "a+b", opener=unlinked)  # noqa: SIM115
            # Who held the lock before may have removed the file since it was opened.
            if lock(file.fileno()) is False or not os.fstat(file.fileno()).st_nlink:
                raise GptOssError("the same evaluation is running already: wait for it, or stop it")
            file.truncate(self._read(file))
            self._file = file

    def _read(self, file: BinaryIO) -> int:
        """Read whole lines, and return where they end: a process that was killed may have left a part of one."""
        file.seek(0)
        end = 0
        while (line := file.readline(MAX_LINE)).endswith(b"\n") and line == line_of(line[CHECKSUM:-1]):
            self.values |= json.loads(line[CHECKSUM:])
            end += len(line)
        return end

    def add(self, name: str, value: Any) -> None:
        """Keep the value of a finished item, which JSON can say, before this returns. Raises GptOssError."""
        data = json.dumps({name: value}).encode()
        with writing(self.path):
            self._file.write(line_of(data))
            self._file.flush()
            sync(self._file.fileno())
        self.values |= json.loads(data)

    def clear(self) -> None:
        """Measure everything again. Raises GptOssError."""
        self.values = {}
        with writing(self.path):
            self._file.truncate(0)
            sync(self._file.fileno())

    def remove(self) -> None:
        """Keep nothing: all is done and reported, or nothing is done."""
        self.path.unlink(missing_ok=True)
        self._file.close()


CHECKSUM = 9  # characters, with the space after it


def line_of(data: bytes) -> bytes:
    """JSON -> a line of the file."""
    return b"%08x %b\n" % (zlib.crc32(data), data)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError of writing a file as GptOssError."""
    try:
        yield
    except OSError as error:
        raise GptOssError(
            f"cannot write {path}: {os_error_text(error)}: make room, or set GPTOSS_MLX_HOME to another folder"
        ) from None


def model_key(folder: Path, settings: EngineConfig) -> dict[str, Any]:
    """All that decides the bits that a model computes here; the number of threads does not. Shards count by size and
    time: reading them takes minutes."""
    runtime = device.runtime()
    shards = {path.name: path.stat() for path in sorted(folder.glob("[!.]*.safetensors"))}
    return {
        "gptoss-mlx": runtime.version,
        "mlx": runtime.mlx,
        "device": runtime.device.lower(),
        "kernels": runtime.kernels,
        "kv_bits": settings.kv_bits,
        "prefill_chunk": settings.prefill_chunk,
        "cpu_expert_layers": settings.cpu_expert_layers,
        "files": {name: sha256(folder / name) for name in DECIDING if (folder / name).is_file()},
        "shards": {name: [status.st_size, status.st_mtime_ns] for name, status in shards.items()},
    }
