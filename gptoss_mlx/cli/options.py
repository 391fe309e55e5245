"""Options that several commands have, each declared once; what they say reaches a command as one frozen dataclass.

What becomes of the values is left to the commands. Sizes and choices stay text until then, for `config` to show.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial, wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from ..memory.system import parse_size
from ..tools import EXAMPLE_FILE
from .completion import complete_models, complete_presets

if TYPE_CHECKING:
    from ..engine.sampling import Sampling

Decorator = Callable[[Callable], Callable]


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
            self.fail(f"{min(numbers)} is too small: give at least {self.minimum}", parameter, context)
        return numbers


class UserPath(click.Path):
    """A path in which `~` is a home also where no shell has expanded it, as in `--adapter=~/lora`."""

    def __init__(self, **checks: bool):
        super().__init__(path_type=Path, **checks)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        return super().convert(os.path.expanduser(value), parameter, context)


class ToolsFile(UserPath):
    """A file of commands, or `example` for the one that comes with the program."""

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        return EXAMPLE_FILE if value == "example" else super().convert(value, parameter, context)


@dataclass(frozen=True)
class ModelOptions:
    """How a model is loaded; None is left to the memory plan."""

    memory: int | None = None
    """Bytes."""
    context: int | None = None
    """Tokens."""
    kv_bits: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class ChatOptions:
    """How a model answers: the fields of `Sampling`, then those of a session."""

    temperature: float | None = None
    """None is left to the model."""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    reasoning: Literal["none", "low", "medium", "high"] = "medium"
    max_reasoning: int | None = None
    system: str | None = None

    def sampling(self, *, greedy: bool) -> Sampling:
        """`greedy`: what is meant where no temperature is given."""
        from ..engine.sampling import Sampling

        given = {field.name: getattr(self, field.name) for field in fields(Sampling)}
        if self.temperature is None:
            given["temperature"] = 0.0 if greedy else Sampling.temperature
        return Sampling(**given)


@dataclass(frozen=True)
class PresetOptions:
    """A preset, and values of the variables in its template."""

    preset: str | None = None
    param: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ToolOptions:
    """What a model may do beside talking, and the form of its answer."""

    tools: Path | None = None
    python: bool = False
    unsafe_python: bool = False
    browse: Path | None = None
    yes: bool = False
    json_schema: Path | None = None


def _model_options(
    memory: str | None, context: int | None, kv_bits: str | None, threads: int | None = None
) -> ModelOptions:
    return ModelOptions(
        memory=None if memory is None else parse_size(memory),
        context=context,
        kv_bits=None if kv_bits is None else int(kv_bits),
        threads=threads,
    )


def _passed_as(name: str, make: Callable[..., Any], *options: Decorator) -> Decorator:
    """A decorator: the command has these options, and gets what `make` makes of their values as `name`."""

    def decorate(command: Callable) -> Callable:
        @wraps(command)
        def run(**values: Any) -> Any:
            own = {key: values.pop(key) for key in signature(make).parameters if key in values}
            return command(**{name: make(**own)}, **values)

        for option in reversed(options):
            run = option(run)
        return run

    return decorate


model_argument = partial(click.argument, "model", shell_complete=complete_models)

_PLAN = (
    click.option("--memory", type=Size(), show_default="all available", help="Memory limit, e.g. 16GB."),
    click.option("--context", type=int, metavar="N", show_default="as much as fits", help="Context length in tokens."),
    click.option(
        "--kv-bits", type=click.Choice(["8", "16"]), show_default="16 if it fits", help="Bits per KV-cache value."
    ),
)
_THREADS = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    metavar="N",
    envvar="GPTOSS_MLX_THREADS",
    show_envvar=True,
    show_default="one per fast core",
    help="CPU threads.",
)
pass_plan_options = _passed_as("model_options", _model_options, *_PLAN)
pass_model_options = _passed_as("model_options", _model_options, *_PLAN, _THREADS)


@wraps(ChatOptions)
def _chat_options(**values: Any) -> ChatOptions:
    """A temperature that is only the default may be replaced by the model's own."""
    if click.get_current_context().get_parameter_source("temperature") == ParameterSource.DEFAULT:
        values["temperature"] = None
    return ChatOptions(**values)


pass_chat_options = _passed_as(
    "chat_options",
    _chat_options,
    click.option(
        "--temperature",
        type=float,
        metavar="X",
        default=1.0,
        show_default=True,
        help="Randomness of the answer; 0, the demo's default, always takes the likeliest token.",
    ),
    click.option(
        "--top-p",
        type=float,
        metavar="X",
        default=ChatOptions.top_p,
        show_default=True,
        help="Keep the likeliest tokens up to this total probability.",
    ),
    click.option(
        "--top-k",
        type=int,
        metavar="N",
        default=ChatOptions.top_k,
        show_default=True,
        help="Keep this many of the likeliest tokens; 0 keeps all.",
    ),
    click.option(
        "--min-p",
        type=float,
        metavar="X",
        default=ChatOptions.min_p,
        show_default=True,
        help="Drop tokens below this fraction of the likeliest one's probability.",
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        metavar="X",
        default=ChatOptions.repetition_penalty,
        show_default=True,
        help="Above 1, tokens that have occurred become less likely.",
    ),
    click.option("--seed", type=int, metavar="N", show_default="random", help="The same seed gives the same answer."),
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        show_default="until the context is full",
        help="Stop an answer after this many tokens.",
    ),
    click.option(
        "--reasoning",
        type=click.Choice(["none", "low", "medium", "high"]),
        default=ChatOptions.reasoning,
        show_default=True,
        help="Reasoning effort.",
    ),
    click.option(
        "--max-reasoning",
        type=click.IntRange(min=0),
        metavar="N",
        show_default="no limit",
        help="Stop reasoning, and answer, after this many tokens.",
    ),
    click.option("--system", type=Text(), metavar="TEXT", help="System instructions for the whole conversation."),
)

pass_preset_options = _passed_as(
    "preset_options",
    PresetOptions,
    click.option(
        "--preset",
        metavar="NAME",
        shell_complete=complete_presets,
        help="Take the settings of this preset, but for those given here.",
    ),
    click.option(
        "--param",
        type=(str, Text()),
        multiple=True,
        metavar="NAME VALUE",
        help="Set a variable of the preset's template; may be repeated.",
    ),
)

_FILE = UserPath(exists=True, dir_okay=False)
_TOOLS = (
    click.option(
        "--tools",
        type=ToolsFile(),
        metavar="FILE",
        help="Let the model call the commands in FILE, a TOML file; `example` names one to try.",
    ),
    click.option("--python", is_flag=True, help="Let the model run Python in a sandbox without network."),
    click.option("--unsafe-python", is_flag=True, help="Let the model run Python without a sandbox, with your rights."),
    click.option(
        "--browse",
        type=UserPath(exists=True, file_okay=False),
        metavar="DIR",
        help="Let the model search and read the files in DIR.",
    ),
)
pass_page_tool_options = _passed_as("tool_options", ToolOptions, *_TOOLS)  # the page asks, and has schemas of its own
pass_tool_options = _passed_as(
    "tool_options",
    ToolOptions,
    *_TOOLS,
    click.option("-y", "--yes", is_flag=True, help="Run tool calls without asking."),
    click.option("--json-schema", type=_FILE, metavar="FILE", help="Answer in JSON that follows this schema."),
)
