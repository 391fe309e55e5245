"""What belongs to one turn: its clock, the grammar of its answer, and the events that are not Harmony's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import mlx.core as mx

from ..engine.interrupts import Interrupts
from ..harmony.parse import Content, Parser, kind_of

if TYPE_CHECKING:
    from ..engine.json_grammar import JsonGrammar


@dataclass(frozen=True)
class ToolResult:
    """What a function answered to the model."""

    name: str
    output: str


@dataclass(frozen=True)
class Thought:
    """A stretch of reasoning is over: its sampled tokens, and the seconds that they took."""

    tokens: int
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class TurnStats:
    """One turn, in tokens and seconds; the last event of `send`."""

    prefilled: int
    """Tokens of the prompt, and of what tools answered, that the KV state did not hold."""
    decoded: int
    """Sampled tokens, without the first after each prefill, whose time belongs to the prefill."""
    reasoning: int
    """Sampled tokens of reasoning."""
    first_token_seconds: float
    decode_seconds: float
    context_used: int
    finished: bool
    """Whether there is an answer that did not break off; `Session.resume` goes on with any other."""
    cycle: int | None = None
    """Tokens of the cycle that the model repeated over and over, where the answer was stopped for that."""

    @property
    def repeated(self) -> str | None:
        """What was repeated over and over, in words, where the answer was stopped for that."""
        return self.cycle and ("the same token" if self.cycle == 1 else f"the same {self.cycle} tokens")

    @property
    def tokens_per_second(self) -> float:
        return self.decoded / self.decode_seconds if self.decoded else 0.0


@dataclass(frozen=True)
class Dropped:
    """The context was full: this many messages, the oldest, are no longer part of the conversation."""

    messages: int


class AnswerGrammar:
    """Applies a grammar to the text of the answer, and to nothing before it. Follows a parser that is fed first."""

    def __init__(self, grammar: JsonGrammar, parser: Parser, message: int):
        """`message` is the id that ends a header."""
        grammar.reset()
        self._grammar, self._parser = grammar, parser
        self._end_of_header = mx.arange(grammar.vocabulary) == message
        self._answering = self._in_answer()

    @property
    def finished(self) -> bool:
        return self._grammar.finished

    def allowed(self) -> mx.array | None:
        if self._parser.opens_answer:  # a text without `<|message|>` would be an answer that no grammar has seen
            return self._end_of_header
        return self._grammar.allowed() if self._answering else None

    def accept(self, id_: int) -> None:
        if self._answering:
            self._grammar.accept(id_)
        self._answering = self._in_answer()

    def check(self) -> None:
        """Raises GptOssError where what is read as the answer breaks a rule of the schema, finished as it is."""
        self._grammar.check("".join(m.content for m in self._parser.messages if kind_of(m) is Content))

    def _in_answer(self) -> bool:
        message = self._parser.message
        return message is not None and kind_of(message) is Content


# A model that has fallen into a loop seldom leaves it. What a person wants repeats as well (a table of zeros, a log),
# but not for so long: none of 11,000 source files, logs and tables does.
LOOP = 4096  # tokens that are one cycle over and over
MAX_CYCLE = 512  # tokens, which makes eight repetitions at least
LOOKED_FOR_EVERY = 256  # tokens


def cycle_at_end(ids: list[int]) -> int | None:
    """The length of the cycle, MAX_CYCLE at most, that the last LOOP of `ids` repeat; None where they do not."""
    tail = ids[-LOOP:]
    if len(tail) < LOOP:
        return None
    some = tail[:16]  # which spares most of the long comparisons
    lengths = (n for n in range(1, MAX_CYCLE + 1) if tail[n : n + len(some)] == some)
    return next((n for n in lengths if tail[n:] == tail[:-n]), None)


class Clock:
    """Counts and times one turn, over all its rounds, and looks for Ctrl-C where nothing is half done."""

    def __init__(self, interrupts: Interrupts, on_prefill: Callable[[int, int], None] | None):
        self.interrupts, self._on_prefill = interrupts, on_prefill
        self.prefilled = self.decoded = self.sampled = self.reasoning = 0
        self.first_token_seconds = self.decode_seconds = 0.0
        self.cycle: int | None = None  # of a model in a loop
        self._started: float | None = None
        self._last = 0.0
        self._fresh = True
        self._thought_from: tuple[int, float] | None = None

    def check(self) -> None:
        self.interrupts.check()

    def prefill(self, done: int, total: int) -> None:
        if done == 0:
            self._started = self._started or time.monotonic()
            self.prefilled += total
            self._fresh = True
        self.check()
        if self._on_prefill:
            self._on_prefill(done, total)

    def token(self, reasoning: bool) -> Thought | None:
        """Count a sampled token; the stretch of reasoning that it ended, if it did."""
        now = time.monotonic()
        self.sampled += 1
        if self.sampled == 1:
            self.first_token_seconds = now - self._started
        if not self._fresh:
            self.decode_seconds += now - self._last
            self.decoded += 1
        self._last, self._fresh = now, False
        return self._thought(reasoning, now)

    def _thought(self, reasoning: bool, now: float) -> Thought | None:
        if reasoning:
            self._thought_from = self._thought_from or (self.reasoning, now)
            self.reasoning += 1
        elif self._thought_from:
            tokens, since = self._thought_from
            self._thought_from = None
            return Thought(self.reasoning - tokens, now - since)
        return None

    def stats(self, context_used: int, finished: bool) -> TurnStats:
        return TurnStats(
            self.prefilled,
            self.decoded,
            self.reasoning,
            self.first_token_seconds,
            self.decode_seconds,
            context_used,
            finished,
            self.cycle,
        )
