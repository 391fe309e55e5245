"""Answers a request: from its conversation to a prompt, and from what is written after that to the request's events.

`answer` writes; this adds what only a client asks for: ids of calls, texts that end an answer, and how it ended in a
client's words. A client's tools are not run here. What is written can be broken off between two events, and gone on
with, on another prompt cache.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Sequence
from contextlib import closing

from ..engine.generate import Model
from ..engine.interrupts import Interrupts
from ..engine.json_grammar import JsonGrammar
from ..engine.prompt_cache import PromptCache
from ..engine.special_tokens import MESSAGE, RETURN, START
from ..harmony.openings import without_reasoning
from ..harmony.parse import Content, Reasoning, Stop, ToolCall
from ..harmony.render import encode, render_head
from .answer import Answer, AnswerRules, Draft
from .call_rules import call_rules
from .history import History, HistoryEncoder, HistoryEntry, is_worth_saving
from .replay import Replay
from .request import AnswerEvent, AnswerRequest, AnswerStats, Called
from .stop_texts import StopTexts
from .turn import Clock, TurnEvent, Waiting, repetition


class RequestAnswer:
    """`write` yields the events of the answer, `AnswerStats` last."""

    def __init__(self, request: AnswerRequest, model: Model, replay: Replay):
        """Raises ContextFull for a prompt that leaves no room for an answer, GptOssError for a schema that cannot be
        used and for a tool that has to be called and is not there."""
        self._request, self._model, self._replay = request, model, replay
        self._encoder = _encoder(request, model)
        head, history = self._head, self._history = _encoded(request, replay)
        self.prompt = [*head, *history.ids, *self._encoder.start_of_answer]
        if len(self.prompt) >= model.context:
            raise model.full(f"{len(self.prompt):,} tokens")
        self._draft = Draft(self.prompt, len(head), len(history), history.ends_in_question, [])
        calls = call_rules(request, model.tokenizer, model.config.vocab_size)
        self._rules = AnswerRules(
            sampling=request.sampling,
            max_tokens=request.max_tokens,
            max_reasoning=None if request.reasons else 0,
            grammar=self._grammar(),
            opening=() if request.reasons else without_reasoning(can_call=calls.allowed),
            calls=calls,
            logprobs=request.logprobs,
        )
        self._clock = Clock(Interrupts(), None)
        self._stop = StopTexts(request.stop)
        self._cached: int | None = None
        self._thoughts: list[str] = []
        self._written: list[HistoryEntry] = []
        self.finished = self._complete = False

    def _grammar(self) -> JsonGrammar | None:
        """That of the answer itself."""
        schema = self._request.conversation.response_schema
        if schema is None:
            return None
        tokenizer = self._model.tokenizer
        return JsonGrammar(schema, tokenizer, self._model.config.vocab_size, tokenizer.special(RETURN))

    @property
    def ids(self) -> list[int]:
        """All that the prompt cache has to hold to go on."""
        return self.prompt + self._draft.written

    def write(self, prompt_cache: PromptCache) -> Generator[AnswerEvent | Waiting, None, None]:
        """Go on with the answer; where this is closed at a `Prefill` or `Waiting`, it can be called again."""
        if self._cached is None:
            self._cached = prompt_cache.cached_of(self.prompt)
        answer = Answer(self._draft, self._rules, prompt_cache, self._model.tokenizer, self._clock)
        try:
            with closing(answer.write()) as events:
                for event in events:
                    yield from self._shown(event)
                    if self._stop.found is not None:
                        break
        except GeneratorExit:
            self._draft = answer.draft
            raise
        self.finished, self._complete = True, answer.finished and not answer.calls
        self._written = [self._encoder.emitted(each) for each in answer.emitted if is_worth_saving(each.message)]
        self._replay.remember(self._written)
        yield from self._stop.rest()
        yield self._stats(answer)

    def _shown(self, event: TurnEvent) -> Generator[AnswerEvent | Waiting, None, None]:
        match event:
            case Content():
                yield from self._stop.feed(event)
            case ToolCall(name, arguments):
                call_id = f"call_{secrets.token_hex(12)}"
                self._replay.remember_reasoning(call_id, "".join(self._thoughts))
                yield Called(call_id, name, arguments)
            case Reasoning(text):
                self._thoughts.append(text)
                yield event
            case Stop():
                pass
            case _:
                yield event  # type: ignore[misc]

    def next_prompt(self) -> list[int]:
        """What a next question's prompt will begin with, after a complete answer, where that is not what was read: the
        answer without its reasoning. Empty where a client is to run a tool, whose result goes on from here."""
        if not self._complete:
            return []
        entries = self._history.plus(*self._written)
        ids = [*self._head, *entries.ids, *encode((START, "user", MESSAGE), self._model.tokenizer)]
        return ids if len(ids) < self._model.context else []

    def _stats(self, answer: Answer) -> AnswerStats:
        stopped = answer.finished or self._stop.found is not None
        return AnswerStats(
            reason="tool_calls" if answer.calls else "stop" if stopped else "length",
            prompt=len(self.prompt),
            cached=min(self._cached or 0, len(self.prompt) - 1),
            sampled=self._clock.sampled,
            reasoning=self._clock.reasoning,
            stopped_by=self._stop.found,
            repeated=repetition(self._clock.cycle),
        )


def prompt_tokens(request: AnswerRequest, model: Model, replay: Replay) -> int:
    """Tokens of the prompt, even of one that the context has no room for."""
    head, history = _encoded(request, replay)
    return len(head) + len(history.ids) + len(_encoder(request, model).start_of_answer)


def _encoder(request: AnswerRequest, model: Model) -> HistoryEncoder:
    return HistoryEncoder(model.tokenizer, model.config.vocab_size, request.conversation.builtin_tools)


def _encoded(request: AnswerRequest, replay: Replay) -> tuple[Sequence[int], History]:
    """What stands before all that was said, and what was said."""
    said = tuple(map(replay.entry, request.conversation.said))
    return replay.ids(render_head(request.conversation)), History(said)
