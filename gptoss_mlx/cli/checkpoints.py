"""`convert`, `inspect`, `compare`, `verify` and `upload`: the commands that handle checkpoints."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import GptOssError, printable
from ..memory.system import size_text
from ..model.installed import Hold
from ..model.model_store import (
    SHORT_NAMES,
    TAGS,
    ModelMissing,
    ModelName,
    hub_id,
    kept_at,
    name_like,
    resolve,
    tag_of,
)
from ..untrusted import os_error_text, read_named
from .completion import complete_models, complete_recipes, complete_sources
from .conversion import convert_with_progress, print_report
from .help import command
from .options import UserPath, model_argument
from .output import print_text

if TYPE_CHECKING:
    from gptoss_convert.inspection import Subject

MAX_TEXT = 64 * 2**20  # bytes, of which a few thousand tokens are used


@command(epilog="Example: gptoss-mlx convert gpt-oss-20b --recipe mxfp4-q8")
@click.argument("source", shell_complete=complete_sources)
@click.argument("dest", type=UserPath(), required=False)
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    show_default="the most faithful that fits this machine",
    shell_complete=complete_recipes,
    help="A recipe from the list above, or a .toml file.",
)
@click.option("--revision", metavar="NAME", show_default="main", help="Branch, tag or commit on Hugging Face.")
@click.option("--adapter", type=UserPath(), metavar="DIR", help="Merge this LoRA adapter.")
@click.option("--calibrate", type=UserPath(), metavar="FILE", help="Calibrate quantization on this text.")
@click.option("--keep-source", is_flag=True, help="Keep the downloaded checkpoint in Hugging Face's cache.")
@click.option("--verify", "compare", is_flag=True, help="Compare the result with SOURCE, as `compare` does.")
@click.option("--upload", "repository", metavar="OWNER/NAME", help="Upload the result, as `upload` does.")
@click.option("--dry-run", is_flag=True, help="With --upload: print the model card and the files instead.")
def convert(
    source: str,
    dest: Path | None,
    recipe: str | None,
    calibrate: Path | None,
    compare: bool,
    repository: str | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Convert the checkpoint SOURCE into the new MLX folder DEST.

    SOURCE is a folder, gpt-oss-20b, gpt-oss-120b, or a Hugging Face id. Without DEST the result is one of the models
    that `gptoss-mlx models` lists; with a recipe it has a name of its own, such as gpt-oss-20b:q8. An interrupted
    conversion resumes when the same command runs again. Without --recipe, the plan chooses: mxfp4-q8, mxfp4-mixed or
    mxfp4-q4, the first that stays in this machine's memory with 16,384 tokens. The recipes:

    \b
    mxfp4-q4        experts as published, all else 4-bit
    mxfp4-q8        experts as published, all else 8-bit
    mxfp4-bf16      experts as published, all else untouched
    q4              everything 4-bit affine, for runtimes without MXFP4
    mxfp4-q4-small  attention 4-bit, all else MXFP4 (the smallest)
    mxfp4-mixed     experts as published, head 4-bit, all else 8-bit
    """
    from gptoss_convert.recipes import RecipeError

    if dry_run and repository is None:
        raise click.UsageError("--dry-run is for --upload OWNER/NAME")
    text = _text(calibrate) if calibrate else None
    target = _Target.of(source, dest, recipe, options["adapter"])
    try:
        report = convert_with_progress(
            target.source, target.folder, recipe=target.recipe, calibration=text, verify=compare, **options
        )
    except RecipeError as error:
        raise click.UsageError(str(error)) from None
    print_report(report)
    if target.name:
        click.echo(f"installed: `gptoss-mlx chat {target.name}`")
    if report.fidelity:
        from gptoss_convert.reports import print_fidelity

        print_fidelity(report.fidelity)
    if repository:
        _upload(target.folder, repository, dry_run)


@dataclass(frozen=True)
class _Target:
    """What a conversion reads and makes."""

    source: str
    folder: Path
    recipe: str | None
    """None: the most faithful that fits this machine."""
    name: str | None
    """The name by which the result is found; None in a folder of the user's."""

    @classmethod
    def of(cls, source: str, dest: Path | None, recipe: str | None, adapter: Path | None) -> _Target:
        """SOURCE may name the recipe, as in gpt-oss-20b:q8. Raises UsageError, GptOssError."""
        is_folder = os.path.lexists(os.path.expanduser(source)) and source not in SHORT_NAMES
        named = None if is_folder else ModelName.parse(source)
        if named and named.tag:
            if named.recipe is None:
                raise click.UsageError(f"{named.tag!r} is no tag of a recipe: the tags are {', '.join(TAGS)}")
            if recipe not in (None, named.recipe):
                raise click.UsageError(f"{source} is made with {named.recipe}, and --recipe says {recipe}")
            source, recipe = named.repository, named.recipe
        source = hub_id(source)
        if dest is not None:
            return cls(source, dest, recipe, None)
        if adapter is not None:
            raise click.UsageError("--adapter makes another model: give DEST")
        repository = (
            named.repository if named else f"local/{name_like(Path(os.path.expanduser(source)).resolve().name)}"
        )
        tag = tag_of(recipe) if recipe else None
        return cls(source, kept_at(repository, tag), recipe, str(ModelName(repository, tag)))


