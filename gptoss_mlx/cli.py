"""The command line: click commands, each a few lines over the modules that do the work.

Imports click and what start-up needs; everything heavy is imported inside the command that needs it. Errors are one
line on standard error: exit status 1, 2 for wrong usage, 130 for Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from .cli_sessions import sessions
from .completion import (
    SHELLS,
    complete_commands,
    complete_devices,
    complete_models,
    complete_recipes,
    complete_sessions,
    complete_sources,
    script,
)
from .errors import GptOssError
from .memory import parse_size, size_text
from .models import DOWNLOAD_GB, SHORT_NAMES, ModelMissing, home, last_used, remember, resolve

if TYPE_CHECKING:
    from gptoss_convert import Report
    from gptoss_convert.inspection import Subject

    from .budget import MemoryPlan
    from .chat.keeper import Keeper
    from .chat.session import Session
    from .chat.store import Kept
    from .engine import Model
    from .sampling import Sampling


PROGRAM = "gptoss-mlx"
DEFAULT_RECIPE = "mxfp4-q4"  # gptoss_convert.DEFAULT_RECIPE, which would import NumPy


def main() -> NoReturn:
    """Run the command line and exit; nothing that a user does shows a traceback."""
    try:
        sys.exit(cli(prog_name=PROGRAM, standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except GptOssError as error:
        _fail(str(error))
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except MemoryError:
        _fail("out of memory: choose a smaller recipe, or a machine with more")


def _fail(text: str) -> NoReturn:
    click.echo(f"error: {' '.join(text.split())}", err=True)
    sys.exit(1)


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: gptoss-mlx chat gpt-oss-20b",
)
@click.version_option(package_name="gptoss-mlx", message="gptoss-mlx %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """gpt-oss on the machine that you own: convert it, chat offline, measure it.

    Without a command, in a terminal: goes on with the model used last, or says what this machine can do.
    """
    from . import preferences

    context.obj = found = preferences.read(cli)
    context.default_map = found.defaults
    if found.problems and context.invoked_subcommand != "config":
        raise GptOssError(found.problems[0])
    if context.invoked_subcommand is None:
        _without_command(context)


def _without_command(context: click.Context) -> None:
    if not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
        click.echo(context.get_help(), err=True)
        context.exit(2)
    from .welcome import command_lines

    for name, *arguments in command_lines(context.default_map["chat"].get("model")):
        command = cli.commands[name]
        with command.make_context(name, arguments, parent=context) as below:
            command.invoke(below)


class Size(click.ParamType):
    """An amount of memory as people write it; it stays text."""

    name = "size"

    def convert(self, value: str, parameter: click.Parameter | None, context: click.Context | None) -> str:
        parse_size(value)
        return value


model_argument = partial(click.argument, "model", shell_complete=complete_models)


def sampling_options(command: Callable) -> Callable:
    """The options that decide how tokens are chosen; they arrive as `sampling`, ready to use."""
    options = [
        click.option("--temperature", type=float, default=1.0, show_default=True, help="0 is greedy."),
        click.option(
            "--top-p", type=float, default=1.0, show_default=True, help="Keep the likeliest tokens up to this sum."
        ),
        click.option("--top-k", type=int, default=0, show_default=True, help="Keep this many tokens; 0 keeps all."),
        click.option(
            "--min-p", type=float, default=0.0, show_default=True, help="Drop tokens below this share of the likeliest."
        ),
        click.option(
            "--repetition-penalty",
            type=float,
            default=1.0,
            show_default=True,
            help="Above 1 makes repeats less likely.",
        ),
        click.option("--seed", type=int, show_default="a new one each time", help="Same seed, same tokens."),
        click.option(
            "--max-tokens",
            type=click.IntRange(min=1),
            show_default="as many as the context has",
            help="Stop an answer after this many tokens.",
        ),
        click.option(
            "--reasoning",
            type=click.Choice(["none", "low", "medium", "high"]),
            default="medium",
            show_default=True,
            help="How long to think.",
        ),
        click.option(
            "--max-reasoning",
            type=click.IntRange(min=0),
            show_default="no limit",
            help="After this many tokens of reasoning, answer.",
        ),
        click.option("--system", metavar="TEXT", help="Instructions for the whole conversation."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    envvar="GPTOSS_MLX_THREADS",
    show_envvar=True,
    show_default="one for each fast core",
    help="Threads on a CPU.",
)


def memory_options(command: Callable) -> Callable:
    """The options that decide what a model may take; they arrive under their own names."""
    options = [
        click.option("--memory", type=Size(), show_default="what is available", help="What to keep to: 16GB, 8GiB."),
        click.option("--context", type=int, show_default="what fits", help="Tokens that a conversation may have."),
        click.option("--kv-bits", type=click.Choice(["8", "16"]), show_default="what fits", help="Of keys and values."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def tool_options(command: Callable) -> Callable:
    """The options that decide what the model may do beside talking; `_tools` makes something of them."""
    file, folder = (
        click.Path(path_type=Path, exists=True, dir_okay=kind, file_okay=not kind) for kind in (False, True)
    )
    options = [
        click.option("--tools", type=file, metavar="FILE", help="Functions to call, in TOML: see examples/tools.toml."),
        click.option("--python", is_flag=True, help="Let the model run Python, in a sandbox without network."),
        click.option("--unsafe-python", is_flag=True, help="The same without a sandbox: it can do what you can."),
        click.option("--browse", type=folder, metavar="DIR", help="Let the model search and read the files of DIR."),
        click.option("-y", "--yes", is_flag=True, help="Run what the model calls without asking."),
        click.option("--json-schema", type=file, metavar="FILE", help="Answer in JSON that follows this schema."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _tools(options: dict[str, Any]) -> dict[str, Any]:
    """What `Session` takes of the tool options. What is wrong with them shows before a model is loaded."""
    made: dict[str, Any] = {"functions": [], "builtins": []}
    if options["json_schema"]:
        from .grammar import load_schema

        made["response_schema"] = load_schema(options["json_schema"])
    if options["tools"]:
        from .chat.command_tools import load_tools

        made["functions"] = load_tools(options["tools"])
    if options["browse"]:
        from .chat.browser import Browser

        made["builtins"].append(Browser(options["browse"]))
    if options["python"] or options["unsafe_python"]:
        from .chat.python_tool import PythonTool

        made["builtins"].append(PythonTool(unsafe=options["unsafe_python"]))
    return made


def _plan(folder: Path, options: dict[str, Any], device: str | None = None) -> MemoryPlan:
    from .budget import Device, make_plan

    context, kv_bits = options["context"], options["kv_bits"]
    if context is not None and context < 1:
        raise GptOssError(f"a context of {context} is no context: give a number of tokens")
    return make_plan(
        folder,
        Device.named(device) if device else Device.here(),
        memory=parse_size(options["memory"]) if options["memory"] is not None else None,
        context=context,
        kv_bits=kv_bits and int(kv_bits),
    )


def _plan_to_keep(folder: Path, options: dict[str, Any]) -> MemoryPlan:
    """The plan, with what it gives up told on standard error; also if it counts on more than there is."""
    from .budget import Device

    plan = _plan(folder, options)
    if plan.compromise:
        click.echo(plan.compromise, err=True)
    if plan.total > (here := Device.here().memory):
        lack = f"{size_text(plan.total)} planned, and this machine gives {size_text(here)}"
        click.echo(f"warning: {lack}: it may swap, or be killed", err=True)
    return plan


def _use_threads(count: int | None) -> None:
    if count is not None:
        from .kernels import set_threads

        set_threads(count)


def _sampling(options: dict[str, Any]) -> Sampling:
    from .sampling import Sampling

    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
    return Sampling(**{name: options[name] for name in names if options[name] is not None})


def _session(model: Model, options: dict[str, Any], **more: Any) -> Session:
    from .chat.session import Session

    return Session(
        model,
        instructions=options["system"],
        reasoning_effort=options["reasoning"],
        sampling=_sampling(options),
        max_tokens=options["max_tokens"],
        max_reasoning=options["max_reasoning"],
        **more,
    )


@cli.command(epilog="Example: gptoss-mlx convert openai/gpt-oss-20b ~/models/gpt-oss-20b-q4")
@click.argument("source", shell_complete=complete_sources)
@click.argument("dest", type=click.Path(path_type=Path))
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    default=DEFAULT_RECIPE,
    show_default=True,
    shell_complete=complete_recipes,
    help="One below, or a .toml.",
)
@click.option("--revision", show_default="main", help="Branch, tag or commit of a hub id.")
@click.option("--adapter", type=click.Path(path_type=Path), metavar="DIR", help="Merge this LoRA (PEFT or MLX-LM).")
@click.option(
    "--calibrate", type=click.Path(path_type=Path), metavar="FILE", help="Weigh errors by what this text uses."
)
@click.option("--keep-source", is_flag=True, help="Keep what is downloaded in the hub's cache.")
@click.option("--verify", "compare", is_flag=True, help="Compare the result with its source, as `compare` does.")
@click.option("--upload", "repository", metavar="OWNER/NAME", help="Upload the result, as `upload` does.")
@click.option("--dry-run", is_flag=True, help="Instead of uploading, print the model card and the files.")
def convert(
    source: str,
    dest: Path,
    recipe: str,
    calibrate: Path | None,
    compare: bool,
    repository: str | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Convert SOURCE, a folder or a hub id, into the new MLX folder DEST. What is interrupted goes on when run again.

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
        raise click.UsageError("--dry-run goes with --upload OWNER/NAME")
    text = _text(calibrate) if calibrate else None
    try:
        report = _convert(
            SHORT_NAMES.get(source, source), dest, recipe=recipe, calibration=text, verify=compare, **options
        )
    except RecipeError as error:
        raise click.UsageError(str(error)) from None
    _print_report(report)
    if report.fidelity:
        from gptoss_convert.fidelity_report import print_fidelity

        print_fidelity(report.fidelity)
    if repository:
        _upload(dest, repository, dry_run)


def _convert(source: str, dest: Path, **options: Any) -> Report:
    """Convert with a progress bar, or a line every tenth where there is no terminal."""
    from gptoss_convert import convert as run
    from gptoss_convert.writer import partial_folder

    from .progress import conversion_progress

    try:
        with conversion_progress() as show:
            return run(source, dest, on_progress=show, **options)
    except KeyboardInterrupt:
        if (partial := partial_folder(dest)).exists():
            click.echo(f"what is done is kept: the same command goes on; to give it up, remove {partial}", err=True)
        raise


def _print_report(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("recipe", "source", "converted", "bits per weight", "time", "peak memory")
    peak = report.peak_anonymous_bytes
    table.add_row(
        report.recipe,
        size_text(report.source_bytes),
        size_text(report.output_bytes),
        f"{report.bits_per_weight:.2f}",
        f"{report.seconds:.1f} s",
        "not known" if peak is None else size_text(peak),
    )
    Console().print(table)


def _model_folder(name: str) -> Path:
    """Resolve a model; offer to download and convert one that could be here, where somebody can answer."""
    try:
        return resolve(name)
    except ModelMissing as missing:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        size = DOWNLOAD_GB.get(missing.repository)
        download = f"download {size} GB" if size else "download it"
        question = (
            f"{missing.name} is not here yet. {download[0].upper()}{download[1:]} and convert to {missing.folder}?"
        )
        if not click.confirm(question, err=True):
            raise
        _print_report(_convert(missing.repository, missing.folder))
        return missing.folder


def _load(name: str, options: dict[str, Any]) -> Model:
    """Load as the options' plan says."""
    folder = _model_folder(name)
    _use_threads(options["threads"])
    plan = _plan_to_keep(folder, options)
    from .engine import load

    return load(folder, plan.settings)


