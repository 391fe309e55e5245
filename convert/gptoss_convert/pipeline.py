"""Source -> recipe -> writer, a few megabytes at a time, with progress, checksums and a report."""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptoss_mlx.engine.builtin_text import TEXT
from gptoss_mlx.engine.special_tokens import CALL, RETURN
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.files import sha256
from gptoss_mlx.memory.system import proc_bytes, size_text
from gptoss_mlx.model.checkpoint import FLOATS, INDEX
from gptoss_mlx.model.config import ModelConfig, Quantization
from gptoss_mlx.progress import OnProgress, Progress, no_progress
from gptoss_mlx.provenance import PROVENANCE
from gptoss_mlx.untrusted import read_json

from . import affine, mxfp4
from .adapters import Adapter
from .arrays import f32_to_bf16
from .downloads import SPARE, Origin, origin_of
from .errors import ConvertError
from .inspection import tensors_text
from .journal import Journal
from .recipes import DEFAULT_RECIPE, MXFP4, Recipe, recipe_named
from .sources import COMPANIONS, TOKENIZER_FROM, Blocks, Plain, Source, Unit, Weight
from .writer import SHARD_LIMIT, Planned, Writer, clear, folder_appearing_at, partial_folder, write_json

if TYPE_CHECKING:
    from .fidelity import Fidelity

CHUNK = 2**23  # weights per step: one published expert; large enough for full speed, small enough to forget
CALIBRATION_TOKENS = 4096  # at most
ENDOFTEXT = "<|endoftext|>"
IMPORTANCE = "importance.npz"  # what a calibration found, while the folder is unfinished
# The names in an unfinished folder, with those that a Mac adds.
OURS = re.compile(
    r"model-\d{5}-of-\d{5}\.safetensors|source-[0-9a-f]+|journal\.json|\.\w{8}\.partial|\._.*|\.DS_Store|"
    + "|".join(
        map(
            re.escape, (INDEX, PROVENANCE, "config.json", "fidelity.json", IMPORTANCE, f"new-{IMPORTANCE}", *COMPANIONS)
        )
    )
)
# Fields of a source's config.json that do not hold for what was made of it, or say elsewhere what `published` says.
NOT_KEPT = ("quantization", "quantization_config", "quantize_activations", "model_file", "text_config")
NOT_KEPT += ("dtype", "rope_parameters", "num_experts", "swiglu_alpha")
DURABLE = 512 * 2**20  # bytes after which what was done is put on record


@dataclass(frozen=True)
class Report:
    recipe: str
    parameters: int
    source_bytes: int
    output_bytes: int
    seconds: float
    peak_anonymous_bytes: int | None
    """The largest memory that was not the page cache's; None where the system does not tell."""
    fidelity: Fidelity | None

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.output_bytes / self.parameters


def convert(
    source: str | Path,
    dest: str | Path,
    recipe: str = DEFAULT_RECIPE,
    *,
    revision: str | None = None,
    adapter: Path | None = None,
    calibration: str | None = None,
    keep_source: bool = False,
    verify: bool = False,
    shard_limit: int = SHARD_LIMIT,
    on_progress: OnProgress = no_progress,
    on_note: Callable[[str], None] = lambda text: None,
) -> Report:
    """Convert `source`, a folder or a hub repository id, into the new folder `dest`, a LoRA adapter merged into it.

    With a `calibration` text, errors of affine weights count as much as the inputs that they meet on this text. What is
    downloaded is deleted when it has been converted, or with `keep_source` stays in the hub's cache; with `verify` the
    result is compared with the source, which has to stay for it, and fidelity.json says how far it is.

    `on_note` hears before it begins what a user has to know of the source, a sentence each.

    Interrupted, by whatever it was, the same call goes on, and gives the same bytes. Raises GptOssError for a source,
    recipe or destination that cannot be used; then nothing is left behind.
    """
    started = time.monotonic()
    chosen = recipe_named(recipe)
    dest = Path(dest)
    memory = _Memory()
    try:
        with folder_appearing_at(dest, OURS.fullmatch) as partial:
            origin = origin_of(source, revision, partial, keep_source)
            stop_ids = _stop_ids(origin.source)
            if not stop_ids:
                lack = f"{source} has no tokenizer.json, and {dest} will not chat without one"
                if verify or calibration is not None:
                    raise ConvertError(f"{lack}, nor can a text be read: `hf download {TOKENIZER_FROM}` brings it")
                on_note(f"{lack}: when it is converted, run `hf download {TOKENIZER_FROM} --local-dir {dest}`")
            if verify and not (keep_source or Path(source).expanduser().is_dir()):
                raise ConvertError("a result is compared with its source, which has to stay for it: add --keep-source")
            if adapter is not None:
                origin.source.adapter = Adapter.open(adapter, origin.source.config)
            conversion = _Conversion(
                origin, partial, chosen, stop_ids, calibration, verify, shard_limit, on_progress, memory
            )
            for dtype, names in conversion.rounded.items():
                on_note(f"{tensors_text(names)} of {source} are in {dtype}, and are rounded to BF16")
            fidelity = conversion.run()
    except OSError as error:
        kept = ": what is done is kept, the same command goes on" if partial_folder(dest).exists() else ""
        raise GptOssError(f"cannot write {dest}: {error.strerror or error}{kept}") from None
    return Report(
        recipe=chosen.name,
        parameters=sum(math.prod(item.shape) for item in origin.source.weights()),
        source_bytes=sum(tensor.nbytes for tensor in origin.source.checkpoint.tensors.values()),
        output_bytes=conversion.writer.total,
        seconds=time.monotonic() - started,
        peak_anonymous_bytes=memory.peak,
        fidelity=fidelity,
    )


