"""The exceptions that a user is meant to read: one line, what is wrong and what to do.

Much of what they tell comes from files that others wrote, so what would drive a terminal is escaped here, once.
"""

LONGEST = 1000


def printable(text: str) -> str:
    """`text` as one line that any terminal can show: control characters, line breaks and lone surrogates as Python
    escapes them, and the middle of what is longer than LONGEST left out."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class GptOssError(Exception):
    """Bad input or an unusable environment; the message is for the user and fits on one line."""

    def __init__(self, message: str):
        super().__init__(printable(message))
