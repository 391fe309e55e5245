"""Source -> recipe -> writer, a few megabytes at a time, with progress, checksums and a report."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from gptoss_mlx.config import Quantization
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.memory import proc_bytes

from . import affine, mxfp4
from .bf16 import narrowed, widened
from .inspection import PROVENANCE
from .journal import Journal
from .recipes import DEFAULT_RECIPE, MXFP4, Recipe, recipe_named
from .sources import Blocks, Source, Unit, Weight
from .verification import sha256
from .writer import SHARD_LIMIT, Planned, Writer, clear, folder_appearing_at, partial_folder, write_json

# Copied as they are, where the source has them.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
    "USAGE_POLICY",
)
CHUNK = 2**23  # weights per step: one published expert; large enough for full speed, small enough to forget
DURABLE = 512 * 2**20  # bytes after which what was done is put on record
SIGNLESS, TOO_LARGE = np.uint16(0x7FFF), np.uint16((127 + 60) << 7)  # BF16: all but the sign; 2^60
SPARE = 64 * 2**20  # disk left over for small files


class ConvertError(GptOssError):
    """A conversion that cannot be done; nothing has been left at the destination."""


@dataclass(frozen=True)
class Progress:
    stage: str
    done: int
    total: int
    """Bytes."""


@dataclass(frozen=True)
class Report:
    recipe: str
    parameters: int
    source_bytes: int
    output_bytes: int
    seconds: float
    peak_anonymous_bytes: int | None
    """The largest memory that was not the page cache's; None where the system does not tell."""

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.output_bytes / self.parameters