def _stop_ids(source: Source) -> list[int]:
    """What ends an answer, as the source's tokenizer numbers it; nothing where there is none. Raises ConvertError for a
    tokenizer that is not this model's."""
    if not source.has_tokenizer:
        return []
    tokenizer = source.tokenizer()
    return [tokenizer.special(name) for name in (RETURN, ENDOFTEXT, CALL)]


class _Conversion:
    """One source on its way into one folder: units in the order of the files that they come from."""

    def __init__(
        self,
        origin: Origin,
        folder: Path,
        recipe: Recipe,
        stop_ids: list[int],
        calibration: str | None,
        verify: bool,
        shard_limit: int,
        on_progress: OnProgress,
        memory: _Memory,
    ):
        self.origin, self.folder, self.recipe = origin, folder, recipe
        self.source = source = origin.source
        self.stop_ids, self.calibration, self.verify = stop_ids, calibration, verify
        self.importance: dict[str, np.ndarray] = {}
        self.companions = [path for name in COMPANIONS if (path := source.companion(name))]
        self.on_progress, self.memory = on_progress, memory
        units = list(source.units())
        weights = [item for unit in units for item in unit.weights]
        if pattern := recipe.unused_pattern([item.module for item in weights]):
            raise ConvertError(f"the recipe {recipe.name}: no module of this model is called {pattern}")
        self.rounded = rounded_to_bf16(units, recipe)
        # A shard's path sorts as its place among the shards.
        self.units = sorted(units, key=lambda unit: max(unit.files))
        self._last_use = {file: number for number, unit in enumerate(self.units, 1) for file in unit.files}
        self.writer = writer_of(folder, weights, recipe, limit=shard_limit, on_shard=self._hash)
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
        return {
            "tool": tool(),
            "source": self.origin.identity,
            "files": self.origin.files,
            "adapter": self.source.adapter and self.source.adapter.sha256,
            "config": self.source.raw_config,
            "recipe": asdict(self.recipe),
            "calibration": self._calibration_sha256(),
            "shards": [(shard.path.name, shard.size) for shard in self.writer.shards],
        }

    def run(self) -> Fidelity | None:
        try:
            done = self._resume()
            calibrate = self.calibration is not None and not (self.folder / IMPORTANCE).is_file()
            needed = set(self.source.shards) if calibrate or self.verify else self._files_from(self._finished)
            arriving = self.origin.begin(
                sorted(needed),
                lambda *bytes: self.on_progress(Progress("download", *bytes)),
            )
            _check_space(
                self.folder, self.writer.total - done + (sum(arriving) if calibrate else max(arriving, default=0))
            )
            if any(arriving):
                self.journal.record(self._finished)  # so that what comes stays, whatever happens
            if calibrate:
                self._calibrate()
            if self.calibration is not None:
                self.importance = dict(np.load(self.folder / IMPORTANCE))
            self._convert(done, settle=any(arriving))
            self._wait()
            self._write_the_rest()
            fidelity = self._compare() if self.verify else None
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
        for leftover in self.folder.glob("source-*"):
            shutil.rmtree(leftover)
        (self.folder / IMPORTANCE).unlink(missing_ok=True)
        self.journal.path.unlink()
        return fidelity

    def _calibrate(self) -> None:
        from .importance import importance

        self._have_all_shards()
        new = self.folder / f"new-{IMPORTANCE}"
        np.savez(new, **importance(self.source, self.calibration, CALIBRATION_TOKENS, self.on_progress))
        new.rename(self.folder / IMPORTANCE)
        self.journal.record(self._finished)

    def _compare(self) -> Fidelity:
        from . import fidelity

        self._have_all_shards()
        text = TEXT.read_text(encoding="utf-8")
        found = fidelity.compare(self.source, self.folder, text, fidelity.TOKENS, self.on_progress)
        write_json(self.folder / fidelity.NAME, found.as_dict())
        return found

    def _have_all_shards(self) -> None:
        for path in self.source.shards:
            self.origin.wait_for(path, self.writer.total)

    def _calibration_sha256(self) -> str | None:
        return None if self.calibration is None else hashlib.sha256(self.calibration.encode()).hexdigest()

    def _stop(self) -> None:
        self._stopped = True
        self.origin.close()
        for executor in (self._hashing, self._recording):
            executor.shutdown(wait=True, cancel_futures=True)
        self.writer.close()

    def _files_from(self, number: int) -> set[Path]:
        """Those that the units from this one on come from."""
        return {file for unit in self.units[number:] for file in unit.files}

    def _resume(self) -> int:
        """Skip what an earlier run has done; returns its bytes."""
        names = [tensor.name for unit in self.units[: self.journal.done] for tensor in self._planned(unit)]
        if not self.writer.resume(names):
            self.journal.forget()
        if not self.journal.found:
            clear(self.folder)
        self._finished = self.journal.done
        return sum(tensor.nbytes for unit in self.units[: self._finished] for tensor in self._planned(unit))

    def _convert(self, done: int, settle: bool) -> None:
        """After `done` bytes; with `settle`, no new shard is begun before those that are done with are released."""
        recorded = done
        total = sum(tensor.nbytes for unit in self.units for tensor in self._planned(unit))
        begun: set[Path] = set()
        for unit in self.units[self._finished :]:
            if settle and unit.files - begun:
                self._recorded().result()
            begun |= unit.files
            for path in sorted(unit.files):
                if digest := self.origin.wait_for(path, self.writer.total - done):
                    self.journal.add_digest(self._label(path), digest)
                self._hash(path)
            for names, arrays in self._in_turns(unit):
                for name, array in zip(names, arrays, strict=True):
                    self.writer.write(name, array)
                    done += array.nbytes
                self.memory.sample()
                self.on_progress(Progress("convert", done, total))
            self._finished += 1
            self._touched |= self.writer.files_of([tensor.name for tensor in self._planned(unit)])
            if done - recorded >= DURABLE or self._finished == len(self.units):
                self._waiting.append(self._recorded())
                recorded = done

    def _in_turns(self, unit: Unit) -> Iterator[tuple[list[str], tuple[np.ndarray, ...]]]:
        """Names and next rows of the tensors that each weight of a unit becomes."""
        names = [[tensor.name for tensor in planned_of(item, self.recipe)] for item in unit.weights]
        parts = [converted(item, self.recipe, self.importance.get(item.module)) for item in unit.weights]
        for step in zip_longest(*parts):
            yield from ((name, arrays) for name, arrays in zip(names, step, strict=True) if arrays is not None)

    def _planned(self, unit: Unit) -> list[Planned]:
        return [tensor for item in unit.weights for tensor in planned_of(item, self.recipe)]

    def _recorded(self) -> Future[None]:
        """Have on record what is done, when it is on the disk."""
        touched, self._touched = self._touched, set()
        return self._recording.submit(self._record, self._finished, touched)

    def _record(self, number: int, touched: set[Path]) -> None:
        for path in touched:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        self.journal.record(number)
        for path, last in self._last_use.items():
            if last <= number and not self.verify:
                self.origin.release(path)

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

    def _write_the_rest(self) -> None:
        """What is not weights: last config.json, without which nothing loads."""
        for path in self.companions:
            shutil.copyfile(path, self.folder / path.name)
        digests = {path: self.journal.digests[self._label(path)] for path in (*self.source.shards, *self.writer.paths)}
        provenance = {
            "source": self.origin.identity,
            "tool": tool(),
            "recipe": self.recipe.name,
            **({"calibration_sha256": self._calibration_sha256()} if self.calibration is not None else {}),
            **({"adapter_sha256": self.source.adapter.sha256} if self.source.adapter else {}),
            **({"rounded_to_bf16": self.rounded} if self.rounded else {}),
            "source_sha256": {path.name: digests[path] for path in self.source.shards},
            "sha256": {path.name: digests[path] for path in self.writer.paths},
        }
        write_json(self.folder / PROVENANCE, provenance)
        self.writer.write_index()
        config = converted_config(self.source.raw_config, self.source.weights(), self.recipe)
        if self.stop_ids and not _lists_stop_ids(self.folder / "generation_config.json"):
            config["eos_token_id"] = self.stop_ids  # where MLX-LM looks then
        write_json(self.folder / "config.json", config)


