"""The name of a model -> the folder that holds it: a path, a short name, or a hub repository id in the cache."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .errors import GptOssError

SHORT_NAMES = {"gpt-oss-20b": "openai/gpt-oss-20b", "gpt-oss-120b": "openai/gpt-oss-120b"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
DOWNLOAD_GB = {"openai/gpt-oss-20b": 13.8, "openai/gpt-oss-120b": 65.3}


@dataclass
class ModelMissing(GptOssError):
    """A model that could be here but is not: `repository` would be converted into `folder`."""

    name: str
    repository: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.name} is not here yet: run `gptoss-mlx convert {self.repository} {self.folder}`"


def home() -> Path:
    """Where converted models and the chat's history are kept."""
    return Path(os.environ.get("GPTOSS_MLX_HOME") or Path.home() / ".cache" / "gptoss-mlx")


def resolve(name: str) -> Path:
    """The folder of a model. Raises ModelMissing where it can be had, GptOssError where the name means nothing."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    repository = SHORT_NAMES.get(name, name)
    if not HUB_ID.fullmatch(repository) or repository.startswith("."):
        known = ", ".join(SHORT_NAMES)
        raise GptOssError(f"there is no model {name!r}: give a folder, {known}, or a hub id such as openai/gpt-oss-20b")
    folder = home() / repository.replace("/", "--")
    if not folder.is_dir():
        raise ModelMissing(name, repository, folder)
    return folder
