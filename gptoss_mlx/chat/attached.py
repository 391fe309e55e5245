"""What a message holds beside its words: files, each in a block that names it, and the output of a command.

Where they come from, others know.
"""

from __future__ import annotations

import re
from contextlib import suppress

from ..errors import GptOssError, printable

MAX_FILE = 1_000_000  # bytes: some 250,000 tokens, twice the context of gpt-oss
RAN = "I ran a command:\n"  # a message that begins so is no question of its own
_FILE = re.compile(r"\n\nFile [^\n]+:\n```")


def file_text(name: str, data: bytes) -> str:
    """The text of a file. Raises GptOssError for one that holds anything else."""
    with suppress(UnicodeDecodeError):
        content = data.decode("utf-8-sig")
        if "\0" not in content:
            return content.replace("\r\n", "\n")
    raise GptOssError(f"cannot attach {name}: it is not text in UTF-8")


def with_files(text: str, files: dict[str, str]) -> str:
    """A message and the files that it brings along, by their names."""
    return "\n\n".join([text, *(_block(name, content) for name, content in files.items())])


def words_of(text: str) -> str:
    """What a person has typed of a message: nothing, where it is the output of a command."""
    return "" if text.startswith(f"{RAN}```") else _FILE.split(text, maxsplit=1)[0]


def fenced(text: str) -> str:
    """A code block whose fence the text does not contain."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


def _block(name: str, content: str) -> str:
    without_end = content.removesuffix("\n")
    return f"File {printable(name)}:\n{fenced(without_end)}"
