"""Which ids may come next in an answer whose text, or whose calls, have to follow a schema.

Knows the messages of an answer: which of them a grammar is applied to, and which headers may come where a tool has to
be called. What texts a grammar allows is `json_grammar`'s business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from ..engine.special_tokens import CHANNEL, END, MESSAGE, START
from ..engine.tokenizer import Tokenizer
from ..errors import GptOssError
from ..harmony.messages import Message
from ..harmony.parse import Content, Parser, kind_of, tool_of
from ..harmony.render import START_OF_ANSWER, encode
from .call_rules import CallRules, call_headers

if TYPE_CHECKING:
    from ..engine.json_grammar import JsonGrammar


class AnswerGrammar:
    """Applies grammars to the texts of the answer and of calls, and to nothing around them, but for the headers where a
    tool has to be called. Follows a parser that is fed first."""

    def __init__(self, answer: JsonGrammar | None, calls: CallRules, parser: Parser, tokenizer: Tokenizer):
        """`answer` is the grammar of the answer itself; there is one, or one of a call."""
        self._answer, self._calls, self._parser = answer, calls, parser
        self._vocabulary = next(grammar.vocabulary for grammar in (answer, *calls.grammars.values()) if grammar)
        self._end_of_header = self._only([tokenizer.special(MESSAGE)])
        # Where a call has to follow, reasoning ends as that leaves room for it.
        self._reasoning = mx.logical_not(self._only(tokenizer.specials.keys() - {tokenizer.special(END)}))
        self._headers = CallHeaders(calls.required, tokenizer) if calls.required else None
        self._message: Message | None = None
        self._grammar: JsonGrammar | None = None
        if answer:
            answer.reset()
        self._follow()

    @property
    def finished(self) -> bool:
        """Whether the answer, where it has a grammar, is at its end."""
        return self._answer is None or self._answer.finished

    def allowed(self) -> mx.array | None:
        if self._grammar:
            return self._grammar.allowed()
        if self._headers:
            return self._reasoning if self._message else self._only(self._headers.allowed())
        # A text without `<|message|>` would be an answer, or a call, that no grammar has seen.
        opens_answer = self._answer is not None and self._parser.opens_answer
        opens_call = self._calls.grammars and self._parser.opens_call
        return self._end_of_header if opens_answer or opens_call else None

    def accept(self, id_: int) -> None:
        if self._grammar:
            self._grammar.accept(id_)
        elif self._headers and self._message is None:
            self._headers.accept(id_)
        self._follow()

    def check(self) -> None:
        """Raises GptOssError where the finished answer breaks a rule of the schema."""
        if self._answer:
            self._answer.check("".join(m.content for m in self._parser.messages if kind_of(m) is Content))

    def check_call(self, name: str, arguments: str) -> None:
        """Raises GptOssError where a call breaks a rule of its tool's schema."""
        if grammar := self._calls.grammars.get(name):
            grammar.check(arguments, f"the call of {name} does not fit the JSON schema of its parameters")

    def _follow(self) -> None:
        """Take up the message that has begun, or has ended."""
        message = self._parser.message
        if message is self._message:
            return
        self._message, self._grammar = message, self._grammar_of(message) if message else None
        if self._grammar and self._grammar is not self._answer:
            self._grammar.reset()

    def _grammar_of(self, message: Message) -> JsonGrammar | None:
        if (tool := tool_of(message)) is not None:
            return self._calls.grammars.get(tool)
        return self._answer if kind_of(message) is Content else None

    def _only(self, ids: Iterable[int]) -> mx.array:
        """Booleans [vocabulary], true for these."""
        mask = mx.zeros(self._vocabulary, mx.bool_)
        mask[mx.array([*ids])] = True
        return mask


class CallHeaders:
    """The headers of an answer that has to call one of some tools, id by id: a first message may be reasoning."""

    def __init__(self, names: Iterable[str], tokenizer: Tokenizer):
        calls = [(*header, MESSAGE) for name in names for header in call_headers(name)]
        first = [(CHANNEL, "analysis", MESSAGE), *calls]
        later = [(START, START_OF_ANSWER, *call) for call in calls]
        self._later = [encode(header, tokenizer) for header in later]
        self._left: Sequence[Sequence[int]] = [encode(header, tokenizer) for header in first]

    def allowed(self) -> set[int]:
        return {ids[0] for ids in self._left}

    def accept(self, id_: int) -> None:
        """Raises GptOssError for an id that is not allowed."""
        self._left = [ids[1:] for ids in self._left if ids[0] == id_]
        if not self._left:
            raise GptOssError("the answer is no call of a tool that has to be called")
        if not self._left[0]:
            self._left = self._later
