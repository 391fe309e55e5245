#!/usr/bin/env python3
"""Writes docs/gptoss-mlx.1, the page that `man gptoss-mlx` shows, from the command line's own help: `make docs`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click

from gptoss_mlx.cli import PROGRAM, cli
from gptoss_mlx.cli.help import Row, command_sections, option_sections
from gptoss_mlx.terminal.slash_commands import COMMANDS, KEYS

PAGE = Path(__file__).with_name(f"{PROGRAM}.1")
# What would be a command, a typographic quote, or a hyphen that cannot be copied.
ROFF = {"\\": r"\e", "-": r"\-", '"': r"\(dq", "'": r"\(aq", "`": r"\(ga", "~": r"\(ti", "^": r"\(ha"}
ENDING = r"""
.SH FILES
.TP
.I \(ti/.config/gptoss\-mlx/config.toml
Defaults for options, which
.B gptoss\-mlx config
lists with their sources.
.TP
.I \(ti/.cache/gptoss\-mlx
Converted models and saved chats, unless
.B GPTOSS_MLX_HOME
names another folder.
.SH EXIT STATUS
0; 1 for an error, which is one line on standard error; 2 for wrong usage; 130 for Ctrl\-C."""


def page() -> str:
    """The whole page, in the macros of man(7)."""
    root, *rest = _commands(_context(cli, PROGRAM))
    summary, *more = _paragraphs(cli.help or "")
    lines = [
        f'.TH {PROGRAM.upper()} 1 "" "{PROGRAM} {version(PROGRAM)}"',
        ".SH NAME",
        f"{_text(PROGRAM)} \\- {summary[-1].rstrip('.')}",
        ".SH SYNOPSIS",
        *_usage(root),
        ".SH DESCRIPTION",
        *summary[1:],
        *(line for paragraph in more for line in paragraph),
    ]
    lines += [".SH COMMANDS", *_sections(command_sections(root)), ".SH OPTIONS", *_sections(option_sections(root))]
    for context in rest:
        lines += [f'.SH "{_text(context.command_path)}"', *_usage(context)]
        for text in (context.command.help, context.command.epilog):
            lines += [line for paragraph in _paragraphs(text or "") for line in paragraph]
        if isinstance(context.command, click.Group):
            lines += _sections(command_sections(context))
        lines += _sections(option_sections(context))
    lines.append(".SH IN THE CHAT")
    for command in COMMANDS.values():
        lines += _row((command.usage, command.help))
    lines += [".PP", ".nf", *map(_text, KEYS.splitlines()), ".fi"]
    return "\n".join(lines) + ENDING + "\n"


def _commands(context: click.Context) -> Iterator[click.Context]:
    """The context of each command, in the order of the help; those of a group follow it."""
    yield context
    if isinstance(context.command, click.Group):
        for _, rows in command_sections(context):
            for name, _ in rows:
                yield from _commands(_context(context.command.commands[name], name, context))


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    return command.make_context(name, [], parent=parent, resilient_parsing=True)


def _usage(context: click.Context) -> list[str]:
    pieces = " ".join(context.command.collect_usage_pieces(context))
    return [f".B {_text(context.command_path)}", _text(pieces)]


def _sections(sections: Iterator[tuple[str, list[Row]]]) -> Iterator[str]:
    for heading, rows in sections:
        yield f'.SS "{_text(heading)}"'
        for row in rows:
            yield from _row(row)


def _row(row: Row) -> list[str]:
    name, text = row
    return [".TP", f".B {_text(name)}", _text(text)]


def _paragraphs(text: str) -> Iterator[list[str]]:
    """Each as lines; click's mark for lines that stay as they are is a backspace."""
    for paragraph in re.split(r"\n{2,}", inspect.cleandoc(text)):
        if paragraph.startswith("\b\n"):
            yield [".PP", ".nf", *map(_text, paragraph.splitlines()[1:]), ".fi"]
        elif paragraph:
            yield [".PP", _text(" ".join(paragraph.split()))]


def _text(text: str) -> str:
    """A line as roff shows it, with the characters that were meant, and no macro where a dot comes first."""
    text = "".join(ROFF.get(c) or (c if c.isascii() else f"\\[u{ord(c):04X}]") for c in text)
    return f"\\&{text}" if text.startswith(".") else text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
