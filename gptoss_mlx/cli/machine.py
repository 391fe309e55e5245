"""`plan`: the memory that a model takes."""

from __future__ import annotations

import json
from dataclasses import replace

import click

from ..model.model_store import ModelMissing, resolve
from .completion import complete_devices
from .help import command
from .loading import plan_memory
from .options import ModelOptions, model_argument, pass_plan_options


@command(epilog="Example: gptoss-mlx plan gpt-oss-20b --device mac-16gb --context 131072")
@model_argument()
@pass_plan_options
@click.option(
    "--device",
    metavar="NAME",
    show_default="this machine",
    shell_complete=complete_devices,
    help="Plan for another device: mac-8gb to mac-512gb, iphone-8gb, iphone-12gb, android-12gb to android-24gb.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def plan(model: str, device: str | None, as_json: bool, model_options: ModelOptions) -> None:
    """Show how MODEL will fit into memory.

    A row for each part, what is given up to make it fit, and the decode speed to expect. Of a published model that is
    not installed, what each recipe would make of it, from its shapes: nothing is downloaded. Reads no weights.
    """
    from ..memory.devices import Device
    from ..memory.speed import decode_speeds
    from . import plan_table
    from .offer import offer, with_bandwidth

    on = Device.named(device) if device else Device.here()
    try:
        folder = resolve(model)
    except ModelMissing as missing:
        found = offer(missing.repository, on if device else with_bandwidth(on), model_options, every=True)
        if found is None:
            raise
        click.echo(json.dumps(found.as_dict(), indent=1)) if as_json else plan_table.print_offer(found)
        return
    made = plan_memory(folder, model_options, on)
    if not device:  # after all that may be refused: it takes a moment
        made = replace(made, device=with_bandwidth(made.device))
    if as_json:
        click.echo(json.dumps(made.as_dict() | {"tokens_per_second": decode_speeds(made)}, indent=1))
        return
    plan_table.print_plan(made)
