"""`plan` and `doctor`: what this machine gives, and what a model takes of it."""

from __future__ import annotations

import json
from typing import Any

import click

from ..errors import GptOssError
from ..model.model_store import resolve
from .completion import complete_devices
from .loading import plan_memory
from .options import memory_options, model_argument


@click.command(epilog="Example: gptoss-mlx plan gpt-oss-20b --memory 16GB --context 131072")
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
    made = plan_memory(resolve(model), options, device)
    if as_json:
        click.echo(json.dumps(made.as_dict(), indent=1))
        return
    from .plan_table import print_plan

    print_plan(made)


@click.command(epilog="Example: gptoss-mlx doctor --self-test")
@click.option(
    "--self-test", "as_test", is_flag=True, help="Also check that this machine computes right (some seconds)."
)
def doctor(as_test: bool) -> None:
    """Say what this machine gives gptoss-mlx: device, kernels, memory, versions."""
    from . import self_test

    for name, value in self_test.facts():
        click.echo(f"{name:20}{value}")
    if not as_test:
        return
    failed = 0
    for check in self_test.self_test():
        failed += not check.passed
        click.echo(f"{check.name:20}{'pass' if check.passed else 'FAIL'}: {check.detail}")
    if failed:
        raise GptOssError(f"{failed} checks failed")


COMMANDS = (plan, doctor)
