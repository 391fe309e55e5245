"""A conversation in a file: readable JSON that goes both ways, and Markdown for people.

    {"format": "gptoss-mlx conversation 1", "model": ..., "instructions": ..., "reasoning_effort": ...,
     "current_date": ..., "unfinished": ..., "messages": [{"role": ..., "content": ..., "channel": ...,
     "recipient": ..., "content_type": ..., "ids": ...}, ...]}

`ids`, in the model's own messages, are the token ids in which it wrote them, in decimal, separated by blanks: with them
a prompt is the one that the saved KV cache was computed for. Everything else follows from the rest.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import GptOssError
from ..files import replace_file
from ..harmony.messages import Message
from ..harmony.parse import Content, Preamble, Reasoning, is_call, kind_of
from ..untrusted import os_error_text, read_regular
from .attached import fenced, words_of

FORMAT = "gptoss-mlx conversation 1"
MAX_BYTES = 256 * 2**20
MAX_ID = 10  # digits
MAX_TITLE = 60  # characters
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Transcript:
    model: str | None
    """The folder of the model that answered last."""
    instructions: str | None
    reasoning_effort: str
    current_date: str
    messages: tuple[Message, ...]
    ids: tuple[tuple[int, ...] | None, ...]
    """The ids of each message; None where it has to be rendered."""
    unfinished: bool = False
    """Whether the last answer broke off."""

    def write(self, path: Path) -> None:
        """Write it as JSON, replacing an existing file in one step. Raises GptOssError."""
        replace_file(path, self.as_json(), private=True)

    def as_json(self) -> str:
        messages = [
            {name: value for name, value in asdict(message).items() if value is not None}
            | ({} if ids is None else {"ids": " ".join(map(str, ids))})
            for message, ids in zip(self.messages, self.ids, strict=True)
        ]
        data = {
            "format": FORMAT,
            "model": self.model,
            "instructions": self.instructions,
            "reasoning_effort": self.reasoning_effort,
            "current_date": self.current_date,
            "unfinished": self.unfinished,
            "messages": messages,
        }
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> Transcript:
        """Raises GptOssError."""
        try:
            content = read_regular(path, MAX_BYTES)
        except (OSError, ValueError) as error:
            raise GptOssError(f"cannot read {path}: {os_error_text(error)}") from None
        return cls.parse(content, path)

    @classmethod
    def parse(cls, content: bytes, path: Path) -> Transcript:
        """The content of a file; `path` is named by what is raised: GptOssError."""
        try:
            data = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise GptOssError(f"{path} is not JSON: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise GptOssError(f"{path} is not a saved conversation")
        entries = data.get("messages")
        try:
            if not isinstance(entries, list):
                raise _Damaged("messages is not a list")
            return cls(
                model=_optional_text(data, "model"),
                instructions=_optional_text(data, "instructions"),
                reasoning_effort=_text(data, "reasoning_effort"),
                current_date=_text(data, "current_date"),
                messages=tuple(_message(entry, f"messages[{index}]") for index, entry in enumerate(entries)),
                ids=tuple(_ids(entry, f"messages[{index}]") for index, entry in enumerate(entries)),
                unfinished=data.get("unfinished") is True,
            )
        except _Damaged as error:
            raise GptOssError(f"{path} is damaged: {error}") from None

    @property
    def turns(self) -> int:
        """Questions that were asked."""
        return sum(message.role == "user" for message in self.messages)

    @property
    def title(self) -> str:
        """The beginning of the first question, on one line, without what is attached to it."""
        asked = [message.content[:1000] for message in self.messages if message.role == "user"]
        text = next((words for content in asked if (words := words_of(content)).strip()), asked[0] if asked else "")
        return " ".join(text[:200].split())[:MAX_TITLE].rstrip()

    def as_markdown(self) -> str:
        """The messages, with calls and results as code, and reasoning folded."""
        parts = [f"*{self.current_date}, reasoning {self.reasoning_effort}*"]
        if self.instructions is not None:
            parts.append(f"**Instructions**\n\n{self.instructions}")
        return "\n\n".join([*parts, *map(_as_markdown, self.messages)]) + "\n"


def _as_markdown(message: Message) -> str:
    if message.role == "user":
        return f"## {message.content}" if "\n" not in message.content else f"## Question\n\n{message.content}"
    if is_call(message):
        return f"Calls `{message.recipient}`:\n\n{fenced(message.content)}"
    if message.role != "assistant":
        return f"`{message.role}` answers:\n\n{fenced(message.content)}"
    if kind_of(message) is Reasoning:
        return f"<details><summary>Reasoning</summary>\n\n{message.content}\n\n</details>"
    assert kind_of(message) in (Content, Preamble)
    return message.content


class _Damaged(Exception):
    """The fault of a transcript, in words."""


def _message(entry: Any, where: str) -> Message:
    if not isinstance(entry, dict):
        raise _Damaged(f"{where} is not an object")
    optional = {name: _optional_text(entry, name, where) for name in ("channel", "recipient", "content_type")}
    return Message(_text(entry, "role", where), _text(entry, "content", where), **optional)


def _ids(entry: dict[str, Any], where: str) -> tuple[int, ...] | None:
    text = _optional_text(entry, "ids", where)
    if text is None:
        return None
    words = text.split()
    if not all(word.isascii() and word.isdecimal() and len(word) <= MAX_ID for word in words):
        raise _Damaged(f"{where}: ids are not numbers")
    return tuple(map(int, words))


def _optional_text(entry: dict[str, Any], name: str, where: str = "it") -> str | None:
    return None if entry.get(name) is None else _text(entry, name, where)


def _text(entry: dict[str, Any], name: str, where: str = "it") -> str:
    if name not in entry:
        raise _Damaged(f"{where} has no {name}")
    value = entry[name]
    if not isinstance(value, str):
        raise _Damaged(f"{where}: {name} is not text")
    if _SURROGATE.search(value):
        raise _Damaged(f"{where}: {name} holds half a character")
    return value
