"""Anthropic's Messages API: its routes, its messages and their events, its list of models.

What a request means is `messages_request`'s.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from datetime import datetime, timezone
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..chat.request import AnswerEvent, AnswerRequest, AnswerStats, Called
from ..chat.turn import Prefill
from ..errors import GptOssError
from ..harmony.parse import Content, Preamble, Reasoning
from .bodies import read_json_body
from .errors import RequestError, anthropic_error
from .fields import Fields
from .messages_request import MALFORMED, answer_request, shows_thinking, wants_one_call
from .service import Service
from .sse import EventStream, all_events, frame

BlockEvent = Reasoning | Preamble | Content | Called
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
USAGE: dict[str, Any] = {
    "input_tokens": 0,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 0,
}


async def create_message(request: Request) -> Response:
    service: Service = request.app.state.service
    fields = Fields(await read_json_body(request))
    asked = answer_request(fields, service.sampling, service.reasoning_before)
    if asked.max_tokens is None:
        raise fields.wrong("max_tokens", "is missing")
    writer = MessageWriter(fields.text("model") or service.model_name)
    events = _answer(service, asked, fields)
    if fields.flag("stream"):
        return EventStream(events, writer)
    return json_response(writer.message(await all_events(request, events)))


async def count_tokens(request: Request) -> Response:
    service: Service = request.app.state.service
    fields = Fields(await read_json_body(request))
    asked = answer_request(fields, service.sampling, service.reasoning_before)
    return json_response({"input_tokens": await service.count(asked)})


routes = [
    Route("/v1/messages", create_message, methods=["POST"]),
    Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
]


async def _answer(service: Service, asked: AnswerRequest, fields: Fields) -> AsyncGenerator[AnswerEvent, None]:
    """The events that the client wants to see. It knows by an error's words that its prompt is too long."""
    with_thinking, one_call, called = shows_thinking(fields), wants_one_call(fields), False
    try:
        async with aclosing(service.answer(asked)) as events:
            async for event in events:
                if isinstance(event, Called):
                    if one_call and called:
                        continue
                    called = True
                if with_thinking or not isinstance(event, Reasoning):
                    yield event
    except RequestError as error:
        if error.code != "context_length_exceeded":
            raise
        tokens = await service.count(asked)
        raise RequestError(
            f"prompt is too long: {tokens} tokens > {service.context} maximum", code=error.code
        ) from None


class MessageWriter:
    """Writes one answer, as a message or as the events of one."""

    def __init__(self, model: str):
        self._head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model}
        self._started = False
        self._index = -1
        self._open: BlockEvent | None = None
        """The first event of the last block."""

    def message(self, events: Iterable[AnswerEvent]) -> dict[str, Any]:
        blocks: list[tuple[BlockEvent, list[str]]] = []
        message: dict[str, Any] = dict(self._head)
        for event in events:
            if isinstance(event, BlockEvent):
                if self._begins_block(event):
                    self._open = event
                    blocks.append((event, []))
                blocks[-1][1].append(_written(event))
            elif isinstance(event, AnswerStats):
                message |= _ending(event) | {"usage": _usage(event)}
        return message | {"content": [_block(event, "".join(written)) for event, written in blocks]}

    def begin(self) -> Iterator[bytes]:
        """Nothing: the first event says how many tokens are to be read, as the message's first event has to."""
        yield from ()

    def translate(self, event: AnswerEvent) -> Iterator[bytes]:
        if not self._started:
            self._started = True
            usage = USAGE | {"input_tokens": event.total if isinstance(event, Prefill) else 0}
            message: dict[str, Any] = self._head | {
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": usage,
            }
            yield _frame("message_start", message=message)
        if isinstance(event, BlockEvent):
            if self._begins_block(event):
                yield from self._close_block()
                self._open = event
                self._index += 1
                yield _frame("content_block_start", index=self._index, content_block=_block(event, ""))
            yield self._delta(_delta(event))
        elif isinstance(event, AnswerStats):
            yield from self._close_block()
            yield _frame("message_delta", delta=_ending(event), usage=_usage(event))
            yield _frame("message_stop")

    def keep_alive(self) -> Iterator[bytes]:
        yield _frame("ping")

    def fail(self, error: GptOssError) -> Iterator[bytes]:
        refusal = error if isinstance(error, RequestError) else RequestError(str(error), status=500)
        yield _frame("error", error=anthropic_error(refusal))

    def _begins_block(self, event: BlockEvent) -> bool:
        return type(event) is not type(self._open) or isinstance(event, Called) or event.begins

    def _close_block(self) -> Iterator[bytes]:
        if isinstance(self._open, Reasoning):
            yield self._delta({"type": "signature_delta", "signature": ""})
        if self._open is not None:
            yield _frame("content_block_stop", index=self._index)

    def _delta(self, delta: dict[str, str]) -> bytes:
        return _frame("content_block_delta", index=self._index, delta=delta)


def _written(event: BlockEvent) -> str:
    return event.arguments if isinstance(event, Called) else event.text


def _block(event: BlockEvent, written: str) -> dict[str, Any]:
    match event:
        case Called(id, name):
            return {"type": "tool_use", "id": id, "name": name, "input": msgspec.Raw(_input(written).encode())}
        case Reasoning():
            return {"type": "thinking", "thinking": written, "signature": ""}
    return {"type": "text", "text": written}


def _delta(event: BlockEvent) -> dict[str, str]:
    match event:
        case Called():
            return {"type": "input_json_delta", "partial_json": _input(event.arguments)}
        case Reasoning():
            return {"type": "thinking_delta", "thinking": event.text}
    return {"type": "text_delta", "text": event.text}


def _input(arguments: str) -> str:
    """The JSON object that a call's arguments are; the clients' parsers accept nothing else."""
    arguments = arguments.strip() or "{}"
    try:
        msgspec.json.decode(arguments, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return msgspec.json.encode({MALFORMED: arguments}).decode()
    return arguments


def _ending(stats: AnswerStats) -> dict[str, Any]:
    reason = STOP_REASONS[stats.reason] if stats.stopped_by is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": stats.stopped_by, "stop_details": None}


def _usage(stats: AnswerStats) -> dict[str, Any]:
    return USAGE | {
        "input_tokens": stats.prompt - stats.cached,
        "cache_read_input_tokens": stats.cached,
        "output_tokens": stats.sampled,
        "output_tokens_details": {"thinking_tokens": stats.reasoning},
    }


def _frame(kind: str, **data: Any) -> bytes:
    return frame({"type": kind, **data}, kind)


def json_response(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def models_page(service: Service) -> dict[str, Any]:
    """The list of the one model that there is."""
    model = model_info(service)
    return {"data": [model], "has_more": False, "first_id": model["id"], "last_id": model["id"]}


def model_info(service: Service) -> dict[str, Any]:
    return {
        "type": "model",
        "id": service.model_name,
        "display_name": service.model_name,
        "created_at": datetime.fromtimestamp(service.created, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": service.context,
        "max_tokens": service.context,
    }