def _lists_stop_ids(path: Path) -> bool:
    try:
        data = read_json(path)
    except GptOssError:  # there is none, or what nobody can read
        return False
    return isinstance(data, dict) and bool(data.get("eos_token_id"))


def tool() -> str:
    """What provenance.json says of who made a folder."""
    return f"gptoss-mlx {version('gptoss-mlx')}"


def quantization_of(item: Weight, recipe: Recipe) -> Quantization | None:
    """How the recipe stores a canonical weight; None leaves it in BF16."""
    return recipe.of(item.module) if item.is_matrix else None


def rounded_to_bf16(units: Sequence[Unit], recipe: Recipe) -> dict[str, list[str]]:
    """What a source has in F16 or F32, and the recipe leaves unquantized: dtype -> names."""
    others = [dtype for dtype in FLOATS if dtype != "BF16"]
    items = {dtype: [item for unit in units if dtype in unit.dtypes for item in unit.weights] for dtype in others}
    names = {dtype: [each.name for each in items[dtype] if quantization_of(each, recipe) is None] for dtype in others}
    return {dtype: names[dtype] for dtype in others if names[dtype]}


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


def writer_of(
    folder: Path,
    weights: Iterable[Weight],
    recipe: Recipe,
    *,
    limit: int = SHARD_LIMIT,
    on_shard: Callable[[Path], None] = lambda path: None,
) -> Writer:
    """A writer of the tensors that canonical weights become; `limit` and `on_shard` are `Writer`'s."""
    return Writer(
        folder,
        [tensor for item in weights for tensor in planned_of(item, recipe)],
        # The embedding is read row by row on the CPU and must not be mapped into a GPU beside the rest.
        alone=lambda name: name.startswith("model.embed_tokens."),
        limit=limit,
        on_shard=on_shard,
    )


