"""Reports of the progress of long work, for whoever shows them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WINDOW = 20.0  # seconds over which a speed is measured


@dataclass(frozen=True)
class Progress:
    stage: str
    done: int
    total: int
    """Bytes in a conversion; tokens in other work."""


OnProgress = Callable[[Progress], None]


def no_progress(progress: Progress) -> None:
    """The default: reports nothing."""


class Rate:
    """The speed of some work over its last seconds, and the time that it leaves.

    What was done before the first report counts for nothing, and while nothing is done the speed falls.
    """

    def __init__(self) -> None:
        self._reports: deque[tuple[float, int]] = deque()
        """Time and amount: the last one before the window, and those in it."""

    def report(self, now: float, done: int) -> None:
        if len(self._reports) > 1 and now - self._reports[-2][0] < WINDOW / 100:
            self._reports.pop()
        self._reports.append((now, done))
        # Of work in large steps two reports stay, however long ago they were.
        while len(self._reports) > 2 and self._reports[1][0] <= now - WINDOW:
            self._reports.popleft()

    def per_second(self, now: float | None = None) -> float | None:
        """Without `now`, as it was at the last report. None where it is not known yet, or nothing has been done for
        long."""
        (started, before), (reported, done) = self._reports[0], self._reports[-1]
        seconds = (reported if now is None else now) - started
        return (done - before) / seconds if seconds > 0 and done > before else None

    def seconds_left(self, now: float, total: int) -> float | None:
        left, speed = total - self._reports[-1][1], self.per_second(now)
        return left and (left / speed if speed else None)
