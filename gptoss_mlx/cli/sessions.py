"""`sessions`: the conversations that the chat has saved, from the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from ..chat.store import Store, sessions_folder
from ..errors import GptOssError, printable
from ..memory.system import size_text
from ..terminal.session_list import time_text
from .completion import complete_sessions
from .help import group
from .options import UserPath
from .output import agreed, print_text


@group(invoke_without_command=True, epilog="Example: gptoss-mlx sessions show trip-to-oslo")
@click.pass_context
def sessions(context: click.Context) -> None:
    """List, read and manage saved chats. `gptoss-mlx chat --resume NAME` resumes one.

    NAME may be the beginning of a session's name.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_)


@sessions.command("list", epilog="Example: gptoss-mlx sessions list --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_(as_json: bool = False) -> None:
    """List the sessions, the latest first."""
    from ..chat.transcript import Transcript

    rows = []
    for entry in Store(sessions_folder()):
        try:
            transcript = Transcript.read(entry.transcript)
            turns, title = transcript.turns, transcript.title
        except GptOssError as error:
            turns, title = 0, str(error)
        row = {"name": entry.name, "turns": turns, "changed": entry.changed, "state_bytes": entry.state_bytes}
        rows.append(row | {"title": title})
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif rows:
        _print_table(rows)
    else:
        click.echo(printable(f"there are no sessions yet in {sessions_folder()}"), err=True)


def _print_table(rows: list[dict]) -> None:
    from rich.table import Column, Table
    from rich.text import Text

    from ..tables import print_table

    numbers = (Column(name, no_wrap=True) for name in ("turns", "changed", "KV cache"))
    table = Table(Column("session", overflow="fold"), *numbers, "begins with")
    for row in rows:
        changed = time_text(row["changed"])
        state = size_text(row["state_bytes"]) if row["state_bytes"] else "-"
        cells = (row["name"], str(row["turns"]), changed, state, row["title"])
        table.add_row(*(Text(printable(cell)) for cell in cells))
    print_table(table)


@sessions.command("search", epilog="Example: gptoss-mlx sessions search oslo ferry")
@click.argument("words", nargs=-1, required=True, metavar="WORDS...")
def search_(words: tuple[str, ...]) -> None:
    """List the sessions that hold all of WORDS, the latest first.

    Upper and lower case are alike. Names, questions, answers and tools' results are searched; reasoning is not.
    """
    from rich.table import Column, Table
    from rich.text import Text

    from ..chat.search import search
    from ..tables import print_table

    table = Table(Column("session", overflow="fold"), Column("changed", no_wrap=True), "says")
    for found in search(Store(sessions_folder()), " ".join(words)):
        cells = (found.entry.name, time_text(found.entry.changed), found.excerpt)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    if not table.row_count:
        raise GptOssError(f"no session holds {' and '.join(map(repr, words))}")
    print_table(table)


@sessions.command(epilog="Example: gptoss-mlx sessions show trip-to-oslo")
@click.argument("name", default="", shell_complete=complete_sessions)
def show(name: str) -> None:
    """Print a session as Markdown; without NAME, the latest."""
    _write(name, "markdown", None)


@sessions.command(epilog="Example: gptoss-mlx sessions export trip-to-oslo --format json -o oslo.json")
@click.argument("name", default="", shell_complete=complete_sessions)
@click.option(
    "--format",
    "form",
    type=click.Choice(["markdown", "json"]),
    default="markdown",
    show_default=True,
    help="Output format.",
)
@click.option(
    "-o", "--output", type=UserPath(), metavar="FILE", show_default="standard output", help="File to write to."
)
def export(name: str, form: str, output: Path | None) -> None:
    """Write a session as Markdown or JSON; without NAME, the latest."""
    _write(name, form, output)


def _write(name: str, form: str, output: Path | None) -> None:
    from ..chat.transcript import Transcript
    from ..files import replace_file

    transcript = Transcript.read(Store(sessions_folder()).find(name).transcript)
    text = transcript.as_markdown() if form == "markdown" else transcript.as_json()
    if output is not None:
        if os.path.lexists(output) and not agreed(f"{printable(str(output))} exists already: replace it?"):
            raise GptOssError(f"{output} exists already, and stays as it is: choose another name")
        replace_file(output, text)
    else:
        print_text(text)


@sessions.command(epilog="Example: gptoss-mlx sessions rename hello trip-to-oslo")
@click.argument("name", shell_complete=complete_sessions)
@click.argument("new_name")
def rename(name: str, new_name: str) -> None:
    """Rename a session."""
    store = Store(sessions_folder())
    with store.lock(store.find(name)) as lock:
        lock.rename(new_name)
    click.echo(printable(f"renamed to {new_name}"))


@sessions.command(epilog="Example: gptoss-mlx sessions delete hello trip-to-oslo --yes")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_sessions)
@click.option("-y", "--yes", is_flag=True, help="Don't ask for confirmation.")
@click.option("--kv-only", is_flag=True, help="Delete only the saved KV cache; resuming re-reads the chat.")
def delete(names: tuple[str, ...], yes: bool, kv_only: bool) -> None:
    """Delete sessions."""
    store = Store(sessions_folder())
    found = dict.fromkeys(store.find(name) for name in names)
    what = "the KV cache of " if kv_only else ""
    if not yes and not agreed(f"delete {what}{', '.join(printable(entry.name) for entry in found)}?"):
        raise GptOssError("nothing was deleted: answer y, or give --yes")
    for entry in found:
        with store.lock(entry) as lock:
            lock.remove_state() if kv_only else lock.delete()
        click.echo(printable(f"deleted {what}{entry.name}"))