def converted(item: Weight, recipe: Recipe, importance: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, ...]]:
    """The arrays of those tensors, a range of rows at a time: only that range is ever in memory.

    `importance` float32 [columns], or [experts, columns], is what `affine.quantized` takes.
    """
    q = quantization_of(item, recipe)
    count = max(1, CHUNK // math.prod(item.shape[1:]))
    for start in range(0, item.shape[0], count):
        rows = slice(start, start + count)
        if isinstance(item, Blocks) and q == MXFP4:
            blocks, scales = item.read(rows)
            yield mxfp4.packed(blocks), scales
        elif isinstance(item, Plain) and q is None:
            yield (item.read(rows),)
        else:
            of_experts = importance is not None and importance.ndim == 2
            yield _stored(item.as_f32(rows), q, importance[rows] if of_experts else importance)


def _stored(values: np.ndarray, q: Quantization | None, importance: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """float32 [..., n] -> the arrays of its stored form."""
    if q is None:
        return (f32_to_bf16(values),)
    if q.mode == "mxfp4":
        return mxfp4.quantized(values)
    if importance is None or importance.ndim == 1:
        return affine.quantized(values, q.group_size, q.bits, importance)
    experts = [affine.quantized(v, q.group_size, q.bits, i) for v, i in zip(values, importance, strict=True)]
    return tuple(map(np.stack, zip(*experts, strict=True)))


def converted_config(raw_config: Mapping[str, Any], weights: Iterable[Weight], recipe: Recipe) -> dict[str, Any]:
    """A published config.json with MLX-LM's quantization entry: a default, and the modules that differ from it.

    Whatever spelling came in, the published one is written: MLX-LM takes a field that it does not find for the usual.
    """
    default = recipe.default
    used = {item.module: quantization_of(item, recipe) for item in weights}
    modules = {module: asdict(q) for module, q in used.items() if q not in (None, default)}
    kept = {name: value for name, value in raw_config.items() if name not in NOT_KEPT}
    config = kept | ModelConfig.from_dict(raw_config).published() | {"torch_dtype": "bfloat16"}
    return config if default is None else config | {"quantization": asdict(default) | modules}


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        lack = size_text(needed + SPARE - free)
        raise GptOssError(
            f"{folder.parent} has {size_text(free)} free, and the converted model needs {size_text(needed + SPARE)}:"
            f" make room for {lack} more"
        )


class _Memory:
    """The peak of anonymous memory: what the process itself holds, without mapped files and the page cache."""

    def __init__(self) -> None:
        self.peak: int | None = None
        self.sample()

    def sample(self) -> None:
        if anonymous := proc_bytes("self/status").get("RssAnon"):
            self.peak = max(self.peak or 0, anonymous)
