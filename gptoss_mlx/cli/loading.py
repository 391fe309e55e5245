"""From the name of a model, and options, to a loaded model: what commands share that need one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import printable
from ..memory.system import size_text
from ..model.model_store import DEMO, DOWNLOAD_GB, ModelMissing, demo_folder, resolve
from .conversion import convert_demo, convert_with_progress, print_report
from .options import ModelOptions

if TYPE_CHECKING:
    from ..engine.generate import Model
    from ..memory.devices import Device
    from ..memory.estimate import ModelHeaders
    from ..memory.plan import MemoryPlan


LARGE = 10**9  # bytes: a smaller model is fast enough with MLX alone, and a copy of it does no harm


def load_model(name: str, options: ModelOptions) -> Model:
    """Find, plan and load, as the options say."""
    folder = model_folder(name)
    use_threads(options.threads)
    plan = plan_to_keep(folder, options)
    from ..engine.generate import load

    return load(folder, plan.settings)


def model_folder(name: str) -> Path:
    """Resolve a model; offer to download and convert one that is not installed, where somebody can answer. The embedded
    one is converted unasked."""
    if name == DEMO and not (os.path.lexists(name) or demo_folder().is_dir()):
        convert_demo()
    try:
        return resolve(name)
    except ModelMissing as missing:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        from .offer import offer_into, this_machine

        found = offer_into(missing.folder, missing.repository, this_machine(), missing.recipe)
        click.echo(printable(f"{missing.name} is not installed.{' Here it:' if found else ''}"), err=True)
        for line in found.lines(missing.folder) if found else ():
            click.echo(f"  {printable(line)}", err=True)
        size = DOWNLOAD_GB.get(missing.repository)
        what = f"{size} GB" if size else "it"
        if not click.confirm(printable(f"Download {what} and convert to {missing.folder}?"), err=True):
            raise
        recipe = missing.recipe if found is None else found.recipe
        print_report(convert_with_progress(missing.repository, missing.folder, recipe=recipe))
        return missing.folder


def use_threads(count: int | None) -> None:
    """No more threads than cores: they would only wait for each other."""
    if count is None:
        return
    from gptoss_convert.arrays import cores

    from ..kernels import set_threads

    if count > (maximum := cores()):
        click.echo(f"this machine has {maximum} cores: using {maximum} threads instead of {count}", err=True)
    set_threads(min(count, maximum))


def plan_to_keep(folder: Path, options: ModelOptions) -> MemoryPlan:
    """The plan, with what it gives up reported on standard error; also if a large model's files are copied that could
    be mapped, if it counts on more than there is, or if a large model will be slow for want of the kernels."""
    from ..memory.devices import Device

    plan = plan_memory(folder, options)
    advice = plan.advice if plan.copied >= LARGE else None
    for line in filter(None, (plan.compromise, advice)):
        click.echo(printable(line), err=True)
    if plan.total > (here := Device.here().memory):
        lack = f"the plan takes {size_text(plan.total)}, and this machine has {size_text(here)} available"
        click.echo(f"warning: {lack}: it may swap, or be killed", err=True)
    if sum(shard.stat().st_size for shard in folder.glob("[!.]*.safetensors")) > LARGE:
        warn_without_kernels()
    return plan


def plan_memory(model: Path | ModelHeaders, options: ModelOptions, device: Device | None = None) -> MemoryPlan:
    """The plan on `device`, by default this machine."""
    from ..memory.devices import Device
    from ..memory.plan import make_plan

    return make_plan(
        model,
        device or Device.here(),
        memory=options.memory,
        context=options.context,
        kv_bits=options.kv_bits,
    )


def warn_without_kernels() -> None:
    """Where a CPU has to do without the compiled kernels, say why, and what to do, in a line on standard error."""
    from .. import kernels
    from ..device import backend

    if backend().name == "cpu":
        slow = f"the compiled kernels are {kernels.why_not_native()}, and a CPU is many times slower without them"
        click.echo(f"warning: {slow}: {kernels.how_to_have_native()}", err=True)
