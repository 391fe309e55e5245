"""Texts that end an answer where they begin in it."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from ..harmony.parse import Content


class StopTexts:
    """Ends an answer before the first of some texts: what may be the beginning of one is held back."""

    def __init__(self, texts: Sequence[str]):
        self.found: str | None = None
        """The text that was met."""
        self._texts = texts
        self._held = ""
        self._begins = False
        """Whether a message begins with what is shown next."""

    def feed(self, event: Content) -> Generator[Content, None, None]:
        """More of the answer: what of it can be shown."""
        if event.begins:
            yield from self.rest()
            self._begins = True
        text = self._held + event.text
        met = [(index, stop) for stop in self._texts if (index := text.find(stop)) >= 0]
        if met:
            end, self.found = min(met)
            self._held = ""
        else:
            end = len(text) - max((_overlap(text, stop) for stop in self._texts), default=0)
            self._held = text[end:]
        if end:
            yield self._shown(text[:end])

    def rest(self) -> Generator[Content, None, None]:
        """What was held back, and was no such text."""
        if self._held:
            yield self._shown(self._held)
        self._held = ""

    def _shown(self, text: str) -> Content:
        begins, self._begins = self._begins, False
        return Content(text, begins)


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that are the beginning of `stop`, but not all of it."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
