"""`harmony`: files in the models' conversation format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .help import group
from .options import UserPath
from .output import print_text


@group(epilog="Example: gptoss-mlx harmony render conversation.json")
def harmony() -> None:
    """Write and read Harmony, the format of prompts and output."""


@harmony.command(epilog="Example: gptoss-mlx harmony render conversation.json")
@click.argument("files", nargs=-1, required=True, type=UserPath(), metavar="FILE...")
def render(files: tuple[Path, ...]) -> None:
    """Print the prompt for a conversation in JSON. Several files give a JSON line each."""
    from ..harmony.files import render_file

    if len(files) == 1:
        print_text(render_file(files[0]))
    else:
        _print_lines(files, render_file)


@harmony.command(epilog="Example: gptoss-mlx harmony parse output.txt")
@click.argument("files", nargs=-1, required=True, type=UserPath(), metavar="FILE...")
def parse(files: tuple[Path, ...]) -> None:
    """Print the messages in raw model output, as JSON. Several files give a JSON line each."""
    from ..harmony.files import parse_file

    if len(files) == 1:
        print_text(f"{json.dumps(parse_file(files[0]), indent=1, ensure_ascii=False)}\n")
    else:
        _print_lines(files, parse_file)


def _print_lines(files: tuple[Path, ...], read: Callable[[Path], Any]) -> None:
    for file in files:
        print_text(f"{json.dumps({'file': str(file), 'output': read(file)}, ensure_ascii=False)}\n")
