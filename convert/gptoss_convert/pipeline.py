"""Source -> recipe -> writer, a few megabytes at a time, with progress, checksums and a report."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from gptoss_mlx.config import Quantization
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.memory import proc_bytes

from . import affine, mxfp4
from .bf16 import widened
from .inspection import PROVENANCE
from .recipes import DEFAULT_RECIPE, MXFP4, RECIPES, Recipe
from .sources import Blocks, Plain, Source
from .verification import sha256
from .writer import SHARD_LIMIT, Planned, Writer, folder_appearing_at, write_json

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
CHUNK = 32 * 2**20  # bytes of source per step: large enough for full speed, small enough to forget
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

    Raises GptOssError for a source, recipe or destination that cannot be used; then nothing is left behind.
    """
    started = time.monotonic()
    if recipe not in RECIPES:
        raise ConvertError(f"there is no recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    dest = Path(dest)
    memory = _Memory()
    try:
        with folder_appearing_at(dest) as partial:
            folder, origin = _local(source, revision)
            opened = Source(folder)
            output_bytes = _convert(opened, origin, partial, recipe, shard_limit, on_progress, memory)
    except OSError as error:
        raise ConvertError(f"cannot write {dest}: {error.strerror or error}") from None
    return Report(
        recipe=recipe,
        parameters=sum(math.prod(item.shape) for item in opened.weights()),
        source_bytes=sum(tensor.nbytes for tensor in opened.checkpoint.tensors.values()),
        output_bytes=output_bytes,
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


def _convert(
    source: Source,
    origin: dict[str, str | None],
    folder: Path,
    recipe_name: str,
    shard_limit: int,
    on_progress: Callable[[Progress], None],
    memory: _Memory,
) -> int:
    """Fill `folder` and return the bytes of its shards."""
    recipe = RECIPES[recipe_name]
    planned = [tensor for item in source.weights() for tensor in planned_of(item, recipe)]
    # One worker: on two cores, one transforms while the other hashes.
    with ThreadPoolExecutor(max_workers=1) as pool:
        digests: dict[Path, Future[str]] = {path: pool.submit(sha256, path) for path in source.shards}
        writer = Writer(
            folder,
            planned,
            # The embedding is read row by row on the CPU and must not be mapped into a GPU beside the rest.
            alone=lambda name: name.startswith("model.embed_tokens."),
            limit=shard_limit,
            on_shard=lambda path: digests.update({path: pool.submit(sha256, path)}),
        )
        try:
            _check_space(folder, writer.total)
            done = 0
            for item in source.weights():
                tensors = planned_of(item, recipe)
                for arrays in converted(item, recipe):
                    for tensor, array in zip(tensors, arrays, strict=True):
                        writer.write(tensor.name, array)
                        done += array.nbytes
                    memory.sample()
                    on_progress(Progress("convert", done, writer.total))
            writer.finish()
            on_progress(Progress("checksums", writer.total, writer.total))
            checksums = {path: future.result() for path, future in digests.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            writer.close()
    for name in COMPANIONS:
        if found := source.companion(name):
            shutil.copyfile(found, folder / name)
    write_json(folder / "config.json", _config(source, recipe))
    provenance = {
        "source": origin,
        "tool": f"gptoss-mlx {version('gptoss-mlx')}",
        "recipe": recipe_name,
        "source_sha256": {path.name: checksums[path] for path in source.shards},
        "sha256": {shard.path.name: checksums[shard.path] for shard in writer.shards},
    }
    write_json(folder / PROVENANCE, provenance)
    return writer.total


def quantization_of(item: Plain | Blocks, recipe: Recipe) -> Quantization | None:
    """How the recipe stores a canonical weight; None leaves it in BF16."""
    if isinstance(item, Blocks):
        return recipe.experts
    return recipe.of(item.module) if item.is_matrix else None


def planned_of(item: Plain | Blocks, recipe: Recipe) -> list[Planned]:
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


def converted(item: Plain | Blocks, recipe: Recipe) -> Iterator[tuple[np.ndarray, ...]]:
    """The arrays of those tensors, a range of rows at a time: only that range is ever in memory."""
    q = quantization_of(item, recipe)
    views = (item.blocks, item.scales) if isinstance(item, Blocks) else (item.values,)
    rows = max(1, CHUNK * len(views[0]) // sum(view.nbytes for view in views))
    for start in range(0, len(views[0]), rows):
        parts = tuple(view[start : start + rows] for view in views)
        if isinstance(item, Blocks):
            if (parts[1] == mxfp4.NOT_A_NUMBER).any():
                raise ConvertError(f"{item.module} has a scale that is not a number (E8M0 255): the source is corrupt")
            yield (mxfp4.packed(parts[0]), parts[1]) if q == MXFP4 else _quantized(mxfp4.dequantized(*parts), q)
        else:
            if (parts[0] & SIGNLESS >= TOO_LARGE).any():
                raise ConvertError(
                    f"{item.name} has values that are not a number, or not below 2^60: the source is corrupt"
                )
            yield parts if q is None else _quantized(widened(parts[0]), q)


def _quantized(values: np.ndarray, q: Quantization) -> tuple[np.ndarray, ...]:
    """float32 [..., n] -> the arrays of its stored form."""
    return mxfp4.quantized(values) if q.mode == "mxfp4" else affine.quantized(values, q.group_size, q.bits)


def _config(source: Source, recipe: Recipe) -> dict:
    """The source's config.json with MLX-LM's quantization entry: a default, and the modules that differ from it."""
    default = recipe.head or recipe.experts
    used = {item.module: quantization_of(item, recipe) for item in source.weights()}
    modules = {module: asdict(q) for module, q in used.items() if q not in (None, default)}
    kept = {name: value for name, value in source.raw_config.items() if name != "quantization_config"}
    return kept | {"quantization": asdict(default) | modules}


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        raise ConvertError(
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
