"""How commands print what a model or a stranger has written: all of it, and nothing that would steer a terminal. And
how they ask before they remove something."""

from __future__ import annotations

import sys

import click

from ..terminal.safe_text import without_controls


def print_text(text: str) -> None:
    """Print on standard output, and add no line end."""
    # With `color`, because without it click takes escapes out of the text.
    click.echo(without_controls(text) if sys.stdout.isatty() else text, nl=False, color=True)


def agreed(question: str) -> bool:
    """The answer of a person or a pipe; at the end of input, nobody has agreed."""
    try:
        return click.confirm(question, err=True)
    except click.Abort as abort:
        if not isinstance(abort.__context__, EOFError):
            raise
        click.echo(err=True)
        return False
