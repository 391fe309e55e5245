"""Models of other programs on this disk that load here as they are: those of MLX-LM, which lie in the hub's cache, and
those of LM Studio.

Looks at names of files and at config.json; whether the weights are whole, their index says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import GptOssError
from ..files import read_text
from ..untrusted import read_json

INDEX = "model.safetensors.index.json"  # `checkpoint.INDEX`, which would import NumPy
LM_STUDIO = ("~/.lmstudio/models", "~/.cache/lm-studio/models")


@dataclass(frozen=True)
class OtherModel:
    """A model in another program's folder."""

    name: str
    """The id of its hub repository."""
    folder: Path
    program: str


def models() -> list[OtherModel]:
    """All of them, in the order of their names."""
    found = [each for each in (*_of_the_hub(), *_of_lm_studio()) if _loads_here(each.folder)]
    return sorted(found, key=lambda model: (model.name, model.program))


def hub_cache() -> Path:
    """The folder in which huggingface_hub keeps what it downloads, by its variables."""
    if named := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expanduser(named))
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(os.environ.get("HF_HOME") or f"{caches}/huggingface"), "hub")


def _of_the_hub() -> Iterator[OtherModel]:
    for repository in hub_cache().glob("models--*--*"):
        name = repository.name.removeprefix("models--").replace("--", "/", 1)
        main = read_text(repository / "refs" / "main")
        snapshots = sorted(path.parent for path in repository.glob("snapshots/*/config.json"))
        snapshots.sort(key=lambda path: path.name != main)
        if snapshots:
            yield OtherModel(name, snapshots[0], "MLX-LM")


def _of_lm_studio() -> Iterator[OtherModel]:
    for place in LM_STUDIO:
        for config in Path(os.path.expanduser(place)).glob("[!.]*/[!.]*/config.json"):
            yield OtherModel(f"{config.parent.parent.name}/{config.parent.name}", config.parent, "LM Studio")


def _loads_here(folder: Path) -> bool:
    """Whether it is a whole gpt-oss in MLX's own quantization."""
    config = _object(folder / "config.json")
    if config.get("model_type") != "gpt_oss" or "quantization" not in config:
        return False
    # Path.exists and Path.is_file would raise for names that cannot be, and folders that cannot be read.
    if not os.path.exists(folder / INDEX):
        return os.path.isfile(folder / "model.safetensors")
    shards = _object(folder / INDEX).get("weight_map")
    return isinstance(shards, dict) and all(os.path.isfile(folder / name) for name in set(map(str, shards.values())))


def _object(path: Path) -> dict[str, Any]:
    try:
        data = read_json(path)
    except GptOssError:
        return {}
    return data if isinstance(data, dict) else {}
