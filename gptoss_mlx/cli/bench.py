"""`bench`: how fast a model is on this machine, beside what the machine allows, an earlier run, or another runtime."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..errors import GptOssError
from .help import command
from .loading import model_folder, plan_memory, plan_to_keep, use_threads
from .options import ModelOptions, Numbers, UserPath, model_argument, pass_model_options

if TYPE_CHECKING:
    from ..bench.comparison import Comparison
    from ..bench.peers import Peer
    from ..bench.results import Results
    from ..memory.plan import MemoryPlan

FORMATS = ("table", "json", "csv", "markdown")
PEERS = ("mlx-lm", "llama.cpp")
NUMBERS = ("prompt", "generate", "depth")
SIZES = (*NUMBERS, "repeat")
NOT_MEASURED = ("baseline", "fail_below", "form", "plot", "submit", "record_routing")
ALONE = {"profile", "record_routing", "replay_routing", "baseline", "plot", "submit", "start"}  # not with --against


@dataclass(frozen=True)
class BenchOptions:
    """The options of `bench`, by their names on the command line."""

    random_weights: str | None
    prompt: tuple[int, ...]
    generate: tuple[int, ...]
    depth: tuple[int, ...]
    repeat: int
    start: bool
    profile: bool
    record_routing: Path | None
    replay_routing: Path | None
    against: str | None
    llama_bench: Path | None
    gguf: Path | None
    baseline: Path | None
    fail_below: float
    form: str
    plot: Path | None
    submit: bool


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
    path = UserPath(exists=exists, dir_okay=False)
    return click.option(name, type=path, metavar="FILE", help=help_)


@command(
    epilog="""\b
Examples: gptoss-mlx bench gpt-oss-20b --prompt 128,512,2048 --generate 128 --depth 0,4096,16384
          gptoss-mlx bench --random-weights gpt-oss-20b
          gptoss-mlx bench gpt-oss-20b --against llama.cpp --llama-bench ./llama-bench --gguf FILE
