"""Text for a terminal that a model, a tool or a stranger's file wrote: nothing in it steers the terminal or hides.

Also how the parts of an answer are put into a line or a few; where they appear, screens know.
"""

from __future__ import annotations

import re
import textwrap

from ..chat.visible import with_all_visible

RESULT_LINES = 4  # shown of what a tool returned

# C0 but tab and line feed, C1, the embeddings, overrides and isolates of writing direction, the separators that some
# terminals take for line ends, and lone surrogates, which cannot be written at all. The marks of direction (U+061C,
# U+200E, U+200F) stay: Hebrew and Arabic need them beside numbers and punctuation, and they turn no letters round.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def without_controls(text: str) -> str:
    """Text without the characters that would steer a terminal; line breaks and tabs stay."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


def shortened(text: str, width: int) -> str:
    """The first lines, cut to `width` characters, and how many more there are."""
    lines = text.strip("\n").split("\n")
    shown = [cut(line, width) for line in lines[:RESULT_LINES]]
    if more := len(lines) - len(shown):
        shown.append(f"... {more} more line{'s' * (more > 1)}")
    return "\n".join(shown)


def cut(line: str, width: int) -> str:
    """The line, or its beginning and three dots."""
    return line if len(line) <= width else f"{line[: width - 4]} ..."


def thought_line(tokens: int, seconds: float) -> str:
    return f"thought for {seconds:.1f} s, {tokens:,} token{'s' * (tokens != 1)}"


def call_text(name: str, text: str) -> str:
    """A call and exactly what it would do: after its name, or below it if that takes several lines."""
    name, text = with_all_visible(name), with_all_visible(text)
    return f"{name} {text}" if "\n" not in text.strip() else f"{name}:\n{textwrap.indent(text.strip(), '    ')}"
