"""A conversation with a model: what was said, the KV state behind it, and the next answer as events.

Knows Harmony, the engine and tools; knows no terminal, no file and no network. The date is fixed when the session
starts, because a prompt that changes at midnight would have to be read again.

A turn reads only what is new. The model's own messages go into later prompts in the ids in which it wrote them, so that
a prompt begins with what the timeline holds; and since Harmony drops the reasoning of a finished turn, each turn is
marked in the timeline where its prompt ended, which is where the next prompt departs from what was sampled.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import mlx.core as mx

from ..engine.generate import Model
from ..engine.interrupts import Interrupts
from ..engine.json_schema import Schema, unwrapped
from ..engine.prompt_cache import PromptCache
from ..engine.sampling import Sampler, Sampling
from ..engine.special_tokens import CALL, END, MESSAGE, RETURN, START
from ..errors import GptOssError
from ..harmony.messages import EFFORTS as TRAINED_EFFORTS
from ..harmony.messages import FUNCTIONS, Conversation, Message, call, result
from ..harmony.openings import NO_REASONING, OPEN_FINAL
from ..harmony.parse import Content, Emitted, Event, IdParser, Parser, Reasoning, ToolCall, is_call, kind_of
from ..harmony.render import START_OF_ANSWER, encode, is_stale, render, render_message
from ..tools.toolbox import Builtin, Function, Toolbox, error_result
from .transcript import Transcript
from .turn import LOOKED_FOR_EVERY, AnswerGrammar, Clock, Dropped, ToolResult, TurnStats, cycle_at_end

if TYPE_CHECKING:
    from ..engine.json_grammar import JsonGrammar

EFFORTS = ("none", *TRAINED_EFFORTS)
STOPS = ("<|return|>", "<|call|>", "<|endoftext|>")
MAX_CALLS = 32  # rounds of tool calls in one turn, before a model that loops has to answer
MAX_HEADER = 512  # tokens outside of any message, before a model is taken to have lost its way
ROOM_FOR_ANSWER = 1 / 8  # of the context, which a prompt leaves free before it counts as full
MIN_ROOM = 1 / 16  # of the context, which results leave for the answer
SHORTENED = 1 / 2  # of the context, which a prompt takes at most after turns were dropped

Approve = Callable[[ToolCall, str], bool]
"""A call and what it would do -> whether it may."""


@dataclass(frozen=True)
class _Said:
    """A message, and the ids that stand for it in a prompt."""

    message: Message
    ids: tuple[int, ...]


@dataclass
class _Draft:
    """An answer that is being written: the ids of its prompt, those behind it, and how many messages came before."""

    prompt: list[int]
    written: list[int]
    messages: int


class Session:
    """`Session(model).send("Hello")` yields events: reasoning, preambles, content, tool calls, and `TurnStats` last."""

    def __init__(
        self,
        model: Model,
        *,
        functions: Sequence[Function] = (),
        builtins: Sequence[Builtin] = (),
        approve: Approve | None = None,
        instructions: str | None = None,
        reasoning_effort: str = "medium",
        max_reasoning: int | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        response_schema: Schema | None = None,
        current_date: str | None = None,
        drop_when_full: bool = False,
    ):
        """`approve` is asked about the calls of tools that want it; without it they are refused.

        `reasoning_effort` "none" goes straight to the answer; `max_reasoning` tokens of a turn, and reasoning is closed
        and the answer opened. `max_tokens` are those of a turn. A finished answer is JSON of the `response_schema`; one
        that breaks a rule of it ends the turn with a GptOssError.
        `drop_when_full`: the oldest turns leave when the context is full, instead of ContextFull.
        """
        self.model = model
        self.prompt_cache = PromptCache(model)
        self.tokenizer = model.tokenizer
        self.toolbox, self.approve = Toolbox(functions, builtins), approve
        self.sampling = sampling or Sampling()
        self.max_tokens, self.max_reasoning = max_tokens, max_reasoning
        self.drop_when_full = drop_when_full
        self.instructions = instructions
        self.current_date = current_date or datetime.date.today().isoformat()
        self.set_reasoning_effort(reasoning_effort)
        self.stats: list[TurnStats] = []
        self._stops = frozenset(self.tokenizer.special(name) for name in STOPS)
        self._start_of_answer = encode((START, START_OF_ANSWER), self.tokenizer)
        self.response_schema = unwrapped(response_schema)
        self._grammar = None if response_schema is None else self._make_grammar(self.response_schema)
        self._encoded_head: tuple[Conversation, list[int]] | None = None
        self._said: tuple[_Said, ...] = ()
        self._draft: _Draft | None = None

    def _make_grammar(self, schema: Schema) -> JsonGrammar:
        from ..engine.json_grammar import JsonGrammar

        return JsonGrammar(schema, self.tokenizer, self.model.config.vocab_size, self.tokenizer.special(RETURN))

    @property
    def messages(self) -> tuple[Message, ...]:
        """All that was said, instructions apart."""
        return tuple(said.message for said in self._said)

    @property
    def context_used(self) -> int:
        """Positions in the KV state."""
        return self.prompt_cache.cache.offset

    @property
    def token_counts(self) -> tuple[int, list[int]]:
        """Of the instructions and tools, and of each message: what it takes in the next prompt, 0 if it is dropped."""
        kept = zip(self._said, is_stale(self.messages), strict=True)
        return len(self._head()), [0 if dropped else len(said.ids) for said, dropped in kept]

    @property
    def prompt_tokens(self) -> int:
        """Of the context, what the next prompt takes before a question is asked."""
        head, counts = self.token_counts
        return head + sum(counts)

    @property
    def longest_text(self) -> int:
        """Characters beyond which a text cannot fit into the context."""
        return self.model.context * self.tokenizer.longest

    @property
    def unread(self) -> int:
        """Tokens of the conversation that the next turn has to read, beside its message."""
        ids = self._ids_so_far()
        return len(ids) - self.prompt_cache.cached_of(ids)

    @property
    def transcript(self) -> Transcript:
        """The conversation as it can be kept, and `restore`d."""
        ids = tuple(said.ids if said.message.role == "assistant" else None for said in self._said)
        return Transcript(
            model=str(self.model.path.resolve()),
            instructions=self.instructions,
            reasoning_effort=self.reasoning_effort,
            current_date=self.current_date,
            messages=self.messages,
            ids=ids,
            unfinished=self._draft is not None,
        )

    def restore(self, transcript: Transcript) -> None:
        """Continue a conversation that was kept, with the instructions, the effort and the date that it had.

        Ids are taken only where they say what the message says. Raises GptOssError, and then nothing has changed.
        """
        said = tuple(
            self._restored(message, ids) for message, ids in zip(transcript.messages, transcript.ids, strict=True)
        )
        self.set_reasoning_effort(transcript.reasoning_effort)
        self.instructions, self.current_date = transcript.instructions, transcript.current_date
        self._set_said(said)
        self._draft = self._draft_of(said) if transcript.unfinished else None
        self.stats.clear()

    def reset(self) -> None:
        """Forget what was said; settings stay."""
        self._set_said(())
        self.stats.clear()

    def set_reasoning_effort(self, effort: str) -> None:
        """From the next turn on. Raises GptOssError for an effort that there is not."""
        if effort not in EFFORTS:
            raise GptOssError(f"reasoning effort is {effort!r}, not one of {', '.join(EFFORTS)}")
        self.reasoning_effort = effort

    def close(self) -> None:
        """End what the tools have started."""
        self.toolbox.close()

    def send(self, text: str, *, on_prefill: Callable[[int, int], None] | None = None) -> Iterator[Event]:
        """Say something and yield the answer's events as they arrive, running the functions that the model calls.

        An answer that is interrupted (the iterator closed, or KeyboardInterrupt) stays in the conversation as far as
        it came, and `resume` goes on with it; after any other error the conversation is as it was. Ctrl-C is raised
        between two tokens. Raises ContextFull where it no longer fits.
        """
        if least := self._tokens_of_too_many(text):
            raise self.model.full(f"at least {least:,} tokens")
        return self._turn((*self._said, self._rendered(Message("user", text))), None, on_prefill)

    def retry(self, *, on_prefill: Callable[[int, int], None] | None = None) -> Iterator[Event]:
        """Answer the last question once more, as `send` does. Raises GptOssError where there is none."""
        return self._turn(self._said[: self._last_question() + 1], None, on_prefill)

    def resume(self, *, on_prefill: Callable[[int, int], None] | None = None) -> Iterator[Event]:
        """Go on with an answer that broke off, as `send` does. Raises GptOssError where there is none."""
        if self._draft is None:
            raise GptOssError("the last answer is complete: there is nothing to go on with")
        return self._turn(self._said[: self._draft.messages], self._draft, on_prefill)

    def undo(self) -> str:
        """Take back the last question and all behind it; returns its text. Raises GptOssError where there is none."""
        last = self._last_question()
        text = self._said[last].message.content
        self._set_said(self._said[:last])
        return text

    def settle(self, tokens: int) -> int:
        """Read ahead what the next prompt will begin with, `tokens` at most; returns how many are left.

        At first the instructions and tools; later an answer, which was sampled behind its reasoning and has to be read
        without. Nothing is read while an answer can be resumed.
        """
        if self._draft:
            return 0
        ids = [*self._ids_so_far(), *encode((START, "user", MESSAGE), self.tokenizer)]
        if len(ids) >= self.model.context:
            return 0
        left = self.prompt_cache.prepare(ids, tokens)
        if not left:
            self.prompt_cache.snapshot()
        return left

    def _turn(
        self, said: tuple[_Said, ...], draft: _Draft | None, on_prefill: Callable[[int, int], None] | None
    ) -> Iterator[Event]:
        before = self._said, self._draft
        self._set_said(said)
        try:
            with Interrupts() as interrupts:
                yield from self._answer(draft, Clock(interrupts, on_prefill))
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException:
            self._said, self._draft = before
            raise

    def _answer(self, draft: _Draft | None, clock: Clock) -> Iterator[Event]:
        """Rounds of sampling and tool calls, up to a final answer."""
        dropped = self._make_room(len(draft.written) if draft else 0)
        if draft is None:
            draft = self._new_draft()
        elif dropped:
            draft = _Draft(self._prompt(), draft.written, len(self._said))
        self._draft = draft
        if dropped:
            yield Dropped(dropped)
        for count in range(MAX_CALLS + 1):
            parser = IdParser(self.tokenizer, headers_needed=self._grammar is not None)
            try:
                calls, finished = yield from self._write(draft, parser, clock, must_answer=count == MAX_CALLS)
            except (KeyboardInterrupt, GeneratorExit):
                self._keep_fragment(draft, parser)
                raise
            self._keep(parser)
            if not calls:
                break
            yield from self._run(calls, clock)
            draft = self._new_draft()
        self._draft = None if finished else draft
        self.stats.append(clock.stats(self.context_used, finished))
        yield self.stats[-1]

    def _write(
        self, draft: _Draft, parser: IdParser, clock: Clock, must_answer: bool
    ) -> Generator[Event, None, tuple[list[ToolCall], bool]]:
        """Sample until the model has called a tool or given an answer, feeding the parser. Returns the calls, and
        whether the answer is complete.

        What the model should have written is written for it: an empty analysis where it is not to reason, the end of
        one that grew too long, and the beginning of an answer where it stopped without one, or in another's role. What
        it says for a tool is taken back.
        """
        grammar = self._grammar and AnswerGrammar(self._grammar, parser.parser, self.tokenizer.special(MESSAGE))
        written, draft.written = draft.written, []
        calls = self._give(written, draft, parser, grammar)
        given, may_insist = () if draft.written else self._opening(must_answer), True
        if draft.written and draft.written[-1] in self._stops:
            if calls:  # it was stopped before they could run
                return calls, False
            given, may_insist = self._insistence(draft, parser), False
        before_sampling = len(draft.written)
        while True:
            calls += self._give(encode(given, self.tokenizer), draft, parser, grammar)
            stopped, in_header = False, 0
            with closing(self._sample(draft, grammar, clock)) as ids:
                for id_ in ids:
                    before = parser.parser.message
                    draft.written.append(id_)
                    for event in parser.feed(id_):
                        calls += [event] if isinstance(event, ToolCall) else []
                        yield event
                    message = parser.parser.message
                    reasoning = message is not None and kind_of(message) is Reasoning
                    if thought := clock.token(reasoning and message is before):
                        yield thought
                    clock.check()
                    in_header = 0 if message else in_header + 1
                    unwanted = in_header > MAX_HEADER or (reasoning and not self._may_reason(message, clock))
                    if id_ in self._stops or unwanted or parser.parser.invented:
                        stopped = True
                        if grammar:
                            grammar.accept(id_)
                        break
                    sampled = len(draft.written) - before_sampling
                    if sampled % LOOKED_FOR_EVERY == 0 and (cycle := cycle_at_end(draft.written[-sampled:])):
                        clock.cycle = cycle
                        break
            if parser.parser.invented:
                self._take_back(draft, parser)
            if not (stopped and may_insist) or calls or parser.parser.unfit or _has_answer(parser.parser):
                break
            given, may_insist = self._insistence(draft, parser), False
        for event in parser.finish():
            if not isinstance(event, ToolCall):  # one that broke off says what nobody meant
                yield event
        finished = stopped and _has_answer(parser.parser) and (grammar is None or grammar.finished)
        if finished and grammar:
            grammar.check()
        return calls, finished

    def _may_reason(self, message: Message, clock: Clock) -> bool:
        """Whether more of this message is wanted: of the model's own reasoning, while it is within the limit."""
        limit = 0 if self.reasoning_effort == "none" else self.max_reasoning
        return message.role == "assistant" and (limit is None or clock.reasoning < limit)

    def _opening(self, must_answer: bool) -> tuple[str, ...]:
        """What is written for the model where its answer begins."""
        if self.reasoning_effort != "none" and not must_answer:
            return ()
        may_call = (self.toolbox.functions or self.toolbox.builtins) and not must_answer
        return (*NO_REASONING, *((START, START_OF_ANSWER) if may_call else OPEN_FINAL))

    def _insistence(self, draft: _Draft, parser: IdParser) -> tuple[str, ...]:
        """What is written for a model that stopped, or was stopped, without an answer."""
        if not draft.written:
            return OPEN_FINAL[len((START, START_OF_ANSWER)) :]
        if draft.written[-1] in self._stops:
            draft.written[-1] = self.tokenizer.special(END)
        return ((END,) if parser.parser.message else ()) + OPEN_FINAL

    def _take_back(self, draft: _Draft, parser: IdParser) -> None:
        """Forget the message in which the model has answered for a tool: nothing is to be built on that."""
        start, written = self.tokenizer.special(START), draft.written
        if written[-1] == start:  # of the message behind it
            written.pop()
        del written[max((index for index, id_ in enumerate(written) if id_ == start), default=0) :]
        parser.drop_invented()

    def _give(self, ids: list[int], draft: _Draft, parser: IdParser, grammar: AnswerGrammar | None) -> list[ToolCall]:
        """Write ids that the model did not sample, or did before, and tell nothing of them but the calls."""
        calls = []
        for id_ in ids:
            draft.written.append(id_)
            calls += [event for event in parser.feed(id_) if isinstance(event, ToolCall)]
            if grammar:
                grammar.accept(id_)
        return calls

    def _sample(self, draft: _Draft, grammar: AnswerGrammar | None, clock: Clock) -> Iterator[int]:
        """The ids that the model writes behind a draft."""
        left = self.max_tokens and self.max_tokens - clock.sampled
        if left == 0:
            return
        logits = self._read(draft, clock)
        yield from self.prompt_cache.decode(
            logits,
            sampler=Sampler(self.sampling, context=draft.prompt + draft.written),
            max_tokens=left,
            stop=self._stops,
            constraint=grammar,
        )

    def _read(self, draft: _Draft, clock: Clock) -> mx.array:
        """Read what is not held of the draft, and mark where a later prompt may depart from it."""
        head = self._head()
        if len(head) > self.prompt_cache.cache.window and not self.prompt_cache.holds(head):
            self.prompt_cache.read(head, clock.prefill)
            self.prompt_cache.snapshot()
        if draft.written and self.prompt_cache.holds(draft.prompt):
            return self.prompt_cache.read(draft.prompt + draft.written, clock.prefill)
        logits = self.prompt_cache.read(draft.prompt, clock.prefill)
        if self._said[draft.messages - 1].message.role == "user":
            self.prompt_cache.snapshot()
        return self.prompt_cache.read(draft.prompt + draft.written, clock.prefill) if draft.written else logits

    def _run(self, calls: Sequence[ToolCall], clock: Clock) -> Iterator[Event]:
        """Run the tools that may run, and keep what they answer; Ctrl-C ends them at once."""
        waiting = list(calls)
        try:
            while waiting:
                with clock.interrupts.at_once():
                    output = self._output(waiting[0])
                name = waiting.pop(0).name
                yield ToolResult(name, self._keep_result(name, output))
        except (KeyboardInterrupt, GeneratorExit):
            for stopped in waiting:
                self._keep_result(stopped.name, error_result("the user stopped this call"))
            self._draft = self._new_draft()
            raise

    def _output(self, wanted: ToolCall) -> str:
        if self.toolbox.asks(wanted):
            if self.approve is None:
                return error_result("nobody is here to allow this call")
            if not self.approve(wanted, self.toolbox.preview(wanted)):
                return error_result("the user did not allow this call")
        return self.toolbox.run(wanted)

    def _make_room(self, written: int) -> int:
        """Drop turns, the oldest first, from a conversation that fills the context, with what was `written` behind it,
        until it is well below: a shorter prompt has to be read anew, which should not happen in every turn. Returns
        how many messages left."""
        before, most = len(self._said), self.model.context
        if not self.drop_when_full or len(self._prompt()) + written <= most * (1 - ROOM_FOR_ANSWER):
            return 0
        while len(self._prompt()) + written > most * SHORTENED:
            starts = [index for index, said in enumerate(self._said) if said.message.role == "user" and index]
            if not starts:
                break
            self._set_said(self._said[starts[0] :])
        return before - len(self._said)

    def _prompt(self) -> list[int]:
        """From which the model continues."""
        return [*self._ids_so_far(), *self._start_of_answer]

    def _ids_so_far(self) -> list[int]:
        """The ids of all that a prompt still contains."""
        ids, stale = [*self._head()], is_stale(self.messages)
        for said, dropped in zip(self._said, stale, strict=True):
            ids.extend(() if dropped else said.ids)
        return ids

    def _head(self) -> list[int]:
        """The ids of the system message, the instructions and the tools; encoded anew only when they are others."""
        conversation = Conversation(
            messages=() if self.instructions is None else (Message("developer", self.instructions),),
            tools=self.toolbox.tools,
            builtin_tools=tuple(self.toolbox.builtins),
            reasoning_effort=TRAINED_EFFORTS[0] if self.reasoning_effort == "none" else self.reasoning_effort,
            current_date=self.current_date,
            response_schema=self.response_schema,
        )
        if self._encoded_head is None or self._encoded_head[0] != conversation:
            pieces = list(render(conversation))[: -len((START, START_OF_ANSWER))]
            self._encoded_head = conversation, encode(pieces, self.tokenizer)
        return self._encoded_head[1]

    def _new_draft(self) -> _Draft:
        return _Draft(self._prompt(), [], len(self._said))

    def _draft_of(self, said: tuple[_Said, ...]) -> _Draft:
        """The answer that these messages end in, or that is missing behind them. One that the schema does not allow is
        begun anew."""
        last = said[-1] if said else None
        if last is None or last.message.role != "assistant" or is_call(last.message):
            return self._new_draft()
        self._set_said(said[:-1])
        written = list(last.ids[len(self._start_of_answer) : -1])
        draft = _Draft(self._prompt(), written if self._is_allowed(written) else [], len(said) - 1)
        self._set_said(said)
        return draft

    def _is_allowed(self, written: list[int]) -> bool:
        """Whether the answer in it, if there is one, is the beginning of one by the schema."""
        if self._grammar is None:
            return True
        parser = IdParser(self.tokenizer)
        grammar = AnswerGrammar(self._grammar, parser.parser, self.tokenizer.special(MESSAGE))
        try:
            self._give(written, _Draft([], [], 0), parser, grammar)
        except GptOssError:
            return False
        return True

    def _keep(self, parser: IdParser) -> None:
        """Add what the model wrote to the conversation."""
        kept = [self._as_written(emitted) for emitted in parser.emitted if _is_worth_keeping(emitted.message)]
        self._set_said((*self._said, *kept))

    def _keep_fragment(self, draft: _Draft, parser: IdParser) -> None:
        """Of an interrupted answer, add what a later prompt may contain: no reasoning, and no call that was not run."""
        list(parser.finish())
        parser.emitted = [e for e in parser.emitted if e.message.channel != "analysis" and not is_call(e.message)]
        self._keep(parser)
        self._draft = draft

    def _keep_result(self, name: str, output: str) -> str:
        """What the model is told: the output, unless the context has no room for it and an answer."""
        builtin_tools = self.toolbox.builtins
        room = max(int(self.model.context * (1 - MIN_ROOM)) - len(self._prompt()), 0)
        least = self._tokens_of_too_many(output)
        said = None if least else self._rendered(result(name, output, builtin_tools))
        if said is None or len(said.ids) > room:
            tokens = f"{len(said.ids):,}" if said else f"at least {least:,}"
            output = error_result(f"the result has {tokens} tokens: the context has room for {room:,}")
            said = self._rendered(result(name, output, builtin_tools))
        self._set_said((*self._said, said))
        return output

    def _tokens_of_too_many(self, text: str) -> int:
        """How many tokens a text has at the least, where it has more than the context by itself; else 0. No more of it
        is encoded than it takes to know."""
        most = self.model.context
        least = 0
        if len(text) > most:
            least = math.ceil(len(text) / self.tokenizer.longest)
            least = least if least > most else len(self.tokenizer.encode(text, most + 1))
        return least if least > most else 0

    def _as_written(self, emitted: Emitted) -> _Said:
        """The model's own ids where they are fit to be read again, with the end that belongs to the message."""
        message = _as_rendered(emitted.message, self.toolbox.builtins)
        if emitted.ids is None:
            return self._rendered(message)
        end = encode((CALL if is_call(message) else END,), self.tokenizer)
        return _Said(message, (*self._start_of_answer, *emitted.ids, *end))

    def _rendered(self, message: Message) -> _Said:
        return _Said(message, tuple(encode(render_message(message), self.tokenizer)))

    def _restored(self, message: Message, ids: Sequence[int] | None) -> _Said:
        """With the ids that were kept, if they say exactly what the message says."""
        vocabulary = range(self.model.config.vocab_size)
        if ids is not None and message.role == "assistant" and all(id_ in vocabulary for id_ in ids):
            parser = IdParser(self.tokenizer)
            for id_ in ids[len(self._start_of_answer) :]:
                list(parser.feed(id_))
            said = [self._as_written(emitted) for emitted in parser.emitted]
            if said == [_Said(message, tuple(ids))]:
                return said[0]
        return self._rendered(message)

    def _last_question(self) -> int:
        asked = [index for index, said in enumerate(self._said) if said.message.role == "user"]
        if not asked:
            raise GptOssError("nothing has been asked yet")
        return asked[-1]

    def _set_said(self, said: tuple[_Said, ...]) -> None:
        self._said, self._draft = said, None


def _as_rendered(message: Message, builtin_tools: Container[str]) -> Message:
    """A message of the model's in the form in which Harmony writes it."""
    if is_call(message):
        return call(message.recipient.removeprefix(FUNCTIONS), message.content, builtin_tools)
    return replace(message, channel=message.channel or "final", content_type=None)


def _is_worth_keeping(message: Message) -> bool:
    """Not what was said in another's role, and no empty answer; an empty analysis holds the place of reasoning."""
    return message.role == "assistant" and (message.content or is_call(message) or message.channel == "analysis")


def _has_answer(parser: Parser) -> bool:
    return any(m.role == "assistant" and kind_of(m) is Content and m.content for m in parser.messages)
