"""A request to Anthropic's Messages API -> an AnswerRequest.

Knows the API's roles, blocks and settings, and how its clients use them; how a conversation is written for the model is
Harmony's.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

from ..chat.request import AnswerRequest
from ..engine.sampling import Sampling
from ..harmony.messages import Conversation, Message, Tool, call, result
from ..harmony.schema import typescript
from .dates import dated
from .fields import Fields, shortened

# One more thing in a call's input than JSON's: arguments that are no JSON object, as the model wrote them.
MALFORMED = "malformed_arguments"
# A line about the client's own business. It differs from session to session, and nothing after it could be reused.
HEADER_LINES = re.compile(r"\A(x-anthropic-[a-z-]+:[^\n]*\n*)+")
BETWEEN_BLOCKS = "\n\n"
ROLES = ("user", "assistant", "system", "developer")
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
# Tools that Anthropic's servers run themselves. Without them the model does what it can.
TOOL_SEARCH = "tool_search_tool_"
SERVER_TOOLS = ("web_search_", "web_fetch_", "code_execution_", "mcp_toolset", TOOL_SEARCH)
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

log = logging.getLogger(__name__)


def answer_request(fields: Fields, defaults: Sampling, recall: Callable[[str], str | None]) -> AnswerRequest:
    """`recall` knows what the model thought before a call, by the call's id. Raises RequestError, which names the field
    that is wrong."""
    tools = _read_tools(fields)
    reader = _MessageReader(tools, recall)
    choice = fields.object("tool_choice")
    chosen = TOOL_CHOICES[choice.choice("type", TOOL_CHOICES) or "auto"]
    only = required_text(choice, "name") if choice.text("type") == "tool" else None
    if chosen == "required" and (only not in tools.loaded if only else not tools.loaded):
        raise fields.wrong("tool_choice", "asks for a tool that is not among the tools")
    return AnswerRequest(
        conversation=dated(
            Conversation(
                messages=tuple(reader.read(fields)),
                tools=tuple(tools.loaded.values()),
                response_schema=_response_schema(fields),
                reasoning_effort=_effort(fields),
            )
        ),
        sampling=fields.sampling(defaults, max_temperature=1),
        reasons=_thinking(fields) != "disabled",
        max_tokens=fields.integer("max_tokens", 1),
        stop=fields.texts("stop_sequences"),
        tool_choice=chosen,
        only_tool=only,
        strict_tools=frozenset(tools.strict),
        cache_key=fields.object("metadata").text("user_id"),
    )


def shows_thinking(fields: Fields) -> bool:
    """Whether the client wants to see it: one that does not ask takes the first block for the answer."""
    return _thinking(fields) not in (None, "disabled")


def wants_one_call(fields: Fields) -> bool:
    return fields.object("tool_choice").flag("disable_parallel_tool_use")


def required_text(fields: Fields, name: str) -> str:
    value = fields.text(name)
    if value is None:
        raise fields.wrong(name, "is missing")
    return value


def _thinking(fields: Fields) -> str | None:
    return fields.object("thinking").choice("type", THINKING)


def _effort(fields: Fields) -> str:
    """A message of the system's can set another from there on."""
    for place in (*reversed(_objects(fields, "messages")), fields):
        if effort := place.object("output_config").choice("effort", EFFORTS):
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


@dataclass(frozen=True)
class _Tools:
    """The tools of a request, by name."""

    loaded: dict[str, Tool] = field(default_factory=dict)
    deferred: dict[str, Tool] = field(default_factory=dict)
    """Tools that a client shows to the model later, in a message. The conversation begins without them, so that no turn
    before has to be prefilled again."""
    strict: set[str] = field(default_factory=set)

    def add(self, entry: Fields, deferred: bool) -> Tool:
        name = required_text(entry, "name")
        if not TOOL_NAME.fullmatch(name):
            raise entry.wrong("name", "has other characters than letters, digits, _ and -, or more than 128 of them")
        schema = dict(entry.object("input_schema").data)
        tool = Tool(name, entry.text("description") or "", schema or None)
        (self.deferred if deferred else self.loaded)[name] = tool
        if entry.flag("strict") and not deferred:
            self.strict.add(name)
        return tool

    def described(self, name: str) -> str:
        """A tool as a message shows it, in the form in which the model knows tools."""
        tool = self.deferred.get(name) or self.loaded.get(name) or Tool(name)
        parameters = "()" if tool.parameters is None else f"(_: {typescript(tool.parameters)})"
        comments = [f"// {line}" for line in tool.description.splitlines()]
        return "\n".join([*comments, f"type {name} = {parameters} => any;"])


