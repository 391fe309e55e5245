"""What `gptoss-mlx` does without a command: it goes on with the model used last, or says what there is and asks.

Gives command lines of our own, and runs none of them.
"""

from __future__ import annotations

import os

import click

from ..errors import GptOssError, printable
from ..files import free_disk
from ..memory.system import size_text
from ..model.model_store import DOWNLOAD_GB, SHORT_NAMES, converted, home, kept_at, last_used, resolve

CommandLine = tuple[str, ...]

NAME = "gpt-oss-20b"
# With the default recipe, in GB: the folder, the disk while it is converted (with the largest of the three files that
# it comes from), the memory for all of it and a context of 8,192 tokens, and the least, where experts are paged.
FOLDER_GB = 11.2
DISK_GB = 16.1
MEMORY_GB = 12.1
MIN_MEMORY_GB = 1.6

LINE = 100e6  # bits a second, for an estimate


def command_lines(model: str | None) -> list[CommandLine]:
    """What to run: the chat with `model`, if the settings name one, or with the one used last; else what a person
    chooses in the terminal. Empty to leave."""
    if model is not None:
        return [("chat", model)]
    last = last_used()
    if last is None:
        click.echo("Welcome to gptoss-mlx. This machine, and what it can do:")
    elif os.path.isdir(last):
        click.echo(f"chat with {printable(str(last))}, the model used last", err=True)
        return [("chat", str(last))]
    else:
        click.echo(f"{printable(str(last))}, the model used last, is gone. This machine, and what it can do:")
    for line in _found():
        click.echo(f"  {line}")
    choices = {str(number): choice for number, choice in enumerate(_choices(), 1)}
    for number, (text, _) in choices.items():
        click.echo(f"{number}  {text}")
    while (answer := _typed("a number, or q to leave: ")) not in ("", "q"):
        if answer in choices:
            _, lines = choices[answer]
            return _folder() if lines is None else lines
        click.echo(f"{printable(answer)} is not among them")
    return []


def _found() -> tuple[str, ...]:
    """What a person has to know to choose, in five lines."""
    from ..memory.plan import Device
    from .self_test import facts

    device = Device.here()
    memory = device.memory if device.gpu is None else min(device.memory, device.gpu)
    free = free_disk(home())
    if memory >= MEMORY_GB * 1e9:
        fits = f"takes {MEMORY_GB} GB of memory: all of it fits"
    elif memory >= MIN_MEMORY_GB * 1e9:
        fits = f"takes {MEMORY_GB} GB of memory: in less it runs slower, and reads from the disk as it goes"
    else:
        fits = f"does not fit: it takes {MIN_MEMORY_GB} GB of memory at the least"
    room = f"takes {DISK_GB} GB of disk to convert, {FOLDER_GB} GB to keep"
    if free < DISK_GB * 1e9:
        room += ": there is less; GPTOSS_MLX_HOME can name a folder on another disk"
    return (
        f"device: {dict(facts())['device']}",
        f"memory: {size_text(memory)} for a model",
        f"disk: {size_text(free)} free for {home()}",
        f"{NAME} {fits}",
        f"{NAME} {room}",
    )


def _choices() -> list[tuple[str, list[CommandLine] | None]]:
    """What can be done, and its command lines; None where a folder has to be asked for."""
    here = converted()
    choices: list[tuple[str, list[CommandLine] | None]] = [(f"chat with {name}", [("chat", name)]) for name in here]
    if NAME not in here:
        repository = SHORT_NAMES[NAME]
        gigabytes = DOWNLOAD_GB[repository]
        time = f"{gigabytes * 8e9 / LINE / 60:.0f} minutes at {LINE / 1e6:.0f} Mbit/s"
        text = f"download {NAME} ({gigabytes} GB, {time}), convert it, and chat"
        choices.append((text, [("convert", NAME, str(kept_at(repository))), ("chat", NAME)]))
    choices.append(("chat with a model in a folder of yours", None))
    choices.append(("see the demo: a small model that comes with this program, ready in a second", [("demo",)]))
    return choices


def _folder() -> list[CommandLine]:
    from ..engine.generate import load

    while answer := _typed("folder of a converted model, or nothing to leave: "):
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
