"""The name of a model -> the folder that holds it: a path, a short name, or a hub repository id, with a tag for the
recipe where several conversions of one model lie side by side: `gpt-oss-20b:q8`.

Also the models that lie in the program's own place, the default, and the one that was used last. Knows nothing of what
is in a model's folder but the recipe of its conversion; models of other programs are `other_programs`'.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import GptOssError
from ..files import replace_file
from ..provenance import recipe_and_source
from ..untrusted import open_regular
from . import other_programs

SHORT_NAMES = {"gpt-oss-20b": "openai/gpt-oss-20b", "gpt-oss-120b": "openai/gpt-oss-120b"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
DEMO = "demo"  # the embedded model, once it is converted
DOWNLOAD_GB = {"openai/gpt-oss-20b": 13.8, "openai/gpt-oss-120b": 65.3}
# What stands after the colon of a name -> the recipe. A recipe's own name is understood too, but for `q4`: whoever
# types that beside `q8` means the published experts, and not the recipe that is called so.
TAGS = {
    "q4": "mxfp4-q4",
    "q8": "mxfp4-q8",
    "bf16": "mxfp4-bf16",
    "small": "mxfp4-q4-small",
    "mixed": "mxfp4-mixed",
    "affine": "q4",
}
TAG = re.compile(r"(?!.*--)\w[\w.-]*")
# The addresses that people copy, and the names of Ollama: gpt-oss:20b, gpt-oss:latest.
ADDRESS = re.compile(r"(https?://)?(www\.)?(hf\.co|huggingface\.co|ollama\.com/library)/", re.IGNORECASE)
FAMILY = re.compile(r"(?:openai/)?(gpt-oss(?:-safeguard)?)(?:(?::latest)?|[:-](20b|120b)(?::(.+))?)", re.IGNORECASE)
SIZE = "20b"  # where the name has none
LATEST = "latest"  # a tag of Ollama's, which says nothing

LAST_USED = "last-model"  # a `user_file` that holds the path of a folder
DEFAULT = "default-model"  # a file in `data_home` that holds a name
MAX_PATH = 4096


@dataclass
class ModelMissing(GptOssError):
    """A model that is not installed: `repository` would be converted into `folder`, with `recipe` if the name says."""

    name: str
    repository: str
    folder: Path
    recipe: str | None = None

    def __str__(self) -> str:
        recipe = f" --recipe {self.recipe}" if self.recipe else ""
        return f"{self.name} is not installed: run `gptoss-mlx convert {self.repository}{recipe}`"


@dataclass(frozen=True)
class ModelName:
    """A model, by its name."""

    repository: str
    tag: str | None = None

    @classmethod
    def parse(cls, name: str) -> ModelName | None:
        """None for what cannot be the name of a model."""
        name = name[found.end() :] if (found := ADDRESS.match(name)) else name
        if family := FAMILY.fullmatch(name):
            repository, tag = f"openai/{family[1]}-{family[2] or SIZE}".lower(), family[3]
        else:
            repository, colon, after = name.partition(":")
            tag = after if colon else None
        if not HUB_ID.fullmatch(repository) or repository.startswith("."):
            return None
        if tag is None or tag.lower() == LATEST:
            return cls(repository)
        tag = next((known for known in TAGS if tag.lower() in (known, TAGS[known])), tag)
        return cls(repository, tag) if TAG.fullmatch(tag) else None

    @classmethod
    def of_folder(cls, name: str) -> ModelName | None:
        """From the name of a folder in the program's place."""
        owner, _, rest = name.partition("--")
        repository, _, tag = rest.partition("--")
        return cls.parse(f"{owner}/{repository}:{tag}" if tag else f"{owner}/{repository}")

    @property
    def folder(self) -> str:
        return "--".join(filter(None, (*self.repository.split("/"), self.tag)))

    @property
    def recipe(self) -> str | None:
        """The recipe of the tag; None without one, or for a recipe of the user's."""
        return TAGS.get(self.tag or "")

    def __str__(self) -> str:
        short = {repository: name for name, repository in SHORT_NAMES.items()}
        return ":".join(filter(None, (short.get(self.repository, self.repository), self.tag)))


