"""The name of a model -> the folder that holds it: a path, a short name, or a hub repository id in the cache.

Also which models are in the cache, and which one was used last.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import GptOssError
from ..files import replace_file
from ..untrusted import open_regular

SHORT_NAMES = {"gpt-oss-20b": "openai/gpt-oss-20b", "gpt-oss-120b": "openai/gpt-oss-120b"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
DOWNLOAD_GB = {"openai/gpt-oss-20b": 13.8, "openai/gpt-oss-120b": 65.3}
LAST_USED = "last-model"  # in `home`, with the path of a folder
MAX_PATH = 4096


@dataclass
class ModelMissing(GptOssError):
    """A model that could be installed but is not: `repository` would be converted into `folder`."""

    name: str
    repository: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.name} is not installed; run `gptoss-mlx convert {self.repository} {self.folder}`"


def user_home() -> Path:
    """Raises GptOssError for a user without a home."""
    try:
        return Path.home()
    except RuntimeError:
        raise GptOssError("this user has no home folder: set GPTOSS_MLX_HOME to one for models and sessions") from None


def home() -> Path:
    """Where converted models and the chat's history are kept. Raises GptOssError for a user without a home."""
    return Path(os.environ.get("GPTOSS_MLX_HOME") or user_home() / ".cache" / "gptoss-mlx")


def kept_at(repository: str) -> Path:
    """Where the converted model of a hub repository is, or would be."""
    return home() / repository.replace("/", "--")


def converted() -> list[str]:
    """The names, as `resolve` takes them, of the models that `kept_at` their place."""
    short = {repository: name for name, repository in SHORT_NAMES.items()}
    folders = sorted(path.parent for path in home().glob("[!.]*--*/config.json"))
    repositories = [folder.name.replace("--", "/", 1) for folder in folders]
    return [short.get(repository, repository) for repository in repositories if HUB_ID.fullmatch(repository)]


def remember(folder: Path) -> None:
    """Note which model is used; where nothing can be written, it is not noted."""
    with suppress(OSError, GptOssError):
        home().mkdir(parents=True, exist_ok=True)
        replace_file(home() / LAST_USED, os.fsencode(folder.absolute()))


def last_used() -> Path | None:
    """The folder that was noted last, which may be gone."""
    try:
        with open_regular(home() / LAST_USED) as file:
            return Path(os.fsdecode(file.read(MAX_PATH)))
    except OSError:
        return None


def hub_id(name: str) -> str:
    """The hub repository that a short name stands for; any other name as it is."""
    return SHORT_NAMES.get(name, name)


def resolve(name: str) -> Path:
    """The folder of a model. Raises ModelMissing where it can be downloaded, GptOssError where the name means nothing,
    or something else than a model."""
    from .recognition import model_folder

    path = Path(os.path.expanduser(name))
    if os.path.lexists(path):  # unlike Path.exists, it takes any name
        return model_folder(path)
    repository = hub_id(name)
    if not HUB_ID.fullmatch(repository) or repository.startswith("."):
        known = ", ".join(SHORT_NAMES)
        raise GptOssError(
            f"there is no model {name!r}: give a folder, {known}, or a Hugging Face id such as openai/gpt-oss-20b"
        )
    folder = kept_at(repository)
    if not os.path.isdir(folder):
        raise ModelMissing(name, repository, folder)
    return folder
