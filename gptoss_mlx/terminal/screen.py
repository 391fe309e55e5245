"""Where the events of an answer appear: a terminal that can be redrawn, one that cannot, or a pipe.

What is shown was written by a model, a tool or a stranger's file, so no control character of it reaches a terminal.
Knows text and terminals; knows nothing of sessions. Importing it is cheap: rich is loaded when a terminal is drawn on.
"""

from __future__ import annotations

import base64
import re
import sys
import termios
import textwrap
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

REASONING_ROWS = 4  # that are seen of reasoning while it streams
MAX_THINKING = 8000  # characters from which they are taken: a paragraph has to be wrapped from its beginning
RESULT_LINES = 4  # that are seen of what a tool answered
PLAIN_WIDTH = 100  # of those lines, where there is no window to ask
RECALLED_ROWS = 16  # that are seen of an earlier answer, from its end
RECALLED_TEXT = 20000  # characters of it from which they are taken

NOTHING_SPECIAL = "\x1b[?2004l\x1b[0m\x1b[?25h\n"  # no brackets around what is pasted, no looks, and a cursor

# C0 but tab and line feed, C1, the marks and overrides of writing direction, the separators that some terminals take
# for line ends, and lone surrogates, which cannot be written at all.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def without_controls(text: str) -> str:
    """Text without the characters that would steer a terminal; line breaks and tabs stay."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


# Unicode's Default_Ignorable_Code_Point, for which a font may show nothing at all, and the blank of Braille.
_LOOKS_EMPTY = re.compile(
    r"[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def with_all_visible(text: str) -> str:
    """Text in which nothing hides: what cannot be seen, and blanks other than the usual ones, as Python escapes them.

    A carriage return, behind which Python begins a line and terminals do not, is escaped and ends one.
    """

    def visible(character: str) -> str:
        if character in "\n\t" or (character.isprintable() and not _LOOKS_EMPTY.match(character)):
            return character
        return character.encode("unicode_escape").decode() + "\n" * (character == "\r")

    return "".join(map(visible, text.replace("\r\n", "\n")))


def shortened(text: str, width: int) -> str:
    """The first lines, cut to `width` characters, and how many more there are."""
    lines = text.strip("\n").split("\n")
    shown = [line if len(line) <= width else f"{line[: width - 4]} ..." for line in lines[:RESULT_LINES]]
    if more := len(lines) - len(shown):
        shown.append(f"... {more} more line{'s' * (more > 1)}")
    return "\n".join(shown)


def thought_line(tokens: int, seconds: float) -> str:
    return f"thought for {seconds:.1f} s, {tokens:,} token{'s' * (tokens != 1)}"


def call_text(name: str, text: str) -> str:
    """A call and exactly what it would do: beside its name, or below it where that takes several lines."""
    name, text = with_all_visible(name), with_all_visible(text)
    return f"{name} {text}" if "\n" not in text.strip() else f"{name}:\n{textwrap.indent(text.strip(), '    ')}"


class Screen(Protocol):
    """Where the events of an answer go. Every text may hold anything."""

    show_reasoning: bool | None
    """In full; None: as little as tells that the model thinks; False: only that."""

    def prefill(self, done: int, total: int) -> None:
        """So many tokens of a prompt have been read."""

    def resume(self, text: str) -> None:
        """More will follow of an answer that has shown `text` before."""

    def begin(self) -> None:
        """What follows is of another message than what was before, and is set apart from it."""

    def reasoning(self, text: str) -> None: ...
    def thought(self, tokens: int, seconds: float) -> None:
        """A stretch of reasoning is over."""

    def content(self, text: str) -> None: ...
    def recall(self, text: str) -> bool:
        """An earlier answer, of which only the end is shown where it is long; whether it was."""

    def call(self, name: str, text: str) -> None:
        """A tool is about to do what `text` says."""

    def result(self, name: str, text: str) -> None:
        """What a tool answered."""

    def note(self, text: str) -> None:
        """Lines that are no part of the answer."""

    def clipboard(self, text: str) -> bool:
        """Ask the terminal to put a text on the clipboard; False where it cannot be asked."""

    def end(self) -> None:
        """The answer is over, or broke off."""

    def hide(self) -> None:
        """Leave the terminal to the shell, at any moment: nothing on it that would be redrawn, and its cursor."""

    def show(self) -> None:
        """Draw again what was hidden."""


class PlainScreen:
    """Answers on standard output, all else on standard error, each thing said once, and no control codes."""

    def __init__(self, *, show_reasoning: bool | None, words: bool = False):
        """`words`: begin each thing with a word that says what it is, for those who hear it or see no colours."""
        self.show_reasoning, self._words = show_reasoning, words
        self._open: tuple[TextIO, str] | None = None  # the stream and the word of the line that is being written
        self._begins = False

    def prefill(self, done: int, total: int) -> None:
        pass

    def resume(self, text: str) -> None:
        pass

    def begin(self) -> None:
        self._begins = True

    def reasoning(self, text: str) -> None:
        if self.show_reasoning:
            self._write(sys.stderr, "reasoning", text)
        elif self._words:
            self._write(sys.stderr, "reasoning", "")

    def thought(self, tokens: int, seconds: float) -> None:
        if self._words:
            if self.show_reasoning:
                self.end()
            self._write(sys.stderr, "reasoning", thought_line(tokens, seconds))
            self.end()

    def content(self, text: str) -> None:
        self._write(sys.stdout, "answer", text)

    def recall(self, text: str) -> bool:
        lines = text.strip("\n").split("\n")
        shown = "\n".join(lines[-RECALLED_ROWS:])[-RECALLED_ROWS * PLAIN_WIDTH :]
        is_cut = len(shown) < len("\n".join(lines))
        self.content("... " * is_cut + shown.lstrip("\n"))
        self.end()
        return is_cut

    def call(self, name: str, text: str) -> None:
        self._say("tool" if self._words else "calls", call_text(name, text))

    def result(self, name: str, text: str) -> None:
        self._say("result" if self._words else f"{name} answers", shortened(text, PLAIN_WIDTH))

    def note(self, text: str) -> None:
        self.end()
        print(without_controls(text), file=sys.stderr, flush=True)

    def clipboard(self, text: str) -> bool:
        return False

    def end(self) -> None:
        if self._open is not None:
            print(file=self._open[0], flush=True)
            self._open = None

    def hide(self) -> None:
        pass

    def show(self) -> None:
        pass

    def _say(self, word: str, text: str) -> None:
        self.note(f"{word}{':' * self._words} {text}")

    def _write(self, file: TextIO, word: str, text: str) -> None:
        if self._open != (file, word):
            self.end()
            self._open = file, word
            if self._words:
                print(f"{word}: ", end="", file=file)
        elif self._begins:
            print("\n", file=file)
        self._begins = False
        print(without_controls(text), end="", file=file, flush=True)


class RichScreen:
    """Reasoning dim, in a few lines that fold to one; the answer as Markdown, of which the last block is redrawn."""

    def __init__(self, *, show_reasoning: bool | None):
        from rich.console import Console

        from .progress_bars import PrefillProgress

        self.show_reasoning = show_reasoning
        self._console = Console(highlight=False)
        self._region = Region(self._console)
        self._progress = PrefillProgress(self._console)
        self._thinking = ""  # the last of the reasoning, more than can be seen of it
        self._dim = False  # whether the cursor is behind reasoning that is shown in full
        self._block = ""  # of the answer, which may still change
        self._begins = False

    def prefill(self, done: int, total: int) -> None:
        _echo(False)  # what is typed now waits for the next prompt unseen, and moves nothing that is drawn
        self._region.clear()
        self._progress(done, total)

    def resume(self, text: str) -> None:
        self._block = finished_blocks(text)[1]

    def begin(self) -> None:
        self._begins = True

    def reasoning(self, text: str) -> None:
        self._finish_block()
        if self._begins and (self._dim or self._thinking):
            text = f"\n\n{text}"
        self._begins = False
        if self.show_reasoning:
            self._write(("" if self._dim else "\x1b[2m") + without_controls(text))
            self._dim = True
            return
        self._thinking = (self._thinking + text)[-MAX_THINKING:]
        shown = "\n".join(self._thinking.split("\n")[-REASONING_ROWS:])
        self._region.draw(_text("thinking ..." if self.show_reasoning is False else shown), REASONING_ROWS)

    def thought(self, tokens: int, seconds: float) -> None:
        self.note(thought_line(tokens, seconds))

    def content(self, text: str) -> None:
        self._fold()
        if self._begins:
            self._finish_block()
        self._begins = False
        for line in text.splitlines(keepends=True):  # so that it looks the same, however it arrives
            self._block += line
            if _ends_beside_blank(self._block):
                done, self._block = finished_blocks(self._block)
                if done.strip():
                    self._print_markdown(done)
        if self._block.strip():
            self._region.draw(_Markdown(self._block))

    def recall(self, text: str) -> bool:
        rows = rows_of(_Markdown(text[-RECALLED_TEXT:]), self._console)
        is_cut = len(rows) > RECALLED_ROWS or len(text) > RECALLED_TEXT
        self._write("...\n" * is_cut + "\n".join(rows[-RECALLED_ROWS:]) + "\n\n")
        return is_cut

    def call(self, name: str, text: str) -> None:
        self._close()
        # What is wider than the terminal is broken by the terminal, so that it can be copied as it is.
        self._console.print(_text(call_text(name, text), "bold"), soft_wrap=True)

    def result(self, name: str, text: str) -> None:
        self.note(shortened(without_controls(text).expandtabs(), self._console.width - 1))

    def note(self, text: str) -> None:
        self._close()
        self._console.print(_text(text))

    def clipboard(self, text: str) -> bool:
        encoded = base64.b64encode(text.encode(errors="replace")).decode()
        self._write(f"\x1b]52;c;{encoded}\a")
        return True

    def end(self) -> None:
        self._progress.stop()
        self._close()
        _echo(True)

    def hide(self) -> None:
        self._progress.hide()
        self._region.hide()
        self._write(NOTHING_SPECIAL)

    def show(self) -> None:
        if self._dim:
            self._write("\x1b[2m")
        self._region.show()
        self._progress.show()

    def _close(self) -> None:
        """Leave nothing that would be redrawn, and the cursor at the beginning of a line."""
        self._fold()
        self._finish_block()

    def _fold(self) -> None:
        if self._thinking:
            self._region.clear()
            self._thinking = ""
        if self._dim:
            self._write("\x1b[0m\n")
            self._dim = False

    def _finish_block(self) -> None:
        if self._block.strip():
            self._print_markdown(self._block)
        self._block = ""

    def _print_markdown(self, text: str) -> None:
        self._region.clear()
        self._write("\n".join(rows_of(_Markdown(text), self._console)) + "\n\n")

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


class Region:
    """The last rows of a terminal, drawn again and again in place.

    Between two drawings the cursor stays at the beginning of its first row: there it is wherever a change of the
    window's size moves the rows to, and to erase them is to erase all that follows. It is hidden meanwhile.
    """

    INTERVAL = 1 / 12  # seconds between two drawings, at least
    SHARE = 4  # drawing takes at most one part in so many of the time

    def __init__(self, console: Console):
        self._console = console
        self._rows: list[str] = []  # that are drawn
        self._width = 0  # of the window, when they were
        self._hidden = False
        self._next = 0.0

    def draw(self, content: RenderableType, most: int | None = None) -> None:
        """Show the last `most` rows of the content, or as many as there is room for; not if it is too early."""
        started = time.monotonic()
        if started < self._next or self._hidden:
            return
        room = max(self._console.height - 1, 1)
        self._put(rows_of(content, self._console)[-min(most or room, room) :])
        now = time.monotonic()
        self._next = now + max(self.INTERVAL, (self.SHARE - 1) * (now - started))

    def clear(self) -> None:
        self._erase()
        self._rows = []

    def hide(self) -> None:
        """Off the screen until `show`."""
        self._erase()
        self._hidden = True

    def show(self) -> None:
        """Draw again what was hidden, unless the window has another width: the next drawing will fit it."""
        self._hidden = False
        rows, self._rows = self._rows, []
        if rows and self._console.width == self._width:
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


def rows_of(content: RenderableType, console: Console) -> list[str]:
    """The rows of a content as they are written, without blank ones around them, and without the blanks that fill them
    up: those would become rows of their own in a window that is made narrower."""
    with console.capture() as captured:
        console.print(content, end="")
    return "\n".join(row.rstrip(" ") for row in captured.get().split("\n")).strip("\n").split("\n")


def _echo(on: bool) -> None:
    """Whether a terminal shows what is typed."""
    if sys.stdin.isatty():
        settings = termios.tcgetattr(sys.stdin)
        settings[3] = settings[3] | termios.ECHO if on else settings[3] & ~termios.ECHO
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)


class _Markdown:
    """Text as Markdown, whose links open nothing."""

    def __init__(self, text: str):
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        from rich.segment import Segment

        from .markdown import Markdown

        for segment in console.render(Markdown(without_controls(self._text)), options):
            yield segment if segment.control else Segment(without_controls(segment.text), segment.style)


def _text(text: str, style: str = "dim") -> Text:
    from rich.text import Text

    return Text(without_controls(text), style)


def _ends_beside_blank(text: str) -> bool:
    """Whether the last line is complete, and is blank or follows one that is: elsewhere nothing can be finished."""
    *_, before, last, rest = f"\n\n{text[-2000:]}".rsplit("\n", 3)
    return not rest and not (before.strip() and last.strip())


_FENCE = re.compile(r" {0,3}(?:(`{3,})[^`]*|(~{3,}).*)$", re.DOTALL)
_ITEM = re.compile(r" {0,3}([-+*]|\d{1,9}[.)])\s")


def finished_blocks(text: str) -> tuple[str, str]:
    """Markdown split where it can no longer change: behind the last blank line outside a code fence, unless that may
    still be within a list or indented code; this ends at a line without an indent."""
    cut = position = 0
    fence, goes_on, behind_blank = "", False, True
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        is_blank, is_item, is_indented = not line.strip(), bool(_ITEM.match(line)), line[0] in " \t"
        if fence:
            fence = "" if line.strip().strip(fence[0]) == "" and line.strip().startswith(fence) else fence
        elif is_blank:
            if line.endswith("\n") and not goes_on:
                cut = position + len(line)
        else:
            if goes_on and behind_blank and line.endswith("\n") and not is_indented and not is_item:
                cut, goes_on = position, False
            goes_on = goes_on or is_item or (is_indented and behind_blank)
            opening = _FENCE.match(line)
            fence = (opening[1] or opening[2]) if opening else ""
        behind_blank, position = is_blank, position + len(line)
    return text[:cut], text[cut:]
