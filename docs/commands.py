#!/usr/bin/env python3
"""Writes docs/commands.md from the command line's own help, and from the chat's table of commands: `make docs`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from gptoss_mlx.cli import PROGRAM, cli
from gptoss_mlx.terminal.slash_commands import COMMANDS, KEYS

PAGE = Path(__file__).with_name("commands.md")
WIDTH = 100
INTRODUCTION = f"""\
# Commands

Written by `make docs` from the program's own help. The pages of each subject say more: [chat](chat.md),
[tools](tools.md), [converting](converting.md), [memory](memory.md), [evaluation](evaluation.md),
[benchmarks](benchmarks.md), [settings](settings.md).

| command | what it does |
| --- | --- |
| [`{PROGRAM}`](#{PROGRAM}) | Continue with the model used last; the first time, say what this machine can run |"""


def commands(context: click.Context) -> Iterator[click.Context]:
    """The context of each command, in the order of the help; those of a group follow it."""
    yield context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            assert command is not None
            yield from commands(_context(command, name, context))


def page() -> str:
    """The whole page, in Markdown."""
    root, *rest = commands(_context(cli, PROGRAM))
    lines = [INTRODUCTION]
    for context in rest:
        name = context.command_path.removeprefix(PROGRAM).strip()
        usage = " ".join([name, *context.command.collect_usage_pieces(context)]).replace(" [OPTIONS]", "")
        link = f"[`{_cell(usage)}`](#{context.command_path.replace(' ', '-')})"
        lines.append(f"| {link} | {_cell(context.command.get_short_help_str(200).rstrip('.'))} |")
    for context in (root, *rest):
        lines += ["", f"## {context.command_path}", "", "```text", context.get_help().rstrip(), "```"]
    lines += ["", "## In the chat", "", "| command | what it does |", "| --- | --- |"]
    lines += [f"| `{_cell(command.usage)}` | {_cell(command.help)} |" for command in COMMANDS.values()]
    return "\n".join([*lines, "", "```text", KEYS, "```", ""])


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    return command.make_context(name, [], parent=parent, resilient_parsing=True, terminal_width=WIDTH)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
