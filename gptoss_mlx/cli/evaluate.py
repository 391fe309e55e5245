"""`eval`: what a model predicts and answers, in figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import GptOssError, printable
from .completion import complete_models
from .loading import model_folder, plan_to_keep, use_threads
from .options import Text, memory_options, model_argument, threads_option

if TYPE_CHECKING:
    from ..evaluation.report import Report
    from ..evaluation.task import Chosen, Task

# Bytes of a file. A text is encoded at once, which takes 400 bytes of memory for a token; WikiText-2's has 1.3 MB.
MAX_TEXT = 4 * 2**20
MAX_PROMPTS = 16 * 2**20
DEFAULT_WINDOW = 512
USUAL_ANSWER = 4096  # tokens that an answer is given where nobody says how many


class Contexts(click.ParamType):
    """Lengths of a context, with commas between them."""

    name = "lengths"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        from ..evaluation.needle import MIN_CONTEXT

        if isinstance(value, tuple):
            return value
        try:
            lengths = tuple(dict.fromkeys(int(part) for part in value.split(",")))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers of tokens, such as 1024,4096", parameter, context)
        if min(lengths) < MIN_CONTEXT:
            self.fail(f"{min(lengths)} tokens are too few: {MIN_CONTEXT} at least", parameter, context)
        return lengths


FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("eval", epilog="Example: gptoss-mlx eval gpt-oss-20b --text wiki.test.raw --reference ~/models/20b-bf16")
@model_argument()
@click.option("--text", "file", type=FILE, metavar="FILE", help="Perplexity on a text.")
@click.option("--tokens", type=click.IntRange(4), show_default="all", help="Of the text, at most.")
@click.option(
    "--window", type=click.IntRange(4), default=DEFAULT_WINDOW, show_default=True, help="Tokens that are read together."
)
@click.option(
    "--reference", metavar="MODEL", shell_complete=complete_models, help="Also KL of MODEL from this one, on the text."
)
@click.option("--prompts", "prompt_file", type=FILE, metavar="FILE", help="Exact match on prompts, a JSON line each.")
@click.option("--demo", is_flag=True, help="The exam of the embedded model; exit 1 where a bar is missed.")
@click.option("--needle", type=Contexts(), metavar="N,N,...", help="Find a code in contexts of so many tokens.")
@click.option(
    "--reasoning",
    type=click.Choice(["none", "low", "medium", "high"]),
    default="medium",
    show_default=True,
    help="How long to think, where a prompt does not say.",
)
@click.option("--system", type=Text(), metavar="TEXT", help="Instructions, where a prompt has none.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=USUAL_ANSWER,
    show_default=True,
    help="Of an answer to a prompt, at most.",
)
@click.option("--show-wrong", is_flag=True, help="List the prompts that were not answered right.")
@memory_options
@threads_option
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="To print."
)
def evaluate(model: str, **options: Any) -> None:
    """Say in figures what MODEL predicts and answers: by default the perplexity of a built-in text.

    The text is cut into windows, each read by itself; the second half of each counts, as in llama.cpp's perplexity.
    The same command with the same memory plan gives the same figures, and goes on where it was interrupted: --memory
    fixes the plan. Without --context, it has room for what is asked.

    \b
    A line of --prompts:
    {"prompt": TEXT | a conversation as `harmony render` takes it,
     "answer": TEXT | {"name": TEXT, "arguments": {...}},
     "part": TEXT, if there are parts}
    {"rendered": what `harmony render` prints, "answer": ...}
    """
    folder = model_folder(model)
    reference = None if options["reference"] is None else model_folder(options["reference"])
    use_threads(options["threads"])
    chosen = _chosen(folder, options)
    context = chosen.context if options["context"] is None else options["context"]
    plan = plan_to_keep(folder, options | {"context": context})
    from ..engine.interrupts import Interrupted, Interrupts
    from ..evaluation.task import Task
    from ..terminal.progress_bars import evaluation_progress

    reference_plan = None
    if reference is not None:
        reference_plan = plan_to_keep(reference, options | {"context": chosen.text.context})
    task = Task(plan, chosen, reference_plan)
    try:
        with Interrupts() as interrupts, evaluation_progress() as show:
            task.run(interrupts.check, show)
        report = task.report()
    except Interrupted:
        _show(task.report(), options)
        _tell_kept(task)
        raise
    except GptOssError:
        _tell_kept(task)
        raise
    _show(report, options)
    task.remove()
    if report.exam and (missed := [part.name for part in report.exam.parts if part.missed]):
        raise GptOssError(f"below the bar: {', '.join(missed)}")


def _tell_kept(task: Task) -> None:
    if kept := " and ".join(map(str, task.kept)):
        line = f"what is done is kept: the same command goes on; to give it up, remove {kept}"
        click.echo(printable(line), err=True)


def _show(report: Report, options: dict[str, Any]) -> None:
    if options["form"] == "json":
        click.echo(report.as_json(options["show_wrong"]))
    else:
        report.print(options["show_wrong"])


def _chosen(folder: Path, options: dict[str, Any]) -> Chosen:
    """What the options ask for. Raises GptOssError for files that cannot be read as what they should be."""
    from ..engine.builtin_text import TEXT
    from ..engine.tokenizer import Tokenizer
    from ..evaluation.exam import exam
    from ..evaluation.needle import Needles
    from ..evaluation.prompts import Asking, Prompts, read_prompts
    from ..evaluation.task import Chosen
    from ..evaluation.text import Text
    from ..model.recognition import open_converted

    most, tokenizer = open_converted(folder)[0].max_context, Tokenizer.load(folder)
    asking = Asking(options["reasoning"], options["system"])
    file, prompts = options["file"], options["prompt_file"]
    others = prompts or options["demo"] or options["needle"]
    found: dict[str, Any] = {}
    if file or options["reference"] is not None or not others:
        text = _text(file or TEXT)
        found["text"] = Text(
            file.name if file else "the built-in text",
            text,
            tokenizer,
            window=options["window"],
            most=options["tokens"],
        )
    if prompts:
        read = read_prompts(_contents(prompts, MAX_PROMPTS).splitlines(), str(prompts), tokenizer, asking)
        found["prompts"] = Prompts("prompts", read, tokenizer, max_tokens=options["max_tokens"])
    if options["demo"]:
        found["exam"] = exam(tokenizer)
    if options["needle"]:
        if (longest := max(options["needle"])) > most:
            raise GptOssError(f"--needle: a context of {longest:,} tokens is more than the model's {most:,}")
        found["needle"] = Needles(options["needle"], tokenizer, asking)
    for part in found.values():
        if part.context > most:
            wanted = f"{part.name}: a context of {part.context:,} tokens, with room for the answer,"
            raise GptOssError(f"{wanted} is more than the model's {most:,}: shorten it, or lower --max-tokens")
    return Chosen(**found)


def _text(file: Path) -> str:
    """All of a text, byte for byte: line ends stay as they are."""
    try:
        return _contents(file, MAX_TEXT).decode()
    except UnicodeDecodeError:
        raise GptOssError(f"{file} is not text in UTF-8") from None


def _contents(file: Path, most: int) -> bytes:
    from ..untrusted import os_error_text, read_regular

    try:
        return read_regular(file, most)
    except (OSError, ValueError) as error:
        raise GptOssError(f"cannot read {file}: {os_error_text(error)}") from None


COMMANDS = (evaluate,)
