"""A published model's shape with random weights: "how fast would it be here?" before anyone downloads it.

The folder is what `gptoss-mlx convert` makes of the published checkpoint, tensor by tensor and byte for byte of size,
and is gone at the end. It has no tokenizer. Its routers choose some experts more often than others, as those of a real
model do, but not the same ones: where experts are paged, a routing trace makes that real.

Knows how the weights are drawn; which tensors there are, and how they lie in files, is known to other modules.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_mlx.errors import GptOssError
from gptoss_mlx.files import free_disk, sync
from gptoss_mlx.memory.system import size_text
from gptoss_mlx.model.bf16 import f32_to_bf16
from gptoss_mlx.model.model_store import home
from gptoss_mlx.progress import OnProgress, Progress, no_progress
from gptoss_mlx.provenance import PROVENANCE, RANDOM_WEIGHTS

from .downloads import SPARE
from .pipeline import tool
from .published import SHAPES, config_of, weights_of
from .quantize import converted_config, planned_of, quantization_of, writer_of
from .recipes import DEFAULT_RECIPE, Recipe, recipe_named
from .sources import Weight
from .writer import Planned, write_json

GENERATION_CONFIG = {
    "bos_token_id": 199998,
    "do_sample": True,
    "eos_token_id": [200002, 199999, 200012],
    "pad_token_id": 199999,
}


@dataclass(frozen=True)
class RandomShape:
    """A published model, or its first layers."""

    name: str
    layers: int
    experts: int
    """Of each layer."""

    def __str__(self) -> str:
        return self.name if (self.layers, self.experts) == SHAPES[self.name] else f"{self.name}:{self.layers}"

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json, as it is published."""
        return config_of(self.layers, self.experts)


def parse_shape(text: str) -> RandomShape:
    """A shape from `gpt-oss-120b`, or `gpt-oss-120b:4` for four of its layers. Raises GptOssError."""
    match = re.fullmatch(r"([\w.-]+?)(?::(\d{1,4}))?", text, re.ASCII)
    name, number = match.groups() if match else ("", None)
    layers, experts = SHAPES.get(name, (0, 0))
    wanted = int(number) if number else layers
    # Half of the layers attend to all positions, half to a window: only an even number has as much of both.
    if not layers or not 2 <= wanted <= layers or wanted % 2:
        every = " or ".join(f"{name}[:LAYERS]" for name in SHAPES)
        largest = " or ".join(str(layers) for layers, _ in SHAPES.values())
        raise GptOssError(f"{text!r} is no shape: write {every}, LAYERS an even number from 2 to {largest}")
    return RandomShape(name, wanted, experts)


@contextmanager
def random_folder(
    shape: RandomShape, recipe: str = DEFAULT_RECIPE, on_progress: OnProgress = no_progress
) -> Iterator[Path]:
    """A folder of this shape, converted with `recipe`, that is deleted at the end, also after Ctrl-C; a killed process
    leaves it, below random-weights-*.

    It lies below TMPDIR if that is set, else where converted models are kept or, if that has too little room, where the
    system keeps temporary files. Raises GptOssError where no place has room, before anything is written.
    """
    model = _RandomModel(shape.config, recipe_named(recipe))
    place = _place_for(f"random weights of {shape}", model.nbytes)
    with ExitStack() as cleanup:
        try:
            place.mkdir(parents=True, exist_ok=True)
            root = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="random-weights-", dir=place))
            folder = Path(root, str(shape).replace(":", "-layers-"))
            folder.mkdir()
            model.write(folder, on_progress)
        except OSError as error:
            why = error.strerror or error
            raise GptOssError(f"cannot write random weights in {place}: {why}: set TMPDIR to another folder") from None
        yield folder


def _place_for(what: str, nbytes: int) -> Path:
    """A folder whose disk has room. The program's cache comes first: a folder of the system's can be in memory."""
    temporary = Path(tempfile.gettempdir())
    places = [temporary] if os.environ.get("TMPDIR") else [home(), temporary]
    room = {place: free_disk(place) for place in places}
    if fitting := [place for place, free in room.items() if free >= nbytes + SPARE]:
        return fitting[0]
    found = " and ".join(f"{place} has {size_text(free)} free" for place, free in room.items())
    raise GptOssError(f"{what} take {size_text(nbytes + SPARE)}, and {found}: set TMPDIR to a folder with more")


