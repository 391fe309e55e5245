"""The config file: a default for any option of any command, in TOML.

    [all]                     # every command that has the option
    memory = "12GB"
    [chat]                    # one command; [harmony.render] would be one of a group
    model = "gpt-oss-120b"    # of the arguments, only this one
    temperature = 0.7

Knows click, and none of our commands: names, types and defaults come from the declarations of the options. A value
counts as if it had been typed: `temperature = 0.7` is `--temperature 0.7`, checked in the same way. The command line
counts first, then the environment, then the command's own table, then [all].
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..errors import GptOssError, printable
from ..untrusted import os_error_text, parse_toml, read_regular

ALL = "all"
MAX_BYTES = 2**20


@dataclass(frozen=True)
class ConfigFile:
    """The config file, read."""

    path: Path
    defaults: dict[str, Any]
    """Click's default map: by command, and within it by parameter."""
    problems: tuple[str, ...]
    """Problems found, a line each."""

    @property
    def exists(self) -> bool:
        return os.path.exists(self.path)


def path() -> Path:
    """Where the config file is, or would be."""
    if named := os.environ.get("GPTOSS_MLX_CONFIG"):
        return Path(os.path.expanduser(named))
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(folder, "gptoss-mlx", "config.toml")


def read(commands: click.Group) -> ConfigFile:
    """The config file's values for these commands. Raises nothing: what is wrong with it is among its problems."""
    file = path()
    try:
        entries = read_toml(file)
    except (OSError, ValueError) as error:
        return ConfigFile(file, {}, (printable(f"cannot read {file}: {os_error_text(error)}"),))
    reading = _Reading(entries.pop(ALL, {}), {key for command in _leaves(commands) for key in parameters(command)})
    defaults = reading.of_group(commands, "", entries)
    # What is wrong in [all] is found again for each command that has the option.
    problems = tuple(printable(f"{file}: {problem}") for problem in dict.fromkeys(reading.problems))
    return ConfigFile(file, defaults, problems)


def read_toml(file: Path) -> dict[str, Any]:
    """The table in a file, empty where there is none. Raises OSError and ValueError."""
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


def parameters(command: click.Command) -> dict[str, click.Parameter]:
    """The parameters that the file may set, by their names there: the longest of an option's, and `model`."""
    return {
        max(parameter.opts, key=len).lstrip("-"): parameter
        for parameter in command.params
        if isinstance(parameter, click.Option) or parameter.name == "model"
    }


class _Reading:
    """One pass over a file, which makes the default map of each command and collects the problems."""

    def __init__(self, shared: Any, known: set[str]):
        self.problems: list[str] = []
        self._shared = self._table(ALL, shared, known, "no command has this option")

    def of_group(self, group: click.Group, name: str, entries: Any) -> dict[str, Any]:
        entries = self._table(name, entries, set(group.commands), "there is no such command")
        defaults = {}
        for child, command in group.commands.items():
            table, values = f"{name}.{child}".lstrip("."), entries.get(child, {})
            if isinstance(command, click.Group):
                defaults[child] = self.of_group(command, table, values)
            else:
                defaults[child] = self.of_command(command, table, values)
        return defaults

    def of_command(self, command: click.Command, name: str, entries: Any) -> dict[str, Any]:
        known = parameters(command)
        entries = self._table(name, entries, set(known), f"{command.name} has no such option")
        given = {key: (ALL, value) for key, value in self._shared.items() if key in known}
        given |= {key: (name, value) for key, value in entries.items()}
        context = click.Context(command, info_name=name)
        defaults = {}
        for key, (table, value) in given.items():
            with self._noting(f"[{table}] {key}"):
                text = typed(known[key], value)
                known[key].type_cast_value(context, text)
                defaults[str(known[key].name)] = text
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


def typed(parameter: click.Parameter, value: Any) -> Any:
    """A value of TOML as the command line would have it. Raises ValueError for what cannot be typed there."""
    if getattr(parameter, "is_flag", False):
        if isinstance(value, bool):
            return value
        raise ValueError("write true or false")
    if parameter.multiple:
        if isinstance(value, list):
            return [_text(each) for each in value]
        raise ValueError("write a list: [...]")
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError("write text or a number")
