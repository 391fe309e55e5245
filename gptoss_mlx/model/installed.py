"""The models on this disk, finished and not: what is known of each; and how one is removed or moved that is not in use.

Names, and the folders that they stand for, are `model_store`'s.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import GptOssError
from ..files import lock, remove_tree
from ..provenance import recipe_and_source
from ..untrusted import os_error_text, read_json
from . import other_programs
from .model_store import (
    ModelName,
    data_home,
    forget,
    models_folder,
    own_folders,
    partial_folder,
    places,
    stamp_of,
    used_at,
)

JOURNAL = "journal.json"  # of a conversion that has not ended
PARTIAL = ".partial"
BLOCK = 512  # bytes, whatever the file system has
SECONDS = 10  # for tmutil


class ModelInUse(GptOssError):
    """Another process has loaded the model, or is making it."""


@dataclass(frozen=True)
class InstalledModel:
    """A model on this disk."""

    name: str
    folder: Path
    """The folder, which is a hidden one before the conversion has ended."""
    program: str | None = None
    """Another program, to which it belongs."""
    finished: bool = True

    @property
    def nbytes(self) -> int:
        """Bytes of its files; before it is finished, those that are written, of files that have their size already."""
        total = 0
        for path in self.folder.rglob("[!.]*"):
            with suppress(OSError):
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    total += status.st_size if self.finished else status.st_blocks * BLOCK
        return total

    @property
    def recipe(self) -> str | None:
        return self._origin[0]

    @property
    def source(self) -> str | None:
        """What it was converted from: the id of a hub repository, or the name of a folder."""
        return self._origin[1]

    @property
    def used_at(self) -> float | None:
        """When it was loaded last, as seconds since 1970; None where that is not noted."""
        return used_at(self.folder) if self.finished and not self.program else None

    @property
    def in_place(self) -> bool:
        """Whether it is where models belong, and not where they were before."""
        return self.program is not None or self.folder.parent == models_folder()

    @cached_property
    def _origin(self) -> tuple[str | None, str | None]:
        with suppress(GptOssError, KeyError, TypeError):
            if self.finished:
                return recipe_and_source(self.folder)
            key = read_json(self.folder / JOURNAL)["key"]
            return str(key["recipe"]["name"]), str(key["source"]["id"])
        return None, None

    def is_being_made(self) -> bool:
        """Whether its conversion runs now."""
        with suppress(OSError):
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                return not self.finished and lock(descriptor, shared=True) is False
            finally:
                os.close(descriptor)
        return False


class Hold:
    """While this object lives, no other process removes or moves a model, where the file system has locks."""

    def __init__(self, folder: Path):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            weakref.finalize(self, os.close, descriptor)
            lock(descriptor, shared=True)


def models() -> list[InstalledModel]:
    """All models, by their names: the program's own, those whose conversion has not ended, and other programs'."""
    own = [InstalledModel(str(name), folder) for name, folder in own_folders()]
    others = [InstalledModel(other.name, other.folder, other.program) for other in other_programs.models()]
    return [*sorted([*own, *_unfinished()], key=lambda model: model.name), *others]


def _unfinished() -> Iterator[InstalledModel]:
    for place in places():
        for folder in place.glob(f".*--*{PARTIAL}"):
            name = ModelName.of_folder(folder.name[1 : -len(PARTIAL)])
            if name and folder.is_dir():
                yield InstalledModel(str(name), folder, finished=False)


def find(name: str) -> InstalledModel:
    """By its own name, in any form, or its folder. Raises GptOssError."""
    parsed = ModelName.parse(name)
    path = Path(os.path.abspath(os.path.expanduser(name)))
    for model in models():
        if (parsed and model.name == str(parsed)) or model.folder.absolute() == path:
            return model
    raise GptOssError(f"there is no model {name!r}: `gptoss-mlx models` lists them")


def make_models_folder() -> None:
    """Make the folder of converted models, if there is none. On a Mac, Time Machine then leaves it out: its models can
    be made again. Raises GptOssError."""
    folder = models_folder()
    if folder.is_dir():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GptOssError(f"cannot make {folder}: {os_error_text(error)}") from None
    if sys.platform == "darwin" and folder != data_home():
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(("tmutil", "addexclusion", folder), capture_output=True, timeout=SECONDS, check=False)


def remove(model: InstalledModel) -> None:
    """Raises ModelInUse, and GptOssError for a model of another program."""
    if model.program:
        raise GptOssError(f"{model.name} belongs to {model.program}: remove it there")
    try:
        if model.folder.is_symlink():
            model.folder.unlink()
        else:
            with _unused(model):
                hidden = model.folder
                if model.finished:  # what is left if this is interrupted is then no model
                    hidden = model.folder.rename(partial_folder(model.folder))
                remove_tree(hidden)
        forget(model.folder)
    except OSError as error:
        raise GptOssError(f"cannot remove {model.folder}: {os_error_text(error)}") from None


def move(model: InstalledModel) -> None:
    """Rename it into the folder of models: nothing is copied. Raises ModelInUse, GptOssError."""
    target = models_folder() / model.folder.name
    if os.path.lexists(target):
        raise GptOssError(f"{target} exists already: remove it, or {model.folder}")
    make_models_folder()
    try:
        with _unused(model):
            model.folder.rename(target)
            with suppress(FileNotFoundError):
                stamp_of(model.folder).rename(stamp_of(target))
    except OSError as error:
        why = "it is on another disk" if error.errno == errno.EXDEV else os_error_text(error)
        raise GptOssError(f"cannot move {model.folder} to {target}: {why}; it stays, and can be used there") from None


@contextmanager
def _unused(model: InstalledModel) -> Iterator[None]:
    """With the model locked. Raises ModelInUse; OSError, also for a symbolic link."""
    descriptor = os.open(model.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if lock(descriptor) is False:
            doing = "in use" if model.finished else "being converted"
            raise ModelInUse(f"{model.name} is {doing} by another gptoss-mlx: end that first")
        yield
    finally:
        os.close(descriptor)
