"""Saved sessions as a numbered list, a line each, from which a person chooses."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from ..chat.search import search
from ..chat.store import SessionEntry, Store
from ..chat.transcript import Transcript
from ..errors import GptOssError
from .safe_text import cut, without_controls

NARROW = 60  # columns of a window, in which words say more than times
MAX_ROWS = 15  # of a list: more are found by their words


@dataclass(frozen=True)
class Row:
    entry: SessionEntry
    text: str
    """The words that tell the session from others."""


def latest(store: Store) -> list[Row]:
    return [Row(entry, _title(entry)) for entry in islice(store, MAX_ROWS)]


def found_by(store: Store, words: str) -> list[Row]:
    """The latest sessions that hold all of the words."""
    return [Row(found.entry, found.excerpt) for found in islice(search(store, words), MAX_ROWS)]


def lines(rows: Sequence[Row], current: str | None = None) -> Iterator[str]:
    """The list, each line as wide as the window; `current` is the name of the session that is open."""
    width = shutil.get_terminal_size().columns - 1
    for number, row in enumerate(rows, 1):
        name = f"{row.entry.name} (this one)" if row.entry.name == current else row.entry.name
        changed = "" if width < NARROW else f", {time_text(row.entry.changed)}"
        yield without_controls(cut(f"{number:>2}  {name}{changed}: {row.text}", width))
    if len(rows) == MAX_ROWS:
        yield "    older ones are found by their words"


def time_text(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _title(entry: SessionEntry) -> str:
    try:
        return Transcript.read(entry.transcript).title
    except GptOssError as error:
        return str(error)