@command(epilog="Example: gptoss-mlx inspect gpt-oss-20b --tensor model.layers.0.self_attn.sinks")
@click.argument("path", shell_complete=complete_models)
@click.option("--tensors", "show_tensors", is_flag=True, help="List every tensor.")
@click.option("--tensor", metavar="NAME", help="Show one tensor: shape, statistics, histogram.")
@click.option("--revision", metavar="NAME", show_default="main", help="Branch, tag or commit on Hugging Face.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def inspect(path: str, show_tensors: bool, tensor: str | None, revision: str | None, as_json: bool) -> None:
    """Show what a checkpoint, original or converted, contains. Reads its headers, no weights.

    PATH is a folder, gpt-oss-20b, gpt-oss-120b, or a Hugging Face id. Of a model that is not installed, the headers are
    downloaded, and with --tensor the bytes of that tensor.
    """
    from dataclasses import asdict

    from gptoss_convert import inspection, reports

    subject = _subject(path, revision)
    if tensor is not None:
        found = inspection.statistics(subject, tensor)
        click.echo(json.dumps(asdict(found), indent=1)) if as_json else reports.print_statistics(found)
    elif show_tensors:
        listed = [asdict(each) | {"nbytes": each.nbytes} for each in subject.tensors.values()]
        click.echo(json.dumps(listed, indent=1)) if as_json else reports.print_tensors(subject.tensors)
    else:
        made = inspection.inspect(subject)
        click.echo(json.dumps(made.as_dict(), indent=1)) if as_json else reports.print_inspection(made)


def _subject(name: str, revision: str | None) -> Subject:
    """A folder on this machine; else, or where a revision is asked for, the repository on the hub."""
    from gptoss_convert.inspection import Subject

    if revision is not None and os.path.isdir(os.path.expanduser(name)):
        raise click.UsageError("--revision is for a Hugging Face id, and this is a folder")
    if revision is None:
        try:
            return Subject.of_folder(resolve(name))
        except ModelMissing as missing:
            name = missing.repository
    from gptoss_convert.hub import Repository

    return Subject.of_repository(Repository.open(hub_id(name), revision))


@command(epilog="Example: gptoss-mlx compare ~/downloads/gpt-oss-20b gpt-oss-20b")
@click.argument("source", type=UserPath())
@model_argument()
@click.option(
    "--text",
    "file",
    type=UserPath(),
    metavar="FILE",
    show_default="a built-in text",
    help="The text to predict.",
)
@click.option(
    "--tokens",
    type=click.IntRange(1),
    metavar="N",
    default=1024,
    show_default=True,
    help="Read at most N tokens of the text.",
)
@click.option("--tensors", "show_tensors", is_flag=True, help="List every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def compare(source: Path, model: str, file: Path | None, tokens: int, show_tensors: bool, as_json: bool) -> None:
    """Measure how far a converted MODEL is from its SOURCE.

    Reports the error of every tensor. On a text, computed in FP32 with both sets of weights, reports the KL divergence
    of the predictions (in nats), both perplexities, and how often both predict the same token.
    """
    from gptoss_convert import fidelity
    from gptoss_convert.sources import Source

    from ..engine.builtin_text import TEXT
    from ..model.recognition import model_folder
    from ..terminal.progress_bars import conversion_progress

    text = _text(file or TEXT)
    with conversion_progress() as show:
        found = fidelity.compare(Source(model_folder(source)), _held(model), text, tokens, show)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=1))
        return
    from gptoss_convert.reports import print_differences, print_fidelity

    if show_tensors:
        print_differences(found)
    print_fidelity(found)


@command(epilog="Example: gptoss-mlx verify gpt-oss-20b")
@model_argument()
def verify(model: str) -> None:
    """Check every byte of a converted MODEL by its checksum."""
    from gptoss_convert import Progress
    from gptoss_convert.verification import verify as check

    from ..terminal.progress_bars import conversion_progress

    folder = _held(model)
    with conversion_progress() as show:
        wrong = check(folder, lambda done, total: show(Progress("verify", done, total)))
    for line in wrong:
        click.echo(printable(line))
    if wrong:
        raise GptOssError(f"{folder} is damaged: convert it again")
    click.echo("every file matches its checksum")


@command(epilog="Example: gptoss-mlx upload ~/models/gpt-oss-20b-q4 somebody/gpt-oss-20b-mxfp4-q4")
@model_argument()
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--dry-run", is_flag=True, help="Print the model card and the files instead, without a connection.")
def upload(model: str, repository: str, dry_run: bool) -> None:
    """Upload the converted MODEL to Hugging Face, with a model card.

    Creates the repository OWNER/NAME if it does not exist, and the card if the folder has no README.md. An interrupted
    upload resumes when the same command runs again.
    """
    _upload(_held(model), repository, dry_run)


def _held(name: str) -> Path:
    """The folder of a model, which nobody removes or moves until the command has ended."""
    folder = resolve(name)
    click.get_current_context().meta[__name__] = Hold(folder)
    return folder


def _upload(folder: Path, repository: str, dry_run: bool) -> None:
    from gptoss_convert.publishing import CARD, contents, size_of
    from gptoss_convert.publishing import upload as run

    if not dry_run:
        click.echo(run(folder, repository, _report_uploaded))
        return
    files = contents(folder, repository)
    card = files[CARD]
    print_text((card if isinstance(card, bytes) else read_named(card, MAX_TEXT)).decode(errors="replace") + "\n")
    for name, content in files.items():
        click.echo(f"{size_text(size_of(content)):>10}  {printable(name)}")
    click.echo(f"{size_text(sum(map(size_of, files.values()))):>10}  in total, to {repository}")


def _text(file: Path) -> str:
    try:
        return read_named(file, MAX_TEXT).decode()
    except UnicodeDecodeError:
        raise GptOssError(f"{file} is not text in UTF-8") from None
    except (OSError, ValueError) as error:
        raise GptOssError(f"cannot read {file}: {os_error_text(error)}") from None


def _report_uploaded(name: str, size: int) -> None:
    click.echo(f"{printable(name)}, {size_text(size)}", err=True)