def convert(
    source: str | Path,
    dest: str | Path,
    recipe: str = DEFAULT_RECIPE,
    *,
    revision: str | None = None,
    shard_limit: int = SHARD_LIMIT,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Report:
    """Convert `source`, a folder or a hub repository id, into the new folder `dest`.

    Interrupted, by whatever it was, the same call goes on, and gives the same bytes. Raises GptOssError for a source,
    recipe or destination that cannot be used; then nothing is left behind.
    """
    started = time.monotonic()
    chosen = recipe_named(recipe)
    dest = Path(dest)
    memory = _Memory()
    try:
        with folder_appearing_at(dest) as partial:
            folder, origin = _local(source, revision)
            opened = Source(folder)
            conversion = _Conversion(opened, origin, partial, chosen, shard_limit, on_progress, memory)
            conversion.run()
    except OSError as error:
        kept = ": what is done is kept, the same command goes on" if partial_folder(dest).exists() else ""
        raise GptOssError(f"cannot write {dest}: {error.strerror or error}{kept}") from None
    return Report(
        recipe=chosen.name,
        parameters=sum(math.prod(item.shape) for item in opened.weights()),
        source_bytes=sum(tensor.nbytes for tensor in opened.checkpoint.tensors.values()),
        output_bytes=conversion.writer.total,
        seconds=time.monotonic() - started,
        peak_anonymous_bytes=memory.peak,
    )


def _local(source: str | Path, revision: str | None) -> tuple[Path, dict[str, str | None]]:
    """The folder to read and what to call it: a folder as it is, a hub id after its download."""
    folder = Path(source)
    if folder.is_dir():
        return folder, {"id": folder.resolve().name, "revision": revision}
    if folder.exists():
        raise ConvertError(f"{source} is a file: name the folder that holds config.json")
    from .hub import download

    snapshot = download(str(source), revision)
    return snapshot, {"id": str(source), "revision": snapshot.name}


class _Conversion:
    """One source on its way into one folder: units in the order of the files that they come from."""

    def __init__(
        self,
        source: Source,
        origin: dict[str, str | None],
        folder: Path,
        recipe: Recipe,
        shard_limit: int,
        on_progress: Callable[[Progress], None],
        memory: _Memory,
    ):
        self.source, self.origin, self.folder, self.recipe = source, origin, folder, recipe
        self.on_progress, self.memory = on_progress, memory
        weights = list(source.weights())
        if pattern := recipe.unused_pattern([item.module for item in weights]):
            raise ConvertError(f"the recipe {recipe.name}: no module of this model is called {pattern}")
        self.units = sorted(source.units(), key=lambda unit: max(source.shards.index(file) for file in unit.files))
        self.writer = Writer(
            folder,
            [tensor for item in weights for tensor in planned_of(item, recipe)],
            # The embedding is read row by row on the CPU and must not be mapped into a GPU beside the rest.
            alone=lambda name: name.startswith("model.embed_tokens."),
            limit=shard_limit,
            on_shard=lambda path: self._hash(path),
        )
        # One worker for each kind of waiting: on a processor, and on a disk.
        self._hashing, self._recording = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._waiting: list[Future[None]] = []
        self._hashed: set[str] = set()
        self._bytes_hashed = self._to_hash = 0
        self.journal = Journal(folder, self._key())
        self._finished = 0
        self._touched: set[Path] = set()
        """Files written since the last record was asked for."""
        self._stopped = False

    def _key(self) -> dict[str, object]:
        """All that decides the bytes of the result, and of the source what tells that it has not changed."""
        files = [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in self.source.shards]
        return {
            "tool": _tool(),
            "origin": self.origin,
            "files": files,
            "config": self.source.raw_config,
            "recipe": asdict(self.recipe),
            "shards": [(shard.path.name, shard.size) for shard in self.writer.shards],
        }

    def run(self) -> None:
        try:
            done = self._resume()
            _check_space(self.folder, self.writer.total - done)
            self._convert(done)
            self._wait()
        except ConvertError:
            self._stop()
            self.journal.forget()
            raise
        except BaseException:
            self._stop()
            if self._touched:
                with suppress(OSError):
                    self._record(self._finished, self._touched)
            raise
        self._stop()
        self._finish()

    def _stop(self) -> None:
        self._stopped = True
        for executor in (self._hashing, self._recording):
            executor.shutdown(wait=True, cancel_futures=True)
        self.writer.close()

    def _resume(self) -> int:
        """Skip what an earlier run has done; returns its bytes."""
        names = [tensor.name for unit in self.units[: self.journal.done] for tensor in self._planned(unit)]
        if not self.writer.resume(names):
            self.journal.forget()
        if not self.journal.done:
            clear(self.folder)
        self._finished = self.journal.done
        return sum(tensor.nbytes for unit in self.units[: self._finished] for tensor in self._planned(unit))

    def _convert(self, done: int) -> None:
        recorded = done
        for unit in self.units[self._finished :]:
            for path in unit.files:
                self._hash(path)
            for item in unit.weights:
                tensors = planned_of(item, self.recipe)
                for arrays in converted(item, self.recipe):
                    for tensor, array in zip(tensors, arrays, strict=True):
                        self.writer.write(tensor.name, array)
                        done += array.nbytes
                    self.memory.sample()
                    self.on_progress(Progress("convert", done, self.writer.total))
            self._finished += 1
            self._touched |= self.writer.files_of([tensor.name for tensor in self._planned(unit)])
            if done - recorded >= DURABLE or self._finished == len(self.units):
                self._waiting.append(self._recording.submit(self._record, self._finished, self._touched))
                recorded, self._touched = done, set()

    def _planned(self, unit: Unit) -> list[Planned]:
        return [tensor for item in unit.weights for tensor in planned_of(item, self.recipe)]

    def _record(self, number: int, touched: set[Path]) -> None:
        for path in touched:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        self.journal.record(number)

    def _hash(self, path: Path) -> None:
        """Have a whole file hashed, once, beside what else is done."""
        label = self._label(path)
        if label not in self._hashed and label not in self.journal.digests:
            self._to_hash += path.stat().st_size
            self._waiting.append(self._hashing.submit(self._digest, label, path))
        self._hashed.add(label)

    def _digest(self, label: str, path: Path) -> None:
        def read(count: int) -> None:
            self._bytes_hashed += count
            if self._stopped:
                raise CancelledError

        self.journal.add_digest(label, sha256(path, read))

    def _label(self, path: Path) -> str:
        """Of a file in the journal: names of shards occur on both sides."""
        return path.name if path.parent == self.folder else f"source/{path.name}"

    def _wait(self) -> None:
        """Until all is hashed and on the disk."""
        for path in self.source.shards:
            self._hash(path)
        for future in self._waiting:
            while wait([future], timeout=0.2).not_done:
                self.on_progress(Progress("checksums", self._bytes_hashed, self._to_hash))
            future.result()
        self.on_progress(Progress("checksums", self._to_hash, self._to_hash))

    def _finish(self) -> None:
        """Write what is not weights: last config.json, without which nothing loads."""
        for name in COMPANIONS:
            if found := self.source.companion(name):
                shutil.copyfile(found, self.folder / name)
        digests = {path: self.journal.digests[self._label(path)] for path in (*self.source.shards, *self.writer.paths)}
        provenance = {
            "source": self.origin,
            "tool": _tool(),
            "recipe": self.recipe.name,
            "source_sha256": {path.name: digests[path] for path in self.source.shards},
            "sha256": {path.name: digests[path] for path in self.writer.paths},
        }
        write_json(self.folder / PROVENANCE, provenance)
        self.writer.write_index()
        self.journal.path.unlink()
        write_json(self.folder / "config.json", _config(self.source, self.recipe))


def _tool() -> str:
    return f"gptoss-mlx {version('gptoss-mlx')}"


def quantization_of(item: Weight, recipe: Recipe) -> Quantization | None:
    """How the recipe stores a canonical weight; None leaves it in BF16."""
    return recipe.of(item.module) if item.is_matrix else None


def planned_of(item: Weight, recipe: Recipe) -> list[Planned]:
    """The tensors that a canonical weight becomes."""
    q = quantization_of(item, recipe)
    if q is None:
        return [Planned(item.name, "BF16", item.shape)]
    *rows, columns = item.shape
    if columns % q.group_size:
        raise ConvertError(f"{item.module} has {columns} columns, which do not divide into groups of {q.group_size}")
    groups = (*rows, columns // q.group_size)
    weight = Planned(f"{item.module}.weight", "U32", (*rows, columns * q.bits // 32))
    if q.mode == "mxfp4":
        return [weight, Planned(f"{item.module}.scales", "U8", groups)]
    return [weight, *(Planned(f"{item.module}.{part}", "BF16", groups) for part in ("scales", "biases"))]


def converted(item: Weight, recipe: Recipe) -> Iterator[tuple[np.ndarray, ...]]:
    """The arrays of those tensors, a range of rows at a time: only that range is ever in memory."""
    q = quantization_of(item, recipe)
    count = max(1, CHUNK // math.prod(item.shape[1:]))
    for start in range(0, item.shape[0], count):
        rows = slice(start, start + count)
        if isinstance(item, Blocks):
            blocks, scales = item.blocks[rows], item.scales[rows]
            if (scales == mxfp4.NOT_A_NUMBER).any():
                raise ConvertError(f"{item.module} has a scale that is not a number (E8M0 255): the source is corrupt")
            yield (mxfp4.packed(blocks), scales) if q == MXFP4 else _stored(mxfp4.dequantized(blocks, scales), q)
        else:
            bits = item.values[rows]
            if (bits & SIGNLESS >= TOO_LARGE).any():
                raise ConvertError(
                    f"{item.name} has values that are not a number, or not below 2^60: the source is corrupt"
                )
            yield (bits,) if q is None else _stored(widened(bits), q)


def _stored(values: np.ndarray, q: Quantization | None) -> tuple[np.ndarray, ...]:
    """float32 [..., n] -> the arrays of its stored form."""
    if q is None:
        return (narrowed(values),)
    return mxfp4.quantized(values) if q.mode == "mxfp4" else affine.quantized(values, q.group_size, q.bits)


def _config(source: Source, recipe: Recipe) -> dict:
    """The source's config.json with MLX-LM's quantization entry: a default, and the modules that differ from it."""
    default = recipe.default
    used = {item.module: quantization_of(item, recipe) for item in source.weights()}
    modules = {module: asdict(q) for module, q in used.items() if q not in (None, default)}
    kept = {name: value for name, value in source.raw_config.items() if name != "quantization_config"}
    return kept if default is None else kept | {"quantization": asdict(default) | modules}


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        raise GptOssError(
            f"{folder.parent} has {free / 1e9:.1f} GB free; the converted model needs {(needed + SPARE) / 1e9:.1f} GB"
        )


class _Memory:
    """The peak of anonymous memory: what the process itself holds, without mapped files and the page cache."""

    def __init__(self) -> None:
        self.peak: int | None = None
        self.sample()

    def sample(self) -> None:
        if anonymous := proc_bytes("self/status").get("RssAnon"):
            self.peak = max(self.peak or 0, anonymous)
