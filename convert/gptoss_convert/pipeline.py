"""Source -> recipe -> writer, a few megabytes at a time, with progress, checksums and a report.

Knows the order of steps, what is kept when one fails, and how to resume; what a weight becomes is `quantize`'s.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gptoss_mlx.engine.builtin_text import TEXT
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.files import remove_tree, sha256, sync
from gptoss_mlx.memory.system import proc_bytes, size_text
from gptoss_mlx.model.checkpoint import INDEX
from gptoss_mlx.model.model_store import hub_id, partial_folder
from gptoss_mlx.progress import OnProgress, Progress, no_progress
from gptoss_mlx.provenance import PROVENANCE
from gptoss_mlx.untrusted import read_json

from .adapters import open_adapter
from .choice import choose
from .downloads import SPARE, ShardProvider, provider_of
from .errors import ConvertError
from .inspection import bits_per_weight, tensors_text
from .journal import ConversionJournal, recipe_in
from .published import headers_by_recipe
from .quantize import converted, converted_config, planned_of, rounded_to_bf16, writer_of
from .recipes import DEFAULT_RECIPE, Recipe, recipe_named
from .sources import AUXILIARY_FILES, TOKENIZER_FROM, Unit
from .writer import SHARD_LIMIT, Planned, clear, folder_appearing_at, write_json

if TYPE_CHECKING:
    from .fidelity import Fidelity

CALIBRATION_TOKENS = 4096  # at most
IMPORTANCE = "importance.npz"  # the result of a calibration, while the folder is unfinished
FIXED_NAMES = (INDEX, PROVENANCE, "config.json", "fidelity.json", IMPORTANCE, f"new-{IMPORTANCE}", *AUXILIARY_FILES)
# The names in an unfinished folder, with those that a Mac adds.
OWN_NAMES = re.compile(
    r"model-\d{5}-of-\d{5}\.safetensors|source-[0-9a-f]+|journal\.json|\.\w{8}\.partial|\._.*|\.DS_Store|"
    + "|".join(map(re.escape, FIXED_NAMES))
)
DURABLE = 512 * 2**20  # bytes after which finished work is put on record


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did: sizes in bytes, times in seconds."""

    recipe: str
    parameters: int
    source_bytes: int
    """All tensors of the source."""
    output_bytes: int
    """All weight files of the result."""
    seconds: float
    peak_anonymous_bytes: int | None
    """The largest memory of the process without the page cache; None where the system does not report it."""
    fidelity: Fidelity | None
    """The comparison with the source, if one was asked for."""

    @property
    def bits_per_weight(self) -> float:
        return bits_per_weight(self.output_bytes, self.parameters)


