"""From the name of a model, and options, to a loaded model: what commands share that need one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import GptOssError, printable
from ..memory.system import parse_size, size_text
from ..model.model_store import DOWNLOAD_GB, ModelMissing, resolve

if TYPE_CHECKING:
    from gptoss_convert import ConversionReport

    from ..engine.generate import Model
    from ..memory.plan import MemoryPlan


LARGE = 10**9  # bytes of a model that is slow without the kernels; a smaller one is fast enough with MLX alone


def plan_memory(folder: Path, options: dict[str, Any], device: str | None = None) -> MemoryPlan:
    from ..memory.plan import Device, make_plan

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


def plan_to_keep(folder: Path, options: dict[str, Any]) -> MemoryPlan:
    """The plan, with what it gives up told on standard error; also if it counts on more than there is, or if a large
    model will be slow for want of the kernels."""
    from ..memory.plan import Device

    plan = plan_memory(folder, options)
    if plan.compromise:
        click.echo(plan.compromise, err=True)
    if plan.total > (here := Device.here().memory):
        lack = f"{size_text(plan.total)} planned, and this machine gives {size_text(here)}"
        click.echo(f"warning: {lack}: it may swap, or be killed", err=True)
    if sum(shard.stat().st_size for shard in folder.glob("*.safetensors")) > LARGE:
        warn_without_kernels()
    return plan


def warn_without_kernels() -> None:
    """Where a CPU has to do without the compiled kernels, say why, and what to do, in a line on standard error."""
    from .. import kernels
    from ..device import backend

    if backend().name == "cpu":
        slow = f"the compiled kernels are {kernels.why_not_native()}, and a CPU is many times slower without them"
        click.echo(f"warning: {slow}: {kernels.how_to_have_native()}", err=True)


def use_threads(count: int | None) -> None:
    """No more threads than cores: they would only wait for each other."""
    if count is None:
        return
    from gptoss_convert.arrays import cores

    from ..kernels import set_threads

    if count > (most := cores()):
        click.echo(f"{count} threads are more than this machine has cores: {most} are used", err=True)
    set_threads(min(count, most))


def load_model(name: str, options: dict[str, Any]) -> Model:
    """Load as the options' plan says."""
    folder = model_folder(name)
    use_threads(options["threads"])
    plan = plan_to_keep(folder, options)
    from ..engine.generate import load

    return load(folder, plan.settings)


def model_folder(name: str) -> Path:
    """Resolve a model; offer to download and convert one that could be here, where somebody can answer."""
    try:
        return resolve(name)
    except ModelMissing as missing:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        size = DOWNLOAD_GB.get(missing.repository)
        download = f"download {size} GB" if size else "download it"
        question = (
            f"{missing.name} is not installed. {download[0].upper()}{download[1:]} and convert to {missing.folder}?"
        )
        if not click.confirm(printable(question), err=True):
            raise
        print_report(convert_with_progress(missing.repository, missing.folder))
        return missing.folder


def convert_with_progress(source: str, dest: Path, **options: Any) -> ConversionReport:
    """Convert with a progress bar, or a line every tenth where there is no terminal."""
    from gptoss_convert import convert as run
    from gptoss_convert.writer import partial_folder

    from ..terminal.progress_bars import conversion_progress

    try:
        with conversion_progress() as show:
            return run(
                source, dest, on_progress=show, on_note=lambda text: click.echo(f"note: {text}", err=True), **options
            )
    except KeyboardInterrupt:
        if (partial := partial_folder(dest)).exists():
            kept = f"what is done is kept: the same command goes on; to give it up, remove {partial}"
            click.echo(printable(kept), err=True)
        raise


def print_report(report: ConversionReport) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("recipe", "source", "converted", "bits per weight", "time", "peak memory")
    peak = report.peak_anonymous_bytes
    table.add_row(
        Text(printable(report.recipe)),
        size_text(report.source_bytes),
        size_text(report.output_bytes),
        f"{report.bits_per_weight:.2f}",
        f"{report.seconds:.1f} s",
        "not known" if peak is None else size_text(peak),
    )
    Console().print(table)
