"""The events of an answer -> the items of a response, and the events of its stream in the order that clients insist on.

A response is written the same way whether it is streamed or not: the one that is not leaves its frames unread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ..chat.request import AnswerEvent, AnswerStats, Called, TokenLogprobs
from ..errors import GptOssError
from ..harmony.parse import Content, Preamble, Reasoning
from .chat_completions import finite, token_text
from .errors import RequestError
from .response_input import encrypted, text_of_custom_call
from .response_request import Asked, new_id
from .sse import frame


@dataclass(frozen=True)
class _Form:
    """How a text of the answer is written: its item, the one part of it, and the events of its text."""

    id_: str
    item: dict[str, Any]
    part: dict[str, Any]
    events: str


_PART = {"type": "output_text", "annotations": [], "logprobs": []}
_MESSAGE = {"type": "message", "role": "assistant"}
_FORMS = {
    Reasoning: _Form(
        "rs",
        {"type": "reasoning", "summary": [], "encrypted_content": None},
        {"type": "reasoning_text"},
        "response.reasoning_text",
    ),
    Preamble: _Form("msg", _MESSAGE | {"phase": "commentary"}, _PART, "response.output_text"),
    Content: _Form("msg", _MESSAGE | {"phase": "final_answer"}, _PART, "response.output_text"),
}


@dataclass
class _OpenText:
    """A text that is arriving."""

    kind: type[Reasoning | Preamble | Content]
    id_: str
    pieces: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def form(self) -> _Form:
        return _FORMS[self.kind]

    @property
    def has_logprobs(self) -> bool:
        return "logprobs" in self.form.part

    def part(self) -> dict[str, Any]:
        """As it is so far."""
        logprobs = {"logprobs": self.logprobs} if self.has_logprobs else {}
        return self.form.part | {"text": "".join(self.pieces)} | logprobs

    def item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id_, **self.form.item, "status": status, "content": content}


class ResponseWriter:
    """Writes one response; a `sse.Translator`."""

    def __init__(self, asked: Asked, on_end: Callable[[dict[str, Any]], None] | None = None):
        """The response that was asked for becomes what it is at the end, when `on_end` gets it."""
        self.response = asked.response
        self._tools, self._encrypts, self._on_end = asked.tools, asked.encrypts, on_end
        self._holds_text = asked.request.logprobs is not None
        """Whether text waits for the logprobs of its tokens."""
        self._number = 0
        self._open: _OpenText | None = None
        self._called = False
        self._waiting_text = ""
        self._waiting_logprobs: list[dict[str, Any]] = []

    def begin(self) -> Iterator[bytes]:
        yield self._frame("response.created", response=self.response)
        yield self._frame("response.in_progress", response=self.response)

    def keep_alive(self) -> Iterator[bytes]:
        yield self._frame("response.in_progress", response=self.response)

    def translate(self, event: AnswerEvent) -> Iterator[bytes]:
        if isinstance(event, Reasoning | Preamble | Content):
            yield from self._text(event)
        elif isinstance(event, TokenLogprobs):
            self._waiting_logprobs.append(_logprobs(event))
            if self._waiting_text:
                yield self._delta()
        elif isinstance(event, Called):
            yield from self._call(event)
        elif isinstance(event, AnswerStats):
            yield from self._end(event)

    def fail(self, error: GptOssError) -> Iterator[bytes]:
        """A client that has a call runs it, and would ask anew after a failure, and so run it again."""
        yield from self._close("incomplete")
        code = error.code if isinstance(error, RequestError) else None
        self.response["error"] = {"code": code or "server_error", "message": str(error)}
        if self._called:
            yield self._ended("incomplete", incomplete_details={"reason": None})
        else:
            yield self._ended("failed")

    # One item after another.

    def _text(self, event: Reasoning | Preamble | Content) -> Iterator[bytes]:
        if self._open is None or self._open.kind is not type(event) or event.begins:
            yield from self._close("completed")
            form = _FORMS[type(event)]
            self._open = _OpenText(type(event), new_id(form.id_))
            yield self._item("added", self._open.item("in_progress", []))
            yield self._in_text("response.content_part.added", part=self._open.part())
        self._waiting_text += event.text
        if not (self._holds_text and isinstance(event, Content)):
            yield self._delta()

    def _delta(self) -> bytes:
        """The text that has arrived since the last one, with the logprobs of its tokens."""
        assert self._open is not None
        text, self._waiting_text = self._waiting_text, ""
        logprobs: list[dict[str, Any]] = []
        if self._open.kind is Content:
            logprobs, self._waiting_logprobs = self._waiting_logprobs, []
        self._open.pieces.append(text)
        self._open.logprobs += logprobs
        more = {"logprobs": logprobs} if self._open.has_logprobs else {}
        return self._in_text(f"{self._open.form.events}.delta", delta=text, **more)

    def _close(self, status: str) -> Iterator[bytes]:
        """End the text that is arriving, if one is."""
        if self._open is None:
            return
        if self._waiting_text or (self._waiting_logprobs and self._open.kind is Content):
            yield self._delta()
        part = self._open.part()
        yield self._in_text(f"{self._open.form.events}.done", **{k: part[k] for k in ("text", "logprobs") if k in part})
        yield self._in_text("response.content_part.done", part=part)
        item = self._open.item(status, [part])
        if self._encrypts and "encrypted_content" in item:
            item["encrypted_content"] = encrypted(part["text"])
        self._open = None
        yield self._done(item)

    def _call(self, call: Called) -> Iterator[bytes]:
        yield from self._close("completed")
        if self._called and not self.response["parallel_tool_calls"]:
            return
        self._called = True
        tool = self._tools.called(call.name)
        if tool.custom:
            type_, id_, field_, text = "custom_tool_call", new_id("ctc"), "input", text_of_custom_call(call.arguments)
        else:
            type_, id_, field_, text = "function_call", new_id("fc"), "arguments", call.arguments
        item = {"id": id_, "type": type_, "status": "in_progress", "call_id": call.id, "name": tool.name}
        if tool.namespace is not None:
            item["namespace"] = tool.namespace
        place = {"item_id": id_, "output_index": self._index}
        events = f"response.{type_}_{field_}"
        named = {} if tool.custom else {"name": tool.name}
        yield self._item("added", item | {field_: ""})
        yield self._frame(f"{events}.delta", **place, delta=text)
        yield self._frame(f"{events}.done", **place, **named, **{field_: text})
        yield self._done(item | {"status": "completed", field_: text})

    def _end(self, stats: AnswerStats) -> Iterator[bytes]:
        broke_off = stats.reason == "length"
        yield from self._close("incomplete" if broke_off else "completed")
        self.response["usage"] = {
            "input_tokens": stats.prompt,
            "input_tokens_details": {"cached_tokens": stats.cached, "cache_write_tokens": 0},
            "output_tokens": stats.sampled,
            "output_tokens_details": {"reasoning_tokens": stats.reasoning},
            "total_tokens": stats.prompt + stats.sampled,
        }
        if broke_off:
            yield self._ended("incomplete", incomplete_details={"reason": "max_output_tokens"})
        else:
            yield self._ended("completed", completed_at=int(time.time()))

    def _ended(self, status: str, **fields: Any) -> bytes:
        """The last event. The response is kept before its client hears of it, and may go on from it at once."""
        self.response |= {"status": status, **fields}
        if self._on_end:
            self._on_end(self.response)
        return self._frame(f"response.{status}", response=self.response)

    # Frames.

    @property
    def _index(self) -> int:
        """The place of the next item, or of the one that is arriving."""
        return len(self.response["output"])

    def _in_text(self, type_: str, **fields: Any) -> bytes:
        assert self._open is not None
        return self._frame(type_, item_id=self._open.id_, output_index=self._index, content_index=0, **fields)

    def _item(self, what: str, item: dict[str, Any]) -> bytes:
        return self._frame(f"response.output_item.{what}", output_index=self._index, item=item)

    def _done(self, item: dict[str, Any]) -> bytes:
        done = self._item("done", item)
        self.response["output"].append(item)
        return done

    def _frame(self, type_: str, **fields: Any) -> bytes:
        data = {"type": type_, "sequence_number": self._number, **fields}
        self._number += 1
        return frame(msgspec.json.encode(data), type_)


def _logprobs(token: TokenLogprobs) -> dict[str, Any]:
    return _token(token.token, token.logprob) | {"top_logprobs": [_token(*entry) for entry in token.top]}


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token_text(token), "bytes": list(token), "logprob": finite(logprob)}