def convert(
    source: str | Path,
    dest: str | Path,
    recipe: str | None = DEFAULT_RECIPE,
    *,
    revision: str | None = None,
    adapter: str | Path | None = None,
    calibration: str | None = None,
    keep_source: bool = False,
    verify: bool = False,
    shard_limit: int = SHARD_LIMIT,
    on_progress: OnProgress = no_progress,
    on_note: Callable[[str], None] = lambda text: None,
) -> ConversionReport:
    """Convert a gpt-oss checkpoint into a new MLX folder, which `gptoss_mlx.load` and `mlx_lm.load` read.

    Memory stays below a few hundred megabytes, whatever the size of the model. If it is interrupted, by whatever it
    was, the same call resumes, and the result has the same bytes.

    Args:
        source: A folder in any layout of gpt-oss; a Hugging Face repository id (owner/name), which is downloaded shard
            by shard; or the string "gpt-oss-20b" or "gpt-oss-120b".
        dest: The folder to make; it must not exist. It appears when it is complete.
        recipe: A name in `RECIPES`, or the path of a .toml file with the same keys; None for the most faithful one with
            which the model stays in this machine's memory, which is then reported with `on_note`.
        revision: Branch, tag or commit of a repository; a note in provenance.json for a folder.
        adapter: A folder with a LoRA adapter (PEFT, Tinker or MLX-LM), which is merged into the weights.
        calibration: A text; affine weights are then rounded so that errors in inputs that matter on it are small.
        keep_source: Keep downloaded files in the Hugging Face cache, instead of deleting each shard after its use.
        verify: Compare the result with the source, and write fidelity.json. A repository also needs `keep_source`.
        shard_limit: The largest weight file, in bytes.
        on_progress: Called with a `Progress` after each step: its stage, and the bytes done and in total.
        on_note: Called with a sentence about the source that a user should know, before the conversion begins.

    Raises:
        ConvertError: A source, recipe or adapter that cannot be converted, however often it is tried; nothing is left.
        GptOssError: Anything else that went wrong, on the network or the disk: the message says what to do.
    """
    started = time.monotonic()
    chosen = None if recipe is None else recipe_named(recipe)
    source = hub_id(source) if isinstance(source, str) else source
    dest = Path(os.path.expanduser(dest))
    memory = _PeakMemory()
    try:
        with folder_appearing_at(dest, OWN_NAMES.fullmatch) as partial:
            provider = provider_of(source, revision, partial, keep_source)
            stop_ids = provider.source.stop_ids()
            if not stop_ids:
                lack = f"{source} has no tokenizer.json"
                if verify or calibration is not None:
                    raise ConvertError(f"{lack}, without which no text can be read: `hf download {TOKENIZER_FROM}`")
                command = f"hf download {TOKENIZER_FROM} --local-dir {dest}"
                on_note(f"{lack}, which chatting needs: after the conversion, run `{command}`")
            if verify and not (keep_source or os.path.isdir(os.path.expanduser(source))):
                raise ConvertError(
                    "the comparison reads the source again, so the download must be kept: add --keep-source"
                )
            if adapter is not None:
                provider.source.adapter = open_adapter(Path(os.path.expanduser(adapter)), provider.source.config)
            if chosen is None:
                headers = headers_by_recipe(str(source), provider.source.raw_config, provider.source.weights())
                chosen, why = choose(headers, begun=recipe_in(partial))
                on_note(why)
            conversion = _Conversion(
                provider, partial, chosen, stop_ids, calibration, verify, shard_limit, on_progress, memory
            )
            for dtype, names in conversion.rounded.items():
                on_note(f"{tensors_text(names)} of {source} are in {dtype}, and are rounded to BF16")
            fidelity = conversion.run()
    except OSError as error:
        kept = ": finished work is kept; run the same command again to resume" if partial_folder(dest).exists() else ""
        raise GptOssError(f"cannot write {dest}: {error.strerror or error}{kept}") from None
    return ConversionReport(
        recipe=chosen.name,
        parameters=sum(math.prod(item.shape) for item in provider.source.weights()),
        source_bytes=sum(tensor.nbytes for tensor in provider.source.checkpoint.tensors.values()),
        output_bytes=conversion.writer.total,
        seconds=time.monotonic() - started,
        peak_anonymous_bytes=memory.peak,
        fidelity=fidelity,
    )