def tag_of(recipe: str) -> str:
    """The tag of one of the recipes; of one in a file, its name. Raises GptOssError for a name that means another."""
    if tag := next((tag for tag, name in TAGS.items() if name == recipe), None):
        return tag
    tag = name_like(Path(recipe).stem)
    if tag in (*TAGS, *TAGS.values()):
        raise GptOssError(f"{recipe} has the name of another recipe: rename it, or give DEST")
    return tag


def name_like(text: str) -> str:
    """A part of a model's name, from the name of a file or folder."""
    return re.sub(r"[^\w.]+", "-", text).strip("-._") or "model"


def user_home() -> Path:
    """The user's home folder. Raises GptOssError for a user without one."""
    try:
        return Path.home()
    except RuntimeError:
        raise GptOssError("this user has no home folder: set GPTOSS_MLX_HOME to one for models and sessions") from None


def home() -> Path:
    """The folder of what can be made again. Raises GptOssError for a user without a home."""
    return Path(os.environ.get("GPTOSS_MLX_HOME") or user_home() / ".cache" / "gptoss-mlx")


def demo_folder() -> Path:
    """Where the embedded model is converted to. Raises GptOssError for a user without a home."""
    return home() / DEMO


def data_home() -> Path:
    """The platform's folder for a program's data, or GPTOSS_MLX_HOME. Raises GptOssError for a user without a home."""
    if own := os.environ.get("GPTOSS_MLX_HOME"):
        return Path(own)
    if sys.platform == "darwin":
        return user_home() / "Library" / "Application Support" / "gptoss-mlx"
    return Path(os.environ.get("XDG_DATA_HOME") or user_home() / ".local" / "share") / "gptoss-mlx"


