"""Help in sections: options and commands under headings, nothing cut off, and readable in a narrow terminal too.

A command with many options has those of OPTIONS under the headings there, and a group its commands under those with
which they were added; what is in no list comes last.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import click

Row = tuple[str, str]
Sections = Iterator[tuple[str, list[Row]]]

MAX_PLAIN = 8  # rows that need no headings
COLUMN = 30  # of names, at most
NARROW = 60  # columns of a terminal; with fewer, a text stands below its name
MIN_WIDTH = 30
NO_BREAK = "\N{NON-BREAKING HYPHEN}"  # in place of a hyphen while lines are broken: options stay whole

# By the name that an option is declared with first.
OPTIONS = {
    "Prompt": ("-p",),
    "Recipe": ("--recipe", "--calibrate"),
    "Source": ("--revision", "--adapter", "--keep-source"),
    "Afterwards": ("--verify", "--upload", "--dry-run"),
    "What is measured": (
        *("--text", "--tokens", "--window", "--reference", "--prompts", "--demo", "--needle"),
        *("--random-weights", "--prompt", "--generate", "--depth", "--repeat", "--start", "--profile"),
    ),
    "Comparison": ("--against", "--llama-bench", "--gguf", "--baseline", "--fail-below"),
    "Network": ("--host", "--port", "--parallel", "--allow-origin", "--key-file", "--tls-cert", "--tls-key"),
    "Answers": ("--preset", "--param", "--system", "--reasoning", "--max-reasoning", "--max-tokens", "--json-schema"),
    "Sampling": ("--temperature", "--top-p", "--top-k", "--min-p", "--repetition-penalty", "--seed"),
    "Tools": ("--tools", "--python", "--unsafe-python", "--browse", "-y"),
    "Model and memory": ("--memory", "--context", "--kv-bits", "--threads", "--when-full"),
    "Saving": ("--resume", "--no-kv", "--kv-limit"),
    "Experts": ("--record-routing", "--replay-routing"),
    "Output": ("--format", "--plot", "--submit", "--show-wrong", "--show-reasoning", "--plain"),
}


class Formatter(click.HelpFormatter):
    """Click's, which also keeps to fewer than 50 columns, and breaks no line within a word."""

    def __init__(self, indent_increment: int = 2, width: int | None = None, max_width: int | None = None):
        columns = min(shutil.get_terminal_size().columns, max_width or 80)
        super().__init__(indent_increment, width or max(columns - 2, MIN_WIDTH), max_width)

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", NO_BREAK))

    def write_dl(self, rows: Iterable[Row], col_max: int = COLUMN, col_spacing: int = 2) -> None:
        """Names of at most `col_max` characters, with their texts beside them, or below; the longest name should be
        the same in all sections."""
        margin = " " * self.current_indent
        indent = margin + " " * (4 if self.width < NARROW else col_max + col_spacing)
        for name, text in rows:
            beside = len(margin + name) + col_spacing <= len(indent)
            start = f"{margin}{name}".ljust(len(indent)) if beside else indent
            lines = textwrap.fill(
                text,
                self.width,
                initial_indent=start,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
            self.write(f"{lines}\n" if beside else f"{margin}{name}\n{lines}\n")

    def getvalue(self) -> str:
        return super().getvalue().replace(NO_BREAK, "-")


class Context(click.Context):
    formatter_class = Formatter


class Command(click.Command):
    context_class = Context

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write(option_sections(ctx), formatter)


class Group(click.Group):
    context_class = Context
    command_class = Command

    def __init__(self, *args: Any, **more: Any):
        super().__init__(*args, **more)
        self.headings: dict[str, list[str]] = {}
        """The names of commands, by heading."""

    def add_section(self, heading: str, *commands: click.Command) -> None:
        """Add commands, with a heading for them."""
        for command in commands:
            self.add_command(command)
        self.headings[heading] = [str(command.name) for command in commands]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write([*command_sections(ctx), *option_sections(ctx)], formatter)


command = partial(click.command, cls=Command)
group = partial(click.group, cls=Group)


def option_sections(context: click.Context) -> Sections:
    """The options of a command, as headings and rows of names and descriptions."""
    records = {
        parameter.opts[0]: record
        for parameter in context.command.get_params(context)
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context))
    }
    return _sections(records, OPTIONS, "Options")


def command_sections(context: click.Context) -> Sections:
    """The commands of a group, likewise."""
    assert isinstance(context.command, Group)
    rows = {
        name: (name, child.get_short_help_str(limit=1000))
        for name, child in sorted(context.command.commands.items())
        if not child.hidden
    }
    return _sections(rows, context.command.headings, "Commands")


def _sections(rows: dict[str, Row], headings: Mapping[str, Iterable[str]], rest: str) -> Sections:
    if len(rows) > MAX_PLAIN:
        for heading, names in headings.items():
            if found := [rows.pop(name) for name in names if name in rows]:
                yield heading, found
    if rows:
        yield rest, list(rows.values())


def _write(sections: Iterable[tuple[str, list[Row]]], formatter: click.HelpFormatter) -> None:
    sections = list(sections)
    lengths = [len(name) for _, rows in sections for name, _ in rows]
    column = max((length for length in lengths if length <= COLUMN), default=COLUMN)
    for heading, rows in sections:
        with formatter.section(heading):
            formatter.write_dl(rows, col_max=column)
