"""The request for a response -> what the model is asked, and the response as it is before there is any output.

Knows the fields of both. Items and tools are read by `response_input`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import Any, Literal
from uuid import uuid4

import msgspec

from ..chat.request import AnswerRequest
from ..engine.sampling import Sampling
from ..harmony.messages import ConversationError, conversation_from_json
from .chat_request import EFFORTS, MAX_TOP_LOGPROBS, Recall
from .dates import dated
from .errors import RequestError
from .fields import Fields, shortened
from .response_input import Tools, chat_messages, object_fields, read_tools
from .response_store import ResponseStore
from .service import Service

Choice = Literal["auto", "none", "required"]
LOGPROBS, ENCRYPTED_REASONING = "message.output_text.logprobs", "reasoning.encrypted_content"
# What a request may ask for, and would get another answer without.
REFUSED = {
    "background": "is not supported: leave it out, and use `stream`",
    "conversation": "is not supported: use `previous_response_id`, or send all items as `input`",
    "prompt": "names a template, and there are none here: send `instructions` and `input`",
}


@dataclass(frozen=True)
class Asked:
    """A request for a response, read."""

    request: AnswerRequest
    items: list[dict[str, Any]]
    """The items of its own `input`."""
    tools: Tools
    response: dict[str, Any]
    """The response, without any output yet."""
    encrypts: bool
    """Whether reasoning is asked for as `encrypted_content` too."""
    stream: bool


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid4().hex}"


def read_request(fields: Fields, store: ResponseStore, service: Service) -> Asked:
    """Raises RequestError for what is wrong, and for what is not supported and would change the answer."""
    for name, complaint in REFUSED.items():
        if fields.data.get(name):
            raise fields.wrong(name, complaint)
    items, tools = _items(fields, store), read_tools(fields.list("tools"))
    include = fields.texts("include")
    messages = _with_reasoning(_messages(fields, items, store), service.reasoning_before)
    request = _answer_request(fields, messages, tools, include, service.sampling)
    return Asked(
        request,
        items,
        tools,
        _response(fields, request, service),
        encrypts=ENCRYPTED_REASONING in include,
        stream=fields.flag("stream"),
    )


def _items(fields: Fields, store: ResponseStore) -> list[dict[str, Any]]:
    """Those of `input`; what it names by its id is looked up."""
    value = fields.data.get("input")
    if isinstance(value, str):
        return [_said(value)] if value else []
    if value is None:
        raise fields.wrong("input", "is missing")
    items = fields.list("input")
    return [_looked_up(item, f"input[{i}]", store) for i, item in enumerate(items)]


def _said(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def _looked_up(item: Any, where: str, store: ResponseStore) -> Any:
    if not isinstance(item, dict) or item.get("type") != "item_reference":
        return item
    reference = Fields(item, f"{where}.")
    if (found := store.item(reference.text("id") or "")) is None:
        raise reference.wrong("id", "names no item that is kept here: send the item itself")
    return found


def _messages(fields: Fields, items: list[Any], store: ResponseStore) -> list[dict[str, Any]]:
    """Instructions are those of this request alone; then what it goes on from, then its own items."""
    instructions = fields.text("instructions")
    messages = [{"role": "developer", "content": instructions}] if instructions else []
    earlier: list[Any] = []
    if (previous := fields.text("previous_response_id")) is not None:
        if not (chain := store.chain(previous)):
            raise RequestError(
                f"there is no response {shortened(previous)}, or one that it went on from is gone: they are kept in"
                " memory, while there is room; send all items as `input`",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        earlier = [item for stored in chain for item in stored.items()]
    return messages + chat_messages([*earlier, *items], len(earlier))


def _with_reasoning(messages: list[dict[str, Any]], reasoning_before: Recall) -> list[dict[str, Any]]:
    """With the reasoning before calls, which some clients do not return."""
    whole: list[dict[str, Any]] = []
    begin, thought = 0, False  # where the assistant began to speak, and whether its thoughts there were looked for
    for message in messages:
        if message["role"] != "assistant":
            begin, thought = len(whole) + 1, False
        elif "reasoning" in message:
            thought = True
        elif "tool_calls" in message and not thought:
            thought = True
            if reasoning := reasoning_before(message["tool_calls"][0]["id"]):
                whole.insert(begin, {"role": "assistant", "reasoning": reasoning})
        whole.append(message)
    return whole


def _answer_request(
    fields: Fields, messages: list[dict[str, Any]], tools: Tools, include: tuple[str, ...], defaults: Sampling
) -> AnswerRequest:
    effort = fields.object("reasoning").choice("effort", EFFORTS)
    data = {
        "messages": messages,
        "tools": tools.functions,
        "response_format": _format(fields.object("text").object("format")),
        "reasoning_effort": EFFORTS[effort] if effort else None,
    }
    try:
        conversation = dated(conversation_from_json(data))
    except ConversationError as error:
        raise RequestError(str(error), param="input") from None
    choice, among = _tool_choice(fields, tools)
    only = among[0] if among and len(among) == 1 and choice == "required" else None
    if among is not None and only is None:
        conversation = replace(conversation, tools=tuple(tool for tool in conversation.tools if tool.name in among))
    fields.choice("truncation", ("auto", "disabled"))  # what is too long is refused in any case
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS) or 0
    return AnswerRequest(
        conversation,
        fields.sampling(defaults),
        reasons=effort != "none",
        max_tokens=fields.integer("max_output_tokens", 1),
        tool_choice=choice,
        only_tool=only,
        strict_tools=frozenset(tools.strict),
        logprobs=top if top or LOGPROBS in include else None,
        cache_key=fields.text("prompt_cache_key"),
    )


def _format(format_: Fields) -> dict[str, Any] | None:
    kind = format_.choice("type", ("text", "json_object", "json_schema"))
    if kind is None and format_.data:
        raise format_.wrong("type", "is missing")
    if kind != "json_schema":
        return {"type": kind} if kind else None
    if not format_.has("schema"):
        raise format_.wrong("schema", "is missing")
    return {"type": kind, "schema": format_.object("schema").data}


def _tool_choice(fields: Fields, tools: Tools) -> tuple[Choice, tuple[str, ...] | None]:
    """What is to be called, and the tools that it is among; None for all of them."""
    among = None
    if isinstance(fields.data.get("tool_choice"), dict):
        choice, among = _chosen_tools(fields.object("tool_choice"), tools)
    else:
        choice = _choice(fields, "tool_choice", ("auto", "none", "required"))
    if choice == "required" and not (tools.clients if among is None else among):
        raise fields.wrong("tool_choice", "asks for a call, and there is no tool to call")
    return choice, among


def _choice(fields: Fields, name: str, choices: tuple[Choice, ...]) -> Choice:
    fields.choice(name, choices)
    return fields.data.get(name) or choices[0]


def _chosen_tools(choice: Fields, tools: Tools) -> tuple[Choice, tuple[str, ...]]:
    if choice.data.get("type") != "allowed_tools":
        return "required", (_chosen(choice, tools),)
    entries = [object_fields(entry, f"{choice.place}tools[{i}]") for i, entry in enumerate(choice.list("tools"))]
    return _choice(choice, "mode", ("auto", "required")), tuple(_chosen(entry, tools) for entry in entries)


def _chosen(choice: Fields, tools: Tools) -> str:
    """The name by which the model calls it."""
    if choice.choice("type", ("function", "custom")) is None:
        raise choice.wrong("type", "is missing")
    name, namespace = choice.text("name") or "", choice.text("namespace")
    full = f"{namespace}.{name}" if namespace else name
    if full not in tools.clients:
        raise choice.wrong("name", f"is {shortened(full)}, which is none of the tools")
    return full


def _response(fields: Fields, request: AnswerRequest, service: Service) -> dict[str, Any]:
    """With what was asked for, as it was asked for."""
    for name, value in fields.object("metadata").data.items():
        if not isinstance(value, str):
            raise fields.wrong(f"metadata.{name}", "is not a string")
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": fields.text("instructions"),
        "max_output_tokens": request.max_tokens,
        "metadata": _raw(fields, "metadata", {}),
        "model": fields.text("model") or service.model_name,
        "output": [],
        "parallel_tool_calls": _flag(fields, "parallel_tool_calls"),
        "previous_response_id": fields.text("previous_response_id"),
        "prompt_cache_key": request.cache_key,
        "reasoning": _raw(fields, "reasoning", {"effort": request.conversation.reasoning_effort, "summary": None}),
        "service_tier": "default",
        "store": _flag(fields, "store"),
        "temperature": request.sampling.temperature,
        "text": _raw(fields, "text", {"format": {"type": "text"}}),
        "tool_choice": _raw(fields, "tool_choice", "auto"),
        "tools": _raw(fields, "tools", []),
        "top_logprobs": request.logprobs or 0,
        "top_p": request.sampling.top_p,
        "truncation": "disabled",
        "usage": None,
    }


def _flag(fields: Fields, name: str) -> bool:
    """True where it is absent."""
    return fields.flag(name) or not fields.has(name)


def _raw(fields: Fields, name: str, default: Any) -> msgspec.Raw:
    """As JSON once for all, since every event of a response's state has it, and tools can be long."""
    value = fields.data.get(name)
    return msgspec.Raw(json.dumps(default if value is None else value).encode())
