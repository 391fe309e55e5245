"""The name of a model -> the folder that holds it: a path, a short name, or a hub repository id in the cache.

Also the models in the cache, and the one that was used last. Knows nothing of what is in a model's folder.
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
LAST_USED = "last-model"  # a file in `home` that holds the path of a folder
MAX_PATH = 4096


@dataclass
class ModelMissing(GptOssError):
    """A model that is not installed: `repository` would be converted into `folder`."""

    name: str
    repository: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.name} is not installed: run `gptoss-mlx convert {self.repository} {self.folder}`"


def user_home() -> Path:
    """The user's home folder. Raises GptOssError for a user without one."""
    try:
        return Path.home()
    except RuntimeError:
        raise GptOssError("this user has no home folder: set GPTOSS_MLX_HOME to one for models and sessions") from None


def home() -> Path:
    """The folder of converted models and of the chat's history. Raises GptOssError for a user without a home."""
    return Path(os.environ.get("GPTOSS_MLX_HOME") or user_home() / ".cache" / "gptoss-mlx")


def kept_at(repository: str) -> Path:
    """The folder of a hub repository's converted model, which need not exist."""
    return home() / repository.replace("/", "--")


def converted() -> list[str]:
    """The names of the models in the cache, as `resolve` takes them."""
    short = {repository: name for name, repository in SHORT_NAMES.items()}
    folders = sorted(path.parent for path in home().glob("[!.]*--*/config.json"))
    repositories = [folder.name.replace("--", "/", 1) for folder in folders]
    return [short.get(repository, repository) for repository in repositories if HUB_ID.fullmatch(repository)]


def remember(folder: Path) -> None:
    """Write down which model is used, if that file can be written."""
    with suppress(OSError, GptOssError):
        home().mkdir(parents=True, exist_ok=True)
        replace_file(home() / LAST_USED, os.fsencode(folder.absolute()))


def last_used() -> Path | None:
    """The folder of the model that was used last, which may be gone; None if that is unknown."""
    try:
        with open_regular(home() / LAST_USED) as file:
            return Path(os.fsdecode(file.read(MAX_PATH)))
    except OSError:
        return None


def hub_id(name: str) -> str:
    """The hub repository that a short name stands for; any other name as it is."""
    return SHORT_NAMES.get(name, name)


def resolve(name: str) -> Path:
    """The folder of a model. Raises ModelMissing if it can be installed, GptOssError if the name is unknown or leads to
    something else than a model."""
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
