"""`gptoss-mlx` without a command: a chat with the model used last, or what this machine can do, and a choice.

Makes command lines of our own, and leaves running them to the command group.
"""

from __future__ import annotations

import os

import click

from ..errors import GptOssError, printable
from ..files import free_disk
from ..memory.system import size_text
from ..model import other_programs
from ..model.model_store import (
    DOWNLOAD_GB,
    converted,
    default_model,
    hub_id,
    kept_at,
    last_used,
    models_folder,
    resolve,
)
from .models import offer_to_move

CommandLine = tuple[str, ...]

NAME = "gpt-oss-20b"
# With the default recipe, in GB: the folder, the disk while it is converted (with the largest of the three files that
# it comes from), the memory for all of it and a context of 8,192 tokens, and the minimum, where experts are paged.
FOLDER_GB = 11.2
DISK_GB = 16.1
MEMORY_GB = 12.1
MIN_MEMORY_GB = 1.6

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
    for line in _machine_lines():
        click.echo(f"  {line}")
    choices = {str(number): choice for number, choice in enumerate(_choices(), 1)}
    for number, (text, _) in choices.items():
        click.echo(f"{number}  {text}")
    while (answer := _typed("a number, or q to leave: ")) not in ("", "q"):
        if answer in choices:
            _, lines = choices[answer]
            return _folder() if lines is None else lines
        click.echo(f"{printable(answer)} is not one of them")
    return []


def _machine_lines() -> tuple[str, ...]:
    """The facts that a choice depends on, in five lines."""
    from ..memory.devices import Device
    from .machine_facts import facts

    device = Device.here()
    # What does not fit on a Mac's GPU, the CPU computes.
    memory = device.memory if device.gpu is None or device.cpu_experts else min(device.memory, device.gpu)
    free = free_disk(models_folder())
    if memory >= MEMORY_GB * 1e9:
        fits = f"takes {MEMORY_GB} GB of memory: it fits"
    elif memory >= MIN_MEMORY_GB * 1e9:
        fits = f"takes {MEMORY_GB} GB of memory: with less it reads from the disk as it runs, and is slower"
    else:
        fits = f"takes {MIN_MEMORY_GB} GB of memory or more: it does not fit"
    room = f"takes {FOLDER_GB} GB of disk, and {DISK_GB} GB while it is converted"
    if free < DISK_GB * 1e9:
        room += ": not enough is free; set GPTOSS_MLX_HOME to a folder on another disk"
    return (
        f"device: {dict(facts())['device']}",
        f"memory: {size_text(memory)} available for a model",
        f"disk: {size_text(free)} free at {models_folder()}",
        f"{NAME} {fits}",
        f"{NAME} {room}",
    )


def _choices() -> list[tuple[str, list[CommandLine] | None]]:
    """The choices, each with its command lines; None where a folder has to be asked for."""
    here = converted()
    choices: list[tuple[str, list[CommandLine] | None]] = [(f"chat with {name}", [("chat", name)]) for name in here]
    for other in other_programs.models():
        text = f"chat with {printable(other.name)}, which {other.program} has on this disk"
        choices.append((text, [("chat", str(other.folder))]))
    if not any(name.partition(":")[0] == NAME for name in here):
        repository = hub_id(NAME)
        gigabytes = DOWNLOAD_GB[repository]
        time = f"{gigabytes * 8e9 / NETWORK / 60:.0f} minutes at {NETWORK / 1e6:.0f} Mbit/s"
        text = f"download {NAME} ({gigabytes} GB, {time}), convert it, and chat"
        choices.append((text, [("convert", NAME, str(kept_at(repository))), ("chat", NAME)]))
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