def _read_tools(fields: Fields) -> _Tools:
    tools = _Tools()
    entries = _objects(fields, "tools")
    # Without the server's search for tools, what it would find has to be there from the beginning.
    is_searched = any((entry.text("type") or "").startswith(TOOL_SEARCH) for entry in entries)
    for entry in entries:
        kind = entry.text("type") or "custom"
        if kind.startswith(SERVER_TOOLS):
            log.info("the tool %s is skipped: only Anthropic's servers can run it", shortened(kind))
            continue
        if kind != "custom" and not entry.has("input_schema"):
            raise entry.wrong("type", f"is {kind!r}, which this model does not know: describe it by an input_schema")
        if (name := entry.text("name")) in tools.loaded or name in tools.deferred:
            raise entry.wrong("name", f"is {name!r}, like that of another tool")
        tools.add(entry, deferred=entry.flag("defer_loading") and not is_searched)
    return tools


class _MessageReader:
    """Reads the messages of a conversation, from the first to the last."""

    def __init__(self, tools: _Tools, recall: Callable[[str], str | None]):
        self._tools, self._recall = tools, recall
        self._names: dict[str, str] = {}
        """The names of the tools that were called, by the ids of the calls."""

    def read(self, fields: Fields) -> Iterator[Message]:
        if instructions := HEADER_LINES.sub("", self._text(fields, "system")):
            yield Message("developer", instructions)
        entries = _objects(fields, "messages")
        if not entries:
            raise fields.wrong("messages", "has no message")
        if entries[-1].data.get("role") == "assistant":
            raise fields.wrong("messages", "ends with the assistant's: prefill is not supported, end with the user's")
        last = max((i for i, entry in enumerate(entries) if entry.data.get("role") == "user"), default=-1)
        turns = groupby(enumerate(entries), lambda numbered: _role(numbered[1]))
        for role, turn in turns:
            if role == "assistant":
                yield from self._assistant([block for _, entry in turn for block in _blocks(entry, "content")])
                continue
            for i, entry in turn:
                if role == "user":
                    yield from self._user(_blocks(entry, "content"))
                elif (text := self._text(entry, "content")) and not (i < last and _is_passing(entry)):
                    yield Message("developer", text)

    def _assistant(self, blocks: list[Fields]) -> Iterator[Message]:
        """One turn. Only its last text can be the answer; text beside a call, or before more text, is a preamble."""
        kinds = [required_text(block, "type") for block in blocks]
        if "tool_use" in kinds and not any(block.text("thinking") for block in blocks):
            first_call = blocks[kinds.index("tool_use")]
            if thinking := self._recall(required_text(first_call, "id")):
                yield Message("assistant", thinking, "analysis")
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
                self._names[required_text(block, "id")] = name
                yield call(name, _arguments(block.object("input").data))
            elif kind != "redacted_thinking":
                raise _unreadable(block)

    def _user(self, blocks: Iterable[Fields]) -> Iterator[Message]:
        """What the user says between the results of tools."""
        for is_result, group in groupby(blocks, lambda block: required_text(block, "type") == "tool_result"):
            if is_result:
                yield from map(self._tool_result, group)
            else:
                yield Message("user", BETWEEN_BLOCKS.join(map(self._text_of, group)))

    def _tool_result(self, block: Fields) -> Message:
        called = required_text(block, "tool_use_id")
        if called not in self._names:
            raise block.wrong("tool_use_id", "is that of no tool_use before it")
        output = self._text(block, "content")
        return result(self._names[called], f"Error: {output}" if block.flag("is_error") else output)

    def _text(self, fields: Fields, name: str) -> str:
        """The text of a field that is a string or a list of blocks; empty where it is absent."""
        return BETWEEN_BLOCKS.join(map(self._text_of, _blocks(fields, name) if fields.has(name) else ()))

    def _text_of(self, block: Fields) -> str:
        match required_text(block, "type"):
            case "text":
                return required_text(block, "text")
            case "tool_reference":
                return self._tools.described(required_text(block, "tool_name"))
            case "tool_addition":
                return f"This tool is there from now on:\n\n{self._added(block.object('tool'))}"
            case "tool_removal":
                return f"The tool {required_text(block.object('tool'), 'name')} is there no longer."
        raise _unreadable(block)

    def _added(self, tool: Fields) -> str:
        if tool.has("definition"):
            return self._tools.described(self._tools.add(tool.object("definition"), deferred=True).name)
        return self._tools.described(required_text(tool, "name"))


def _role(entry: Fields) -> str:
    return entry.choice("role", ROLES) or required_text(entry, "role")


def _is_passing(entry: Fields) -> bool:
    """Whether it is said until the user's next message only."""
    return entry.text("clear_at") == "next_user_message"


def _arguments(given: Any) -> str:
    if given.keys() == {MALFORMED} and isinstance(given[MALFORMED], str):
        return given[MALFORMED]
    return json.dumps(given, ensure_ascii=False)


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
    """The objects of a list, whose places are written as Anthropic's API writes them."""
    entries = [Fields(value, f"{fields.place}{name}.{i}.") for i, value in enumerate(fields.list(name))]
    for i, entry in enumerate(entries):
        if not isinstance(entry.data, dict):
            raise fields.wrong(f"{name}.{i}", "is not a JSON object")
    return entries
