"""What a request asks of the calls in its answer -> which may come, and the grammars of their arguments.

Knows tools and what a client says about them. How an answer is held to it is `answer_grammar`'s business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..engine.special_tokens import CALL, CHANNEL, CONSTRAIN
from ..engine.tokenizer import Tokenizer
from ..errors import GptOssError
from ..harmony.headers import read_header
from ..harmony.messages import FUNCTIONS, Tool

if TYPE_CHECKING:
    from ..engine.json_grammar import JsonGrammar
    from .request import AnswerRequest

NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class CallRules:
    """What an answer may call. By itself: anything, with any arguments."""

    allowed: bool = True
    required: tuple[str, ...] = ()
    """Tools of which one has to be called, and nothing else said; each has a grammar."""
    grammars: Mapping[str, JsonGrammar] = field(default_factory=dict)
    """Grammars of the arguments, up to `<|call|>`, by the tool's name; arguments of other tools are free."""


ANY_CALL = CallRules()


def call_rules(request: AnswerRequest, tokenizer: Tokenizer, vocabulary: int) -> CallRules:
    """The rules that a request sets; `vocabulary` is the number of logits.

    Raises GptOssError, with the name of the tool, for one that has to be called and is not there, and for one whose
    parameters or name cannot be held to.
    """
    tools = {tool.name: tool for tool in request.conversation.tools}
    if request.tool_choice == "none" or not (tools or request.conversation.builtin_tools):
        if request.tool_choice == "required":
            raise GptOssError("a tool has to be called, but none is given")
        return CallRules(allowed=False)
    required = _required(request, tools) if request.tool_choice == "required" else ()
    held = required or [name for name in tools if name in request.strict_tools]
    return CallRules(required=required, grammars={name: _grammar(tools[name], tokenizer, vocabulary) for name in held})


def _required(request: AnswerRequest, tools: Iterable[str]) -> tuple[str, ...]:
    if request.only_tool is None:
        return tuple(tools)
    if request.only_tool not in tools:
        raise GptOssError(f"the tool {request.only_tool!r} has to be called, but is not given")
    return (request.only_tool,)


def call_headers(name: str) -> tuple[tuple[str, ...], ...]:
    """The headers, without `<|message|>`, in which models write a call: with the recipient in the channel, or before
    it."""
    return (
        (CHANNEL, f"commentary to={FUNCTIONS}{name} ", CONSTRAIN, "json"),
        (f" to={FUNCTIONS}{name}", CHANNEL, "commentary ", CONSTRAIN, "json"),
    )


def _grammar(tool: Tool, tokenizer: Tokenizer, vocabulary: int) -> JsonGrammar:
    from ..engine.json_grammar import JsonGrammar

    if any(read_header(header).recipient != FUNCTIONS + tool.name for header in call_headers(tool.name)):
        raise GptOssError(f"the tool {tool.name!r} has a name by which a model cannot call it")
    try:
        return JsonGrammar(_object(tool.parameters), tokenizer, vocabulary, tokenizer.special(CALL))
    except GptOssError as error:
        raise GptOssError(f"the parameters of the tool {tool.name!r}: {error}") from None


def _object(parameters: dict[str, Any] | None) -> dict[str, Any]:
    """The schema of the arguments, which are an object even where it does not say so."""
    if parameters is None:
        return NO_PARAMETERS
    kind = parameters.get("type", "object")
    if kind == "object" or (isinstance(kind, list) and "object" in kind):
        return parameters | {"type": "object"}
    raise GptOssError(f"the JSON schema cannot be used: its type is {kind!r}, and arguments are an object")