@cli.command(epilog="Example: gptoss-mlx chat gpt-oss-20b --reasoning low")
@model_argument(required=False)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="",
    metavar="[NAME]",
    shell_complete=complete_sessions,
    help="Go on with a session, or with the latest.",
)
@sampling_options
@tool_options
@memory_options
@threads_option
@click.option(
    "--when-full",
    type=click.Choice(["refuse", "drop"]),
    default="refuse",
    show_default=True,
    help="When the context is full: refuse to go on, or drop the oldest turns.",
)
@click.option("--no-kv", is_flag=True, help="Keep no KV state with the session: it will be read again.")
@click.option("--kv-limit", type=Size(), default="4GB", show_default=True, help="Of the KV states of all sessions.")
@click.option("--show-reasoning/--hide-reasoning", default=None, show_default="folded when the answer starts")
@click.option("--plain", is_flag=True, help="Redraw nothing, and say in words what each thing is.")
def chat(model: str | None, resume: str | None, show_reasoning: bool | None, **options: Any) -> None:
    """Chat with MODEL in the terminal, offline. Without a terminal, each line of standard input is a message.

    MODEL is a folder, gpt-oss-20b, gpt-oss-120b, or a hub id; without it, the one of the session, or used last. Every
    chat is a session on this disk: `gptoss-mlx sessions` lists them.
    """
    from .chat.store import Store, sessions_folder

    store = Store(sessions_folder())
    kept = None if resume is None else store.find(resume)
    more = _tools(options) | {"drop_when_full": options["when_full"] == "drop"}
    from .chat.keeper import Keeper
    from .chat.terminal import run

    keeper = Keeper(store, kept, kv_limit=None if options["no_kv"] else parse_size(options["kv_limit"]))

    def load(name: str) -> Session:
        session = _session(_load(name, options), options, **more)
        remember(session.model.path)
        return session

    name = model or _model_of(kept)
    run(
        _resumed(load(name), keeper, options) if kept else load(name),
        show_reasoning=show_reasoning,
        history=home() / "history",
        keeper=keeper,
        load=load,
        yes=options["yes"],
        plain=options["plain"],
    )


