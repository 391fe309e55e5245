"""`bench`: how fast a model is on this machine, beside what the machine allows, an earlier run, or another runtime."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..errors import GptOssError
from .loading import model_folder, plan_memory, plan_to_keep, use_threads
from .options import ModelOptions, model_argument, pass_model_options

if TYPE_CHECKING:
    from ..bench.figures import Figures
    from ..bench.peers import Comparison
    from ..memory.plan import MemoryPlan

FORMATS = ("table", "json", "csv", "markdown")
PEERS = ("mlx-lm", "llama.cpp")
NUMBERS = ("prompt", "generate", "depth")
SIZES = (*NUMBERS, "repeat")
NOT_MEASURED = ("baseline", "fail_below", "form", "plot", "submit", "record_routing")


class Numbers(click.ParamType):
    """Whole numbers with commas between them."""

    name = "numbers"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        whole = click.IntRange(min=0)
        return tuple(whole.convert(part.strip(), parameter, context) for part in str(value).split(","))


def numbers_option(name: str, default: str, help_: str) -> Any:
    """An option that takes numbers, and may be given several times; it arrives as one tuple, an empty list as a 0."""
    return click.option(
        name,
        type=Numbers(),
        multiple=True,
        default=[default],
        show_default=True,
        metavar="N[,N...]",
        callback=lambda context, parameter, value: tuple(dict.fromkeys(sum(value, ()))) or (0,),
        help=help_,
    )


def file_option(name: str, help_: str, *, exists: bool = False) -> Any:
    path = click.Path(path_type=Path, exists=exists, dir_okay=False)
    return click.option(name, type=path, metavar="FILE", help=help_)


@click.command(
    epilog="""\b
Examples: gptoss-mlx bench gpt-oss-20b --prompt 128,512,2048 --generate 128 --depth 0,4096,16384
          gptoss-mlx bench --random-weights gpt-oss-20b
          gptoss-mlx bench gpt-oss-20b --against llama.cpp --llama-bench ./llama-bench --gguf FILE
