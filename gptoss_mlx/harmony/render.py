"""Conversation -> prompt, as pieces: special tokens and ordinary text never mix.

Follows the openai-harmony package to the letter, except where that departs from its own format document: the analysis
of every completed turn is dropped, and that of an unfinished tool loop stays (the package looks at the first final
answer only).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..engine.special_tokens import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, START, Special
from .messages import FUNCTIONS, Conversation, Message, Tool
from .schema import typescript

if TYPE_CHECKING:
    from ..engine.tokenizer import Tokenizer

START_OF_ANSWER = "assistant"


def render(conversation: Conversation) -> Iterator[str]:
    """The pieces of the prompt from which the model continues: up to and including `<|start|>assistant`."""
    yield from render_message(Message("system", _system(conversation)))
    yield from render_history(conversation)
    yield from (START, START_OF_ANSWER)


def render_history(conversation: Conversation) -> Iterator[str]:
    """The pieces of all that follows the system message."""
    instructions, messages = conversation.instructions, conversation.said
    if instructions is not None or conversation.tools or conversation.response_schema is not None:
        content = _developer(instructions, conversation.tools, conversation.response_schema)
        yield from render_message(Message("developer", content))
    for message, dropped in zip(messages, is_stale(messages), strict=True):
        if not dropped:
            yield from render_later(message)


def render_head(conversation: Conversation) -> Iterator[str]:
    """The pieces of what stands before all that was said: the system message, the instructions and the tools."""
    instructions = conversation.messages[:1] if conversation.instructions is not None else ()
    yield from render_message(Message("system", _system(conversation)))
    yield from render_history(replace(conversation, messages=instructions))


def render_later(message: Message) -> Iterator[str]:
    """The pieces of a message that is not at the beginning, where instructions still are bare."""
    if message.role == "developer":
        message = replace(message, content=_developer(message.content, ()))
    yield from render_message(message)


def render_message(message: Message) -> Iterator[str]:
    """The pieces of one message, from `<|start|>` to `<|end|>`, or `<|call|>` where the assistant addresses a tool."""
    yield from (START, message.role)
    if message.recipient:
        yield f" to={message.recipient}"
    if message.channel:
        yield from (CHANNEL, message.channel)
    if message.content_type:
        constraint = message.content_type.removeprefix(CONSTRAIN)
        if constraint == message.content_type:
            yield f" {message.content_type}"
        else:
            yield from (" ", CONSTRAIN, constraint)
    yield from (MESSAGE, message.content)
    yield CALL if message.role == "assistant" and message.recipient else END


def is_stale(messages: Sequence[Message]) -> list[bool]:
    """Which messages a prompt drops: the analysis (tool calls and results on that channel included) of turns that have
    their final answer."""
    last = max((i for i, message in enumerate(messages) if message.channel == "final"), default=0)
    return [i < last and message.channel == "analysis" for i, message in enumerate(messages)]


def render_text(conversation: Conversation) -> str:
    """The prompt as text, in which special tokens look like any other text: for people."""
    return "".join(render(conversation))


def encode(pieces: Iterable[str], tokenizer: Tokenizer) -> list[int]:
    """The ids of pieces: only a `Special` becomes a special token."""
    ids = []
    for piece in pieces:
        if isinstance(piece, Special):
            ids.append(tokenizer.special(piece))
        else:
            ids.extend(tokenizer.encode(piece))
    return ids


def render_ids(conversation: Conversation, tokenizer: Tokenizer) -> list[int]:
    """The prompt as the ids that the model is fed."""
    return encode(render(conversation), tokenizer)


def _system(conversation: Conversation) -> str:
    head = [
        conversation.model_identity,
        conversation.knowledge_cutoff and f"Knowledge cutoff: {conversation.knowledge_cutoff}",
        conversation.current_date and f"Current date: {conversation.current_date}",
    ]
    channels = "# Valid channels: analysis, commentary, final. Channel must be included for every message."
    if conversation.tools:
        channels += "\nCalls to these tools must go to the commentary channel: 'functions'."
    builtin = [BUILTIN[name] for name in sorted(set(conversation.builtin_tools))]
    sections = ["\n".join(line for line in head if line), f"Reasoning: {conversation.reasoning_effort}"]
    if builtin:
        sections += ["# Tools", *(_namespace(*namespace) for namespace in builtin)]
    return "\n\n".join(section for section in [*sections, channels] if section)


def _developer(instructions: str | None, tools: Iterable[Tool], response_schema: Any = None) -> str:
    sections = [] if instructions is None else ["# Instructions", instructions]
    if tools := tuple(tools):
        sections += ["# Tools", _namespace(FUNCTIONS.rstrip("."), "", tools)]
    if response_schema is not None:
        schema = json.dumps(response_schema, ensure_ascii=False, separators=(",", ":"))
        sections += ["# Response Formats", "## answer", schema]
    return "\n\n".join(sections)


def _namespace(name: str, description: str, tools: tuple[Tool, ...]) -> str:
    lines = [f"## {name}\n"]
    lines += [f"// {line}" if tools else line for line in _lines(description)]
    if tools:
        lines.append(f"namespace {name} {{\n")
        for tool in tools:
            lines += [f"// {line}" for line in _lines(tool.description)]
            parameters = "()" if tool.parameters is None else f"(_: {typescript(tool.parameters)})"
            lines.append(f"type {tool.name} = {parameters} => any;\n")
        lines.append(f"}} // namespace {name}")
    return "\n".join(lines)


def _lines(text: str) -> list[str]:
    """Unlike str.splitlines, which takes many another character for the end of a line."""
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []


_NUMBER = {"type": "number"}
_LAST = {"type": "number", "default": -1}

# The built-in tools, word for word as the model was trained on them: (namespace, description, functions).
BUILTIN: dict[str, tuple[str, str, tuple[Tool, ...]]] = {
    "browser": (
        "browser",
        "Tool for browsing.\n"
        "The `cursor` appears in brackets before each browsing display: `[{cursor}]`.\n"
        "Cite information from the tool using the following format:\n"
        "`【{cursor}†L{line_start}(-L{line_end})?】`, for example: `【6†L9-L11】` or `【8†L3】`.\n"
        "Do not quote more than 10 words directly from the tool output.\n"
        "sources=web (default: web)",
        (
            Tool(
                "search",
                "Searches for information related to `query` and displays `topn` results.",
                {
                    "type": "object",
                    "properties": {
                        "query": {"type": "string"},
                        "topn": _NUMBER | {"default": 10},
                        "source": {"type": "string"},
                    },
                    "required": ["query"],
                },
            ),
            Tool(
                "open",
                "Opens the link `id` from the page indicated by `cursor` starting at line number `loc`, showing"
                " `num_lines` lines.\n"
                "Valid link ids are displayed with the formatting: `【{id}†.*】`.\n"
                "If `cursor` is not provided, the most recent page is implied.\n"
                "If `id` is a string, it is treated as a fully qualified URL associated with `source`.\n"
                "If `loc` is not provided, the viewport will be positioned at the beginning of the document or centered"
                " on the most relevant passage, if available.\n"
                "Use this function without `id` to scroll to a new location of an opened page.",
                {
                    "type": "object",
                    "properties": {
                        "id": {"type": ["number", "string"], "default": -1},
                        "cursor": _LAST,
                        "loc": _LAST,
                        "num_lines": _LAST,
                        "view_source": {"type": "boolean", "default": False},
                        "source": {"type": "string"},
                    },
                },
            ),
            Tool(
                "find",
                "Finds exact matches of `pattern` in the current page, or the page given by `cursor`.",
                {
                    "type": "object",
                    "properties": {"pattern": {"type": "string"}, "cursor": _LAST},
                    "required": ["pattern"],
                },
            ),
        ),
    ),
    "python": (
        "python",
        "Use this tool to execute Python code in your chain of thought. The code will not be shown to the user. This"
        " tool should be used for internal reasoning, but not for code that is intended to be visible to the user (e.g."
        " when creating plots, tables, or files).\n\n"
        "When you send a message containing Python code to python, it will be executed in a stateful Jupyter notebook"
        " environment. python will respond with the output of the execution or time out after 120.0 seconds. The drive"
        " at '/mnt/data' can be used to save and persist user files. Internet access for this session is UNKNOWN."
        " Depends on the cluster.",
        (),
    ),
}
