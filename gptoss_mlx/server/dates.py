"""The date in a conversation's prompt: the day on which it began, as far as this process saw it begin.

With the day of each request, every conversation would be prefilled anew after midnight, as the date stands before all
else; with the day on which the server was started, the model would be told a wrong day for as long as it runs.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import replace

from ..harmony.messages import Conversation, Message

MAX_CONVERSATIONS = 10_000


class Dates:
    """Remembers when conversations began, by what they begin with: all up to the first question."""

    def __init__(self) -> None:
        self._began: dict[bytes, str] = {}

    def dated(self, conversation: Conversation, today: str) -> Conversation:
        opening = _opening(conversation.messages)
        if all(message.role != "assistant" for message in conversation.messages):
            self._began.pop(opening, None)
            self._began[opening] = today
            if len(self._began) > MAX_CONVERSATIONS:
                del self._began[next(iter(self._began))]
        return replace(conversation, current_date=self._began.get(opening, today))


_dates = Dates()


def dated(conversation: Conversation) -> Conversation:
    """The conversation with its date."""
    return _dates.dated(conversation, datetime.date.today().isoformat())


def _opening(messages: Sequence[Message]) -> bytes:
    digest = hashlib.sha256()
    for message in messages:
        digest.update(f"{message.role} {len(message.content)} {message.content}".encode())
        if message.role == "user":
            break
    return digest.digest()