def _resumed(session: Session, keeper: Keeper, options: dict[str, Any]) -> Session:
    """The session as it was kept, but for what the command line says; tells what going on will cost."""
    had_state = keeper.has_state
    read = keeper.resume(session)
    turns = sum(message.role == "user" for message in session.messages)
    line = f"{keeper.name} goes on, after {turns} turn{'s' * (turns != 1)}"
    if not read:
        why = "its KV state is of another model or recipe" if had_state else "its KV state is gone"
        line += f"; {why}, so that it is read again"
    click.echo(line, err=True)
    for name, setting in (("system", "instructions"), ("reasoning", "reasoning_effort")):
        if click.get_current_context().get_parameter_source(name) == ParameterSource.COMMANDLINE:
            setattr(session, setting, options[name])
    return session


def _model_of(kept: Kept | None) -> str:
    """The model of a session, or else the one used last."""
    from .chat.transcript import Transcript

    return str((kept and Transcript.read(kept.transcript).model) or last_used() or "gpt-oss-20b")


@cli.command(epilog="Example: git diff | gptoss-mlx generate gpt-oss-20b -p 'Write a commit message.'")
@model_argument(required=False)
@click.option("-p", "--prompt", metavar="TEXT", help="What to say; standard input, if there is any, follows it.")
@sampling_options
@tool_options
@memory_options
@threads_option
def generate(model: str | None, prompt: str | None, **options: Any) -> None:
    """Answer once: the answer alone goes to standard output.

    MODEL is a folder, gpt-oss-20b, gpt-oss-120b, or a hub id; without it, the one used last.
    """
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    text = "\n\n".join(part for part in (prompt, piped.strip()) if part)
    if not text:
        raise click.UsageError("nothing to answer: give -p TEXT, or pipe text in")
    more = _tools(options) | {"approve": (lambda call, preview: True) if options["yes"] else None}
    session = _session(_load(model or _model_of(None), options), options, **more)
    with closing(session):
        _generate(session, text)


