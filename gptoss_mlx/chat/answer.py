"""One answer, from a prompt to the model's calls of tools, to its end, or to where it breaks off.

Knows how an answer is sampled and when that is to end, and writes for the model what it should have written: an empty
analysis where it is not to reason, the end of one that grew too long, and the beginning of an answer where it stopped
without one. What a model says for a tool is taken back. The conversation around an answer, and the calls, are
`session`'s.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import mlx.core as mx

from ..engine.prompt_cache import PromptCache
from ..engine.sampling import Sampler, Sampling
from ..engine.special_tokens import CALL, END, END_OF_TEXT, RETURN, START
from ..engine.tokenizer import Tokenizer
from ..errors import GptOssError
from ..harmony.messages import Message
from ..harmony.openings import OPEN_FINAL
from ..harmony.parse import Content, Emitted, Event, IdParser, Kind, Preamble, Reasoning, ToolCall, is_call, kind_of
from ..harmony.render import START_OF_ANSWER, encode
from .answer_grammar import AnswerGrammar
from .call_rules import ANY_CALL, CallRules
from .repetition import cycle_since
from .turn import Clock, Prefill, TokenLogprobs, TurnEvent, Waiting, read_on

if TYPE_CHECKING:
    from ..engine.json_grammar import JsonGrammar

TOKEN_DONE = Waiting()
MAX_HEADER = 512  # tokens outside of any message, before a model is taken to have lost its way


@dataclass(frozen=True)
class Draft:
    """An answer as far as it is written."""

    prompt: list[int]
    head: int
    """Ids at the beginning of the prompt that are its instructions and tools."""
    messages: int
    """Messages of the conversation before it."""
    is_first: bool
    """Whether it follows a question, not the result of a tool."""
    written: list[int]
    """The ids after the prompt."""


@dataclass(frozen=True)
class AnswerRules:
    """The settings of a session that an answer follows."""

    sampling: Sampling
    max_tokens: int | None
    """Sampled tokens of the whole turn; None without a limit."""
    max_reasoning: int | None
    """Tokens of reasoning in the whole turn; None without a limit."""
    grammar: JsonGrammar | None
    opening: tuple[str, ...]
    """The markup that is written for the model where its answer begins."""
    calls: CallRules = ANY_CALL
    logprobs: int | None = None
    """How many of the likeliest tokens are reported beside each token of the answer; None reports nothing."""


class Answer:
    """Writes one answer: `write` yields its events; then `calls`, `emitted` and `finished` are its outcome, or
    `fragment` where `write` was interrupted. Another can continue from `draft`."""

    def __init__(self, draft: Draft, rules: AnswerRules, prompt_cache: PromptCache, tokenizer: Tokenizer, clock: Clock):
        self.finished = False
        """Whether there is an answer, and it is complete."""
        self._draft, self._rules, self._clock = draft, rules, clock
        self._prompt_cache, self._tokenizer = prompt_cache, tokenizer
        self._stops = frozenset(map(tokenizer.special, (RETURN, CALL, END_OF_TEXT)))
        self._text = AnswerText(tokenizer, rules.grammar, rules.calls)
        self._text.force_tokens(draft.written)
        self._started_at = len(draft.written)
        self._in_header = 0

    @property
    def calls(self) -> Sequence[ToolCall]:
        return self._text.calls

    @property
    def emitted(self) -> Sequence[Emitted]:
        return self._text.parser.emitted

    @property
    def draft(self) -> Draft:
        return replace(self._draft, written=self._text.ids)

    def write(self) -> Generator[TurnEvent, None, None]:
        """Sample until the model has called a tool or given an answer."""
        text, may_force = self._text, True
        self._clock.begin(len(self._draft.prompt), self._prompt_cache.cached_of(self._draft.prompt))
        if not text.ids:
            text.force_tokens(encode(self._rules.opening, self._tokenizer))
        elif text.ids[-1] in self._stops:
            if text.calls:  # the turn was stopped before they could run
                return
            self._force_answer()
            may_force = False
        while True:
            stopped, self._in_header = False, 0
            with closing((yield from self._decode())) as ids:
                for id_ in ids:
                    yield from text.add(id_)
                    yield from self._logprobs(id_)
                    if thought := self._clock.token(text.kind is Reasoning):
                        yield thought
                    self._clock.interrupts.check()
                    if stopped := self._is_to_stop(id_):
                        text.accept(id_)
                        break
                    if cycle := cycle_since(self._started_at, text.ids):
                        self._clock.cycle = cycle
                        break
                    yield TOKEN_DONE
            text.take_back_invented()
            if not (stopped and may_force) or text.calls or text.state.unfit or text.has_answer:
                break
            self._force_answer()
            may_force = False
        for event in text.parser.finish():
            if not isinstance(event, ToolCall):  # one that broke off says what nobody meant
                yield event
        self.finished = stopped and text.has_answer and text.is_complete()

    def fragment(self) -> list[Emitted]:
        """The messages of an interrupted answer that a later prompt may contain: no reasoning, and no call, because
        none was run."""
        list(self._text.parser.finish())
        return [each for each in self.emitted if each.message.channel != "analysis" and not is_call(each.message)]

    def _decode(self) -> Generator[Prefill, None, Generator[int, None, None]]:
        """Prefill what is not cached, and return the ids that the model samples after what is written."""
        left = self._rules.max_tokens and self._rules.max_tokens - self._clock.sampled
        if left == 0:
            return (id_ for id_ in range(0))
        logits = yield from self._prefill()
        context = self._draft.prompt + self._text.ids
        self._sampler = Sampler(self._rules.sampling, context=context, logprobs=self._rules.logprobs)
        return self._prompt_cache.decode(
            logits,
            sampler=self._sampler,
            max_tokens=left,
            stop=self._stops,
            constraint=self._text.grammar,
        )

    def _logprobs(self, id_: int) -> Generator[TokenLogprobs, None, None]:
        """How likely a sampled id was, where that is asked for and it belongs to the answer's text."""
        if self._rules.logprobs is None:
            return
        logprob, likeliest = self._sampler.next_logprobs()
        if self._text.kind is Content:
            top = tuple((self._tokenizer.bytes_of(other), value) for other, value in likeliest)
            yield TokenLogprobs(self._tokenizer.bytes_of(id_), logprob, top)

    def _prefill(self) -> Generator[Prefill, None, mx.array]:
        """Prefill what is not cached, with a snapshot where a later prompt may depart; returns the last logits."""
        cache, prompt, written = self._prompt_cache, self._draft.prompt, self._text.ids
        head = prompt[: self._draft.head]
        if len(head) > cache.cache.window and not cache.holds(head):
            yield from self._read(head)
            cache.snapshot()
        if written and cache.holds(prompt):
            return (yield from self._read(prompt + written))
        logits = yield from self._read(prompt)
        if self._draft.is_first:
            cache.snapshot()
        return (yield from self._read(prompt + written)) if written else logits

    def _read(self, ids: Sequence[int]) -> Generator[Prefill, None, mx.array]:
        """Advance the prompt cache to the end of `ids`; returns the last logits."""
        return (yield from read_on(self._prompt_cache.read_steps(ids), self._clock.prefill))

    def _is_to_stop(self, id_: int) -> bool:
        """Whether the model has stopped with this token, or has to be."""
        message = self._text.message
        self._in_header = 0 if message else self._in_header + 1
        lost = self._in_header > MAX_HEADER
        return id_ in self._stops or lost or self._text.state.invented or self._reasons_too_long(message)

    def _reasons_too_long(self, message: Message | None) -> bool:
        if message is None or kind_of(message) is not Reasoning:
            return False
        limit = self._rules.max_reasoning
        return message.role != "assistant" or (limit is not None and self._clock.reasoning >= limit)

    def _force_answer(self) -> None:
        """Open an answer for a model that stopped, or was stopped, without one. To a call that is required its grammar
        leads, once nothing else is being said."""
        text = self._text
        if self._rules.calls.required:
            forced: tuple[str, ...] = (END,) if text.message else ()
        elif not text.ids:
            forced = OPEN_FINAL[len((START, START_OF_ANSWER)) :]
        elif text.ids[-1] in self._stops:
            text.ids[-1] = self._tokenizer.special(END)
            forced = OPEN_FINAL
        else:
            forced = (*((END,) if text.message else ()), *OPEN_FINAL)
        text.force_tokens(encode(forced, self._tokenizer))


