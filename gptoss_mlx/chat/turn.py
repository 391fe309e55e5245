"""One turn: the events that are not Harmony's, and the clock that counts and times it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..engine.interrupts import Interrupts
from ..harmony.parse import Event

if TYPE_CHECKING:
    import mlx.core as mx

    from ..engine.generate import Steps

OnPrefill = Callable[[int, int], None]
"""Tokens that are done, and their total."""


@dataclass(frozen=True)
class Prefill:
    """Tokens of a prompt that are read, of those that have to be."""

    done: int
    total: int


@dataclass(frozen=True)
class Waiting:
    """Others can have their turn, until `future` is done; without one, for a step."""

    future: Future[Any] | None = None


@dataclass(frozen=True)
class Asked:
    """A person has to agree to a call before it runs."""

    name: str
    preview: str
    """What the call would do."""


@dataclass(frozen=True)
class ToolResult:
    """The result of a tool, as the model reads it."""

    name: str
    output: str


@dataclass(frozen=True)
class Thought:
    """The end of a piece of reasoning: its sampled tokens, and the seconds that they took."""

    tokens: int
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class TokenLogprobs:
    """A token of the answer's text, with natural logarithms of probabilities; follows the text that it completes."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]
    """The likeliest tokens, the likeliest first."""


@dataclass(frozen=True)
class TurnStats:
    """One turn, in tokens and seconds; the last event of `send`."""

    prefilled: int
    """Tokens of the prompt, and of tools' results, that were not in the KV cache."""
    decoded: int
    """Sampled tokens, without the first after each prefill, whose time belongs to the prefill."""
    reasoning: int
    """Sampled tokens of reasoning."""
    first_token_seconds: float
    decode_seconds: float
    context_used: int
    finished: bool
    """Whether there is an answer that did not break off; `Session.resume` continues any other."""
    cycle: int | None = None
    """Tokens of the cycle that the model repeated over and over, where the answer was stopped for that."""
    prompt: int = 0
    """Tokens of the prompts of all its answers, each of which but the last calls a tool."""
    cached: int = 0
    """Of these, those that were in the KV cache."""
    sampled: int = 0
    """All tokens that were sampled."""

    @property
    def repeated(self) -> str | None:
        """The thing that was repeated over and over, in words, where the answer was stopped for that."""
        return repetition(self.cycle)

    @property
    def tokens_per_second(self) -> float:
        return self.decoded / self.decode_seconds if self.decoded else 0.0


def repetition(cycle: int | None) -> str | None:
    """A cycle of so many tokens, in words."""
    if cycle is None:
        return None
    return "the same token" if cycle == 1 else f"the same {cycle} tokens"


@dataclass(frozen=True)
class Dropped:
    """The context was full: this many messages, the oldest, are no longer part of the conversation."""

    messages: int


def read_on(steps: Steps, notice: OnPrefill | None = None) -> Generator[Prefill, None, mx.array]:
    """The steps of a prefill as events, each noticed first; returns the last logits."""
    with closing(steps):
        while True:
            try:
                step = Prefill(*next(steps))
            except StopIteration as end:
                return end.value
            if notice:
                notice(step.done, step.total)
            yield step


TurnEvent = Event | Asked | Prefill | Waiting | Thought | TokenLogprobs | ToolResult | Dropped | TurnStats
TurnEvents = Generator[TurnEvent, None, None]


class Clock:
    """Counts and times one turn, over all its answers, and looks for Ctrl-C where nothing is half done."""

    def __init__(self, interrupts: Interrupts, on_prefill: OnPrefill | None):
        self.interrupts, self._on_prefill = interrupts, on_prefill
        self.prompt = self.cached = self.prefilled = self.decoded = self.sampled = self.reasoning = 0
        self.first_token_seconds = self.decode_seconds = 0.0
        self.cycle: int | None = None
        self._started: float | None = None
        self._last = 0.0
        self._fresh = True
        self._thought_from: tuple[int, float] | None = None

    def begin(self, prompt: int, cached: int) -> None:
        """Count the prompt of an answer, whose last token is always read, for its logits."""
        self.prompt += prompt
        self.cached += min(cached, prompt - 1)

    def prefill(self, done: int, total: int) -> None:
        if done == 0:
            self._started = self._started or time.monotonic()
            self.prefilled += total
            self._fresh = True
        self.interrupts.check()
        if self._on_prefill:
            self._on_prefill(done, total)

    def token(self, reasoning: bool) -> Thought | None:
        """Count a sampled token; returns the piece of reasoning that it ended, if it did."""
        now = time.monotonic()
        self.sampled += 1
        if self.sampled == 1 and self._started is not None:
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
            self.prompt,
            self.cached,
            self.sampled,
        )
