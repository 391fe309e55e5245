"""The config file: a default for any option of any command, in TOML.

    [all]                     # every command that has the option
    memory = "12GB"
    [chat]                    # one command; [harmony.render] would be one of a group
    model = "gpt-oss-120b"    # of the arguments, only this one
    temperature = 0.7

Knows click, and none of our commands: names, types and defaults come from the declarations of the options. A value
counts as if it had been typed: `temperature = 0.7` is `--temperature 0.7`, checked in the same way. What is said on the
command line counts first, then the environment, then the command's own table, then [all].
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..errors import GptOssError, printable
from ..untrusted import os_error_text, parse_toml, read_regular

ALL = "all"
MAX_BYTES = 2**20
WIDEST = 40  # column of a table
SOURCES = {ParameterSource.DEFAULT_MAP: "config file", ParameterSource.ENVIRONMENT: "environment"}


@dataclass(frozen=True)
class Preferences:
    path: Path
    defaults: dict[str, Any]
    """What click calls a default map: by command, and within it by parameter."""
    problems: tuple[str, ...]
    """What could not be used, a line each."""

    @property
    def exists(self) -> bool:
        return os.path.exists(self.path)


@dataclass(frozen=True)
class Setting:
    """One option of one command, and what it is when the command line does not say."""

    command: str
    name: str
    value: Any
    means: str | None
    """What is done where `value` is None, in words."""
    source: str
    """default, config file, or environment"""


def path() -> Path:
    """Where the config file is, or would be."""
    if named := os.environ.get("GPTOSS_MLX_CONFIG"):
        return Path(os.path.expanduser(named))
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(folder, "gptoss-mlx", "config.toml")


def read(commands: click.Group) -> Preferences:
    """What the config file says about these commands. Raises nothing: what is wrong with it is among its problems."""
    file = path()
    try:
        entries = _toml(file)
    except (OSError, ValueError) as error:
        return Preferences(file, {}, (printable(f"cannot read {file}: {os_error_text(error)}"),))
    reading = _Reading(entries.pop(ALL, {}), {key for command in _leaves(commands) for key in _parameters(command)})
    defaults = reading.of_group(commands, "", entries)
    # What is wrong in [all] is found again for each command that has the option.
    problems = tuple(printable(f"{file}: {problem}") for problem in dict.fromkeys(reading.problems))
    return Preferences(file, defaults, problems)


def settings(context: click.Context) -> Iterator[Setting]:
    """Of every command below that of `context`, as click would give them to it. What is missing there is left out."""
    for name, command in context.command.commands.items():
        below = command.make_context(name, [], parent=context, resilient_parsing=True)
        if isinstance(command, click.Group):
            yield from settings(below)
            continue
        for key, parameter in _parameters(command).items():
            value, means = below.params[parameter.name], getattr(parameter, "show_default", None)
            source = SOURCES.get(below.get_parameter_source(parameter.name), "default")
            if value is None and source == "environment":  # a run would refuse it
                value = parameter.resolve_envvar_value(below)
            yield Setting(
                command=below.command_path.partition(" ")[2],
                name=key,
                value=list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value,
                means=means if value is None and isinstance(means, str) else None,
                source=source,
            )


def as_text(preferences: Preferences, chosen: list[Setting]) -> str:
    """The path of the file, and a table for each command."""
    lines = [printable(str(preferences.path)) + ("" if preferences.exists else " (not there)")]
    values = [each.means or _shown(each.value) for each in chosen]
    widths = [min(max(map(len, column), default=0), WIDEST) for column in ([each.name for each in chosen], values)]
    command = None
    for each, value in zip(chosen, values, strict=True):
        if each.command != command:
            lines += ["", f"[{each.command.replace(' ', '.')}]"]
            command = each.command
        lines.append(f"{each.name:{widths[0]}}  {value:{widths[1]}}  {each.source}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    """As TOML has it, which for these values is as JSON has it."""
    return "none" if value is None else printable(json.dumps(value, ensure_ascii=False))


def as_json(preferences: Preferences, chosen: list[Setting]) -> str:
    commands: dict[str, dict[str, Any]] = {}
    for each in chosen:
        entry = {"value": each.value, "means": each.means, "source": each.source}
        commands.setdefault(each.command, {})[each.name] = entry
    file = {"file": str(preferences.path), "exists": preferences.exists, "problems": preferences.problems}
    return json.dumps(file | {"commands": commands}, indent=1)


def _toml(file: Path) -> dict[str, Any]:
    """Raises OSError and ValueError."""
    try:
        if not file.stat().st_size:  # an empty file, or /dev/null
            return {}
    except FileNotFoundError:
        return {}
    return parse_toml(read_regular(file, MAX_BYTES))


def _leaves(command: click.Command) -> Iterator[click.Command]:
    if isinstance(command, click.Group):
        for child in command.commands.values():
            yield from _leaves(child)
    else:
        yield command


def _parameters(command: click.Command) -> dict[str, click.Parameter]:
    """Those that the file may set, by their names there: the longest of an option's, and `model`."""
    return {
        max(parameter.opts, key=len).lstrip("-"): parameter
        for parameter in command.params
        if isinstance(parameter, click.Option) or parameter.name == "model"
    }


