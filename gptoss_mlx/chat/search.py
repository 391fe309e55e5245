"""Full-text search over the saved sessions: which of them hold all of some words, and where.

Questions, answers and what tools returned are searched, upper and lower case alike, and the names of sessions;
reasoning is not. A file is parsed only if the words are somewhere in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import GptOssError
from ..harmony.parse import Reasoning, kind_of
from ..untrusted import read_regular
from .store import SessionEntry, Store
from .transcript import MAX_BYTES, Transcript

EXCERPT = 100  # characters
BEFORE = 20  # characters of an excerpt before the word that was found
_IDS = re.compile(r'"ids": "[\d ]*"')  # most of a file, and none of its words


@dataclass(frozen=True)
class Found:
    entry: SessionEntry
    excerpt: str
    """A line of what was said, around the first of the words."""


def search(store: Store, words: str) -> Iterator[Found]:
    """The sessions that hold all of the words, the latest first. A damaged session holds none."""
    wanted = words.casefold().split()
    for entry in store:
        try:
            content = read_regular(entry.transcript, MAX_BYTES)
            if not _may_hold(f"{entry.name}\n{content.decode()}", wanted):
                continue
            text = _said(Transcript.parse(content, entry.transcript))
        except (OSError, ValueError, GptOssError):
            continue
        folded = f"{entry.name}\n{text}".casefold()
        if all(word in folded for word in wanted):
            yield Found(entry, _excerpt(text, wanted))


def _may_hold(text: str, words: Sequence[str]) -> bool:
    """Whether JSON may hold the words: another program may have written letters as escapes."""
    if "\\u" in text:
        return True
    folded = _IDS.sub("", text).casefold()
    return all(json.dumps(word, ensure_ascii=False)[1:-1] in folded for word in words)


def _said(transcript: Transcript) -> str:
    messages = transcript.messages
    return "\n".join(m.content for m in messages if m.role != "assistant" or kind_of(m) is not Reasoning)


def _excerpt(text: str, words: Sequence[str]) -> str:
    found = re.search("|".join(map(re.escape, words)), text, re.IGNORECASE)
    start = max(found.start() - BEFORE, 0) if found else 0
    return ("... " if start else "") + " ".join(text[start : start + EXCERPT].split())