def user_file(name: str) -> Path:
    """The path of a small file that a person would miss. One that is in `home`, where such files were before, is moved
    from there; if that is not possible, it stays, and is the one. Raises GptOssError for a user without a home."""
    path, old = data_home() / name, home() / name
    if path != old and os.path.lexists(old) and not os.path.lexists(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            old.rename(path)
        except FileNotFoundError:
            pass  # another process has just moved it
        except OSError:
            return old
    return path


def models_folder() -> Path:
    """The folder of converted models: one of its own, which backups leave out, but for GPTOSS_MLX_HOME, which a person
    has chosen for them."""
    return data_home() if os.environ.get("GPTOSS_MLX_HOME") else data_home() / "models"


def places() -> list[Path]:
    """The folder of converted models, and the one in which they were before, if that is another."""
    return list(dict.fromkeys((models_folder(), home())))


def partial_folder(dest: Path) -> Path:
    """The hidden folder in which a conversion to `dest` writes."""
    dest = dest.absolute()
    return dest.parent / f".{dest.name}.partial"


def kept_at(repository: str, tag: str | None = None) -> Path:
    """The folder of a hub repository's converted model, which need not exist; where an unfinished conversion is, that
    one's."""
    name = ModelName(repository, tag).folder
    unfinished = (place / name for place in places() if os.path.isdir(partial_folder(place / name)))
    return next(unfinished, models_folder() / name)


def own_folders() -> Iterator[tuple[ModelName, Path]]:
    """The converted models in the program's place, and in the old one, in the order of their names."""
    for place in places():
        for config in sorted(place.glob("[!.]*--*/config.json")):
            if name := ModelName.of_folder(config.parent.name):
                yield name, config.parent


def converted() -> list[str]:
    """The names of the models in the program's place, as `resolve` takes them."""
    return list(dict.fromkeys(str(name) for name, _ in own_folders()))


def display_name(folder: Path) -> str:
    """The name of a model in a folder, without its owner."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots":  # in the hub's cache
        return folder.parents[1].name.rpartition("--")[2]
    name = ModelName.of_folder(folder.name)
    return str(name).rpartition("/")[2] if name else folder.name


def remember(folder: Path) -> None:
    """Write down which model is used, if that file can be written."""
    with suppress(OSError, GptOssError):
        path = user_file(LAST_USED)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, os.fsencode(folder.absolute()))


def last_used() -> Path | None:
    """The folder of the model that was used last, which may be gone; None if that is unknown."""
    text = _line(user_file(LAST_USED))
    return (_moved(Path(text)) or Path(text)) if text else None


def set_default(name: str | None) -> None:
    """Make a model that of commands without MODEL; None for the one used last. Raises GptOssError."""
    path = data_home() / DEFAULT
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise GptOssError(f"cannot write {path}: {error.strerror}") from None
    if name is not None:
        replace_file(path, os.fsencode(name))


def default_model() -> str | None:
    """The name of the model that was made the default; it may be gone."""
    return _line(data_home() / DEFAULT)


def usual_model() -> str:
    """The model of commands that get none: the default, the one used last, or else the smaller one."""
    return default_model() or str(last_used() or next(iter(SHORT_NAMES)))


def _line(path: Path) -> str | None:
    try:
        with open_regular(path) as file:
            return os.fsdecode(file.read(MAX_PATH))
    except OSError:
        return None


def hub_id(name: str) -> str:
    """The hub repository that a name without a tag stands for; any other text as it is, and the name of a folder, but
    for the short names."""
    found = ModelName.parse(name)
    is_path = name not in SHORT_NAMES and os.path.isdir(os.path.expanduser(name))
    return found.repository if found and not found.tag and not is_path else name


def resolve(name: str) -> Path:
    """The folder of a model. Raises ModelMissing if it can be installed, GptOssError if the name is unknown or leads to
    something else than a model."""
    from .recognition import model_folder

    path = Path(os.path.expanduser(name))
    if os.path.lexists(path):  # unlike Path.exists, it takes any name
        return model_folder(path)
    if moved := _moved(path):
        return moved
    if name == DEMO and os.path.isdir(demo_folder()):
        return demo_folder()
    wanted = ModelName.parse(name)
    if wanted is None:
        known = ", ".join(SHORT_NAMES)
        raise GptOssError(
            f"there is no model {name!r}: give a folder, {known}, or a Hugging Face id such as openai/gpt-oss-20b"
        )
    if folder := _installed(wanted):
        return folder
    if wanted.tag and not wanted.recipe:
        raise GptOssError(f"there is no model {name!r}: the tags of recipes are {', '.join(TAGS)}")
    raise ModelMissing(name, wanted.repository, kept_at(wanted.repository, wanted.tag), wanted.recipe)


def _installed(wanted: ModelName) -> Path | None:
    """The folder of that very name. Else, of a name with a tag, the one without, if it was made by that recipe; of a
    name without, the one that was used last of those with a tag, or another program's."""
    for place in places():
        if os.path.isdir(folder := place / wanted.folder):
            return folder
    if wanted.tag:
        return next((f for name, f in own_folders() if name.repository == wanted.repository and _is(f, wanted)), None)
    tagged = [folder for name, folder in own_folders() if name.repository == wanted.repository]
    if tagged:
        return max(tagged, key=lambda folder: used_at(folder) or folder.stat().st_mtime)
    others = other_programs.models()
    return next((model.folder for model in others if model.name.lower() == wanted.repository.lower()), None)


def _is(folder: Path, wanted: ModelName) -> bool:
    try:
        return wanted.recipe is not None and recipe_and_source(folder)[0] == wanted.recipe
    except GptOssError:
        return False


def _moved(path: Path) -> Path | None:
    """Where the folder of a path is that was moved from the old place since the path was written down."""
    old = home()
    if models_folder() == old or path.parent not in (old, old.resolve()) or os.path.lexists(path):
        return None
    now = models_folder() / path.name
    return now if os.path.isdir(now) else None


def used_at(folder: Path) -> float | None:
    """When a model in the program's place was loaded last, as seconds since 1970; None where that is not noted."""
    with suppress(OSError):
        return stamp_of(folder).stat().st_mtime
    return None


def note_use(folder: Path) -> None:
    """Note that a model is loaded now, if it is in the program's place and that can be written."""
    with suppress(OSError, GptOssError):
        if folder.parent in places():
            stamp_of(folder).touch()


def forget(folder: Path) -> None:
    """Remove what is noted of a model's use, when it is removed. Raises OSError."""
    stamp_of(folder).unlink(missing_ok=True)
    if last_used() == folder.absolute():
        user_file(LAST_USED).unlink()


def stamp_of(folder: Path) -> Path:
    """The empty file beside a model that is as old as its last use."""
    return folder.parent / f".{folder.name}.used"
