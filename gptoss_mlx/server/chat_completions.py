"""OpenAI's chat completions: its route, its replies and their chunks.

What a request means is `chat_request`'s. Reasoning goes out under both names by which clients look for it, and a
preamble before a call is content. What comes in several messages is one text for the client, with a blank line between.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..chat.request import AnswerEvent, AnswerStats, Called, TokenLogprobs
from ..errors import GptOssError
from ..harmony.parse import Content, Preamble, Reasoning
from .bodies import read_json_body
from .chat_request import answer_request, is_legacy
from .errors import error_object
from .fields import Fields
from .service import Service
from .sse import EventStream, all_events, frame

DONE = frame(b"[DONE]")
BETWEEN_MESSAGES = "\n\n"
LOWEST_LOGPROB = -9999.0  # for minus infinity, which JSON lacks


async def create(request: Request) -> Response:
    service: Service = request.app.state.service
    fields = Fields(await read_json_body(request))
    asked = answer_request(fields, service.sampling, service.reasoning_before)
    writer = ChatWriter(
        fields.text("model") or service.model_name,
        with_usage=fields.object("stream_options").flag("include_usage"),
        with_logprobs=asked.logprobs is not None,
        legacy=is_legacy(fields),
    )
    events = service.answer(asked)
    if fields.flag("stream"):
        return EventStream(events, writer)
    return JSONResponse(writer.reply(await all_events(request, events)))


routes = [Route("/v1/chat/completions", create, methods=["POST"])]


class ChatWriter:
    """Writes one answer, as a reply or as the chunks of one."""

    def __init__(self, model: str, *, with_usage: bool, with_logprobs: bool, legacy: bool):
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._with_usage, self._with_logprobs, self._legacy = with_usage, with_logprobs, legacy
        self._begun: set[str] = set()
        self._calls = 0
        self._text: list[str] = []  # content that waits for the log probability of its last token

    def reply(self, events: Iterable[AnswerEvent]) -> dict[str, Any]:
        texts: dict[str, list[str]] = {"reasoning": [], "content": []}
        calls, logprobs = [], []
        for event in events:
            if isinstance(event, Reasoning | Preamble | Content):
                texts[_kind(event)].append(self._set_apart(event))
            elif isinstance(event, TokenLogprobs):
                logprobs.append(_logprob(event))
            elif isinstance(event, Called):
                calls.append(event)
            elif isinstance(event, AnswerStats):
                stats = event
        content, reasoning = "".join(texts["content"]), "".join(texts["reasoning"])
        message = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        if reasoning:
            message |= _reasoning(reasoning)
        if calls:
            message |= _calls(calls, self._legacy)
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": self._finish_reason(stats),
            "logprobs": {"content": logprobs, "refusal": None} if self._with_logprobs else None,
        }
        return self._head | {"object": "chat.completion", "choices": [choice], "usage": usage(stats)}

    def begin(self) -> Iterator[bytes]:
        yield self._chunk({"role": "assistant", "content": ""})

    def translate(self, event: AnswerEvent) -> Iterator[bytes]:
        if isinstance(event, Reasoning):
            yield self._chunk(_reasoning(self._set_apart(event)))
        elif isinstance(event, Preamble | Content):
            self._text.append(self._set_apart(event))
            if not self._with_logprobs:
                yield from self._held_back()
        elif isinstance(event, TokenLogprobs):
            yield from self._held_back(event)
        elif isinstance(event, Called):
            yield from self._held_back()
            yield self._chunk(_calls([event], self._legacy, self._calls, streamed=True))
            self._calls += 1
        elif isinstance(event, AnswerStats):
            yield from self._held_back()
            yield self._chunk({}, self._finish_reason(event))
            if self._with_usage:
                yield self._frame([], usage(event))
            yield DONE

    def keep_alive(self) -> Iterator[bytes]:
        yield self._chunk({})

    def fail(self, error: GptOssError) -> Iterator[bytes]:
        yield frame(error_object(error))

    def _set_apart(self, event: Reasoning | Preamble | Content) -> str:
        kind = _kind(event)
        again = event.begins and kind in self._begun
        self._begun.add(kind)
        return BETWEEN_MESSAGES + event.text if again else event.text

    def _held_back(self, token: TokenLogprobs | None = None) -> Iterator[bytes]:
        if self._text or token:
            text = "".join(self._text)
            self._text.clear()
            yield self._chunk({"content": text}, logprobs=token and {"content": [_logprob(token)], "refusal": None})

    def _finish_reason(self, stats: AnswerStats) -> str:
        return "function_call" if self._legacy and stats.reason == "tool_calls" else stats.reason

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
        return self._frame([choice])

    def _frame(self, choices: list[Any], used: dict[str, Any] | None = None) -> bytes:
        chunk = self._head | {"object": "chat.completion.chunk", "choices": choices}
        return frame(chunk | {"usage": used} if self._with_usage else chunk)


def usage(stats: AnswerStats) -> dict[str, Any]:
    return {
        "prompt_tokens": stats.prompt,
        "completion_tokens": stats.sampled,
        "total_tokens": stats.prompt + stats.sampled,
        "prompt_tokens_details": {"cached_tokens": stats.cached},
        "completion_tokens_details": {"reasoning_tokens": stats.reasoning},
    }


def finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)


def token_text(token: bytes) -> str:
    """Part of a character is shown as U+FFFD; its bytes stand beside it."""
    return token.decode(errors="replace")


def _kind(event: Reasoning | Preamble | Content) -> str:
    return "reasoning" if isinstance(event, Reasoning) else "content"


def _reasoning(text: str) -> dict[str, Any]:
    return {"reasoning": text, "reasoning_content": text}


def _calls(calls: list[Called], legacy: bool, first: int = 0, *, streamed: bool = False) -> dict[str, Any]:
    functions = [{"name": call.name, "arguments": call.arguments} for call in calls]
    if legacy:
        return {"function_call": functions[0]}
    numbered = enumerate(zip(calls, functions, strict=True), first)
    return {
        "tool_calls": [
            ({"index": i} if streamed else {}) | {"id": call.id, "type": "function", "function": function}
            for i, (call, function) in numbered
        ]
    }


def _logprob(event: TokenLogprobs) -> dict[str, Any]:
    top = [_token(token, logprob) for token, logprob in event.top]
    return _token(event.token, event.logprob) | {"top_logprobs": top}


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token_text(token), "logprob": finite(logprob), "bytes": list(token)}
