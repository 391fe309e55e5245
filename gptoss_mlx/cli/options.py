"""Options and arguments that several commands have, each declared once."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..memory.system import parse_size
from ..tools import EXAMPLE_FILE
from .completion import complete_models


class Size(click.ParamType):
    """An amount of memory as people write it; it stays text."""

    name = "size"

    def convert(self, value: str, parameter: click.Parameter | None, context: click.Context | None) -> str:
        parse_size(value)
        return value


class ToolsFile(click.Path):
    """A file of commands, or `example` for the one that comes with the program."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, exists=True, dir_okay=False)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Path:
        return EXAMPLE_FILE if value == "example" else Path(os.fsdecode(super().convert(value, parameter, context)))


class Text(click.ParamType):
    """Words for a model: an argument is bytes, which are UTF-8 whatever the locale says, or as much of them as are."""

    name = "text"

    def convert(self, value: str, parameter: click.Parameter | None, context: click.Context | None) -> str:
        return value.encode(errors="surrogateescape").decode(errors="replace")


model_argument = partial(click.argument, "model", shell_complete=complete_models)


threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    envvar="GPTOSS_MLX_THREADS",
    show_envvar=True,
    show_default="one for each fast core",
    help="Threads on a CPU.",
)


def memory_options(command: Callable) -> Callable:
    """The options that decide what a model may take; they arrive under their own names."""
    options = [
        click.option("--memory", type=Size(), show_default="what is available", help="What to keep to: 16GB, 8GiB."),
        click.option("--context", type=int, show_default="what fits", help="Tokens that a conversation may have."),
        click.option("--kv-bits", type=click.Choice(["8", "16"]), show_default="what fits", help="Of keys and values."),
    ]
    for option in reversed(options):
        command = option(command)
    return command
