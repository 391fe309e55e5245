"""The parts of a conversation, as data, and how one is read from OpenAI's chat-completions JSON.

Knows roles, channels and recipients; not how they are written down (`render`) or read back (`parse`).
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import GptOssError

EFFORTS = ("low", "medium", "high")
BUILTIN_TOOLS = ("browser", "python")
IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
KNOWLEDGE_CUTOFF = "2024-06"
FUNCTIONS = "functions."
JSON_CALL = "<|constrain|>json"


class ConversationError(GptOssError):
    """A conversation that cannot be rendered; the message names the place."""


@dataclass(frozen=True)
class Message:
    """One Harmony message. `role` is system, developer, user, assistant, or the full name of the tool that speaks."""

    role: str
    content: str
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None


@dataclass(frozen=True)
class Tool:
    """A function that the model may call; `parameters` is a JSON schema, None for a function without parameters."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True)
class Conversation:
    """Everything that a prompt is rendered from. A `developer` message holds bare instructions."""

    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    builtin_tools: tuple[str, ...] = ()
    response_schema: Any = None
    """The JSON schema that the answer has to follow."""
    reasoning_effort: str = "medium"
    current_date: str | None = None
    knowledge_cutoff: str | None = KNOWLEDGE_CUTOFF
    model_identity: str | None = IDENTITY

    @property
    def instructions(self) -> str | None:
        """Those that the conversation begins with."""
        return self.messages[0].content if self.messages and self.messages[0].role == "developer" else None

    @property
    def said(self) -> tuple[Message, ...]:
        """The messages after the instructions."""
        return self.messages if self.instructions is None else self.messages[1:]

    def __post_init__(self) -> None:
        if self.reasoning_effort not in EFFORTS:
            raise ConversationError(f"reasoning_effort is {self.reasoning_effort!r}, not one of {', '.join(EFFORTS)}")
        for name in self.builtin_tools:
            if name not in BUILTIN_TOOLS:
                raise ConversationError(f"builtin_tools has {name!r}, not one of {', '.join(BUILTIN_TOOLS)}")


def call(name: str, arguments: str, builtin_tools: Container[str] = ()) -> Message:
    """The assistant's call of a function, or of one of the built-in tools that are there, by its full name (`python`,
    `browser.search`). `functions.` before a name makes it a function's in any case."""
    if is_builtin(name, builtin_tools):
        return Message("assistant", arguments, channel="analysis", recipient=name)
    return Message("assistant", arguments, "commentary", FUNCTIONS + name.removeprefix(FUNCTIONS), JSON_CALL)


def result(name: str, output: str, builtin_tools: Container[str] = ()) -> Message:
    """The answer of the function or built-in tool."""
    if is_builtin(name, builtin_tools):
        return Message(name, output, channel="analysis", recipient="assistant")
    return Message(FUNCTIONS + name.removeprefix(FUNCTIONS), output, channel="commentary", recipient="assistant")


def is_builtin(name: str, builtin_tools: Container[str]) -> bool:
    """Whether the name is one of a built-in tool's, and not of a developer's function that is called like one."""
    return name.partition(".")[0] in builtin_tools


# Fields that have several names. The first that is not empty counts.
REASONING = ("reasoning", "reasoning_content", "thinking")
TOOL_NAME = ("name", "tool_name")
PARAMETERS = ("parameters", "input_schema", "inputSchema")
TEXT_OF_PART = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
# Fields that chat completions and their clients put into messages: those that a prompt is rendered from, by role, and
# those that no prompt shows. A message is refused where a field would be lost that is not empty.
USED = {
    "system": ("content",),
    "developer": ("content",),
    "user": ("content",),
    "assistant": ("content", *REASONING, "reasoning_details", "refusal", "phase", "tool_calls", "function_call"),
    "tool": ("content", "tool_call_id", *TOOL_NAME),
    "function": ("content", *TOOL_NAME),
}
NOT_SHOWN = (
    *("role", "name", "id", "type", "object", "status", "index", "created", "created_at", "timestamp", "metadata"),
    *("annotations", "cache_control", "finish_reason", "logprobs", "signature", "tool_call_id"),
)
# What a model that reads text alone would lose, in messages of any role.
MEDIA = ("audio", "images")
KNOWN = {*NOT_SHOWN, *(name for names in USED.values() for name in names), *MEDIA}


