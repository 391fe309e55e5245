"""Progress of long work: of its stages on standard error, of a long prompt on the terminal that waits for it.

Knows rich, which is imported when something is drawn, and terminals; what is done, others know.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from ..memory.system import size_text
from ..progress import Rate
from .job_control import restored, suspendable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

    from gptoss_convert import Progress

SHOWN_AFTER = 1.0  # seconds of work before progress is shown
LINES_APART = 10.0  # seconds between two lines about steps, where there is no terminal
BAR_WIDTH = 20  # columns: a bar and what stands beside it fit a terminal of 80


def conversion_progress() -> AbstractContextManager[Callable[[Progress], None]]:
    """A callback that shows how far each stage of a conversion has come: bytes, speed, time left."""
    return _stage_progress(size_text)


def evaluation_progress() -> AbstractContextManager[Callable[[Progress], None]]:
    """The same of an evaluation, in tokens."""
    return _stage_progress("{:,}".format, " tokens")


@contextmanager
def _stage_progress(amount: Callable[[int], str], unit: str = "") -> Iterator[Callable[[Progress], None]]:
    """`amount` says a count in words, to which `unit` belongs."""
    if not sys.stderr.isatty():
        yield _Lines(lambda count: amount(count) + unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Amounts(ProgressColumn):
        def render(self, task: Task) -> Text:
            rate = rates[task.description].per_second(None if task.finished else time.monotonic())
            speed = f", {amount(int(rate))}{unit}/s" if rate else ""
            return Text(f"{amount(int(task.completed))} of {amount(int(task.total or 0))}{unit}{speed}")

    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            left = rates[task.description].seconds_left(time.monotonic(), int(task.total or 0))
            return Text("-:--:--" if left is None else str(timedelta(seconds=round(left))), "progress.remaining")

    columns = TextColumn("{task.description}"), BarColumn(BAR_WIDTH), Amounts(), Left()
    console, tasks = Console(stderr=True), {}
    rates: dict[str, Rate] = {}
    bars = Bars(*columns, console=console, auto_refresh=False)
    with _drawn(LiveArea(console, bars.get_renderable, per_second=10)):

        def show(step: Progress) -> None:
            rates.setdefault(step.stage, Rate()).report(time.monotonic(), step.done)
            if step.stage not in tasks:
                tasks[step.stage] = bars.add_task(step.stage, total=step.total, completed=step.done)
            bars.update(tasks[step.stage], completed=step.done, total=step.total)

        yield show


class _Lines:
    """Where there is no terminal: a line every tenth of a stage, after the first second."""

    def __init__(self, amount: Callable[[int], str]) -> None:
        self._amount = amount
        self._started: dict[str, float] = {}
        self._rates: dict[str, Rate] = {}
        self._shown: dict[str, int] = {}

    def __call__(self, step: Progress) -> None:
        now = time.monotonic()
        started = self._started.setdefault(step.stage, now)
        rate = self._rates.setdefault(step.stage, Rate())
        rate.report(now, step.done)
        tenth = 10 * step.done // max(step.total, 1)
        if now - started < SHOWN_AFTER or tenth <= self._shown.get(step.stage, 0):
            return
        self._shown[step.stage] = tenth
        seconds = rate.seconds_left(now, step.total)
        left = f", {seconds:.0f} s left" if seconds else ""
        speed = self._amount(int(rate.per_second(now) or 0))
        line = f"{step.stage} {10 * tenth} % of {self._amount(step.total)}, {speed}/s{left}"
        print(line, file=sys.stderr, flush=True)


@contextmanager
def step_progress() -> Iterator[Callable[[str, float | None], None]]:
    """A callback that shows what is being done, and the seconds that are left: on a terminal at once, and erased at
    the end; elsewhere in a line every LINES_APART seconds."""
    if not sys.stderr.isatty():
        yield _TimedLines()
        return
    from rich.console import Console
    from rich.spinner import Spinner
    from rich.text import Text

    spinner = Spinner("dots", style="status.spinner")
    with _drawn(LiveArea(Console(stderr=True), lambda: spinner, per_second=2, transient=True)):
        yield lambda what, left: spinner.update(text=Text(_step_line(what, left)))


class _TimedLines:
    def __init__(self) -> None:
        self._reported = time.monotonic()

    def __call__(self, what: str, left: float | None) -> None:
        if time.monotonic() - self._reported >= LINES_APART:
            self._reported = time.monotonic()
            print(_step_line(what, left), file=sys.stderr, flush=True)


def _step_line(what: str, left: float | None) -> str:
    return what if left is None else f"{what}; about {left:,.0f} s left"


@contextmanager
def prefill_progress() -> Iterator[Callable[[int, int], None] | None]:
    """A callback that shows how far a prompt has been read; None if standard error is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    progress = PrefillProgress(Console(stderr=True))
    with suspendable(progress.hide, progress.show), restored(progress.hide):
        try:
            yield progress
        finally:
            progress.stop()


