"""The command line: click commands, each a few lines over the modules that do the work.

Imports click and what start-up needs; everything heavy is imported inside the command that needs it. Errors are one
line on standard error: exit status 1, 2 for wrong usage, 130 for Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from io import StringIO, TextIOWrapper
from typing import NoReturn

import click

from ..errors import GptOssError, printable
from ..terminal.safe_text import without_controls
from . import (
    bench,
    chat,
    checkpoints,
    completion,
    config,
    config_file,
    doctor,
    evaluate,
    harmony,
    machine,
    models,
    serve,
    sessions,
)
from .help import Group

PROGRAM = "gptoss-mlx"
# What people type who come from other programs.
ELSEWHERE = {
    "run": "`gptoss-mlx chat MODEL` chats, `gptoss-mlx generate MODEL -p TEXT` answers one prompt",
    "pull": "`gptoss-mlx chat gpt-oss-20b` offers to download a model, `gptoss-mlx convert` converts any",
    "list": "`gptoss-mlx models` lists the models, `gptoss-mlx sessions` the chats",
    "ls": "`gptoss-mlx models` lists the models, `gptoss-mlx sessions` the chats",
    "rm": "`gptoss-mlx models rm` removes a model, `gptoss-mlx sessions delete` a chat",
    "ps": "nothing runs in the background: a model is in memory only while `chat` or `serve` runs",
    "help": "`gptoss-mlx --help` lists the commands, `gptoss-mlx COMMAND --help` explains one",
    "version": "`gptoss-mlx --version` prints it",
}
STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}


def main() -> NoReturn:
    """Run the command line and exit; nothing that a user does shows a traceback."""
    _prepare_streams()
    try:
        sys.exit(cli(prog_name=PROGRAM, standalone_mode=False) or 0)
    except click.ClickException as error:
        shown = StringIO()
        error.show(shown)
        click.echo(without_controls(shown.getvalue()), nl=False, err=True)
        sys.exit(error.exit_code)
    except GptOssError as error:
        _fail(str(error))
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        from ..engine.mlx_errors import for_user

        if (known := for_user(error)) is None:
            raise
        _fail(str(known))
    except UnicodeEncodeError as error:
        _fail(f"this locale cannot encode {error.object!a}: set LC_ALL to a UTF-8 locale, such as C.UTF-8")
    except OSError as error:  # such as of standard output, whose reader has gone, or whose disk is full
        _fail(printable(": ".join(str(part) for part in (error.filename, error.strerror or error) if part)))


def _prepare_streams() -> None:
    """A standard stream that is closed becomes the null device, before a file takes its place; one that another program
    made non-blocking waits again; and what a terminal without Unicode cannot show is escaped."""
    for descriptor, (name, mode) in enumerate(STREAMS.items()):
        if getattr(sys, name) is None:
            # It takes the first descriptor that is free.
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
            os.set_inheritable(descriptor, True)
        os.set_blocking(descriptor, True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_unwritten() -> None:
    """What standard output does not take: Python would try it once more at the end, and change the exit status."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _fail(text: str) -> NoReturn:
    _drop_unwritten()
    click.echo(f"error: {printable(' '.join(text.split()))}", err=True)
    sys.exit(1)


def _print_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"{PROGRAM} {version(PROGRAM)} (MLX {version('mlx')}, Python {sys.version.split()[0]})")
        context.exit()


class ElsewhereError(click.ClickException):
    """A command of other programs; its message is what to type here."""

    exit_code = 2


class Commands(Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in ELSEWHERE and not ctx.resilient_parsing:
            raise ElsewhereError(f"there is no command {args[0]}: {ELSEWHERE[args[0]]}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: gptoss-mlx chat gpt-oss-20b",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the versions of the program, MLX and Python.",
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Run OpenAI's gpt-oss on your own machine: convert it, chat offline, measure it.

    Without a command, in a terminal, starts a chat with the model used last, or offers a choice of models.
    """
    context.obj = found = config_file.read(cli)
    context.default_map = found.defaults
    if found.problems and context.invoked_subcommand != "config":
        raise GptOssError(found.problems[0])
    if context.invoked_subcommand is None:
        _without_command(context, found.defaults["chat"].get("model"))


def _without_command(context: click.Context, model: str | None) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        click.echo(context.get_help(), err=True)
        context.exit(2)
    from .first_run import command_lines

    for name, *arguments in command_lines(model):
        command = cli.commands[name]
        with command.make_context(name, arguments, parent=context) as below:
            command.invoke(below)


cli.add_section("Chat", chat.chat, chat.generate, chat.demo, serve.serve, sessions.sessions)
cli.add_section(
    "Models",
    models.models,
    checkpoints.convert,
    checkpoints.inspect,
    checkpoints.compare,
    checkpoints.verify,
    checkpoints.upload,
)
cli.add_section("Measure", machine.plan, bench.bench, evaluate.evaluate)
cli.add_section("Set up", doctor.doctor, config.config, completion.completion)
cli.add_section("Formats", harmony.harmony)