def conversation_from_json(data: Any, *, lenient: bool = False) -> Conversation:
    """Read `{"messages": [...], "tools": [...], "builtin_tools": [...], "reasoning_effort", ...}`.

    Messages and tools are those of OpenAI's chat completions; an assistant's may carry `reasoning`. Roles `system` and
    `developer` both are instructions. `response_format` is OpenAI's, or the schema itself. `lenient` passes over fields
    of messages that no prompt shows, whatever they are called: clients add their own. Raises ConversationError.
    """
    if not isinstance(data, dict) or not isinstance(data.get("messages"), list):
        raise ConversationError('a conversation is a JSON object with a list "messages"')
    options: dict[str, Any] = {}
    for name in ("reasoning_effort", "current_date", "knowledge_cutoff", "model_identity"):
        if (value := data.get(name)) is not None:
            options[name] = _text(value, name)
    if unknown := set(data) - set(options) - set(_OPTIONAL) - {"messages"}:
        raise ConversationError(f"a conversation has no field {sorted(unknown)[0]!r}")
    builtin = tuple(_text(name, "builtin_tools") for name in _list(data.get("builtin_tools"), "builtin_tools"))
    tools = [tool for i, entry in enumerate(_list(data.get("tools"), "tools")) for tool in _tools(entry, f"tools[{i}]")]
    return Conversation(
        messages=tuple(_messages(data["messages"], builtin, lenient)),
        tools=tuple(tools),
        builtin_tools=builtin,
        response_schema=_response_schema(data),
        **options,
    )


_RESPONSE = ("response_format", "response_schema")
_OPTIONAL = (
    *("tools", "builtin_tools", "reasoning_effort", "current_date", "knowledge_cutoff", "model_identity"),
    *_RESPONSE,
)


def _response_schema(data: dict[str, Any]) -> Any:
    """The JSON schema of the answer, from what OpenAI's clients wrap it in, if they do."""
    name = next((name for name in _RESPONSE if data.get(name) is not None), None)
    if name is None:
        return None
    schema = data[name]
    if isinstance(schema, dict) and schema.get("type") == "text":
        return None
    if isinstance(schema, dict) and schema.get("type") == "json_object":
        return {"type": "object"}
    if isinstance(schema, dict) and schema.get("type") == "json_schema":
        schema = schema.get("json_schema", schema)
    if isinstance(schema, dict) and isinstance(schema.get("schema"), dict | bool):
        schema = schema["schema"]
    if schema is not None and not isinstance(schema, dict | bool):
        raise ConversationError(f"{name} is not a JSON schema")
    return schema


