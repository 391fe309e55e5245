"""Progress of long work on standard error: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptoss_convert import Progress


@contextmanager
def conversion_progress() -> Iterator[Callable[[Progress], None]]:
    """A callback that shows how far a conversion has come."""
    if not sys.stderr.isatty():
        yield _tenths()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bar = Bar(*columns, console=Console(stderr=True))
    task = bar.add_task("convert", total=None)

    def show(step: Progress) -> None:
        bar.start()  # not before the first step: a download shows progress of its own
        bar.update(task, description=step.stage, completed=step.done, total=step.total)

    try:
        yield show
    finally:
        bar.stop()


def _tenths() -> Callable[[Progress], None]:
    shown = 0

    def show(step: Progress) -> None:
        nonlocal shown
        tenth = 10 * step.done // step.total
        if tenth > shown:
            shown = tenth
            print(f"{step.stage} {10 * tenth} %", file=sys.stderr, flush=True)

    return show
