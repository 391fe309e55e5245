"""The terminal's own background: asked with the first prompt, and heard among the keys.

Nothing waits for the answer while a person types, and however late it comes, it is no part of what is typed. Behind the
question comes another one that every terminal answers: after that, nothing more is to be expected.
Knows prompt_toolkit's input and the answers of terminals; what follows from them, others know.
"""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Callable

from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.output import Output

from .looks import Background

QUESTION = "\x1b]11;?\x1b\\\x1b[c"  # the background, and what kind of terminal it is
WAIT = 0.2  # maximum seconds, once, where a message is finished before the answer is there
MID_LUMINANCE = 0.179  # from which on black is easier to read than white

_COLOR = re.compile(r"\x1b\]11;([^\x07\x1b]{0,80})(?:\x07|\x1b\\)")
_KIND = re.compile(r"\x1b\[\?[\d;]{0,80}c")
_BEGUN = re.compile(r"\x1b(?:\](?:1(?:1(?:;[^\x07\x1b]{0,80}\x1b?)?)?)?|\[(?:\?[\d;]{0,80})?)?\Z")
_RGB = re.compile(r"rgba?:([0-9a-f]{1,4})/([0-9a-f]{1,4})/([0-9a-f]{1,4})(?:/[0-9a-f]{1,4})?", re.IGNORECASE)


class BackgroundQuestion:
    """Asks once, if somebody wants the `answer`, and takes it out of what `source` reads."""

    def __init__(self, source: Input, output: Output, answer: Callable[[Background], None] | None):
        self._source, self._output = source, output
        self._parser: _Parser | None = None
        # The console of Linux knows no such question, and has no other background than black.
        is_asked = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "linux"
        if answer and is_asked and isinstance(source, Vt100Input):
            self._parser = _Parser(source, answer)

    def ask(self) -> None:
        """Put the question before what is drawn next, so that its answer finds the terminal in the editor's hands."""
        if self._parser and not self._parser.is_asked:
            self._parser.is_asked = self._parser.is_waiting = True
            self._output.write_raw(QUESTION)

    def wait(self) -> None:
        """Leave the terminal to others only when nothing more is to be expected; what is typed meanwhile is kept."""
        if not (self._parser and self._parser.is_waiting):
            return
        end, keys = time.monotonic() + WAIT, []
        with self._source.raw_mode():
            while self._parser.is_waiting and not self._source.closed:
                if not select.select([self._source.fileno()], [], [], max(end - time.monotonic(), 0))[0]:
                    break
                keys += self._source.read_keys()
        self._parser.is_waiting = False
        store_typeahead(self._source, keys)


class _Parser(Vt100Parser):
    """The parser of an input, without the answers that are in it."""

    def __init__(self, source: Vt100Input, answer: Callable[[Background], None]):
        super().__init__(source.vt100_parser.feed_key_callback)
        source.vt100_parser = self
        self.is_asked = self.is_waiting = False
        self._answer = answer
        self._held = ""  # what may be the beginning of an answer

    def feed(self, data: str) -> None:
        data = _COLOR.sub(self._take, self._held + data)
        data, ended = _KIND.subn("", data)
        if ended:
            self.is_waiting = False
        begun = _BEGUN.search(data)
        data, self._held = (data[: begun.start()], begun[0]) if begun else (data, "")
        super().feed(data)

    def flush(self) -> None:
        """After a moment without a key: what is held is one, unless it is more than a key sends."""
        if len(self._held) <= 2:
            held, self._held = self._held, ""
            super().feed(held)
        super().flush()

    def _take(self, found: re.Match[str]) -> str:
        if background := background_of_color(found[1]):
            self._answer(background)
        return ""


def background_of_color(color: str) -> Background | None:
    """Of a color as X11 writes it, such as "rgb:ffff/ffff/ffff"."""
    if not (parts := _RGB.fullmatch(color)):
        return None
    shares = [int(part, 16) / (16 ** len(part) - 1) for part in parts.groups()]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    luminance = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "light" if luminance > MID_LUMINANCE else "dark"
