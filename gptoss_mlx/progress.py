"""Progress of long work: of a conversion on standard error, of a long prompt on the terminal that waits for it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

    from gptoss_convert import Progress

SHOWN_AFTER = 2.0  # seconds without a token before progress is worth a line


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


@contextmanager
def prefill_progress() -> Iterator[Callable[[int, int], None] | None]:
    """A callback that shows how far a prompt has been read; None where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    progress = PrefillProgress(Console(stderr=True))
    try:
        yield progress
    finally:
        progress.stop()


class PrefillProgress:
    """A line that tells how much of a prompt has been read, from two seconds on, and vanishes at the end."""

    def __init__(self, console: Console):
        self._console = console
        self._live: Live | None = None
        self._started, self._done, self._total = 0.0, 0, 0

    def __call__(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        if done == total:
            self.stop()
        elif self._live is None:
            from rich.live import Live

            self._started = time.monotonic()
            self._live = Live(console=self._console, get_renderable=self._line, transient=True, refresh_per_second=4)
            self._live.start()

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        if time.monotonic() - self._started < SHOWN_AFTER:
            return Group()
        return Text(f"reading {self._done} of {self._total} tokens ...", style="dim")
