"""The items and tools of a request for a response -> messages and tools of chat completions, which `harmony.messages`
reads.

Knows the types of items, parts and tools, which of them the model reads, and by which names a client knows its tools.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..harmony.messages import FUNCTIONS
from .chat_request import TOOL_NAME
from .errors import RequestError
from .fields import Fields, shortened

TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
# In the result of a tool that the model has called itself: a refusal would end every session in which it does.
NOT_SHOWN = "[{} was left out: you can read text alone]"
ROLES = ("system", "developer", "user", "assistant")
# What an item of an unknown type may carry for the model to read. Without any of it, the item says nothing.
READABLE = ("content", "output", "outputs", "result", "results", "text", "input", "arguments", "encrypted_content")
ENCRYPTED = "gptoss-mlx:"
"""The beginning of the reasoning that clients carry unread; what begins otherwise was encrypted by another server."""
INPUT = "input"
"""The one argument of the function that a custom tool is shown as."""

log = logging.getLogger(__name__)
Message = dict[str, Any]


def encrypted(reasoning: str) -> str:
    """Reasoning as an `encrypted_content`: a client need not keep its text to return it."""
    return ENCRYPTED + base64.b64encode(reasoning.encode()).decode()


def object_fields(value: Any, where: str) -> Fields:
    """The fields of an object in a list."""
    if not isinstance(value, dict):
        raise RequestError(f"{where} is not a JSON object", param=where)
    return Fields(value, f"{where}.")


def chat_messages(items: list[Any], earlier: int = 0) -> list[Message]:
    """The messages of chat completions that these items are, one for each that says something. The first `earlier` of
    them are not the request's own."""
    messages = [message for i, item in enumerate(items) for message in _messages(item, f"input[{i - earlier}]")]
    _tell_preambles(messages)
    called: set[str] = set()
    for message in messages:
        called |= {call["id"] for call in message.get("tool_calls", ())}
        if message["role"] == "tool" and (id_ := message["tool_call_id"]) not in called:
            raise RequestError(
                f"input has a result for {shortened(id_)}, and no earlier call of that id", param="input"
            )
    return messages


def _messages(item: Any, where: str) -> Iterator[Message]:
    fields = object_fields(item, where)
    kind = fields.text("type")
    if kind == "message" or (kind is None and fields.has("role")):
        yield _message(fields)
    elif kind == "reasoning":
        if reasoning := _reasoning(fields):
            yield {"role": "assistant", "reasoning": reasoning}
    elif kind == "function_call":
        yield _call(fields, _arguments(item.get("arguments")))
    elif kind == "custom_tool_call":
        yield _call(fields, json.dumps({INPUT: fields.text("input") or ""}, ensure_ascii=False))
    elif kind in ("function_call_output", "custom_tool_call_output"):
        yield {
            "role": "tool",
            "tool_call_id": _needed(fields, "call_id"),
            "content": _text(fields, "output", NOT_SHOWN),
        }
    elif kind is None:
        raise RequestError(f"{where} has neither a type nor a role", param=where)
    elif lost := next((name for name in READABLE if item.get(name)), None):
        raise fields.wrong("type", f"is {shortened(kind)}, which the model cannot read: its {lost} would be lost")
    else:
        log.info("an item of the type %s says nothing to the model, and is skipped", shortened(kind))


def _message(fields: Fields) -> Message:
    message: Message = {"role": fields.choice("role", ROLES), "content": _text(fields, "content")}
    if message["role"] is None:
        raise fields.wrong("role", f"is missing: it is one of {', '.join(ROLES)}")
    if message["role"] == "assistant" and (phase := fields.text("phase")):
        message["phase"] = phase
    return message


def _text(fields: Fields, name: str, instead: str | None = None) -> str:
    """A string, or a list of parts that have text; `instead` of others."""
    value = fields.data.get(name)
    if isinstance(value, str):
        return value
    if value is not None and not isinstance(value, list):
        raise fields.wrong(name, "is neither a string nor a list of parts")
    return "".join(_part(fields, f"{name}[{i}]", part, instead) for i, part in enumerate(value or []))