def _generate(session: Session, text: str) -> None:
    from .chat.screen import printable
    from .harmony.parse import Content
    from .progress import prefill_progress

    written = ""
    show = printable if sys.stdout.isatty() else str
    with prefill_progress() as progress:
        for event in session.send(text, on_prefill=progress):
            if isinstance(event, Content):
                written = event.text
                click.echo(show(written), nl=False)
    if written and not written.endswith("\n"):
        click.echo()
    if not session.stats[-1].finished:
        state = "broke off" if written else "has no final part"
        raise GptOssError(f"the answer {state}: raise --max-tokens or --context, or lower --reasoning")


@cli.command(epilog="Example: gptoss-mlx bench gpt-oss-20b --prompt 512 --generate 64 --depth 2048 --depth 8192")
@model_argument(default="gpt-oss-20b")
@click.option("--prompt", type=click.IntRange(1), default=128, show_default=True, help="Tokens to prefill.")
@click.option("--generate", type=click.IntRange(1), default=32, show_default=True, help="Tokens to decode.")
@click.option("--depth", "depths", type=click.IntRange(1), multiple=True, help="Also decode behind so many tokens.")
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True, help="Runs; the median counts.")
@memory_options
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def bench(
    model: str,
    prompt: int,
    generate: int,
    depths: tuple[int, ...],
    repeat: int,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure MODEL on this machine: load, time to first token, prefill, decode, memory."""
    folder = _model_folder(model)
    _use_threads(threads)
    plan = _plan_to_keep(folder, options)
    from .bench.measure import measure
    from .bench.report import print_table

    figures = measure(plan, prompt=prompt, generate=generate, repeat=repeat, depths=depths)
    if as_json:
        click.echo(json.dumps(figures.as_dict(), indent=1))
    else:
        print_table(figures)


@cli.command(epilog="Example: gptoss-mlx inspect gpt-oss-20b --tensor model.layers.0.self_attn.sinks")
@click.argument("path", shell_complete=complete_models)
@click.option("--tensors", "show_tensors", is_flag=True, help="List every tensor.")
@click.option("--tensor", metavar="NAME", help="One tensor: shape, statistics, histogram.")
@click.option("--revision", show_default="main", help="Branch, tag or commit of a hub id.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def inspect(path: str, show_tensors: bool, tensor: str | None, revision: str | None, as_json: bool) -> None:
    """Say what a checkpoint holds, a source or a converted folder: from its headers, without reading weights.

    PATH is a folder, gpt-oss-20b, gpt-oss-120b, or a hub id. What has not been converted here is looked at on the hub:
    its headers are downloaded, and with --tensor the bytes of that tensor.
    """
    from dataclasses import asdict

    from gptoss_convert import inspection, inspection_report

    subject = _subject(path, revision)
    if tensor is not None:
        found = inspection.statistics(subject, tensor)
        click.echo(json.dumps(asdict(found), indent=1)) if as_json else inspection_report.print_statistics(found)
    elif show_tensors:
        listed = [asdict(each) | {"nbytes": each.nbytes} for each in subject.tensors.values()]
        click.echo(json.dumps(listed, indent=1)) if as_json else inspection_report.print_tensors(subject.tensors)
    else:
        made = inspection.inspect(subject)
        click.echo(json.dumps(made.as_dict(), indent=1)) if as_json else inspection_report.print_inspection(made)


def _subject(name: str, revision: str | None) -> Subject:
    """A folder that is here; else, or where a revision is asked for, the repository on the hub."""
    from gptoss_convert.inspection import Subject

    if revision is not None and Path(name).expanduser().is_dir():
        raise click.UsageError("--revision is for a hub id, and this is a folder")
    if revision is None:
        try:
            return Subject.of_folder(resolve(name))
        except ModelMissing as missing:
            name = missing.repository
    from gptoss_convert.hub import Repository

    return Subject.of_repository(Repository.open(SHORT_NAMES.get(name, name), revision))


@cli.command(epilog="Example: gptoss-mlx verify gpt-oss-20b")
@model_argument()
def verify(model: str) -> None:
    """Read every byte of a converted folder, and check it against the checksums that its conversion wrote."""
    from gptoss_convert import Progress
    from gptoss_convert.verification import verify as check

    from .progress import conversion_progress

    folder = resolve(model)
    with conversion_progress() as show:
        wrong = check(folder, lambda done, total: show(Progress("verify", done, total)))
    for line in wrong:
        click.echo(line)
    if wrong:
        raise GptOssError(f"{folder} is damaged: convert it again")
    click.echo("every file is what was written")


@cli.command(epilog="Example: gptoss-mlx upload ~/models/gpt-oss-20b-q4 somebody/gpt-oss-20b-mxfp4-q4")
@model_argument()
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--dry-run", is_flag=True, help="Print the model card and the files, and open no connection.")
def upload(model: str, repository: str, dry_run: bool) -> None:
    """Upload MODEL, a converted folder, to the hub repository OWNER/NAME, with a model card.

    The repository is made if it is not there yet, and so is the card if the folder has no README.md. An upload that
    broke off goes on when it is run again.
    """
    _upload(resolve(model), repository, dry_run)


def _upload(folder: Path, repository: str, dry_run: bool) -> None:
    from gptoss_convert.publishing import CARD, contents, size_of
    from gptoss_convert.publishing import upload as run

    if not dry_run:
        click.echo(run(folder, repository, lambda name, size: click.echo(f"{name}, {size_text(size)}", err=True)))
        return
    files = contents(folder, repository)
    click.echo(files[CARD].decode())
    for name, content in files.items():
        click.echo(f"{size_text(size_of(content)):>10}  {name}")
    click.echo(f"{size_text(sum(map(size_of, files.values()))):>10}  in all, to {repository}")


@cli.command(epilog="Example: gptoss-mlx compare ~/downloads/gpt-oss-20b gpt-oss-20b")
@click.argument("source", type=click.Path(path_type=Path))
@model_argument()
@click.option(
    "--text",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_default="a built-in text",
    help="What to predict.",
)
@click.option("--tokens", type=click.IntRange(1), default=1024, show_default=True, help="At most, of the text.")
@click.option("--tensors", "show_tensors", is_flag=True, help="List every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def compare(source: Path, model: str, file: Path | None, tokens: int, show_tensors: bool, as_json: bool) -> None:
    """Say how far MODEL, a converted folder, is from the checkpoint SOURCE that it was made from.

    Of every tensor the error; and on a text, computed in FP32 with the weights of each, the divergence of the
    predictions (KL, in nats), the perplexity of both, and how often they agree on the likeliest token.
    """
    from gptoss_convert import fidelity
    from gptoss_convert.sources import Source

    from .progress import conversion_progress

    text = _text(file or fidelity.TEXT)
    with conversion_progress() as show:
        found = fidelity.compare(Source(source), resolve(model), text, tokens, show)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=1))
        return
    from gptoss_convert.fidelity_report import print_differences, print_fidelity

    if show_tensors:
        print_differences(found)
    print_fidelity(found)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise GptOssError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise GptOssError(f"{file} is not text in UTF-8") from None


@cli.command(epilog="Example: gptoss-mlx plan gpt-oss-20b --memory 16GB --context 131072")
@model_argument()
@memory_options
@click.option(
    "--device",
    metavar="NAME",
    show_default="this machine",
    shell_complete=complete_devices,
    help="Plan for another device: mac-16gb, mac-8gb, iphone-12gb, android-16gb.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def plan(model: str, device: str | None, as_json: bool, **options: Any) -> None:
    """Say what MODEL will take in memory, and what is given up so that it fits. Reads headers, no weights."""
    made = _plan(resolve(model), options, device)
    if as_json:
        click.echo(json.dumps(made.as_dict(), indent=1))
        return
    from .budget_report import print_plan

    print_plan(made)


@cli.command(epilog="Example: gptoss-mlx doctor --self-test")
@click.option("--self-test", is_flag=True, help="Also check that this machine computes right (some seconds).")
def doctor(self_test: bool) -> None:
    """Say what this machine gives gptoss-mlx: device, kernels, memory, versions."""
    from . import doctor as report

    for name, value in report.facts():
        click.echo(f"{name:20}{value}")
    if not self_test:
        return
    failed = 0
    for check in report.self_test():
        failed += not check.passed
        click.echo(f"{check.name:20}{'pass' if check.passed else 'FAIL'}: {check.detail}")
    if failed:
        raise GptOssError(f"{failed} checks failed")


@cli.command(epilog="Example: gptoss-mlx demo")
def demo() -> None:
    """Convert the small embedded model, ask it three questions, and stay in the chat."""
    import shutil

    from .chat.terminal import ask, run
    from .demo import CHECKPOINT, FUNCTIONS, QUESTIONS

    folder = home() / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    _print_report(_convert(str(CHECKPOINT), folder))
    options = {"system": None, "reasoning": "medium", "max_tokens": 400, "max_reasoning": None}
    options |= dict.fromkeys(("memory", "context", "kv_bits", "threads"))
    greedy = dict.fromkeys(("top_p", "top_k", "min_p", "repetition_penalty", "seed")) | {"temperature": 0.0}
    session = _session(_load(str(folder), options), options | greedy, functions=FUNCTIONS)
    for question in QUESTIONS:
        ask(session, question, show_reasoning=True)
        session.reset()
    if sys.stdin.isatty() and sys.stdout.isatty():
        run(session, show_reasoning=True, history=home() / "history")


@cli.command(epilog="Example: gptoss-mlx config chat")
@click.argument("command", required=False, shell_complete=complete_commands)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_context
def config(context: click.Context, command: str | None, as_json: bool) -> None:
    """Print the settings of every command, or of COMMAND, and where each comes from.

    The config file is ~/.config/gptoss-mlx/config.toml, or what GPTOSS_MLX_CONFIG names.
    """
    from . import preferences

    if command not in (None, *cli.commands):
        raise click.UsageError(f"there is no command {command!r}")
    for problem in context.obj.problems:
        click.echo(f"error: {problem}", err=True)
    settings = preferences.settings(context.find_root())
    chosen = [each for each in settings if command in (None, each.command.split()[0])]
    show = preferences.as_json if as_json else preferences.as_text
    click.echo(show(context.obj, chosen))


@cli.command(epilog="Example: gptoss-mlx completion zsh")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands, options and models at the press of Tab.

    \b
    bash  echo 'eval "$(gptoss-mlx completion bash)"' >> ~/.bashrc
    zsh   echo 'autoload -U compinit; compinit; eval "$(gptoss-mlx completion zsh)"' >> ~/.zshrc
    fish  gptoss-mlx completion fish > ~/.config/fish/completions/gptoss-mlx.fish
    """
    click.echo(script(cli, PROGRAM, shell))


cli.add_command(sessions)


@cli.group()
def harmony() -> None:
    """Look at the conversation format: what a model is fed, and what its output means."""


@harmony.command(epilog="Example: gptoss-mlx harmony render conversation.json")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
def render(files: tuple[Path, ...]) -> None:
    """Print the prompt of a conversation in JSON. Several files give one JSON line each."""
    from .harmony.files import render_file

    if len(files) == 1:
        click.echo(render_file(files[0]), nl=False)
    else:
        _print_lines(files, render_file)


@harmony.command(epilog="Example: gptoss-mlx harmony parse output.txt")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
def parse(files: tuple[Path, ...]) -> None:
    """Print what raw model output means, as JSON. Several files give one JSON line each."""
    from .harmony.files import parse_file

    if len(files) == 1:
        click.echo(json.dumps(parse_file(files[0]), indent=1, ensure_ascii=False))
    else:
        _print_lines(files, parse_file)


def _print_lines(files: tuple[Path, ...], read: Callable[[Path], Any]) -> None:
    for file in files:
        click.echo(json.dumps({"file": str(file), "output": read(file)}, ensure_ascii=False))
