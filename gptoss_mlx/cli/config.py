"""`config`: the settings of every command, and where each comes from."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import click
from click.core import ParameterSource

from ..errors import printable
from .completion import commands_of, complete_commands
from .config_file import ConfigFile, parameters
from .help import command

NARROW = 60  # columns of a window
MAX_WIDTH = 40  # of a column, in characters
SOURCES = {ParameterSource.DEFAULT_MAP: "config file", ParameterSource.ENVIRONMENT: "environment"}


@dataclass(frozen=True)
class Setting:
    """One option of one command, and its value when the command line gives none."""

    command: str
    name: str
    value: Any
    means: str | None
    """Words for a `value` of None."""
    source: str
    """default, config file, or environment"""


@command(epilog="Example: gptoss-mlx config chat")
@click.argument("command", required=False, shell_complete=complete_commands)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_context
def config(context: click.Context, command: str | None, as_json: bool) -> None:
    """Print the settings of all commands, or of COMMAND.

    Each with its source: the config file, the environment, or the default. The config file is
    ~/.config/gptoss-mlx/config.toml, or the file named by GPTOSS_MLX_CONFIG.
    """
    root = context.find_root()
    if command not in (None, *commands_of(root)):
        raise click.UsageError(f"there is no command {command!r}")
    file: ConfigFile = context.obj
    for problem in file.problems:
        click.echo(f"error: {problem}", err=True)
    chosen = [each for each in _settings(root) if command in (None, each.command.split()[0])]
    if as_json:
        click.echo(_as_json(file, chosen))
    else:
        is_narrow = sys.stdout.isatty() and get_terminal_size().columns < NARROW
        click.echo(_as_text(file, chosen, is_narrow=is_narrow))


def _settings(context: click.Context) -> Iterator[Setting]:
    """The settings of every command of a group, as click would give them to it; a value that is missing is left out."""
    for name, child in commands_of(context).items():
        below = child.make_context(name, [], parent=context, resilient_parsing=True)
        if isinstance(child, click.Group):
            yield from _settings(below)
            continue
        for key, parameter in parameters(child).items():
            assert parameter.name is not None
            value, means = below.params[parameter.name], getattr(parameter, "show_default", None)
            source = SOURCES.get(below.get_parameter_source(parameter.name) or ParameterSource.DEFAULT, "default")
            if value is None and source == "environment":  # a run would refuse it
                value = parameter.resolve_envvar_value(below)
            yield Setting(
                command=below.command_path.partition(" ")[2],
                name=key,
                value=list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value,
                means=means if value is None and isinstance(means, str) else None,
                source=source,
            )


def _as_text(file: ConfigFile, chosen: list[Setting], *, is_narrow: bool) -> str:
    """The path of the file, and a table for each command; in a narrow window, a value is below its name."""
    lines = [printable(str(file.path)) + ("" if file.exists else " (does not exist)")]
    values = [each.means or _shown(each.value) for each in chosen]
    widths = [min(max(map(len, column), default=0), MAX_WIDTH) for column in ([each.name for each in chosen], values)]
    command = None
    for each, value in zip(chosen, values, strict=True):
        if each.command != command:
            lines += ["", f"[{each.command.replace(' ', '.')}]"]
            command = each.command
        if is_narrow:
            lines.append(f"{each.name}\n  {value}, {each.source}")
        else:
            lines.append(f"{each.name:{widths[0]}}  {value:{widths[1]}}  {each.source}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    """As TOML has it, which for these values is as JSON has it."""
    return "none" if value is None else printable(json.dumps(value, ensure_ascii=False))


def _as_json(file: ConfigFile, chosen: list[Setting]) -> str:
    commands: dict[str, dict[str, Any]] = {}
    for each in chosen:
        entry = {"value": each.value, "means": each.means, "source": each.source}
        commands.setdefault(each.command, {})[each.name] = entry
    about = {"file": str(file.path), "exists": file.exists, "problems": file.problems}
    return json.dumps(about | {"commands": commands}, indent=1)
