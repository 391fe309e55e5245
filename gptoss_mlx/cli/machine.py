"""`plan`, `bench` and `doctor`: the commands about this machine, and what a model takes of it."""

from __future__ import annotations

import json
from typing import Any

import click

from ..completion import complete_devices
from ..errors import GptOssError
from ..models import resolve
from .loading import model_folder, plan_memory, plan_to_keep, use_threads
from .options import memory_options, model_argument, threads_option


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
    from ..budget_report import print_plan

    print_plan(made)


@click.command(epilog="Example: gptoss-mlx bench gpt-oss-20b --prompt 512 --generate 64 --depth 2048 --depth 8192")
@model_argument(default="gpt-oss-20b")
@click.option("--prompt", type=click.IntRange(1), default=128, show_default=True, help="Tokens to prefill.")
@click.option("--generate", type=click.IntRange(1), default=32, show_default=True, help="Tokens to decode.")
@click.option("--depth", "depths", type=click.IntRange(1), multiple=True, help="Also decode behind so many tokens.")
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True, help="Runs; the median counts.")
@memory_options
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def bench(
    model: str,
    prompt: int,
    generate: int,
    depths: tuple[int, ...],
    repeat: int,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure MODEL on this machine: load, time to first token, prefill, decode, memory."""
    folder = model_folder(model)
    use_threads(threads)
    plan = plan_to_keep(folder, options)
    from ..bench.measure import measure
    from ..bench.report import print_table

    figures = measure(plan, prompt=prompt, generate=generate, repeat=repeat, depths=depths)
    if as_json:
        click.echo(json.dumps(figures.as_dict(), indent=1))
    else:
        print_table(figures)


@click.command(epilog="Example: gptoss-mlx doctor --self-test")
@click.option("--self-test", is_flag=True, help="Also check that this machine computes right (some seconds).")
def doctor(self_test: bool) -> None:
    """Say what this machine gives gptoss-mlx: device, kernels, memory, versions."""
    from .. import doctor as report

    for name, value in report.facts():
        click.echo(f"{name:20}{value}")
    if not self_test:
        return
    failed = 0
    for check in report.self_test():
        failed += not check.passed
        click.echo(f"{check.name:20}{'pass' if check.passed else 'FAIL'}: {check.detail}")
    if failed:
        raise GptOssError(f"{failed} checks failed")


COMMANDS = (plan, bench, doctor)
