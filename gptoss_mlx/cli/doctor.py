"""`doctor`: what this machine has, whether it computes correctly, and whether there is a newer version."""

from __future__ import annotations

import sys
from shutil import get_terminal_size

import click

from ..errors import GptOssError
from .help import command


@command(epilog="Example: gptoss-mlx doctor --self-test")
@click.option(
    "--self-test",
    "as_test",
    is_flag=True,
    help="Also check that this machine computes correctly (a few seconds), as a block to paste into an issue.",
)
@click.option(
    "--check-for-updates",
    "index",
    is_flag=False,
    flag_value="",
    metavar="[URL]",
    help="Also ask a package index, once, whether there is a newer version: that of pip or uv, or the one at URL.",
)
def doctor(as_test: bool, index: str | None) -> None:
    """Show this machine's device, kernels, memory and versions."""
    from . import machine_facts as found

    facts = [*found.facts(), found.models()]
    if index is not None:
        from .updates import update_text

        facts.insert(1, ("updates", update_text(index)))
    width = get_terminal_size().columns if sys.stdout.isatty() else None
    if not as_test:
        for fact in facts:
            click.echo(found.as_lines(*fact, width=width))
        return
    from .self_test import self_test

    failed = 0
    click.echo("```text")
    for fact in (*facts, *found.details()):
        click.echo(found.without_user(found.as_lines(*fact, width=width)))
    for check in self_test():
        failed += not check.passed
        result = f"{'pass' if check.passed else 'FAIL'}: {check.detail}"
        click.echo(found.as_lines(check.name, result, width=width))
    click.echo("```")
    if failed:
        raise GptOssError(f"{failed} of the checks failed: paste all of this into an issue")