class AnswerText:
    """The ids of an answer, with a parser and a grammar that follow them."""

    def __init__(self, tokenizer: Tokenizer, grammar: JsonGrammar | None, calls: CallRules = ANY_CALL):
        self.ids: list[int] = []
        self.calls: list[ToolCall] = []
        self.kind: Kind | None = None
        """What the last id belongs to the text of."""
        needed = ((Content, Preamble) if grammar else ()) + ((ToolCall,) if calls.grammars else ())
        self.parser = IdParser(tokenizer, headers_needed=needed, calls=calls.allowed)
        self.state = self.parser.parser
        self._start = tokenizer.special(START)
        held = grammar is not None or bool(calls.grammars)
        self.grammar = AnswerGrammar(grammar, calls, self.state, tokenizer) if held else None

    @property
    def message(self) -> Message | None:
        """The message whose text is being written, without that text; None between messages and in a header."""
        return self.state.message

    @property
    def has_answer(self) -> bool:
        return any(m.role == "assistant" and kind_of(m) is Content and m.content for m in self.state.messages)

    def add(self, id_: int) -> list[Event]:
        """A sampled id, which the grammar, as the sampler's constraint, accepts by itself. Returns its events."""
        before = self.message
        self.ids.append(id_)
        events = list(self.parser.feed(id_))
        calls = [event for event in events if isinstance(event, ToolCall)]
        for call in calls:
            if self.grammar:
                self.grammar.check_call(call.name, call.arguments)
        self.calls += calls
        self.kind = kind_of(before) if before is not None and before is self.message else None
        return events

    def accept(self, id_: int) -> None:
        """Let the grammar follow an id that the sampler does not go on from."""
        if self.grammar:
            self.grammar.accept(id_)

    def force_tokens(self, ids: Sequence[int]) -> None:
        """Add ids that are not sampled now. Their events are not shown; completed calls are collected."""
        for id_ in ids:
            self.add(id_)
            self.accept(id_)

    def take_back_invented(self) -> None:
        """Remove the message in which the model has answered for a tool, or calls one where it must not, so that
        nothing follows from it."""
        if not self.state.invented:
            return
        if self.ids[-1] == self._start:  # of the next message
            self.ids.pop()
        del self.ids[max((index for index, id_ in enumerate(self.ids) if id_ == self._start), default=0) :]
        self.parser.drop_invented()

    def is_complete(self) -> bool:
        """Whether the grammar, if there is one, is at its end. Raises GptOssError where the answer breaks a rule of
        the schema that the grammar does not know."""
        if self.grammar is None:
            return True
        if self.grammar.finished:
            self.grammar.check()
        return self.grammar.finished


def fits_grammar(written: Sequence[int], tokenizer: Tokenizer, grammar: JsonGrammar | None) -> bool:
    """Whether the answer in these ids, if there is one, is the beginning of one that the grammar allows."""
    try:
        AnswerText(tokenizer, grammar).force_tokens(written)
    except GptOssError:
        return False
    return True
