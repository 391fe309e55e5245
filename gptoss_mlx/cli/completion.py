"""Completion in shells: the command `completion`, and candidates that click does not know: models, recipes, devices.

Runs at each press of Tab, so that it reads names and imports nothing heavy. Folders and files are left to the shell.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from ..chat.store import Store, sessions_folder
from ..model import other_programs
from ..model.model_store import SHORT_NAMES, converted
from ..untrusted import parse_toml
from . import presets
from .help import command

SHELLS = ("bash", "zsh", "fish")
# bash would end a word at the colon of gpt-oss-20b:q8.
WHOLE_NAMES = "COMP_WORDBREAKS=${COMP_WORDBREAKS//:}"


@command(epilog="Example: gptoss-mlx completion zsh")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that lets SHELL complete with Tab.

    It completes commands, options, models, sessions and presets. To install it:

    \b
    bash  echo 'eval "$(gptoss-mlx completion bash)"' >> ~/.bashrc
    zsh   echo 'autoload -U compinit; compinit; eval "$(gptoss-mlx completion zsh)"' >> ~/.zshrc
    fish  gptoss-mlx completion fish > ~/.config/fish/completions/gptoss-mlx.fish
    """
    root = context.find_root()
    program = str(root.info_name)
    made = get_completion_class(shell)
    assert made, f"click completes in each of {SHELLS}"
    variable = f"_{program}_COMPLETE".replace("-", "_").upper()
    click.echo(made(root.command, {}, program, variable).source())
    if shell == "bash":
        click.echo(WHOLE_NAMES)


def complete_models(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    others = (model.name for model in other_programs.models())
    return _items("dir", dict.fromkeys([*SHORT_NAMES, *converted(), *others]), typed)


def complete_sources(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    return _items("dir", SHORT_NAMES, typed)


def complete_recipes(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    return _items("file", parse_toml(_beside("gptoss_convert", "recipes.toml")), typed)


def complete_devices(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    return _items(None, json.loads(_beside("gptoss_mlx.memory", "devices.json")), typed)


def complete_sessions(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    return _items(None, [kept.name for kept in Store(sessions_folder())], typed)


def complete_presets(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    return _items(None, presets.names(), typed)


def complete_commands(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    return _items(None, commands_of(context.find_root()), typed)


def commands_of(context: click.Context) -> Mapping[str, click.Command]:
    """The commands of a group, by name."""
    assert isinstance(context.command, click.Group)
    return context.command.commands


def _beside(package: str, name: str) -> bytes:
    """A file in a package, which is not imported, because it would import NumPy."""
    spec = find_spec(package)
    origin = spec and spec.origin
    assert origin, f"{package} is installed with this module"
    return Path(origin).with_name(name).read_bytes()


def _items(paths: str | None, names: Iterable[str], typed: str) -> list[CompletionItem]:
    """The names that begin so, and paths of a kind. Paths first: after names, bash would forget the names."""
    items = [CompletionItem(name) for name in names if name.startswith(typed)]
    return items if paths is None else [CompletionItem(typed, type=paths), *items]
