"""Options and arguments that several commands have, each declared once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import click

from ..memory.system import parse_size
from .completion import complete_models


class Size(click.ParamType):
    """An amount of memory as people write it; it stays text."""

    name = "size"

    def convert(self, value: str, parameter: click.Parameter | None, context: click.Context | None) -> str:
        parse_size(value)
        return value


class Text(click.ParamType):
    """Words for a model: an argument is bytes, which are UTF-8 whatever the locale says, or as much of them as are."""

    name = "text"

    def convert(self, value: str, parameter: click.Parameter | None, context: click.Context | None) -> str:
        return value.encode(errors="surrogateescape").decode(errors="replace")


class Numbers(click.ParamType):
    """Whole numbers of at least `minimum`, with commas between them."""

    name = "numbers"

    def __init__(self, minimum: int = 0):
        self.minimum = minimum

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers, such as 1024,4096", parameter, context)
        if min(numbers) < self.minimum:
            self.fail(f"{min(numbers)} is too small: give {self.minimum} at least", parameter, context)
        return numbers


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
