"""OpenAI's completions: what the model writes after a bare prompt, without any markup of a conversation."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..chat.request import AnswerEvent, AnswerRequest, AnswerStats, TokenLogprobs
from ..engine.sampling import Sampling
from ..errors import GptOssError
from ..harmony.messages import Conversation
from ..harmony.parse import Content
from .bodies import read_json_body
from .chat_completions import DONE, finite, token_text, usage
from .chat_request import MAX_TOP_LOGPROBS, cache_key, max_tokens
from .errors import error_object
from .fields import Fields
from .service import Service
from .sse import EventStream, all_events, frame

DEFAULT_MAX_TOKENS = 16  # OpenAI's, which clients know
NEUTRAL: Mapping[str, Any] = {"n": 1, "best_of": 1, "suffix": "", "echo": False}


async def create(request: Request) -> Response:
    service: Service = request.app.state.service
    fields = Fields(await read_json_body(request))
    asked = completion_request(fields, service.sampling)
    writer = CompletionWriter(
        fields.text("model") or service.model_name,
        with_usage=fields.object("stream_options").flag("include_usage"),
        with_logprobs=asked.logprobs is not None,
    )
    events = service.complete(prompt(fields), asked)
    if fields.flag("stream"):
        return EventStream(events, writer)
    return JSONResponse(writer.reply(await all_events(request, events)))


routes = [Route("/v1/completions", create, methods=["POST"])]


def completion_request(fields: Fields, defaults: Sampling) -> AnswerRequest:
    """Raises RequestError, which names the field that is wrong."""
    fields.only_neutral(NEUTRAL)
    absent = not fields.has("max_tokens") and not fields.has("max_completion_tokens")
    return AnswerRequest(
        conversation=Conversation(),
        sampling=fields.sampling(defaults),
        max_tokens=DEFAULT_MAX_TOKENS if absent else max_tokens(fields),
        stop=fields.texts("stop"),
        logprobs=fields.integer("logprobs", 0, MAX_TOP_LOGPROBS),
        cache_key=cache_key(fields),
    )


def prompt(fields: Fields) -> str | list[int]:
    """A text or token ids, also as the only one of a list."""
    value = fields.data.get("prompt")
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        if len(value) > 1:
            raise fields.wrong("prompt", f"is a list of {len(value)} prompts: one request is answered once")
        value = value[0]
    if not value:
        raise fields.wrong("prompt", "is missing" if value is None else "is empty")
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(type(id_) is int and 0 <= id_ < 2**31 for id_ in value):
        raise fields.wrong("prompt", "is neither a string nor a list of token ids")
    return value


class CompletionWriter:
    """Writes one completion, as a reply or as the chunks of one."""

    def __init__(self, model: str, *, with_usage: bool, with_logprobs: bool):
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._with_usage, self._with_logprobs = with_usage, with_logprobs
        self._text: list[str] = []  # what waits for the log probability of its last token
        self._offset = 0

    def reply(self, events: Iterable[AnswerEvent]) -> dict[str, Any]:
        text, tokens = "", []
        for event in events:
            if isinstance(event, Content):
                text += event.text
            elif isinstance(event, TokenLogprobs):
                tokens.append(event)
            elif isinstance(event, AnswerStats):
                stats = event
        choice = self._choice(text, stats.reason, self._logprobs(tokens))
        return self._head | {"choices": [choice], "usage": usage(stats)}

    def begin(self) -> Iterator[bytes]:
        return iter(())

    def translate(self, event: AnswerEvent) -> Iterator[bytes]:
        if isinstance(event, Content):
            self._text.append(event.text)
            if not self._with_logprobs:
                yield self._chunk()
        elif isinstance(event, TokenLogprobs):
            yield self._chunk([event])
        elif isinstance(event, AnswerStats):
            yield self._chunk(finish_reason=event.reason)
            if self._with_usage:
                yield self._frame([], usage(event))
            yield DONE

    def keep_alive(self) -> Iterator[bytes]:
        yield self._frame([self._choice("", None, None)])

    def fail(self, error: GptOssError) -> Iterator[bytes]:
        yield frame(error_object(error))

    def _chunk(self, tokens: Sequence[TokenLogprobs] = (), finish_reason: str | None = None) -> bytes:
        text = "".join(self._text)
        self._text.clear()
        return self._frame([self._choice(text, finish_reason, self._logprobs(tokens))])

    def _choice(self, text: str, finish_reason: str | None, logprobs: Any) -> dict[str, Any]:
        return {"index": 0, "text": text, "finish_reason": finish_reason, "logprobs": logprobs}

    def _frame(self, choices: list[Any], used: dict[str, Any] | None = None) -> bytes:
        chunk = self._head | {"choices": choices}
        return frame(chunk | {"usage": used} if self._with_usage else chunk)

    def _logprobs(self, tokens: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        """Four lists side by side; None where none are asked for."""
        if not self._with_logprobs:
            return None
        texts = [token_text(event.token) for event in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [finite(event.logprob) for event in tokens],
            "top_logprobs": [{token_text(token): finite(each) for token, each in event.top} for event in tokens],
            "text_offset": offsets,
        }