"""
)
@model_argument(default="gpt-oss-20b")
@click.option("--random-weights", metavar="SHAPE[:LAYERS]", help="Instead of MODEL: gpt-oss-20b or gpt-oss-120b.")
@numbers_option("--prompt", "128,512", "Tokens to prefill; 0 leaves it out.")
@numbers_option("--generate", "64", "Tokens to decode; 0 leaves it out.")
@numbers_option("--depth", "0,4096", "Tokens of context before them.")
@click.option("--repeat", type=click.IntRange(1), default=7, show_default=True, help="Runs; the median counts.")
@click.option("--start/--no-start", default=True, show_default=True, help="Measure the time to a first token.")
@click.option("--profile", is_flag=True, help="Take a step of decoding apart, behind the greatest depth.")
@file_option("--record-routing", "First write which experts a text chooses, for --replay-routing.")
@file_option("--replay-routing", "Send tokens to the experts that were recorded; where experts are paged.", exists=True)
@click.option("--against", type=click.Choice(PEERS), help="Run another runtime by turns, and compare pair by pair.")
@file_option("--llama-bench", "The program, for --against llama.cpp.")
@file_option("--gguf", "The model, for --against llama.cpp.")
@file_option("--baseline", "Compare with an earlier run, in JSON, on this machine.", exists=True)
@click.option(
    "--fail-below",
    type=click.FloatRange(min=0),
    default=0.95,
    show_default=True,
    help="Exit with 1 where a speed is below this share of the baseline's.",
)
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="Of the output.")
@file_option("--plot", "Also draw speed and memory against context: .png or .svg.")
@click.option("--submit", is_flag=True, help="Also write a report in one file, to paste into an issue.")
@pass_model_options
def bench(model: str, random_weights: str | None, model_options: ModelOptions, **options: Any) -> None:
    """Measure MODEL on this machine: start, prefill, decode and memory, each beside what the machine allows.

    Ctrl-C ends it, and what is done is printed.
    """
    context = click.get_current_context()  # not as a parameter: that name is an option's
    _check_options(context, options)
    use_threads(model_options.threads)
    with _folder(model, random_weights) as folder:
        if options["against"]:
            finished = _compare(context, folder, options)
        else:
            finished = _measure(context, folder, model_options, options)
    if not finished:
        click.echo("interrupted", err=True)
        context.exit(130)


def _check_options(context: click.Context, options: dict[str, Any]) -> None:
    """What can be known to be wrong before anything is done. Raises click.UsageError and GptOssError."""
    given = {
        name
        for name in context.params
        if context.get_parameter_source(name) not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    }
    if "model" in given and context.params["random_weights"]:
        raise click.UsageError("give MODEL or --random-weights, not both")
    for name in ("prompt", "generate"):
        options[name] = tuple(count for count in options[name] if count)
    if not options["prompt"] and not options["generate"]:
        raise click.UsageError("--prompt 0 and --generate 0 leave nothing to measure")
    llama = {"llama_bench", "gguf"}
    if options["against"] == "llama.cpp" and not all(options[name] for name in llama):
        raise click.UsageError("--against llama.cpp takes --llama-bench PATH and --gguf FILE")
    if options["against"] != "llama.cpp" and llama & given:
        raise click.UsageError("--llama-bench and --gguf are for --against llama.cpp")
    alone = {"profile", "record_routing", "replay_routing", "baseline", "plot", "submit", "start"}
    if options["against"] and (both := sorted(alone & given)):
        raise click.UsageError(f"--{both[0].replace('_', '-')} is no part of a comparison with {options['against']}")
    if options["against"] == "mlx-lm" and "depth" in given:
        raise click.UsageError("mlx-lm decodes behind its prompt only: give --prompt, and no --depth")
    if options["plot"]:
        from ..bench.plot import check_plot

        check_plot(options["plot"])


@contextmanager
def _folder(model: str, random_weights: str | None) -> Iterator[Path]:
    """The folder to measure; one of random weights is gone afterwards."""
    if random_weights is None:
        yield model_folder(model)
        return
    from gptoss_convert.random_weights import parse_shape, random_folder

    from ..terminal.progress_bars import conversion_progress

    shape = parse_shape(random_weights)
    with ExitStack() as stack:
        with conversion_progress() as show:
            folder = stack.enter_context(random_folder(shape, on_progress=show))
        yield folder


def _measure(context: click.Context, folder: Path, model_options: ModelOptions, options: dict[str, Any]) -> bool:
    """Measure and show; whether it came to its end."""
    from ..bench import baseline
    from ..bench.facts import BenchmarkSpec, facts_of, setup_of
    from ..bench.machine import describe
    from ..bench.measure import measure, record_routing
    from ..bench.routing import RoutingTrace
    from ..terminal.progress_bars import step_progress

    wanted = BenchmarkSpec(
        prompts=options["prompt"],
        generate=options["generate"],
        depths=options["depth"],
        repeat=options["repeat"],
        start=options["start"],
        profile=options["profile"],
        replay=options["replay_routing"] and RoutingTrace.load(options["replay_routing"]),
    )
    plan = _plan(folder, model_options, wanted.context)
    earlier = options["baseline"] and baseline.read_baseline(options["baseline"])
    if earlier:
        baseline.check_comparable(describe(), facts_of(folder), setup_of(plan, wanted), wanted.points, earlier)
    if options["record_routing"]:
        record_routing(plan, wanted, options["record_routing"])
    with step_progress() as show:
        figures = measure(plan, wanted, _command(context), show)
    _print_figures(figures, options["form"])
    _save_figures(figures, options)
    if earlier and figures.speeds:
        _print_changes(context, figures, earlier, options)
    return figures.finished


def _plan(folder: Path, options: ModelOptions, needed: int) -> MemoryPlan:
    """With room for what is measured, where no context is asked for. Raises GptOssError."""
    from ..model.recognition import open_converted

    if needed > (most := open_converted(folder)[0].max_context):
        raise GptOssError(
            f"{needed:,} tokens of context are needed, and this model has {most:,}:"
            " give less --depth, --prompt or --generate"
        )
    if options.context is None and plan_memory(folder, options).settings.context < needed:
        options = replace(options, context=needed)
    return plan_to_keep(folder, options)


def _command(context: click.Context) -> str:
    """What measures the same again, whatever the defaults are then."""
    words = []
    for parameter in context.command.params:
        name, value = parameter.name, context.params[parameter.name]
        is_given = context.get_parameter_source(name) != ParameterSource.DEFAULT
        if name in NOT_MEASURED or not (is_given or name in SIZES):
            continue
        if isinstance(parameter, click.Argument):
            words.append(value)
        elif parameter.is_flag:
            words += (parameter.opts if value else parameter.secondary_opts)[:1]
        else:
            words += [parameter.opts[0], ",".join(map(str, value)) if name in NUMBERS else str(value)]
    return shlex.join(["gptoss-mlx", "bench", *words])


def _print_figures(figures: Figures, form: str) -> None:
    if form == "table":
        from ..bench.report import print_table

        print_table(figures)
        return
    from ..bench import formats

    shown = {"json": formats.as_json, "csv": formats.as_csv, "markdown": formats.as_markdown}
    click.echo(shown[form](figures), nl=False)


def _save_figures(figures: Figures, options: dict[str, Any]) -> None:
    if options["plot"]:
        from ..bench.plot import save_plot

        save_plot(figures, options["plot"])
    if options["submit"]:
        from ..bench.formats import submission
        from ..files import replace_file

        path = Path(f"gptoss-mlx-bench-{figures.date[:10]}.md")
        replace_file(path, submission(figures))
        click.echo(f"the report is in {path}: paste it into an issue", err=True)


def _print_changes(context: click.Context, figures: Figures, earlier: Figures, options: dict[str, Any]) -> None:
    """Since the baseline; exits with 1 where a speed has fallen too far."""
    from rich.console import Console

    from ..bench import baseline

    changes = baseline.compare_with_baseline(figures, earlier, options["fail_below"])
    differences = baseline.setting_differences(figures.setup, earlier.setup)
    baseline.print_changes(changes, differences, Console(stderr=options["form"] != "table"))
    if figures.finished and baseline.any_below(changes):
        context.exit(1)


def _compare(context: click.Context, folder: Path, options: dict[str, Any]) -> bool:
    """Run by turns with another runtime and show; whether it came to its end."""
    from ..bench import peers
    from ..bench.figures import Grid
    from ..bench.machine import kernel_threads

    sizes = Grid(options["prompt"], options["generate"], options["depth"])
    if options["against"] == "mlx-lm":
        peer = peers.MlxLm(folder, sizes)
    else:
        peer = peers.LlamaCpp(options["llama_bench"], options["gguf"], sizes, kernel_threads())
    ours = [sys.executable, "-m", "gptoss_mlx", "bench", str(folder), "--repeat", "1", "--no-start"]
    for name in ("memory", "context", "kv_bits", "threads"):
        if context.params[name] is not None:
            ours += [f"--{name.replace('_', '-')}", str(context.params[name])]
    comparison = None
    try:
        for known in peers.compare(peer, [*ours, "--format", "json"], options["repeat"], _tell):
            comparison = known
    except KeyboardInterrupt:
        if comparison is None:
            raise
    except GptOssError:
        if comparison is not None:
            _print_comparison(comparison, options["form"])
        raise
    _print_comparison(comparison, options["form"])
    return comparison.ours.finished


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _print_comparison(comparison: Comparison, form: str) -> None:
    from ..bench import peers_report

    if form == "table":
        peers_report.print_comparison(comparison)
    elif form == "json":
        click.echo(json.dumps(comparison.as_dict(), indent=1))
    else:
        shown = {"csv": peers_report.comparison_as_csv, "markdown": peers_report.comparison_as_markdown}
        click.echo(shown[form](comparison), nl=False)


COMMANDS = (bench,)