class _Calls:
    """The calls so far, which results answer."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._without_id: list[str] = []

    def add(self, name: str, id_: Any) -> None:
        if isinstance(id_, str):
            self._names[id_] = name
        else:
            self._without_id.append(name)

    def answered_by(self, entry: dict[str, Any]) -> Any:
        """The name of the call that a result answers: by its id, by the name of the tool, or else in order."""
        id_ = entry.get("tool_call_id")
        named = (self._names.get(id_) if isinstance(id_, str) else None) or _first(entry, TOOL_NAME)
        return named or (self._without_id.pop(0) if id_ is None and self._without_id else None)


def _messages(entries: list[Any], builtin_tools: Container[str], lenient: bool) -> Iterable[Message]:
    calls = _Calls()
    for i, entry in enumerate(entries):
        where = f"messages[{i}]"
        if not isinstance(entry, dict):
            raise ConversationError(f"{where} is not a JSON object")
        role = entry.get("role")
        if not isinstance(role, str) or role not in USED:
            raise ConversationError(f"{where}.role is {role!r}, not system, developer, user, assistant or tool")
        _refuse_what_would_be_lost(entry, where, lenient)
        if role in ("system", "developer"):
            yield Message("developer", _content(entry, where))
        elif role == "user":
            yield Message("user", _content(entry, where))
        elif role == "assistant":
            yield from _assistant(entry, where, calls, builtin_tools)
        else:
            name = calls.answered_by(entry)
            if not isinstance(name, str):
                raise ConversationError(
                    f"{where}.tool_call_id {entry.get('tool_call_id')!r} answers no earlier tool call"
                )
            yield result(name, _content(entry, where), builtin_tools)


def _refuse_what_would_be_lost(entry: dict[str, Any], where: str, lenient: bool) -> None:
    for name, value in entry.items():
        if lenient and name not in MEDIA:
            continue
        if name not in KNOWN:
            raise ConversationError(f"{where} has the field {name!r}, which a message does not have")
        if name not in USED[entry["role"]] and name not in NOT_SHOWN and value:
            raise ConversationError(f"{where}.{name} would be lost: the model reads none in such a message")


def _assistant(entry: dict[str, Any], where: str, earlier: _Calls, builtin_tools: Container[str]) -> Iterable[Message]:
    """Reasoning, then what the user reads, then the calls: the order in which the model emits them."""
    calls = [
        (item, f"{where}.tool_calls[{j}]")
        for j, item in enumerate(_list(entry.get("tool_calls"), f"{where}.tool_calls"))
    ]
    if entry.get("function_call") is not None:
        calls.append((entry["function_call"], f"{where}.function_call"))
    reasoning = _reasoning(entry, where)
    if reasoning:
        yield Message("assistant", reasoning, channel="analysis")
    text = _text(entry.get("refusal") or "", f"{where}.refusal")
    if "content" in entry or not (calls or reasoning or text):
        text = _content(entry, where) or text
    if text:
        # Beside calls, the text is not the answer yet: a preamble, which has no recipient.
        is_preamble = calls or entry.get("phase") == "commentary"
        yield Message("assistant", text, channel="commentary" if is_preamble else "final")
    for item, at in calls:
        function = _function(item, at, "is not a function call")
        name = _text(function.get("name"), f"{at}.name")
        if isinstance(namespace := function.get("namespace"), str) and namespace + "." != FUNCTIONS:
            name = f"{namespace}.{name}"
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            arguments = "{}" if arguments is None else json.dumps(arguments, ensure_ascii=False)
        earlier.add(name, item.get("id"))
        yield call(name, arguments, builtin_tools)


def _reasoning(entry: dict[str, Any], where: str) -> str:
    """Under whatever name it comes, in whole or in parts."""
    if (reasoning := _first(entry, REASONING)) is not None:
        return _text(reasoning, f"{where}.reasoning")
    parts = _list(entry.get("reasoning_details"), f"{where}.reasoning_details")
    return "".join(
        _text(part.get("text") or "", f"{where}.reasoning_details") for part in parts if isinstance(part, dict)
    )


def _tools(entry: Any, where: str) -> Iterable[Tool]:
    """The function, or those of a namespace, under the namespace's name."""
    if not isinstance(entry, dict) or entry.get("type") != "namespace":
        yield _tool(entry, where)
        return
    name, about = _text(entry.get("name"), f"{where}.name"), entry.get("description")
    for i, inner in enumerate(_list(entry.get("tools"), f"{where}.tools")):
        tool = _tool(inner, f"{where}.tools[{i}]")
        said = [_text(about, f"{where}.description")] if about and i == 0 else []  # as a heading for all
        yield replace(tool, name=f"{name}.{tool.name}", description="\n".join([*said, tool.description]))


def _tool(entry: Any, where: str) -> Tool:
    function = _function(entry, where, "is not a function")
    parameters = _first(function, PARAMETERS)
    if parameters is not None and not isinstance(parameters, dict):
        raise ConversationError(f"{where}.parameters is not a JSON schema")
    description = _text(function.get("description") or "", f"{where}.description")
    return Tool(_text(function.get("name"), f"{where}.name"), description, parameters)


def _function(entry: Any, where: str, complaint: str) -> dict[str, Any]:
    """The function of a tool, or of a call of one. Raises ConversationError for tools of other types."""
    kind = entry.get("type", "function") if isinstance(entry, dict) else None
    if kind not in ("function", "function_call"):
        raise ConversationError(f"{where} {complaint}" + (f", but of the type {kind!r}" if kind else ""))
    function = entry.get("function", entry)
    if not isinstance(function, dict):
        raise ConversationError(f"{where} {complaint}")
    return function


def _content(entry: dict[str, Any], where: str) -> str:
    """A string, or the list of text parts that chat completions also allow; null is empty."""
    content = entry.get("content", 0)
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(
            _text(_part(part, f"{where}.content[{i}]"), f"{where}.content") for i, part in enumerate(content)
        )
    return _text(content, f"{where}.content")


def _part(part: Any, where: str) -> Any:
    """The text of a part of a content; None where it is none."""
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind not in TEXT_OF_PART:
        raise ConversationError(f"{where} is a part of the type {kind!r}: the model reads text alone")
    return part.get(TEXT_OF_PART[kind]) if isinstance(kind, str) else None


def _first(entry: dict[str, Any], names: Iterable[str]) -> Any:
    return next((entry[name] for name in names if entry.get(name) not in (None, "")), None)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ConversationError(f"{where} is not text")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise ConversationError(f"{where} is not a list")
    return value or []
