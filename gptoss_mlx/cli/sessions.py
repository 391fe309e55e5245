"""`gptoss-mlx sessions`: the conversations that the chat has kept, from the command line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import click

from ..chat.store import Store, sessions_folder
from ..errors import GptOssError, printable
from ..memory.system import size_text
from .completion import complete_sessions
from .output import print_text


@click.group(invoke_without_command=True, epilog="Example: gptoss-mlx sessions show trip-to-oslo")
@click.pass_context
def sessions(context: click.Context) -> None:
    """List, read and tidy the conversations that the chat has kept. `chat --resume NAME` goes on with one.

    NAME may be the beginning of a name.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_)


@sessions.command("list", epilog="Example: gptoss-mlx sessions list --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_(as_json: bool = False) -> None:
    """List the sessions, the latest first."""
    from ..chat.transcript import Transcript

    rows = []
    for kept in Store(sessions_folder()):
        try:
            transcript = Transcript.read(kept.transcript)
            turns, title = transcript.turns, transcript.title
        except GptOssError as error:
            turns, title = 0, str(error)
        row = {"name": kept.name, "turns": turns, "changed": kept.changed, "state_bytes": kept.state_bytes}
        rows.append(row | {"title": title})
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif rows:
        _print_table(rows)
    else:
        click.echo(printable(f"there are no sessions yet in {sessions_folder()}"), err=True)


def _print_table(rows: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    numbers = (Column(name, no_wrap=True) for name in ("turns", "changed", "KV state"))
    table = Table(Column("session", overflow="fold"), *numbers, "begins with")
    for row in rows:
        changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["changed"]))
        state = size_text(row["state_bytes"]) if row["state_bytes"] else "-"
        cells = (row["name"], str(row["turns"]), changed, state, row["title"])
        table.add_row(*(Text(printable(cell)) for cell in cells))
    Console().print(table)


@sessions.command(epilog="Example: gptoss-mlx sessions show trip-to-oslo")
@click.argument("name", default="", shell_complete=complete_sessions)
def show(name: str) -> None:
    """Print a session, as Markdown. Without a NAME, the latest."""
    _write(name, "markdown", None)


@sessions.command(epilog="Example: gptoss-mlx sessions export trip-to-oslo --format json -o oslo.json")
@click.argument("name", default="", shell_complete=complete_sessions)
@click.option("--format", "form", type=click.Choice(["markdown", "json"]), default="markdown", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="[default: standard output]")
def export(name: str, form: str, output: Path | None) -> None:
    """Write a session as Markdown or JSON. Without a NAME, the latest."""
    _write(name, form, output)


def _write(name: str, form: str, output: Path | None) -> None:
    from ..chat.transcript import Transcript
    from ..files import replace_file

    transcript = Transcript.read(Store(sessions_folder()).find(name).transcript)
    text = transcript.as_markdown() if form == "markdown" else transcript.as_json()
    if output is not None:
        if os.path.lexists(output) and not _agreed(f"{printable(str(output))} exists already: replace it?"):
            raise GptOssError(f"{output} exists already, and stays as it is: choose another name")
        replace_file(output, text)
    else:
        print_text(text)


@sessions.command(epilog="Example: gptoss-mlx sessions rename hello trip-to-oslo")
@click.argument("name", shell_complete=complete_sessions)
@click.argument("new_name")
def rename(name: str, new_name: str) -> None:
    """Give a session another name."""
    store = Store(sessions_folder())
    with store.lock(store.find(name)) as lock:
        lock.rename(new_name)
    click.echo(printable(f"renamed to {new_name}"))


@sessions.command(epilog="Example: gptoss-mlx sessions delete hello trip-to-oslo --yes")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_sessions)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--kv-only", is_flag=True, help="Only the KV state: the conversation stays, and will be read again.")
def delete(names: tuple[str, ...], yes: bool, kv_only: bool) -> None:
    """Delete sessions."""
    store = Store(sessions_folder())
    found = dict.fromkeys(store.find(name) for name in names)
    what = "the KV state of " if kv_only else ""
    if not yes and not _agreed(f"delete {what}{', '.join(printable(kept.name) for kept in found)}?"):
        raise GptOssError("nothing was deleted: answer y, or give --yes")
    for kept in found:
        with store.lock(kept) as lock:
            lock.remove_state() if kv_only else lock.delete()
        click.echo(printable(f"deleted {what}{kept.name}"))


def _agreed(question: str) -> bool:
    """What a person answers, or a pipe; where the input is at its end, nobody has agreed."""
    try:
        return click.confirm(question, err=True)
    except click.Abort as abort:
        if not isinstance(abort.__context__, EOFError):
            raise
        click.echo(err=True)
        return False


COMMANDS = (sessions,)
