"""Files as a message holds them: text in UTF-8, each in a block that names it. Where they come from, others know."""

from __future__ import annotations

from contextlib import suppress

from ..errors import GptOssError, printable
from .transcript import fenced

MAX_FILE = 1_000_000  # bytes: some 250,000 tokens, twice the context of gpt-oss


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


def _block(name: str, content: str) -> str:
    without_end = content.removesuffix("\n")
    return f"File {printable(name)}:\n{fenced(without_end)}"
