"""The base of all exceptions whose message is for the user: one line, what is wrong and what to do.

A message can quote files that others wrote, so characters that control a terminal are escaped here, once.
"""

from unicodedata import bidirectional

MAX_LENGTH = 1000  # characters of a message
MARKS = "\u061c\u200e\u200f"  # of writing direction


def printable(text: str) -> str:
    """`text` as one line that any terminal can show: control characters, line breaks and lone surrogates in Python's
    escapes, and without the middle if it is longer than MAX_LENGTH. Marks of direction stay in a text that is written
    from right to left, at least in part."""
    if len(text) > MAX_LENGTH:
        text = f"{text[: MAX_LENGTH // 2]} ... {text[-MAX_LENGTH // 2 :]}"
    kept = MARKS if any(bidirectional(c) in ("R", "AL") and c not in MARKS for c in text) else ""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


class GptOssError(Exception):
    """Bad input or an unusable environment; the message is for the user and fits on one line."""

    def __init__(self, message: str):
        super().__init__(printable(message))
