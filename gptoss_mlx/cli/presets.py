"""Presets: files with settings for a chat under a name, in the folder `presets` beside the config file.

    system = "You are a patient teacher."     # options of `chat` and `generate`, by their long names
    reasoning = "high"
    template = "Explain $topic to me: $input"  # for each message

Knows click's declarations of the options; what they do, others know.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..errors import GptOssError
from ..untrusted import os_error_text
from . import config_file

TEMPLATE = "template"


@dataclass(frozen=True)
class Preset:
    path: Path
    values: dict[str, Any]
    """Values as the command line would have given them, by the parameters' names."""
    template: str | None


def folder() -> Path:
    return config_file.path().with_name("presets")


def names() -> list[str]:
    """Those of the presets, in order."""
    try:
        return sorted(name.removesuffix(".toml") for name in os.listdir(folder()) if name.endswith(".toml"))
    except OSError:
        return []


def read(name: str, known: Mapping[str, click.Parameter]) -> Preset:
    """The preset of that name, with the options that are `known`. Raises GptOssError, with the file and the key."""
    if name not in (existing := names()):
        there = f"there are {', '.join(existing)}" if existing else "there is none"
        raise GptOssError(f"there is no preset {name}: in {folder()} {there}")
    path = folder() / f"{name}.toml"
    try:
        entries = config_file.read_toml(path)
    except (OSError, ValueError) as error:
        raise GptOssError(f"cannot read {path}: {os_error_text(error)}") from None
    template = entries.pop(TEMPLATE, None)
    if not isinstance(template, str | None):
        raise GptOssError(f"{path}: {TEMPLATE}: write text")
    return Preset(path, dict(_value(path, key, value, known) for key, value in entries.items()), template)


def _value(path: Path, key: str, value: Any, known: Mapping[str, click.Parameter]) -> tuple[str, Any]:
    if key not in known:
        raise GptOssError(f"{path}: {key}: a preset has no such option")
    parameter = known[key]
    assert parameter.name is not None
    try:
        cast = parameter.type_cast_value(click.get_current_context(), config_file.typed(parameter, value))
    except click.BadParameter as error:
        raise GptOssError(f"{path}: {key}: {error.message.rstrip('.')}") from None
    except (ValueError, GptOssError) as error:
        raise GptOssError(f"{path}: {key}: {error}") from None
    return parameter.name, cast