class _Conversion:
    """One source on its way into one folder, unit by unit in the order of the source files."""

    def __init__(
        self,
        provider: ShardProvider,
        folder: Path,
        recipe: Recipe,
        stop_ids: list[int],
        calibration: str | None,
        verify: bool,
        shard_limit: int,
        on_progress: OnProgress,
        memory: _PeakMemory,
    ):
        self.provider, self.folder, self.recipe = provider, folder, recipe
        self.source = source = provider.source
        self.stop_ids, self.calibration, self.verify = stop_ids, calibration, verify
        self.importance: dict[str, np.ndarray] = {}
        self.auxiliary_files = [path for name in AUXILIARY_FILES if (path := source.auxiliary_file(name))]
        self.on_progress, self.memory = on_progress, memory
        units = list(source.units())
        weights = [item for unit in units for item in unit.weights]
        if pattern := recipe.unused_pattern([item.module for item in weights]):
            raise ConvertError(f"the recipe {recipe.name}: no module of this model matches {pattern}")
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
        self.journal = ConversionJournal(folder, self._key())
        self._finished = 0
        self._touched: set[Path] = set()
        """Files written since the last record was requested."""
        self._stopped = False

    def _key(self) -> dict[str, object]:
        """All that decides the bytes of the result, and what shows that the source has not changed."""
        return {
            "tool": tool(),
            "source": self.provider.identity,
            "files": self.provider.files,
            "adapter": self.source.adapter and self.source.adapter.sha256,
            "config": self.source.raw_config,
            "recipe": asdict(self.recipe),
            "calibration": self._calibration_sha256(),
            "shards": [(shard.path.name, hashlib.sha256(shard.header).hexdigest()) for shard in self.writer.shards],
        }

    def run(self) -> Fidelity | None:
        """Do all that is left to do. After a ConvertError nothing is kept; after any other, finished units are."""
        try:
            done = self._resume()
            calibrate = self.calibration is not None and not (self.folder / IMPORTANCE).is_file()
            needed = set(self.source.shards) if calibrate or self.verify else self._files_from(self._finished)
            arriving = self.provider.begin(
                sorted(needed), lambda *bytes: self.on_progress(Progress("download", *bytes))
            )
            shards = sum(arriving) if calibrate else max(arriving, default=0)
            _check_space(self.folder, self.writer.total - done + shards)
            if any(arriving):
                self.journal.record(self._finished)  # so that downloads stay, whatever happens
            if self.calibration is not None:
                if calibrate:
                    self._calibrate(self.calibration)
                self.importance = dict(np.load(self.folder / IMPORTANCE))
            self._convert(done, settle=any(arriving))
            self._wait()
            self._write_other_files()
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
            remove_tree(leftover)
        (self.folder / IMPORTANCE).unlink(missing_ok=True)
        self.journal.path.unlink()
        return fidelity

    def _calibrate(self, text: str) -> None:
        from .importance import importance

        self._have_all_shards()
        new = self.folder / f"new-{IMPORTANCE}"
        found = importance(self.source, text, CALIBRATION_TOKENS, self.on_progress)
        np.savez(new, **found)  # type: ignore[arg-type]  # no module is called allow_pickle
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
            self.provider.wait_for(path, self.writer.total)

    def _calibration_sha256(self) -> str | None:
        return None if self.calibration is None else hashlib.sha256(self.calibration.encode()).hexdigest()

    def _stop(self) -> None:
        self._stopped = True
        self.provider.close()
        for executor in (self._hashing, self._recording):
            executor.shutdown(wait=True, cancel_futures=True)
        self.writer.close()

    def _files_from(self, number: int) -> set[Path]:
        """The source files of this unit and those after it."""
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
        """Convert all after the first `done` bytes; with `settle`, a new shard waits until used ones are released."""
        recorded = done
        total = sum(tensor.nbytes for unit in self.units for tensor in self._planned(unit))
        begun: set[Path] = set()
        for unit in self.units[self._finished :]:
            if settle and unit.files - begun:
                self._recorded().result()
            begun |= unit.files
            for path in sorted(unit.files):
                if digest := self.provider.wait_for(path, self.writer.total - done):
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
        """Put finished units on record, as soon as they are on the disk."""
        touched, self._touched = self._touched, set()
        return self._recording.submit(self._record, self._finished, touched)

    def _record(self, number: int, touched: set[Path]) -> None:
        for path in touched:
            with path.open("rb") as file:
                sync(file.fileno())
        self.journal.record(number)
        for path, last in self._last_use.items():
            if last <= number and not self.verify:
                self.provider.release(path)

    def _hash(self, path: Path) -> None:
        """Hash a whole file in the background, once."""
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
        """A file's name in the journal: source and result may have shards of the same name."""
        return path.name if path.parent == self.folder else f"source/{path.name}"

    def _wait(self) -> None:
        """Wait until all is hashed and on the disk."""
        for path in self.source.shards:
            self._hash(path)
        for future in self._waiting:
            while wait([future], timeout=0.2).not_done:
                self.on_progress(Progress("checksums", self._bytes_hashed, self._to_hash))
            future.result()
        self.on_progress(Progress("checksums", self._to_hash, self._to_hash))

    def _write_other_files(self) -> None:
        """Write all but the weights; config.json comes last, because nothing loads without it."""
        for path in self.auxiliary_files:
            shutil.copyfile(path, self.folder / path.name)
        digests = {path: self.journal.digests[self._label(path)] for path in (*self.source.shards, *self.writer.paths)}
        provenance = {
            "source": self.provider.identity,
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


@cache
def tool() -> str:
    """The program's name and version, as provenance.json has it."""
    return f"gptoss-mlx {version('gptoss-mlx')}"


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        lack = size_text(needed + SPARE - free)
        raise GptOssError(
            f"{folder.parent} has {size_text(free)} free, and the converted model needs {size_text(needed + SPARE)}:"
            f" make room for {lack} more"
        )


class _PeakMemory:
    """The peak of anonymous memory: what the process itself holds, without mapped files and the page cache."""

    def __init__(self) -> None:
        self.peak: int | None = None
        self.sample()

    def sample(self) -> None:
        if anonymous := proc_bytes("self/status").get("RssAnon"):
            self.peak = max(self.peak or 0, anonymous)
