"""`eval`: what a model predicts and answers, measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import GptOssError, printable
from .completion import complete_models
from .help import command
from .loading import model_folder, plan_to_keep, use_threads
from .options import ModelOptions, Numbers, Text, UserPath, model_argument, pass_model_options

if TYPE_CHECKING:
    from ..evaluation.report import EvaluationReport
    from ..evaluation.task import Chosen, Task

# The largest files, in bytes. A text is encoded at once, which takes 400 bytes of memory for a token; WikiText-2 has
# 1.3 MB.
MAX_TEXT = 4 * 2**20
MAX_PROMPTS = 16 * 2**20
DEFAULT_WINDOW = 512
USUAL_ANSWER = 4096  # the default of --max-tokens
MIN_NEEDLE = 1024  # evaluation.needle.MIN_CONTEXT, which takes long to import


FILE = UserPath(dir_okay=False)


@dataclass(frozen=True)
class EvalOptions:
    """The options of `eval`, by the names of their parameters."""

    file: Path | None
    tokens: int | None
    window: int
    reference: str | None
    prompt_file: Path | None
    demo: bool
    needle: tuple[int, ...] | None
    reasoning: str
    system: str | None
    max_tokens: int
    show_wrong: bool
    form: str


@command("eval", epilog="Example: gptoss-mlx eval gpt-oss-20b --text wiki.test.raw --reference ~/models/20b-bf16")
@model_argument()
@click.option("--text", "file", type=FILE, metavar="FILE", help="Measure perplexity on this text.")
@click.option(
    "--tokens", type=click.IntRange(4), show_default="all", help="Read at most N tokens of the text.", metavar="N"
)
@click.option(
    "--window",
    type=click.IntRange(4),
    metavar="N",
    default=DEFAULT_WINDOW,
    show_default=True,
    help="Tokens of a window.",
)
@click.option(
    "--reference",
    metavar="MODEL",
    shell_complete=complete_models,
    help="Also measure the KL divergence from this reference, on the text.",
)
@click.option(
    "--prompts",
    "prompt_file",
    type=FILE,
    metavar="FILE",
    help="Measure exact matches on these prompts.",
)
@click.option("--demo", is_flag=True, help="Check the embedded model on its held-out prompts.")
@click.option("--needle", type=Numbers(MIN_NEEDLE), metavar="N[,N...]", help="Find a code in contexts of N tokens.")
@click.option(
    "--reasoning",
    type=click.Choice(["none", "low", "medium", "high"]),
    default="medium",
    show_default=True,
    help="Reasoning effort, where a prompt does not say.",
)
@click.option("--system", type=Text(), metavar="TEXT", help="Developer instructions, where a prompt has none.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    metavar="N",
    default=USUAL_ANSWER,
    show_default=True,
    help="Maximum tokens of an answer to a prompt.",
)
@click.option("--show-wrong", is_flag=True, help="List the prompts that were answered wrong.")
@pass_model_options
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="Output format."
)
def evaluate(model: str, model_options: ModelOptions, **given: Any) -> None:
    """Measure how well MODEL predicts a text and answers prompts.

    By default, the perplexity of a built-in text. The text is cut into windows, each read by itself; the second half of
    each counts, as in llama.cpp's perplexity. The same command with the same memory plan gives the same results, and
    resumes where it was interrupted: --memory fixes the plan. Without --context, the plan has room for what is asked.

    \b
    A line of --prompts:
    {"prompt": TEXT | a conversation as `harmony render` takes it,
     "answer": TEXT | {"name": TEXT, "arguments": {...}},
     "part": TEXT, if there are parts}
    {"rendered": what `harmony render` prints, "answer": ...}
    """
    options = EvalOptions(**given)
    folder = model_folder(model)
    reference = None if options.reference is None else model_folder(options.reference)
    use_threads(model_options.threads)
    chosen = _chosen(folder, options)
    context = chosen.context if model_options.context is None else model_options.context
    plan = plan_to_keep(folder, replace(model_options, context=context))
    from ..engine.interrupts import Interrupted, Interrupts
    from ..evaluation.task import Task
    from ..terminal.progress_bars import evaluation_progress

    reference_plan = None
    if reference is not None and chosen.text:
        reference_plan = plan_to_keep(reference, replace(model_options, context=chosen.text.context))
    task = Task(plan, chosen, reference_plan)
    try:
        with Interrupts() as interrupts, evaluation_progress() as show:
            task.run(interrupts.check, show)
        report = task.report()
    except Interrupted:
        _print_report(task.report(), options)
        _print_kept(task)
        raise
    except GptOssError:
        _print_kept(task)
        raise
    _print_report(report, options)
    task.remove()
    if report.held_out and (missed := [str(part.name) for part in report.held_out.parts if part.missed]):
        raise GptOssError(f"below the required share: {', '.join(missed)}")


def _print_kept(task: Task) -> None:
    if kept := " and ".join(map(str, task.kept)):
        line = f"progress is saved: the same command resumes; to discard it, remove {kept}"
        click.echo(printable(line), err=True)


def _print_report(report: EvaluationReport, options: EvalOptions) -> None:
    if options.form == "json":
        click.echo(report.as_json(options.show_wrong))
    else:
        report.print(options.show_wrong)


def _chosen(folder: Path, options: EvalOptions) -> Chosen:
    """The evaluations that the options ask for. Raises GptOssError for files that cannot be read as what they should
    be."""
    from ..engine.builtin_text import TEXT
    from ..engine.tokenizer import Tokenizer
    from ..evaluation.held_out import held_out_prompts
    from ..evaluation.needle import Needles
    from ..evaluation.prompts import Asking, Prompts, read_prompts
    from ..evaluation.task import Chosen
    from ..evaluation.text import Text
    from ..model.recognition import open_converted

    longest, tokenizer = open_converted(folder)[0].max_context, Tokenizer.load(folder)
    asking = Asking(options.reasoning, options.system)
    text = prompts = needle = None
    if options.file or options.reference is not None or not (options.prompt_file or options.demo or options.needle):
        text = Text(
            options.file.name if options.file else "the built-in text",
            _text(options.file or TEXT),
            tokenizer,
            window=options.window,
            max_tokens=options.tokens,
        )
    if file := options.prompt_file:
        read = read_prompts(_contents(file, MAX_PROMPTS).splitlines(), str(file), tokenizer, asking)
        prompts = Prompts("prompts", read, tokenizer, max_tokens=options.max_tokens)
    if options.needle:
        contexts = tuple(dict.fromkeys(options.needle))
        if max(contexts) > longest:
            raise GptOssError(f"--needle: a context of {max(contexts):,} tokens is more than the model's {longest:,}")
        needle = Needles(contexts, tokenizer, asking)
    chosen = Chosen(text, prompts, held_out_prompts(tokenizer) if options.demo else None, needle)
    for part in chosen.all:
        if part.context > longest:
            asked = f"{part.name}: a context of {part.context:,} tokens, with room for the answer,"
            raise GptOssError(f"{asked} is more than the model's {longest:,}: shorten it, or lower --max-tokens")
    return chosen


def _text(file: Path) -> str:
    """The whole text, byte for byte: line ends stay as they are."""
    try:
        return _contents(file, MAX_TEXT).decode()
    except UnicodeDecodeError:
        raise GptOssError(f"{file} is not text in UTF-8") from None


def _contents(file: Path, max_bytes: int) -> bytes:
    from ..untrusted import os_error_text, read_regular

    try:
        return read_regular(file, max_bytes)
    except (OSError, ValueError) as error:
        raise GptOssError(f"cannot read {file}: {os_error_text(error)}") from None