class _Reading:
    """One pass over what a file says, which gives the default map of each command and collects what is wrong."""

    def __init__(self, shared: Any, known: set[str]):
        self.problems: list[str] = []
        self._shared = self._table(ALL, shared, known, "no command has this option")

    def of_group(self, group: click.Group, name: str, entries: Any) -> dict[str, Any]:
        entries = self._table(name, entries, set(group.commands), "there is no such command")
        defaults = {}
        for child, command in group.commands.items():
            read = self.of_group if isinstance(command, click.Group) else self.of_command
            defaults[child] = read(command, f"{name}.{child}".lstrip("."), entries.get(child, {}))
        return defaults

    def of_command(self, command: click.Command, name: str, entries: Any) -> dict[str, Any]:
        parameters = _parameters(command)
        entries = self._table(name, entries, set(parameters), f"{command.name} has no such option")
        told = {key: (ALL, value) for key, value in self._shared.items() if key in parameters}
        told |= {key: (name, value) for key, value in entries.items()}
        context = click.Context(command, info_name=name)
        defaults = {}
        for key, (table, value) in told.items():
            parameter = parameters[key]
            with self._noting(f"[{table}] {key}"):
                typed = _typed(parameter, value)
                parameter.type_cast_value(context, typed)
                defaults[parameter.name] = typed
        return defaults

    def _table(self, name: str, entries: Any, known: set[str], otherwise: str) -> dict[str, Any]:
        """`entries`, if they are a table, without what is not known."""
        if not isinstance(entries, dict):
            self.problems.append(f"{name} is a table: write [{name}], and its options below")
            return {}
        prefix = f"[{name}] " if name else ""
        self.problems += [f"{prefix}{key}: {otherwise}" for key in entries if key not in known]
        return {key: value for key, value in entries.items() if key in known}

    @contextmanager
    def _noting(self, where: str) -> Iterator[None]:
        try:
            yield
        except click.BadParameter as error:
            self.problems.append(f"{where}: {error.message.rstrip('.')}")
        except (ValueError, GptOssError) as error:
            self.problems.append(f"{where}: {error}")


def _typed(parameter: click.Parameter, value: Any) -> Any:
    """A value of TOML as the command line would have it. Raises ValueError for what cannot be typed there."""
    if getattr(parameter, "is_flag", False):
        if isinstance(value, bool):
            return value
        raise ValueError("write true or false")
    if parameter.multiple:
        if isinstance(value, list):
            return [_text(each) for each in value]
        raise ValueError("write a list: [...]")
    text = _text(value)
    return os.path.expanduser(text) if isinstance(parameter.type, click.Path) else text  # as a shell does


def _text(value: Any) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError("write text or a number")