class LiveArea:
    """A picture that rich redraws from a thread of its own, and that Ctrl-Z can take off the screen."""

    def __init__(
        self, console: Console, picture: Callable[[], RenderableType], *, per_second: float, transient: bool = False
    ):
        """`transient`: it is erased at the end."""
        self.started = False
        self._console, self._picture = console, picture
        self._per_second, self._transient = per_second, transient
        self._live: Live | None = None

    def start(self) -> None:
        self.started = True
        self.show()

    def stop(self) -> None:
        self.started = False
        self.hide()

    def hide(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def show(self) -> None:
        """Draw it where the cursor is now, if it was started."""
        if self.started and self._live is None:
            from rich.live import Live

            self._live = Live(
                console=self._console,
                get_renderable=self._picture,
                transient=self._transient,
                refresh_per_second=self._per_second,
            )
            self._live.start()


@contextmanager
def _drawn(area: LiveArea) -> Iterator[None]:
    with suspendable(area.hide, area.show), restored(area.hide):
        area.start()
        try:
            yield
        finally:
            area.stop()


class PrefillProgress:
    """How far a prompt has been read, the speed, and the time left: shown after the first second, erased at the end."""

    def __init__(self, console: Console):
        self._console = console
        self._area = LiveArea(console, self._picture, per_second=4, transient=True)
        self.hide, self.show, self.stop = self._area.hide, self._area.show, self._area.stop
        self._started = self._reported = 0.0
        self._done, self._total = 0, 0

    def __call__(self, done: int, total: int) -> None:
        self._done, self._total, self._reported = done, total, time.monotonic()
        if done == total:
            self._read()
        elif not self._area.started and self._console.is_terminal:
            self._started = self._reported
            self._area.start()

    def _read(self) -> None:
        """The prompt has been read."""
        self.stop()

    def _picture(self) -> RenderableType:
        from rich.console import Group

        return Group() if time.monotonic() - self._started < SHOWN_AFTER else self._line()

    def _line(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        line = Table.grid(padding=(0, 1))
        line.add_row("reading", ProgressBar(self._total, self._done, width=BAR_WIDTH), self._numbers())
        return line

    def _numbers(self) -> str:
        counts = f"{self._done:,}/{self._total:,} tokens"
        if not self._done:  # the speed is unknown before the first chunk has been read
            return counts
        speed = self._done / max(self._reported - self._started, 1e-6)
        left = self._total / speed - (time.monotonic() - self._started)
        return f"{counts}, {speed:,.0f} tokens/s, {max(left, 0):,.0f} s left"


class AnswerProgress(PrefillProgress):
    """The same before an answer, and then that its first token is awaited, until `stop`: whoever shows something of
    the answer calls it first."""

    def __init__(self, console: Console):
        from rich.spinner import Spinner

        super().__init__(console)
        self._spinner = Spinner("line" if console.options.ascii_only else "dots", "waiting for the first token")

    def _read(self) -> None:
        """What is on the screen stays until there is something else to show."""

    def _line(self) -> RenderableType:
        return super()._line() if self._done < self._total else self._spinner
