"""`models`: the models on this disk, from the command line."""

from __future__ import annotations

import json
import os
import sys
import time

import click

from ..errors import GptOssError, printable
from ..memory.system import size_text
from ..model import installed
from ..model.installed import InstalledModel
from ..model.model_store import (
    ModelName,
    data_home,
    default_model,
    last_used,
    models_folder,
    resolve,
    set_default,
)
from .completion import complete_models
from .help import group
from .output import agreed, print_text

ASKED = "asked-to-move"  # a file in `data_home`, when the question was asked


@group(invoke_without_command=True, epilog="Example: gptoss-mlx models rm gpt-oss-20b:q8")
@click.pass_context
def models(context: click.Context) -> None:
    """List and manage the models on this disk.

    A model has the name of its source, and after a colon the tag of its recipe, where that was chosen: gpt-oss-20b,
    gpt-oss-20b:q8. Models of MLX-LM and LM Studio that load here are listed too.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_)


@models.command("list", epilog="Example: gptoss-mlx models list --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_(as_json: bool = False) -> None:
    """List the models: size, recipe, source, and when each was used last."""
    if not as_json:
        offer_to_move()
    found = installed.models()
    if as_json:
        click.echo(json.dumps([_as_dict(model) for model in found], indent=1))
    elif found:
        _print(found)
        _print_hints(found)
    else:
        click.echo(printable(f"there are no models yet in {models_folder()}: `gptoss-mlx chat` offers one"), err=True)


def _as_dict(model: InstalledModel) -> dict[str, object]:
    return {
        "name": model.name,
        "bytes": model.nbytes,
        "recipe": model.recipe,
        "source": model.source,
        "used": model.used_at,
        "finished": model.finished,
        "program": model.program,
        "folder": str(model.folder),
    }


def _print(found: list[InstalledModel]) -> None:
    from rich.table import Table
    from rich.text import Text

    from ..tables import print_table

    table = Table("model", "size", "recipe", "from", "last used")
    for model in found:
        table.add_row(*(Text(printable(cell)) for cell in _row(model)))
    print_table(table)


def _row(model: InstalledModel) -> tuple[str, str, str, str, str]:
    """Name, size, recipe, source and last use, in words; empty where something is not known."""
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(model.used_at)) if model.used_at else ""
    if not model.finished:
        used = "being converted" if model.is_being_made() else "interrupted"
    return model.name, size_text(model.nbytes), model.recipe or "", model.program or model.source or "", used


def _print_hints(found: list[InstalledModel]) -> None:
    """What can be done, on standard error; wrapped between words in a terminal."""
    from rich.console import Console
    from rich.text import Text

    lines = []
    if name := default_model():
        lines.append(f"default: {name}")
    if any(not model.finished and not model.is_being_made() for model in found):
        lines.append("interrupted: the same `convert` resumes it, `gptoss-mlx models rm` discards it")
    if old := [model for model in found if not model.in_place]:
        lines.append(f"{_names(old)} in {old[0].folder.parent}: `gptoss-mlx models move` moves to {models_folder()}")
    console = Console(stderr=True)
    for line in lines:
        console.print(Text(printable(line)), soft_wrap=not console.is_terminal)


def _names(chosen: list[InstalledModel]) -> str:
    return ", ".join(printable(model.name) for model in chosen)


@models.command("rm", epilog="Example: gptoss-mlx models rm gpt-oss-20b:q8 --yes")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_models)
@click.option("-y", "--yes", is_flag=True, help="Don't ask for confirmation.")
def remove(names: tuple[str, ...], yes: bool) -> None:
    """Remove models, or what an interrupted conversion has left.

    A model that another gptoss-mlx has loaded stays.
    """
    found = list(dict.fromkeys(installed.find(name) for name in names))
    sizes = ", ".join(f"{printable(each.name)} ({size_text(each.nbytes)})" for each in found)
    if not yes and not agreed(f"remove {sizes}?"):
        raise GptOssError("nothing was removed: answer y, or give --yes")
    for model in found:
        installed.remove(model)
        click.echo(printable(f"removed {model.name}"))
    if name := default_model():
        try:
            resolve(name)
        except GptOssError:
            set_default(None)


@models.command(epilog="Example: gptoss-mlx models path gpt-oss-20b")
@click.argument("name", required=False, shell_complete=complete_models)
def path(name: str | None) -> None:
    """Print the folder of the model NAME; without it, the folder of models."""
    print_text(f"{resolve(name) if name else models_folder()}\n")


@models.command(epilog="Example: gptoss-mlx models default gpt-oss-20b:q8")
@click.argument("name", required=False, shell_complete=complete_models)
@click.option("--unset", is_flag=True, help="Have no default: the model used last is taken.")
def default(name: str | None, unset: bool) -> None:
    """Make NAME the model of commands that get none; without it, print which that is.

    Without a default it is the model used last. A `model` in the config file counts first.
    """
    if unset:
        set_default(None)
    elif name:
        folder, parsed = resolve(name), ModelName.parse(name)
        is_path = os.path.lexists(os.path.expanduser(name)) or parsed is None
        set_default(str(folder.absolute()) if is_path else str(parsed))
    if chosen := default_model():
        click.echo(printable(chosen))
    elif last := last_used():
        click.echo(printable(f"none; the model used last is {last}"))
    else:
        click.echo("none")


@models.command(epilog="Example: gptoss-mlx models move")
def move() -> None:
    """Move models from ~/.cache/gptoss-mlx, where they were before, to where they are kept now.

    That is a rename on one disk, and nothing is copied. On a Mac, Time Machine leaves the new folder out.
    """
    if not (old := _in_the_old_place()):
        click.echo(printable(f"all models are in {models_folder()}"))
    _move(old)


def _in_the_old_place() -> list[InstalledModel]:
    return [model for model in installed.models() if not model.in_place]


def _move(old: list[InstalledModel]) -> None:
    """Raises GptOssError for those that cannot be moved, when the others are."""
    problems = []
    for model in old:
        try:
            installed.move(model)
        except GptOssError as error:
            problems.append(str(error))
        else:
            click.echo(printable(f"moved {model.name} to {models_folder()}"), err=True)
    if problems:
        raise GptOssError("; ".join(problems))


def offer_to_move() -> None:
    """Ask once, in a terminal, whether models in the old place are to be moved; say what cannot be, and go on."""
    asked = data_home() / ASKED
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or asked.exists() or not (old := _in_the_old_place()):
        return
    where = f"{old[0].folder.parent}, which programs that clean up may empty"
    question = f"{_names(old)}: in {where}. Move to {models_folder()} (a rename, nothing is copied)?"
    try:
        asked.parent.mkdir(parents=True, exist_ok=True)
        asked.touch()
        if click.confirm(printable(question), default=True, err=True):
            _move(old)
    except (GptOssError, OSError) as error:
        click.echo(f"note: {printable(str(error))}", err=True)
