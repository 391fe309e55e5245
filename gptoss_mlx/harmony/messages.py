"""What a conversation consists of, as data, and how one is read from OpenAI's chat-completions JSON.

Knows roles, channels and recipients; not how they are written down (`render`) or read back (`parse`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
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

    def __post_init__(self) -> None:
        if self.reasoning_effort not in EFFORTS:
            raise ConversationError(f"reasoning_effort is {self.reasoning_effort!r}, not one of {', '.join(EFFORTS)}")
        for name in self.builtin_tools:
            if name not in BUILTIN_TOOLS:
                raise ConversationError(f"builtin_tools has {name!r}, not one of {', '.join(BUILTIN_TOOLS)}")


def call(name: str, arguments: str) -> Message:
    """The assistant's call of a function, or of a built-in tool (`python`, `browser.search`) by its full name."""
    if is_builtin(name):
        return Message("assistant", arguments, channel="analysis", recipient=name)
    return Message("assistant", arguments, "commentary", FUNCTIONS + name, JSON_CALL)


def result(name: str, output: str) -> Message:
    """What the function or built-in tool answered."""
    if is_builtin(name):
        return Message(name, output, channel="analysis", recipient="assistant")
    return Message(FUNCTIONS + name, output, channel="commentary", recipient="assistant")


def is_builtin(name: str) -> bool:
    return name.partition(".")[0] in BUILTIN_TOOLS


def conversation_from_json(data: Any) -> Conversation:
    """Read `{"messages": [...], "tools": [...], "builtin_tools": [...], "reasoning_effort", ...}`.

    Messages and tools are those of OpenAI's chat completions; an assistant's may carry `reasoning`. Roles `system` and
    `developer` both are instructions. Raises ConversationError.
    """
    if not isinstance(data, dict) or not isinstance(data.get("messages"), list):
        raise ConversationError('a conversation is a JSON object with a list "messages"')
    options: dict[str, Any] = {}
    for name in ("reasoning_effort", "current_date", "knowledge_cutoff", "model_identity"):
        if (value := data.get(name)) is not None:
            options[name] = _text(value, name)
    if unknown := set(data) - set(options) - set(_OPTIONAL) - {"messages"}:
        raise ConversationError(f"a conversation has no field {sorted(unknown)[0]!r}")
    builtin = _list(data.get("builtin_tools"), "builtin_tools")
    return Conversation(
        messages=tuple(_messages(data["messages"])),
        tools=tuple(_tool(entry, f"tools[{i}]") for i, entry in enumerate(_list(data.get("tools"), "tools"))),
        builtin_tools=tuple(_text(name, "builtin_tools") for name in builtin),
        **options,
    )


_OPTIONAL = ("tools", "builtin_tools", "reasoning_effort", "current_date", "knowledge_cutoff", "model_identity")


def _messages(entries: list[Any]) -> Iterable[Message]:
    names: dict[str, str] = {}
    for i, entry in enumerate(entries):
        where = f"messages[{i}]"
        if not isinstance(entry, dict):
            raise ConversationError(f"{where} is not a JSON object")
        role = entry.get("role")
        if role in ("system", "developer"):
            yield Message("developer", _content(entry, where))
        elif role == "user":
            yield Message("user", _content(entry, where))
        elif role == "assistant":
            yield from _assistant(entry, where, names)
        elif role == "tool":
            name = names.get(entry.get("tool_call_id")) or entry.get("name")
            if not isinstance(name, str):
                raise ConversationError(
                    f"{where}.tool_call_id {entry.get('tool_call_id')!r} answers no earlier tool call"
                )
            yield result(name.removeprefix(FUNCTIONS), _content(entry, where))
        else:
            raise ConversationError(f"{where}.role is {role!r}, not system, developer, user, assistant or tool")


def _assistant(entry: dict[str, Any], where: str, names: dict[str, str]) -> Iterable[Message]:
    """Reasoning, then what the user reads, then the calls: the order in which the model emits them."""
    calls = _list(entry.get("tool_calls"), f"{where}.tool_calls")
    if (reasoning := entry.get("reasoning")) is not None:
        yield Message("assistant", _text(reasoning, f"{where}.reasoning"), channel="analysis")
    if entry.get("content") or not (calls or reasoning):
        # Beside calls, the text is not the answer yet: a preamble, which has no recipient.
        yield Message("assistant", _content(entry, where), channel="commentary" if calls else "final")
    for j, item in enumerate(calls):
        at = f"{where}.tool_calls[{j}]"
        function = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(function, dict):
            raise ConversationError(f"{at} is not a function call")
        name = _text(function.get("name"), f"{at}.name").removeprefix(FUNCTIONS)
        arguments = function.get("arguments", "{}")
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        if isinstance(item.get("id"), str):
            names[item["id"]] = name
        yield call(name, arguments)


def _tool(entry: Any, where: str) -> Tool:
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    if not isinstance(function, dict):
        raise ConversationError(f"{where} is not a function")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise ConversationError(f"{where}.parameters is not a JSON schema")
    description = _text(function.get("description") or "", f"{where}.description")
    return Tool(_text(function.get("name"), f"{where}.name"), description, parameters)


def _content(entry: dict[str, Any], where: str) -> str:
    """A string, or the list of text parts that chat completions also allow."""
    content = entry.get("content")
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        return "".join(_text(part, f"{where}.content") for part in parts)
    return _text(content, f"{where}.content")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ConversationError(f"{where} is not text")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise ConversationError(f"{where} is not a list")
    return value or []
