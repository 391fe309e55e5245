"""A request to Anthropic's Messages API -> an AnswerRequest.

Knows the API's roles, blocks and settings, and how its clients use them; how a conversation is written for the model is
Harmony's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, Literal

from ..chat.request import AnswerRequest
from ..engine.sampling import Sampling
from ..harmony.messages import Conversation, Message, Tool, call, result
from .fields import Fields

# One more thing in a call's input than JSON's: arguments that are no JSON object, as the model wrote them.
MALFORMED = "malformed_arguments"
# A line about the client's own business. It differs from session to session, and nothing after it could be reused.
HEADER_LINES = re.compile(r"\A(x-anthropic-[a-z-]+:[^\n]*\n*)+")
BETWEEN_BLOCKS = "\n\n"
ROLES = ("user", "assistant", "system", "developer")
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
# Tools that Anthropic's servers run themselves. Without them the model does what it can.
SERVER_TOOLS = ("web_search_", "web_fetch_", "code_execution_", "tool_search_tool_", "mcp_toolset")
TOOL_CHOICES: dict[str, Literal["auto", "required", "none"]] = {
    "auto": "auto",
    "any": "required",
    "tool": "required",
    "none": "none",
}
THINKING = ("enabled", "adaptive", "between_tools", "disabled")
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
# From how many tokens of thinking on a budget means an effort.
BUDGETS = ((16_384, "high"), (4_096, "medium"), (0, "low"))


def answer_request(fields: Fields, defaults: Sampling) -> AnswerRequest:
    """Raises RequestError, which names the field that is wrong."""
    tools, strict = _tools(fields)
    choice = fields.object("tool_choice")
    chosen = TOOL_CHOICES[choice.choice("type", TOOL_CHOICES) or "auto"]
    only = required_text(choice, "name") if choice.text("type") == "tool" else None
    if chosen == "required" and (only not in tools if only else not tools):
        raise fields.wrong("tool_choice", "asks for a tool that is not among the tools")
    return AnswerRequest(
        conversation=Conversation(
            messages=tuple(_messages(fields)),
            tools=tuple(tools.values()),
            response_schema=_response_schema(fields),
            reasoning_effort=_effort(fields),
        ),
        sampling=fields.sampling(defaults, max_temperature=1),
        reasons=_thinking(fields) != "disabled",
        max_tokens=fields.integer("max_tokens", 1),
        stop=fields.texts("stop_sequences"),
        tool_choice=chosen,
        only_tool=only,
        strict_tools=strict,
        cache_key=fields.object("metadata").text("user_id"),
    )


def shows_thinking(fields: Fields) -> bool:
    """Whether the client wants to see it: one that does not ask takes the first block for the answer."""
    return _thinking(fields) not in (None, "disabled")


def required_text(fields: Fields, name: str) -> str:
    value = fields.text(name)
    if value is None:
        raise fields.wrong(name, "is missing")
    return value


def _thinking(fields: Fields) -> str | None:
    return fields.object("thinking").choice("type", THINKING)


def _effort(fields: Fields) -> str:
    if effort := fields.object("output_config").choice("effort", EFFORTS):
        return EFFORTS[effort]
    if (budget := fields.object("thinking").integer("budget_tokens")) is not None:
        return next(effort for tokens, effort in BUDGETS if budget >= tokens)
    return "medium"


def _response_schema(fields: Fields) -> Any:
    config = fields.object("output_config")
    form = (config if config.has("format") else fields).object("format" if config.has("format") else "output_format")
    if form.data and (form.choice("type", ("json_schema",)) is None or not form.object("schema").data):
        raise form.wrong("schema", "is missing")
    return form.data.get("schema")


def _tools(fields: Fields) -> tuple[dict[str, Tool], frozenset[str]]:
    """The tools by name, and the names of those that are strict."""
    tools: dict[str, Tool] = {}
    strict = set()
    for entry in _objects(fields, "tools"):
        kind = entry.text("type") or "custom"
        if kind.startswith(SERVER_TOOLS):
            continue
        if kind != "custom" and not entry.has("input_schema"):
            raise entry.wrong("type", f"is {kind!r}, which this model does not know: describe it by an input_schema")
        name = required_text(entry, "name")
        if not TOOL_NAME.fullmatch(name):
            raise entry.wrong("name", "has other characters than letters, digits, _ and -, or more than 128 of them")
        if name in tools:
            raise entry.wrong("name", f"is {name!r}, like that of another tool")
        schema = dict(entry.object("input_schema").data)
        tools[name] = Tool(name, entry.text("description") or "", schema or None)
        if entry.flag("strict"):
            strict.add(name)
    return tools, frozenset(strict)


def _messages(fields: Fields) -> Iterator[Message]:
    if instructions := HEADER_LINES.sub("", _text(fields, "system")):
        yield Message("developer", instructions)
    entries = _objects(fields, "messages")
    if not entries:
        raise fields.wrong("messages", "has no message")
    if entries[-1].data.get("role") == "assistant":
        raise fields.wrong("messages", "ends with the assistant's: prefill is not supported, the user's has to be last")
    names: dict[str, str] = {}
    for role, turn in groupby(entries, _role):
        if role == "assistant":
            yield from _assistant([block for entry in turn for block in _blocks(entry, "content")], names)
        elif role == "user":
            for entry in turn:
                yield from _user(_blocks(entry, "content"), names)
        else:
            yield from (Message("developer", _text(entry, "content")) for entry in turn)


def _role(entry: Fields) -> str:
    return entry.choice("role", ROLES) or required_text(entry, "role")


def _assistant(blocks: list[Fields], names: dict[str, str]) -> Iterator[Message]:
    """One turn. Only what it ends with can be the answer; text before a call, or before more text, is a preamble."""
    kinds = [required_text(block, "type") for block in blocks]
    texts = [i for i, kind in enumerate(kinds) if kind == "text"]
    answer = texts[-1] if texts and "tool_use" not in kinds else None
    for i, (kind, block) in enumerate(zip(kinds, blocks, strict=True)):
        if kind == "thinking":
            if thinking := block.text("thinking"):
                yield Message("assistant", thinking, "analysis")
        elif kind == "text":
            if text := required_text(block, "text"):
                yield Message("assistant", text, "final" if i == answer else "commentary")
        elif kind == "tool_use":
            name = required_text(block, "name")
            names[required_text(block, "id")] = name
            yield call(name, _arguments(block.object("input").data))
        elif kind != "redacted_thinking":
            raise _unreadable(block)


def _arguments(given: Any) -> str:
    if given.keys() == {MALFORMED} and isinstance(given[MALFORMED], str):
        return given[MALFORMED]
    return json.dumps(given, ensure_ascii=False)


def _user(blocks: Iterable[Fields], names: dict[str, str]) -> Iterator[Message]:
    """What the user says between the results of tools."""
    for kind, group in groupby(blocks, lambda block: required_text(block, "type")):
        if kind == "tool_result":
            for block in group:
                yield _tool_result(block, names)
        else:
            yield Message("user", BETWEEN_BLOCKS.join(map(_text_of, group)))


def _tool_result(block: Fields, names: dict[str, str]) -> Message:
    called = required_text(block, "tool_use_id")
    if called not in names:
        raise block.wrong("tool_use_id", "is that of no tool_use before it")
    output = _text(block, "content")
    return result(names[called], f"Error: {output}" if block.flag("is_error") else output)


def _text(fields: Fields, name: str) -> str:
    """Of a field that is a string or a list of text blocks; empty where it is absent."""
    return BETWEEN_BLOCKS.join(map(_text_of, _blocks(fields, name) if fields.has(name) else ()))


def _text_of(block: Fields) -> str:
    if block.text("type") != "text":
        raise _unreadable(block)
    return required_text(block, "text")


def _unreadable(block: Fields) -> Exception:
    return block.wrong("type", f"is {block.data.get('type')!r}, and the model reads text alone")


def _blocks(fields: Fields, name: str) -> list[Fields]:
    """A string is one block of text."""
    value = fields.data.get(name)
    if isinstance(value, str):
        return [Fields({"type": "text", "text": value}, f"{fields.place}{name}.")]
    if not isinstance(value, list):
        raise fields.wrong(name, "is not a string or a list of blocks")
    return _objects(fields, name)


def _objects(fields: Fields, name: str) -> list[Fields]:
    values = fields.list(name)
    for i, value in enumerate(values):
        if not isinstance(value, dict):
            raise fields.wrong(f"{name}[{i}]", "is not a JSON object")
    return [Fields(value, f"{fields.place}{name}[{i}].") for i, value in enumerate(values)]
