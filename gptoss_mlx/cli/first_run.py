"""`gptoss-mlx` without a command: a chat with the model used last, or what this machine can do, and a choice.

Makes command lines of our own, and leaves running them to the command group.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import click

from ..errors import GptOssError, printable
from ..files import free_disk
from ..memory.system import size_text
from ..model import other_programs
from ..model.model_store import (
    DOWNLOAD_GB,
    SHORT_NAMES,
    converted,
    default_model,
    hub_id,
    kept_at,
    last_used,
    models_folder,
    resolve,
)
from .models import offer_to_move
from .offer import Offer, offer_into, this_machine

CommandLine = tuple[str, ...]

NAME = "gpt-oss-20b"  # the model that is offered on every machine; others are where all of them stays in memory
NETWORK = 100e6  # bits per second, for an estimate of the download


def command_lines(model: str | None) -> list[CommandLine]:
    """The commands to run: the chat with `model`, if the config file names one, with the default, or with the one used
    last; else those that a person chooses in the terminal. Empty to leave."""
    offer_to_move()
    if (model := model or default_model()) is not None:
        return [("chat", model)]
    last = last_used()
    if last is None:
        click.echo("Welcome to gptoss-mlx. This machine:")
    elif os.path.isdir(last):
        click.echo(f"Chat with {printable(str(last))}, the model used last.", err=True)
        return [("chat", str(last))]
    else:
        click.echo(f"{printable(str(last))}, the model used last, is gone. This machine:")
    offers = _offers()
    for line in (*_machine_lines(), *_offer_lines(offers)):
        click.echo(f"  {line}")
    choices = {str(number): choice for number, choice in enumerate(_choices(offers), 1)}
    for number, (text, _) in choices.items():
        click.echo(f"{number}  {text}")
    while (answer := _typed("a number, or q to leave: ")) not in ("", "q"):
        if answer in choices:
            _, lines = choices[answer]
            return _folder() if lines is None else lines
        click.echo(f"{printable(answer)} is not one of them")
    return []


def _machine_lines() -> tuple[str, ...]:
    """The facts that a choice depends on."""
    from ..memory.devices import Device
    from .machine_facts import facts

    device = Device.here()
    # What does not fit on a Mac's GPU, the CPU computes.
    memory = device.memory if device.gpu is None or device.cpu_experts else min(device.memory, device.gpu)
    return (
        f"device: {dict(facts())['device']}",
        f"memory: {size_text(memory)} available for a model",
        f"disk: {size_text(free_disk(models_folder()))} free at {models_folder()}",
    )


def _offers() -> dict[str, Offer]:
    """The published models to offer, by name."""
    device, here = this_machine(), {name.partition(":")[0] for name in converted()}
    found = {name: offer_into(kept_at(hub_id(name)), hub_id(name), device) for name in SHORT_NAMES if name not in here}
    return {name: each for name, each in found.items() if each and (name == NAME or each.chosen.fits)}


def _offer_lines(offers: dict[str, Offer]) -> Iterator[str]:
    for name, each in offers.items():
        for line in each.lines(kept_at(each.repository)):
            yield f"{name} {line}"


def _choices(offers: dict[str, Offer]) -> list[tuple[str, list[CommandLine] | None]]:
    """The choices, each with its command lines; None where a folder has to be asked for."""
    choices: list[tuple[str, list[CommandLine] | None]] = [
        (f"chat with {name}", [("chat", name)]) for name in converted()
    ]
    for other in other_programs.models():
        text = f"chat with {printable(other.name)}, which {other.program} has on this disk"
        choices.append((text, [("chat", str(other.folder))]))
    for name, each in offers.items():
        gigabytes = DOWNLOAD_GB[each.repository]
        time = f"{gigabytes * 8e9 / NETWORK / 60:.0f} minutes at {NETWORK / 1e6:.0f} Mbit/s"
        text = f"download {name} ({gigabytes} GB, {time}), convert it, and chat"
        convert = ("convert", name, str(kept_at(each.repository)), "--recipe", each.recipe)
        choices.append((text, [convert, ("chat", name)]))
    choices.append(("chat with a converted model in another folder", None))
    choices.append(("see the demo, with a small model that comes with gptoss-mlx", [("demo",)]))
    return choices


def _folder() -> list[CommandLine]:
    from ..engine.generate import load

    while answer := _typed("folder of a converted model, or Enter to leave: "):
        try:
            return [("chat", str(load(resolve(answer)).path.absolute()))]
        except GptOssError as error:
            click.echo(f"error: {error}")
    return []


def _typed(prompt: str) -> str:
    """A line, without what is around it; nothing at the end of input."""
    try:
        return input(prompt).strip()
    except EOFError:
        click.echo()
        return ""
