"""What can follow on a command line, beyond what click knows: models, recipes, devices, commands.

Runs at each press of Tab, so that it reads names and imports nothing heavy. Folders and files are left to the shell.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from ..chat.store import Store, sessions_folder
from ..model.model_store import SHORT_NAMES, converted
from ..untrusted import parse_toml

SHELLS = ("bash", "zsh", "fish")


def script(commands: click.Group, program: str, shell: str) -> str:
    """What a shell has to run to ask `program` for completions; one of SHELLS."""
    variable = f"_{program}_COMPLETE".replace("-", "_").upper()
    return get_completion_class(shell)(commands, {}, program, variable).source()


def complete_models(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    return _items("dir", dict.fromkeys([*SHORT_NAMES, *converted()]), typed)


def complete_sources(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    return _items("dir", SHORT_NAMES, typed)


def complete_recipes(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    # Beside the package, which would import NumPy.
    file = Path(find_spec("gptoss_convert").origin).with_name("recipes.toml")
    return _items("file", parse_toml(file.read_bytes()), typed)


def complete_devices(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    file = Path(find_spec("gptoss_mlx.memory").origin).with_name("devices.json")  # its module would import NumPy
    return _items(None, json.loads(file.read_text(encoding="utf-8")), typed)


def complete_sessions(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    return _items(None, [kept.name for kept in Store(sessions_folder())], typed)


def complete_commands(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    return _items(None, context.find_root().command.commands, typed)


def _items(paths: str | None, names: Iterable[str], typed: str) -> list[CompletionItem]:
    """The names that begin so, and paths of a kind. These first: behind names, bash would forget the names."""
    items = [CompletionItem(name) for name in names if name.startswith(typed)]
    return items if paths is None else [CompletionItem(typed, type=paths), *items]
