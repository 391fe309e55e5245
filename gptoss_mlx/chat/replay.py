"""The ids of messages that were encoded before, found by what they say.

A client sends a conversation back as text. Where a message of it is one that the model wrote, its sampled ids stand for
it again, so that a prompt begins with what the prompt cache holds; any other is encoded once. Some clients return a
call without the reasoning before it: that is found by the call's id.
"""

from __future__ import annotations

import json
from array import array
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from ..engine.special_tokens import Special
from ..engine.tokenizer import Tokenizer
from ..harmony.messages import Message
from ..harmony.parse import is_call
from ..harmony.render import encode, render_later
from .history import HistoryEntry

T = TypeVar("T")

MAX_IDS = 4_000_000  # of 4 bytes each: 30 conversations that fill gpt-oss's context
MAX_CHARACTERS = 4_000_000


class Replay:
    """What was said lately; what was used least lately is forgotten."""

    def __init__(self, tokenizer: Tokenizer, max_ids: int = MAX_IDS, max_characters: int = MAX_CHARACTERS):
        self._tokenizer = tokenizer
        self._encoded: _Latest[array[int]] = _Latest(max_ids)
        self._written: _Latest[array[int]] = _Latest(max_ids)
        self._reasoning: _Latest[str] = _Latest(max_characters)

    def ids(self, pieces: Iterable[str]) -> Sequence[int]:
        """The ids of pieces of a prompt."""
        key = tuple((isinstance(piece, Special), piece) for piece in pieces)
        ids = self._encoded.get(key)
        if ids is None:
            ids = array("I", encode((piece for _, piece in key), self._tokenizer))
            self._encoded.put(key, ids, len(ids))
        return ids

    def entry(self, message: Message) -> HistoryEntry:
        """A message, in the ids in which the model wrote it, if it did."""
        ids = self._written.get(_key(message)) if message.role == "assistant" else None
        return HistoryEntry(message, tuple(self.ids(render_later(message)) if ids is None else ids))

    def remember(self, written: Iterable[HistoryEntry]) -> None:
        """Keep the ids that the model wrote."""
        for entry in written:
            self._written.put(_key(entry.message), array("I", entry.ids), len(entry.ids))

    def remember_reasoning(self, call_id: str, reasoning: str) -> None:
        """Keep what the model thought before it made a call."""
        self._reasoning.put(call_id, reasoning, len(reasoning))

    def reasoning_before(self, call_id: str) -> str | None:
        """What the model thought before this call; None where that is not known."""
        return self._reasoning.get(call_id)


class _Latest(Generic[T]):
    """A dictionary that forgets what was used least lately, where the sizes of its values exceed a maximum."""

    def __init__(self, maximum: int):
        self._maximum, self._total = maximum, 0
        self._values: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()

    def get(self, key: Hashable) -> T | None:
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Hashable, value: T, size: int) -> None:
        _, before = self._values.pop(key, (None, 0))
        self._values[key] = value, size
        self._total += size - before
        while self._total > self._maximum:
            _, (_, forgotten) = self._values.popitem(last=False)
            self._total -= forgotten


def _key(message: Message) -> Hashable:
    """What stays the same where a client has written a message anew: arguments are compared as JSON, texts without the
    blanks around them."""
    content = message.content.strip()
    if is_call(message):
        with suppress(ValueError, RecursionError):
            content = json.dumps(json.loads(content), sort_keys=True)
    return message.role, message.channel, message.recipient, content
