"""The base of all exceptions whose message is for the user: one line, what is wrong and what to do.

A message can quote files that others wrote, so characters that control a terminal are escaped here, once.
"""

MAX_LENGTH = 1000  # characters of a message


def printable(text: str) -> str:
    """`text` as one line that any terminal can show: control characters, line breaks and lone surrogates in Python's
    escapes, and without the middle if it is longer than MAX_LENGTH."""
    if len(text) > MAX_LENGTH:
        text = f"{text[: MAX_LENGTH // 2]} ... {text[-MAX_LENGTH // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class GptOssError(Exception):
    """Bad input or an unusable environment; the message is for the user and fits on one line."""

    def __init__(self, message: str):
        super().__init__(printable(message))
