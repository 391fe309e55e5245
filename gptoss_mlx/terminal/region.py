"""The last rows of a terminal, drawn again and again in place. Knows rich; what is drawn, others know."""

from __future__ import annotations

import time

from rich.console import Console, RenderableType


class Region:
    """Rows at the end of what a terminal shows.

    Between two drawings the cursor stays at the beginning of its first row: there it is wherever a change of the
    window's size moves the rows to, and to erase them is to erase all that follows. It is hidden meanwhile.
    """

    INTERVAL = 1 / 12  # minimum seconds between two drawings
    SHARE = 4  # drawing takes at most one part in so many of the time

    def __init__(self, console: Console):
        self._console = console
        self._rows: list[str] = []  # that are drawn
        self._width = 0  # columns of the window when they were
        self._hidden = False
        self._unseen: tuple[RenderableType, int | None] | None = None  # what was to be drawn last while hidden
        self._next = 0.0

    def draw(self, content: RenderableType, max_rows: int | None = None) -> None:
        """Show the last `max_rows` rows of the content, or as many as there is room for; nothing if it is too early."""
        started = time.monotonic()
        if self._hidden:
            self._unseen = content, max_rows
        if started < self._next or self._hidden:
            return
        room = max(self._console.height - 1, 1)
        self._put(rows_of(content, self._console)[-min(max_rows or room, room) :])
        now = time.monotonic()
        self._next = now + max(self.INTERVAL, (self.SHARE - 1) * (now - started))

    def clear(self) -> None:
        self._erase()
        self._rows, self._unseen = [], None

    def hide(self) -> None:
        """Take the rows off the screen until `show`."""
        self._erase()
        self._hidden = True

    def show(self) -> None:
        """Draw what came meanwhile; or again what was hidden, unless the window has another width: the next drawing
        will fit it."""
        self._hidden = False
        rows, self._rows = self._rows, []
        unseen, self._unseen = self._unseen, None
        if unseen:
            self._next = 0.0
            self.draw(*unseen)
        elif rows and self._console.width == self._width:
            self._put(rows)

    def _put(self, rows: list[str]) -> None:
        if not self._rows:
            self._write("\x1b[?25l")
        self._rows, self._width = rows, self._console.width
        up = f"\x1b[{len(rows) - 1}A" if len(rows) > 1 else ""
        self._write("\r\x1b[J" + "\n".join(rows) + f"\r{up}")

    def _erase(self) -> None:
        if self._rows and not self._hidden:
            self._write("\r\x1b[J\x1b[?25h")

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


def rows_of(content: RenderableType, console: Console, *, crop: bool = True) -> list[str]:
    """The rows of a content as they are written, without blank ones around them, and without the blanks that fill them
    up: those would become rows of their own in a window that is made narrower. Unless they are cropped, the terminal
    itself breaks those that are wider than it."""
    with console.capture() as captured:
        console.print(content, end="", crop=crop)
    return "\n".join(row.rstrip(" ") for row in captured.get().split("\n")).strip("\n").split("\n")
