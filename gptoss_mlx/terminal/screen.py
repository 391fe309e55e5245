"""Where the events of an answer appear, and the plain way to show them: for a pipe, or a terminal that redraws nothing.

What is shown was written by a model, a tool or a stranger's file, so no control character of it reaches a terminal.
Knows text and streams; knows nothing of sessions. `rich_screen` draws on a terminal.
"""

from __future__ import annotations

import sys
from typing import Protocol, TextIO

from .looks import Background
from .safe_text import call_text, shortened, thought_line, without_controls

PLAIN_WIDTH = 100  # characters of a line that is cut, if there is no window to ask for its width
RECALLED_ROWS = 16  # shown of an earlier answer, from its end


class Screen(Protocol):
    """Where the events of an answer go. Every text may hold anything."""

    show_reasoning: bool | None
    """True: in full. None: a few lines while it streams. False: only that the model thinks."""
    has_pictures: bool
    """Whether bars and curves say something here: nobody hears them, and a pipe has no use for them."""

    def use_background(self, background: Background) -> None:
        """What the terminal is found to have: colors are to be read on it from now on."""

    def prefill(self, done: int, total: int) -> None:
        """So many tokens of a prompt have been read."""

    def resume(self, text: str) -> None:
        """What follows continues an answer that has shown `text` before."""

    def begin(self) -> None:
        """What follows belongs to another message than what came before, and is set apart from it."""

    def reasoning(self, text: str) -> None: ...
    def thought(self, tokens: int, seconds: float) -> None:
        """A stretch of reasoning is over."""

    def content(self, text: str) -> None: ...
    def recall(self, text: str) -> bool:
        """Show an earlier answer, only its end if it is long. Returns whether it was cut."""

    def call(self, name: str, text: str) -> None:
        """A tool is about to do what `text` says."""

    def result(self, name: str, text: str) -> None:
        """A tool has returned `text`."""

    def note(self, text: str) -> None:
        """Show lines that are no part of the answer."""

    def clipboard(self, text: str) -> bool:
        """Ask the terminal to put a text on the clipboard. Returns False if it cannot be asked."""

    def end(self) -> None:
        """The answer is over, or was interrupted."""

    def hide(self) -> None:
        """Leave the terminal to the shell, at any moment: nothing on it that would be redrawn, and a visible cursor."""

    def show(self) -> None:
        """Draw again what was hidden."""


class PlainScreen:
    """Answers on standard output, everything else on standard error; nothing is redrawn, and no control codes."""

    has_pictures = False

    def __init__(self, *, show_reasoning: bool | None, words: bool = False):
        """`words`: begin each part with a word that says what it is, for people who hear it or see no colors."""
        self.show_reasoning, self._words = show_reasoning, words
        self._open: tuple[TextIO, str] | None = None  # the stream and the word of the line that is being written
        self._begins = False

    def use_background(self, background: Background) -> None:
        pass

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