"""
)
@model_argument(default="gpt-oss-20b")
@click.option(
    "--random-weights",
    metavar="SHAPE[:LAYERS]",
    help="Measure random weights of a published model's shape: gpt-oss-20b or gpt-oss-120b.",
)
@numbers_option("--prompt", "128,512", "Numbers of tokens to prefill; 0 for none.")
@numbers_option("--generate", "64", "Numbers of tokens to decode; 0 for none.")
@numbers_option("--depth", "0,4096", "Tokens of context that come before.")
@click.option(
    "--repeat",
    type=click.IntRange(1),
    metavar="N",
    default=7,
    show_default=True,
    help="Runs of each; the median counts.",
)
@click.option("--start/--no-start", default=True, show_default=True, help="Measure the time to a first token.")
@click.option("--profile", is_flag=True, help="Time each stage of a decoding step, at the greatest depth.")
@file_option("--record-routing", "First record which experts a text chooses, for --replay-routing.")
@file_option("--replay-routing", "Send tokens to the recorded experts, where experts are paged.", exists=True)
@click.option("--against", type=click.Choice(PEERS), help="Run another runtime by turns with this one, and compare.")
@file_option("--llama-bench", "The path of llama-bench, for --against llama.cpp.")
@file_option("--gguf", "The path of the model, for --against llama.cpp.")
@file_option("--baseline", "Compare with the JSON of an earlier run on this machine.", exists=True)
@click.option(
    "--fail-below",
    type=click.FloatRange(min=0),
    metavar="X",
    default=0.95,
    show_default=True,
    help="Exit with status 1 if a speed is below this share of the baseline's.",
)
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="Output format.")
@file_option("--plot", "Also draw speed and memory against context length: .png or .svg.")
@click.option("--submit", is_flag=True, help="Also write a report to paste into an issue.")
@pass_model_options
def bench(model: str, model_options: ModelOptions, **given: Any) -> None:
    """Measure the speed and memory of MODEL on this machine.

    Reports start, prefill, decode and memory, each beside what the machine allows. Ctrl-C ends it and prints what is
    done.
    """
    context = click.get_current_context()  # not as a parameter: that name is an option's
    options = BenchOptions(
        **given | {name: tuple(count for count in given[name] if count) for name in ("prompt", "generate")}
    )
    _check_options(context, options)
    use_threads(model_options.threads)
    with _folder(model, options.random_weights) as folder:
        if options.against:
            finished = _compare(context, folder, options)
        else:
            finished = _measure(context, folder, options, model_options)
    if not finished:
        click.echo("interrupted", err=True)
        context.exit(130)


def _check_options(context: click.Context, options: BenchOptions) -> None:
    """Refuse what can be known to be wrong before anything is done. Raises click.UsageError and GptOssError."""
    given = {
        name
        for name in context.params
        if context.get_parameter_source(name) not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    }
    if "model" in given and options.random_weights:
        raise click.UsageError("give MODEL or --random-weights, not both")
    if not options.prompt and not options.generate:
        raise click.UsageError("--prompt 0 and --generate 0 leave nothing to measure")
    if options.against == "llama.cpp" and not (options.llama_bench and options.gguf):
        raise click.UsageError("--against llama.cpp takes --llama-bench PATH and --gguf FILE")
    if options.against != "llama.cpp" and {"llama_bench", "gguf"} & given:
        raise click.UsageError("--llama-bench and --gguf are for --against llama.cpp")
    if options.against and (both := sorted(ALONE & given)):
        raise click.UsageError(f"--{both[0].replace('_', '-')} is no part of a comparison with {options.against}")
    if options.against == "mlx-lm" and "depth" in given:
        raise click.UsageError("mlx-lm decodes after its prompt only: give --prompt, and no --depth")
    if options.plot:
        from ..bench.plot import check_plot

        check_plot(options.plot)


@contextmanager
def _folder(model: str, random_weights: str | None) -> Iterator[Path]:
    """The folder to measure; random weights are removed afterwards."""
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


def _measure(context: click.Context, folder: Path, options: BenchOptions, model_options: ModelOptions) -> bool:
    """Measure and print; return whether it came to its end."""
    from ..bench import baseline
    from ..bench.facts import BenchmarkSpec, facts_of, setup_of
    from ..bench.machine import describe
    from ..bench.measure import measure, record_routing
    from ..bench.routing import RoutingTrace
    from ..memory.estimate import MemoryEstimate
    from ..terminal.progress_bars import step_progress

    spec = BenchmarkSpec(
        prompt=options.prompt,
        generate=options.generate,
        depth=options.depth,
        repeat=options.repeat,
        start=options.start,
        profile=options.profile,
        replay=RoutingTrace.load(options.replay_routing) if options.replay_routing else None,
    )
    plan = _plan(folder, model_options, spec.context)
    earlier = baseline.read_baseline(options.baseline) if options.baseline else None
    if earlier:
        model = facts_of(folder, MemoryEstimate(folder))
        baseline.check_comparable(describe(), model, setup_of(plan, spec), spec.points, earlier)
    if options.record_routing:
        record_routing(plan, spec, options.record_routing)
    with step_progress() as show:
        results = measure(plan, spec, _command(context), show)
    _print(results, options.form)
    _save_results(results, plan, options)
    if earlier and results.speeds:
        _print_changes(context, results, earlier, options)
    return results.finished


def _plan(folder: Path, options: ModelOptions, needed: int) -> MemoryPlan:
    """A plan with room for what is measured, where no context is asked for. Raises GptOssError."""
    from ..model.recognition import open_converted

    if needed > (longest := open_converted(folder)[0].max_context):
        raise GptOssError(
            f"{needed:,} tokens of context are needed, and this model has {longest:,}:"
            " give less --depth, --prompt or --generate"
        )
    if options.context is None and plan_memory(folder, options).settings.context < needed:
        options = replace(options, context=needed)
    return plan_to_keep(folder, options)


def _command(context: click.Context) -> str:
    """The command that measures the same again, whatever the defaults are then."""
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params[name]
        is_given = context.get_parameter_source(name) != ParameterSource.DEFAULT
        if name in NOT_MEASURED or not (is_given or name in SIZES):
            continue
        if isinstance(parameter, click.Argument):
            words.append(value)
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            words += (parameter.opts if value else parameter.secondary_opts)[:1]
        else:
            words += [parameter.opts[0], ",".join(map(str, value)) if name in NUMBERS else str(value)]
    return shlex.join(["gptoss-mlx", "bench", *words])


def _print(found: Results | Comparison, form: str) -> None:
    from ..bench import formats

    if form == "table":
        from ..bench.report import print_report

        print_report(formats.report_of(found))
        return
    shown = {"json": formats.as_json, "csv": formats.as_csv, "markdown": formats.as_markdown}
    click.echo(shown[form](found), nl=False)


def _save_results(results: Results, plan: MemoryPlan, options: BenchOptions) -> None:
    if options.plot:
        from ..bench.plot import save_plot

        save_plot(results, options.plot)
    if options.submit:
        from ..bench.formats import submission
        from ..files import replace_file
        from .machine_facts import as_block, details, facts, in_use

        runtime = as_block((*facts(), *details(), *in_use(plan)))
        path = Path(f"gptoss-mlx-bench-{results.date[:10]}.md")
        replace_file(path, f"{submission(results)}\n### Runtime\n\n{runtime}\n")
        click.echo(f"the report is in {path}: paste it into an issue", err=True)


def _print_changes(context: click.Context, results: Results, earlier: Results, options: BenchOptions) -> None:
    """Print what has changed since the baseline; exit with 1 where a speed has fallen too far."""
    from rich.console import Console

    from ..bench import baseline
    from ..bench.report import print_report

    changes = baseline.compare_with_baseline(results, earlier, options.fail_below)
    differences = baseline.setting_differences(results.setup, earlier.setup)
    print_report(baseline.report(changes, differences), Console(stderr=options.form != "table"))
    if results.finished and any(change.below for change in changes):
        context.exit(1)


def _compare(context: click.Context, folder: Path, options: BenchOptions) -> bool:
    """Run by turns with another runtime and print; return whether it came to its end."""
    from ..bench.comparison import compare

    ours = [sys.executable, "-m", "gptoss_mlx", "bench", str(folder), "--repeat", "1", "--no-start"]
    for name in ("memory", "context", "kv_bits", "threads"):
        if context.params[name] is not None:
            ours += [f"--{name.replace('_', '-')}", str(context.params[name])]
    show = partial(click.echo, err=True)
    comparison: Comparison | None = None
    try:
        for known in compare(_peer(folder, options), [*ours, "--format", "json"], options.repeat, show):
            comparison = known
    except KeyboardInterrupt:
        if comparison is None:
            raise
    finally:
        if comparison is not None:
            _print(comparison, options.form)
    return comparison is not None and comparison.ours.finished


def _peer(folder: Path, options: BenchOptions) -> Peer:
    from .. import device
    from ..bench.peers import LlamaCpp, MlxLm
    from ..bench.results import Grid

    sizes = Grid(options.prompt, options.generate, options.depth)
    if options.llama_bench and options.gguf:
        return LlamaCpp(options.llama_bench, options.gguf, sizes, device.runtime().threads)
    return MlxLm(folder, sizes)
