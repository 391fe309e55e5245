"""A request to OpenAI's chat completions -> an AnswerRequest.

Knows the fields of the API, with those that it had once and those that servers of local models have added. Messages
and tools are read by `harmony.messages`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from ..chat.request import AnswerRequest
from ..engine.sampling import Sampling
from ..harmony.messages import EFFORTS as TRAINED
from ..harmony.messages import FUNCTIONS, REASONING, Conversation, ConversationError, conversation_from_json
from .dates import dated
from .errors import RequestError
from .fields import Fields, shortened

# What clients call the efforts, and what the model was trained with; without effort it still reads one.
EFFORTS = {"none": "low", "minimal": "low"} | {name: name for name in TRAINED} | {"xhigh": "high", "max": "high"}
MAX_TOKENS = ("max_completion_tokens", "max_tokens")
MAX_TOP_LOGPROBS = 20
CACHE_KEYS = ("prompt_cache_key", "session_id", "user")
# What would change the answer and is not to be had, with the values that change nothing.
NEUTRAL: Mapping[str, Any] = {"n": 1, "modalities": ["text"], "audio": {}, "web_search_options": None}
# A name that the model can write where it calls a tool.
TOOL_NAME = re.compile(r"[\w.:/-]{0,255}\w")
PLACE = re.compile(r"(messages|tools)[\w.\[\]]*")

Recall = Callable[[str], str | None]
"""What the model thought before it made the call of this id, where that is known."""
ToolChoice = tuple[Literal["auto", "none", "required"], str | None]


def answer_request(fields: Fields, defaults: Sampling, reasoning_before: Recall) -> AnswerRequest:
    """Raises RequestError, which names the field that is wrong."""
    fields.only_neutral(NEUTRAL)
    entries = [*fields.list("tools"), *fields.list("functions")]
    effort = _effort(fields)
    conversation = _conversation(fields, entries, EFFORTS[effort], reasoning_before)
    names = [tool.name for tool in conversation.tools]
    tool_choice, only_tool = _tool_choice(fields, names)
    return AnswerRequest(
        conversation=replace(conversation, response_schema=_response_schema(fields)),
        sampling=fields.sampling(defaults),
        reasons=effort != "none",
        max_tokens=max_tokens(fields),
        stop=fields.texts("stop"),
        tool_choice=tool_choice,
        only_tool=only_tool,
        strict_tools=frozenset(_strict(entries)),
        logprobs=_logprobs(fields),
        cache_key=cache_key(fields),
    )


def is_legacy(fields: Fields) -> bool:
    """Whether a call is to come back as the one `function_call` that messages had before they had `tool_calls`."""
    return fields.has("functions") and not fields.has("tools")


def max_tokens(fields: Fields) -> int | None:
    """None where it is absent, or -1, with which clients of local servers ask for as many as there is room for."""
    name = fields.first(MAX_TOKENS)
    return None if fields.data.get(name) == -1 else fields.integer(name, 1)


def cache_key(fields: Fields) -> str | None:
    """A hint, which is passed over where it is no string."""
    return next((value for name in CACHE_KEYS if isinstance(value := fields.data.get(name), str) and value), None)


def _conversation(fields: Fields, tools: list[Any], effort: str, reasoning_before: Recall) -> Conversation:
    messages = fields.list("messages")
    if not messages:
        raise fields.wrong("messages", "is missing" if not fields.has("messages") else "is empty")
    messages = [_with_reasoning(message, reasoning_before) for message in messages]
    data = {"messages": messages, "tools": tools, "reasoning_effort": effort}
    try:
        conversation = conversation_from_json(data, lenient=True)
    except ConversationError as error:
        place = PLACE.match(str(error))
        raise RequestError(str(error), param=place and place[0]) from None
    for tool in conversation.tools:
        if not TOOL_NAME.fullmatch(tool.name):
            raise fields.wrong("tools", f"has the name {shortened(tool.name)}: only letters, digits, _ - . : / can be")
    return dated(conversation)


def _with_reasoning(message: Any, reasoning_before: Recall) -> Any:
    """The message, with the reasoning before its calls, which some clients do not return."""
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    call = calls[0] if isinstance(calls, list) and calls else None
    id_ = call.get("id") if isinstance(call, dict) else None
    if not isinstance(id_, str) or any(message.get(name) for name in (*REASONING, "reasoning_details")):
        return message
    reasoning = reasoning_before(id_)
    return message | {REASONING[0]: reasoning} if reasoning else message


def _effort(fields: Fields) -> str:
    nested = fields.object("reasoning")
    if nested.data.get("enabled") is False:
        return "none"
    return fields.choice("reasoning_effort", EFFORTS) or nested.choice("effort", EFFORTS) or "medium"


def _tool_choice(fields: Fields, names: Collection[str]) -> ToolChoice:
    field = fields.first(("tool_choice", "function_call"))
    if isinstance(fields.data.get(field), dict):
        choice = fields.object(field)
        choice.choice("type", ("function",))
        name = (choice.object("function") if choice.has("function") else choice).text("name")
        if name is None or (name := name.removeprefix(FUNCTIONS)) not in names:
            raise fields.wrong(field, f"names {shortened(name)}, which is none of the tools")
        return "required", name
    chosen = fields.choice(field, ("auto", "none", "required"))
    if chosen == "required":
        if not names:
            raise fields.wrong(field, "is 'required', and there are no tools")
        return "required", None
    return ("none" if chosen == "none" else "auto"), None


def _response_schema(fields: Fields) -> Any:
    form = fields.object("response_format")
    kind = form.choice("type", ("text", "json_object", "json_schema"))
    if form.data and kind is None:
        raise form.wrong("type", "is missing")
    if kind == "json_object":  # which clients of llama.cpp give a schema
        return dict(form.object("schema").data) or {"type": "object"}
    if kind == "json_schema":
        wrapper = form.object("json_schema")
        if not wrapper.has("schema"):
            raise wrapper.wrong("schema", "is missing")
        return dict(wrapper.object("schema").data)
    return None


def _strict(entries: list[Any], prefix: str = "") -> Iterator[str]:
    """The names of strict tools among entries that were read before, and so are well-formed."""
    for entry in entries:
        if entry.get("type") == "namespace":
            yield from _strict(entry.get("tools") or [], f"{entry['name']}.")
        elif (function := entry.get("function", entry)).get("strict") is True:
            yield prefix + function["name"]


def _logprobs(fields: Fields) -> int | None:
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if fields.flag("logprobs"):
        return top or 0
    if top:
        raise fields.wrong("top_logprobs", "needs logprobs to be true")
    return None