class _RandomModel:
    """The tensors that a recipe makes of a published checkpoint, with how each is drawn."""

    def __init__(self, raw_config: Mapping[str, Any], recipe: Recipe):
        self.raw_config, self.recipe = raw_config, recipe
        self.weights = weights_of(raw_config)
        self.tensors = [
            (tensor, _pattern(item, tensor, recipe)) for item in self.weights for tensor in planned_of(item, recipe)
        ]
        self.nbytes = sum(tensor.nbytes for tensor, _ in self.tensors)

    def write(self, folder: Path, on_progress: OnProgress) -> None:
        """Fill an empty folder, a few megabytes at a time."""
        writer = writer_of(folder, self.weights, self.recipe, on_shard=_flush)
        random, done = _RandomBytes(), 0
        try:
            for tensor, pattern in self.tensors:
                for start in range(0, tensor.nbytes, random.MAX_BYTES):
                    part = pattern.of(random.draw(min(random.MAX_BYTES, tensor.nbytes - start)))
                    writer.write(tensor.name, part)
                    done += part.nbytes
                    on_progress(Progress("random weights", done, self.nbytes))
        finally:
            writer.close()
        writer.write_index()
        write_json(folder / "generation_config.json", GENERATION_CONFIG)
        write_json(
            folder / PROVENANCE,
            {"source": {"id": RANDOM_WEIGHTS, "revision": None}, "tool": tool(), "recipe": self.recipe.name},
        )
        write_json(folder / "config.json", converted_config(self.raw_config, self.weights, self.recipe))


def _flush(path: Path) -> None:
    """Onto the disk now: what it would still write later, it would write while it is measured."""
    with path.open("rb") as file:
        sync(file.fileno())


class _RandomBytes:
    """Random bytes faster than a disk takes them, always the same ones, of which no two pages of 4 KiB are alike.

    One block comes from a generator; each time it is used, every page of it is multiplied by an odd number of its own,
    modulo 2^64, eight bytes at a time. What is uniform stays so, and neither a file system that compresses nor one that
    stores like pages once finds anything.
    """

    PAGES, WORDS = 256, 512  # of 8 bytes
    MAX_BYTES = PAGES * WORDS * 8

    def __init__(self) -> None:
        self._generator = np.random.Generator(np.random.SFC64(0))
        self._block = self._words(self.PAGES, self.WORDS)
        self._drawn = np.empty_like(self._block)

    def draw(self, count: int) -> np.ndarray:
        """uint8 [count], at most MAX_BYTES; the next call overwrites it."""
        np.multiply(self._block, self._words(self.PAGES, 1) | 1, out=self._drawn)
        return self._drawn.reshape(-1).view(np.uint8)[:count]

    def _words(self, *shape: int) -> np.ndarray:
        return self._generator.integers(0, 2**64, shape, np.uint64)


@dataclass(frozen=True)
class _Pattern:
    """How random bits become the values of a tensor: those of `mask` are kept, and `base` is added."""

    mask: np.unsignedinteger
    base: np.unsignedinteger

    def of(self, bits: np.ndarray) -> np.ndarray:
        """uint8 [N], which is overwritten -> the values, in the type of the mask."""
        values = bits.view(self.mask.dtype)
        values &= self.mask
        values += self.base
        return values


ALL_BITS = _Pattern(np.uint8(0xFF), np.uint8(0))
ONES = _Pattern(np.uint16(0), np.uint16(0x3F80))
SMALL = 0.02  # root mean square of biases and sinks


def _pattern(item: Weight, tensor: Planned, recipe: Recipe) -> _Pattern:
    """Weights are drawn so that a product with what an RMSNorm gives has a mean square of about 1: no layer adds more
    than that to what it passes on, and logits stay small."""
    if item.name.endswith("norm.weight"):
        return ONES
    size = SMALL
    if item.is_matrix:
        size = 1.0 if item.module == "model.embed_tokens" else item.shape[-1] ** -0.5
    q = quantization_of(item, recipe)
    if q is None:
        return _floats(size)
    if tensor.dtype == "U32":
        return ALL_BITS
    if tensor.dtype == "U8":
        return _powers_of_two(size)
    # A code from 0 to 2^bits - 1 has this standard deviation; the bias brings its mean to 0.
    step = size / math.sqrt((4**q.bits - 1) / 12)
    return _near(step if tensor.name.endswith(".scales") else -step * (2**q.bits - 1) / 2)


def _floats(size: float) -> _Pattern:
    """BF16 of both signs, two exponents and every mantissa: the root mean square is 2.42 times the lesser power."""
    exponent = 127 + round(math.log2(size / 2.42))
    return _Pattern(np.uint16(0x80FF), np.uint16(exponent << 7))


def _powers_of_two(size: float) -> _Pattern:
    """E8M0 scales, one of two: with every code of MXFP4, the root mean square is 4.63 times the lesser power."""
    return _Pattern(np.uint8(1), np.uint8(127 + round(math.log2(size / 4.63))))


def _near(value: float) -> _Pattern:
    """BF16 from `value` to 5 % beyond it."""
    return _Pattern(np.uint16(7), f32_to_bf16(np.array([value], np.float32))[0])