def _part(fields: Fields, name: str, part: Any, instead: str | None) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise fields.wrong(name, "is not a part with a type")
    if kind not in TEXT_PARTS:
        if instead:
            return instead.format(shortened(kind))
        raise fields.wrong(name, f"is of the type {shortened(kind)}: the model reads text alone")
    text = part.get(TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise fields.wrong(f"{name}.{TEXT_PARTS[kind]}", "is not a string")
    return text


def _reasoning(fields: Fields) -> str:
    """From its content, or else from what was encrypted here."""
    parts = [part for part in fields.list("content") if isinstance(part, dict)]
    if text := "".join(part["text"] for part in parts if isinstance(part.get("text"), str)):
        return text
    carried = fields.text("encrypted_content") or ""
    if not carried.startswith(ENCRYPTED):
        return ""
    try:
        return base64.b64decode(carried.removeprefix(ENCRYPTED), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise fields.wrong("encrypted_content", "is not as it was sent") from None


def _arguments(value: Any) -> str:
    """As they came, also where they are no JSON: the model reads what it wrote."""
    if isinstance(value, str):
        return value
    return "{}" if value is None else json.dumps(value, ensure_ascii=False)


def _call(fields: Fields, arguments: str) -> Message:
    function = {"name": _needed(fields, "name"), "namespace": fields.text("namespace"), "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": _needed(fields, "call_id"), "function": function}]}


def _needed(fields: Fields, name: str) -> str:
    value = fields.text(name)
    if not value:
        raise fields.wrong(name, "is missing")
    return value


def _tell_preambles(messages: list[Message]) -> None:
    """An assistant's text that a call follows in the same turn is not the answer yet, also where no phase says so."""
    called = False
    for message in reversed(messages):
        if message["role"] == "user":
            called = False
        elif "tool_calls" in message:
            called = True
        elif called and message["role"] == "assistant" and "content" in message:
            message.setdefault("phase", "commentary")


# Tools.


@dataclass(frozen=True)
class ClientTool:
    """A tool as its client knows it."""

    name: str
    namespace: str | None = None
    custom: bool = False
    """Whether it takes bare text, and not arguments in JSON."""


@dataclass
class Tools:
    """The tools of a request."""

    functions: list[dict[str, Any]] = field(default_factory=list)
    """The functions, and namespaces of them, that the model is shown."""
    clients: dict[str, ClientTool] = field(default_factory=dict)
    """Each of them, by the name that the model calls."""
    strict: set[str] = field(default_factory=set)
    """Those of them whose arguments have to follow their schema."""

    def called(self, name: str) -> ClientTool:
        """The tool that the model calls by `name`, which it may have invented."""
        name = name.removeprefix(FUNCTIONS)
        return self.clients.get(name) or ClientTool(name)


def read_tools(entries: list[Any]) -> Tools:
    """Tools that only OpenAI's own servers can run are skipped."""
    tools = Tools()
    for i, entry in enumerate(entries):
        tools.functions += _tool(entry, f"tools[{i}]", None, tools)
    return tools


def _tool(entry: Any, where: str, namespace: str | None, tools: Tools) -> Iterator[dict[str, Any]]:
    fields = object_fields(entry, where)
    kind = _needed(fields, "type")
    if kind == "namespace" and namespace is None:
        inner, name = fields.list("tools"), _needed(fields, "name")
        shown = [shown for i, tool in enumerate(inner) for shown in _tool(tool, f"{where}.tools[{i}]", name, tools)]
        yield {"type": kind, "name": name, "description": fields.text("description"), "tools": shown}
    elif kind in ("function", "custom"):
        name = _needed(fields, "name")
        full = name if namespace is None else f"{namespace}.{name}"
        if not TOOL_NAME.fullmatch(full):
            raise fields.wrong("name", f"is {shortened(full)}: only letters, digits, _ - . : / can be")
        tools.clients[full] = ClientTool(name, namespace, kind == "custom")
        if kind == "custom" or fields.flag("strict"):
            tools.strict.add(full)
        fields.object("parameters")
        parameters = _of_a_text(fields) if kind == "custom" else entry.get("parameters")
        yield {"type": "function", "name": name, "description": fields.text("description"), "parameters": parameters}
    else:
        log.info("the tool %s is skipped: the model is shown functions alone", shortened(kind))


def _of_a_text(fields: Fields) -> dict[str, Any]:
    """The parameters of a custom tool as a function. A grammar of its text is shown, and not enforced."""
    text = {"type": "string"}
    format_ = fields.object("format")
    if definition := format_.text("definition"):
        text["description"] = f"follows this {format_.text('syntax') or 'grammar'} grammar:\n{definition}"
    return {"type": "object", "properties": {INPUT: text}, "required": [INPUT], "additionalProperties": False}


def text_of_custom_call(arguments: str) -> str:
    """The bare text; all of the arguments where they have another form than they should."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value[INPUT] if isinstance(value, dict) and isinstance(value.get(INPUT), str) else arguments
