"""`plan`: the memory that a model takes."""

from __future__ import annotations

import json

import click

from ..model.model_store import resolve
from .completion import complete_devices
from .help import command
from .loading import plan_memory
from .options import ModelOptions, model_argument, pass_plan_options


@command(epilog="Example: gptoss-mlx plan gpt-oss-20b --memory 16GB --context 131072")
@model_argument()
@pass_plan_options
@click.option(
    "--device",
    metavar="NAME",
    show_default="this machine",
    shell_complete=complete_devices,
    help="Plan for another device, such as mac-16gb: mac-8gb to mac-128gb, iphone-12gb, android-16gb.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def plan(model: str, device: str | None, as_json: bool, model_options: ModelOptions) -> None:
    """Show how MODEL will fit into memory.

    A row for each part, and what is given up to make it fit. Reads no weights.
    """
    made = plan_memory(resolve(model), model_options, device)
    if as_json:
        click.echo(json.dumps(made.as_dict(), indent=1))
        return
    from .plan_table import print_plan

    print_plan(made)


COMMANDS = (plan,)
