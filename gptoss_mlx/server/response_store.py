"""Responses that a client may go on from by their id: kept in memory, the least recently used are dropped for new ones.

Knows their size and their age, and what each went on from; what an item says is `response_input`'s business.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

MAX_BYTES = 64 * 1024**2
MAX_RESPONSES = 4096


@dataclass(frozen=True)
class StoredResponse:
    """A response and the items that it answers, as JSON, whose size is known."""

    response: bytes
    input: bytes
    """The items of its own request."""
    previous: str | None
    """The response that it went on from."""

    @cached_property
    def size(self) -> int:
        return len(self.response) + len(self.input)

    def items(self) -> list[dict[str, Any]]:
        """What was asked, then what was answered."""
        return [*json.loads(self.input), *json.loads(self.response)["output"]]


class ResponseStore:
    """What fits into `max_bytes` and `max_responses`, by id."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_responses: int = MAX_RESPONSES):
        self._max_bytes, self._max_responses = max_bytes, max_responses
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()  # the least recently used first
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._stored)

    def add(self, id_: str, stored: StoredResponse) -> None:
        """Larger than all the room there is, it is dropped at once."""
        self._stored[id_] = stored
        self._bytes += stored.size
        while self._bytes > self._max_bytes or len(self._stored) > self._max_responses:
            self.delete(next(iter(self._stored)))

    def get(self, id_: str) -> StoredResponse | None:
        if (stored := self._stored.get(id_)) is not None:
            self._stored.move_to_end(id_)
        return stored

    def delete(self, id_: str) -> bool:
        """Whether it was there."""
        stored = self._stored.pop(id_, None)
        self._bytes -= stored.size if stored else 0
        return stored is not None

    def chain(self, id_: str) -> list[StoredResponse] | None:
        """The response with all that it went on from, the oldest first; None where one of them is gone."""
        chain: list[StoredResponse] = []
        following: str | None = id_
        while following is not None:
            if (stored := self.get(following)) is None:
                return None
            chain.append(stored)
            following = stored.previous
        return chain[::-1]

    def item(self, id_: str) -> dict[str, Any] | None:
        """The item of this id, of any response."""
        quoted = json.dumps(id_).encode()
        for stored in reversed(self._stored.values()):
            if quoted in stored.response or quoted in stored.input:
                for item in stored.items():
                    if item.get("id") == id_:
                        return item
        return None
