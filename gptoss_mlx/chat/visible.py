"""Text that a person agrees to, such as a call of a tool: nothing in it hides."""

from __future__ import annotations

import re

# Unicode's Default_Ignorable_Code_Point, for which a font may show nothing at all, and the blank of Braille.
_LOOKS_EMPTY = re.compile(
    r"[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def with_all_visible(text: str) -> str:
    """Text in which nothing hides: invisible characters and unusual blanks are escaped as Python escapes them.

    A carriage return is escaped and followed by a line break: Python begins a line after it, terminals do not.
    """

    def visible(character: str) -> str:
        if character in "\n\t" or (character.isprintable() and not _LOOKS_EMPTY.match(character)):
            return character
        return character.encode("unicode_escape").decode() + "\n" * (character == "\r")

    return "".join(map(visible, text.replace("\r\n", "\n")))
