"""The screen on a terminal that can be redrawn: colors, Markdown, and what is still arriving drawn in place.

Knows rich, and where Markdown can no longer change; Markdown itself `markdown` knows.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.text import Text

from .job_control import echo
from .looks import ATTRIBUTES, Background, Palette, background_of_environment, palette_for, theme_of
from .progress_bars import AnswerProgress
from .region import Region, rows_of
from .safe_text import call_text, shortened, thought_line, without_controls
from .screen import RECALLED_ROWS

REASONING_ROWS = 4  # shown of reasoning while it streams
MAX_THINKING = 8000  # characters from which they are taken: a paragraph has to be wrapped from its beginning
RECALLED_TEXT = 20000  # characters from which the rows of an earlier answer are taken

PLAIN_TERMINAL = "\x1b[?2004l\x1b[0m\x1b[?25h\n"  # no brackets around what is pasted, no attributes, and a cursor


class RichScreen:
    """Reasoning dim, in a few rows that fold to one; the answer as Markdown, of which the last block is redrawn."""

    has_pictures = True

    def __init__(self, *, show_reasoning: bool | None):
        self.show_reasoning = show_reasoning
        self._console = Console(highlight=False)
        self._region = Region(self._console)
        self._progress = AnswerProgress(self._console)
        self._palette = ATTRIBUTES
        self.use_background(background_of_environment())
        self._thinking = ""  # the end of the reasoning, more than is shown of it; its last line where all is shown
        self._reasons = False  # whether the last that was shown is reasoning in full
        self._block = ""  # the end of the answer, which may still change
        self._begins = False

    def use_background(self, background: Background | None) -> None:
        self._palette = palette_for(self._console, background)
        self._console.push_theme(theme_of(self._palette))

    def prefill(self, done: int, total: int) -> None:
        echo(False)  # what is typed now waits for the next prompt unseen, and moves nothing that is drawn
        self._region.clear()
        self._progress(done, total)

    def resume(self, text: str) -> None:
        self._block = finished_blocks(text)[1]

    def begin(self) -> None:
        self._begins = True

    def reasoning(self, text: str) -> None:
        self._progress.stop()
        self._finish_block()
        if self._begins and (self._reasons or self._thinking):
            text = f"\n\n{text}"
        self._begins = False
        if self.show_reasoning:
            self._reasons = True
            *lines, self._thinking = f"{self._thinking}{text}".split("\n")
            if lines:
                self._print_reasoning("\n".join(lines))
            if self._thinking.strip():
                self._region.draw(_text(self._thinking))
            return
        self._thinking = (self._thinking + text)[-MAX_THINKING:]
        shown = "\n".join(self._thinking.split("\n")[-REASONING_ROWS:])
        self._region.draw(_text("thinking ..." if self.show_reasoning is False else shown), REASONING_ROWS)

    def thought(self, tokens: int, seconds: float) -> None:
        self.note(thought_line(tokens, seconds))

    def content(self, text: str) -> None:
        self._progress.stop()
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
            self._region.draw(_Markdown(self._block, self._palette, fold_code=True))

    def recall(self, text: str) -> bool:
        rows = rows_of(_Markdown(text[-RECALLED_TEXT:], self._palette), self._console, crop=False)
        is_cut = len(rows) > RECALLED_ROWS or len(text) > RECALLED_TEXT
        self._write("...\n" * is_cut + "\n".join(rows[-RECALLED_ROWS:]) + "\n\n")
        return is_cut

    def call(self, name: str, text: str) -> None:
        self._close()
        # The terminal itself breaks what is wider than it, so that it can be copied as it is.
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
        self._close()
        echo(True)

    def hide(self) -> None:
        self._progress.hide()
        if self._reasons and self._thinking:  # reasoning that is shown in full stays
            thinking, self._thinking = self._thinking, ""
            self._print_reasoning(thinking)
        self._region.hide()
        self._write(PLAIN_TERMINAL)

    def show(self) -> None:
        self._region.show()
        self._progress.show()

    def _close(self) -> None:
        """Leave nothing that would be redrawn, and the cursor at the beginning of a line."""
        self._progress.stop()
        self._fold()
        self._finish_block()

    def _fold(self) -> None:
        if self._reasons and self._thinking:
            self._print_reasoning(self._thinking)
        elif self._thinking:
            self._region.clear()
        self._thinking, self._reasons = "", False

    def _print_reasoning(self, text: str) -> None:
        self._region.clear()
        self._console.print(_text(text))

    def _finish_block(self) -> None:
        if self._block.strip():
            self._print_markdown(self._block)
        self._block = ""

    def _print_markdown(self, text: str) -> None:
        self._region.clear()
        rows = rows_of(_Markdown(text, self._palette), self._console, crop=False)
        self._write("\n".join(rows) + "\n\n")

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


class _Markdown:
    """Text as Markdown, whose links open nothing."""

    def __init__(self, text: str, palette: Palette, *, fold_code: bool = False):
        self._text, self._palette, self._fold_code = text, palette, fold_code

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        from .markdown import Markdown  # a tenth of a second, which the first prompt need not wait for

        markdown = Markdown(without_controls(self._text), self._palette, fold_code=self._fold_code)
        for segment in console.render(markdown, options):
            yield segment if segment.control else Segment(without_controls(segment.text), segment.style)


def _text(text: str, style: str = "muted") -> Text:
    return Text(without_controls(text), style)


def _ends_beside_blank(text: str) -> bool:
    """Whether the last line is complete, and is blank or follows a blank one: blocks end nowhere else."""
    *_, before, last, rest = f"\n\n{text[-2000:]}".rsplit("\n", 3)
    return not rest and not (before.strip() and last.strip())


_FENCE = re.compile(r" {0,3}(?:(`{3,})[^`]*|(~{3,}).*)$", re.DOTALL)
_ITEM = re.compile(r" {0,3}([-+*]|\d{1,9}[.)])\s")


def finished_blocks(text: str) -> tuple[str, str]:
    """Markdown split where it can no longer change: after the last blank line outside a code fence, unless that may
    still be within a list or indented code, which end at a line without an indent."""
    cut = position = 0
    fence, goes_on, after_blank = "", False, True
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        is_blank, is_item, is_indented = not line.strip(), bool(_ITEM.match(line)), line[0] in " \t"
        if fence:
            fence = "" if line.strip().strip(fence[0]) == "" and line.strip().startswith(fence) else fence
        elif is_blank:
            if line.endswith("\n") and not goes_on:
                cut = position + len(line)
        else:
            if goes_on and after_blank and line.endswith("\n") and not is_indented and not is_item:
                cut, goes_on = position, False
            goes_on = goes_on or is_item or (is_indented and after_blank)
            opening = _FENCE.match(line)
            fence = (opening[1] or opening[2]) if opening else ""
        after_blank, position = is_blank, position + len(line)
    return text[:cut], text[cut:]
