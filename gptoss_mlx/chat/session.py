"""A conversation with a model: its history, its prompt cache, its tools, and the next answer as events.

Knows Harmony, the engine and tools; knows no terminal, no file and no network. One answer is written by `answer`. The
date is fixed when the session starts, because a prompt that changes at midnight would have to be prefilled again.

A turn prefills only what is new. Since Harmony drops the reasoning of a finished turn, the prompt cache has a snapshot
where each turn's prompt ended, which is where the next prompt departs from what was sampled.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from ..engine.generate import Model
from ..engine.interrupts import Interrupts
from ..engine.json_schema import Schema, unwrapped
from ..engine.prompt_cache import PromptCache
from ..engine.sampling import Sampling
from ..engine.special_tokens import MESSAGE, RETURN, START
from ..errors import GptOssError
from ..harmony.messages import EFFORTS as TRAINED_EFFORTS
from ..harmony.messages import Conversation, Message, result
from ..harmony.openings import without_reasoning
from ..harmony.parse import Emitted, ToolCall, is_call
from ..harmony.render import encode, render_head
from ..tools.toolbox import Builtin, Function, Toolbox, error_result
from .answer import Answer, AnswerRules, Draft, fits_grammar
from .history import History, HistoryEncoder, is_worth_saving
from .room import room_for_result, tokens_beyond, without_oldest_turns
from .transcript import Transcript
from .turn import Asked, Clock, Dropped, OnPrefill, Prefill, ToolResult, TurnEvent, TurnEvents, TurnStats, Waiting

if TYPE_CHECKING:
    from ..engine.json_grammar import JsonGrammar

EFFORTS = ("none", *TRAINED_EFFORTS)
MAX_CALLS = 32  # rounds of tool calls in one turn, before a model that loops has to answer

Approve = Callable[[ToolCall, str], bool]
"""A call and what it would do -> whether it may."""
Outputs = Callable[[ToolCall], Generator[Asked | Waiting, None, str]]
"""A call -> its output, for which others need not wait."""


class Session:
    """`Session(model).send("Hello")` yields events: reasoning, preambles, content, tool calls, and `TurnStats` last."""

    def __init__(
        self,
        model: Model,
        *,
        functions: Sequence[Function] = (),
        builtins: Sequence[Builtin] = (),
        approve: Approve | None = None,
        outputs: Outputs | None = None,
        instructions: str | None = None,
        reasoning_effort: str = "medium",
        max_reasoning: int | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        response_schema: Schema | None = None,
        current_date: str | None = None,
        drop_when_full: bool = False,
        yields_steps: bool = False,
    ):
        """`approve` is asked about the calls of tools that want it; without it they are refused. `outputs` runs tools
        instead, and asks by itself.

        `reasoning_effort` "none" goes straight to the answer; after `max_reasoning` tokens of a turn, reasoning is
        closed and the answer opened. `max_tokens` are those of a turn. A finished answer is JSON of the
        `response_schema`; one that breaks a rule of it ends the turn with a GptOssError.
        `drop_when_full`: the oldest turns are dropped when the context is full, instead of ContextFull.
        `yields_steps`: `Prefill` and `Waiting` are among the events, so that others can have their turn between two
        chunks and two tokens.
        """
        self.model = model
        self.prompt_cache = PromptCache(model)
        self.tokenizer = model.tokenizer
        self.toolbox, self.approve, self.outputs = Toolbox(functions, builtins), approve, outputs
        self.sampling = sampling or Sampling()
        self.max_tokens, self.max_reasoning = max_tokens, max_reasoning
        self.drop_when_full, self.yields_steps = drop_when_full, yields_steps
        self.instructions = instructions
        self.current_date = current_date or datetime.date.today().isoformat()
        self.set_reasoning_effort(reasoning_effort)
        self.set_response_schema(response_schema)
        self.stats: list[TurnStats] = []
        self._encoder = HistoryEncoder(self.tokenizer, model.config.vocab_size, self.toolbox.builtins)
        self._encoded_head: tuple[Conversation, list[int]] | None = None
        self._history = History()
        self._draft: Draft | None = None

    def _make_grammar(self, schema: Schema) -> JsonGrammar:
        from ..engine.json_grammar import JsonGrammar

        return JsonGrammar(schema, self.tokenizer, self.model.config.vocab_size, self.tokenizer.special(RETURN))

    def __repr__(self) -> str:
        used = f"{self.context_used:,} of {self.model.context:,} tokens"
        return f"<Session with {self.model.path.resolve().name}: {len(self._history)} messages, {used}>"

    @property
    def messages(self) -> tuple[Message, ...]:
        """All that was said, instructions apart."""
        return self._history.messages

    @property
    def context_used(self) -> int:
        """Positions in the KV cache."""
        return self.prompt_cache.cache.offset

    @property
    def token_counts(self) -> tuple[int, list[int]]:
        """Tokens in the next prompt: of instructions and tools, and of each message, 0 for those that are dropped."""
        return len(self._head()), self._history.token_counts

    @property
    def ids(self) -> list[int]:
        """Those that the next prompt begins with: all that it contains so far."""
        return self._ids_so_far()

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the next prompt, before a question is asked."""
        head, counts = self.token_counts
        return head + sum(counts)

    @property
    def longest_text(self) -> int:
        """Characters beyond which a text cannot fit into the context."""
        return self.model.context * self.tokenizer.longest

    @property
    def unread(self) -> int:
        """Tokens of the conversation that the next turn has to prefill, beside its message."""
        ids = self._ids_so_far()
        return len(ids) - self.prompt_cache.cached_of(ids)

    @property
    def transcript(self) -> Transcript:
        """The conversation as it can be saved, and `restore`d."""
        entries = self._history.entries
        return Transcript(
            model=str(self.model.path.resolve()),
            instructions=self.instructions,
            reasoning_effort=self.reasoning_effort,
            current_date=self.current_date,
            messages=self.messages,
            ids=tuple(entry.ids if entry.message.role == "assistant" else None for entry in entries),
            unfinished=self._draft is not None,
        )

    def restore(self, transcript: Transcript) -> None:
        """Continue a saved conversation, with the instructions, the effort and the date that it had.

        Ids are taken only where they say what the message says. Raises GptOssError, and then nothing has changed.
        """
        saved = zip(transcript.messages, transcript.ids, strict=True)
        history = History(tuple(self._encoder.restored(message, ids) for message, ids in saved))
        self.set_reasoning_effort(transcript.reasoning_effort)
        self.instructions, self.current_date = transcript.instructions, transcript.current_date
        self._set_history(history)
        self._draft = self._draft_at_end(history) if transcript.unfinished else None
        self.stats.clear()

    def reset(self) -> None:
        """Forget all that was said; settings stay."""
        self._set_history(History())
        self.stats.clear()

    def set_reasoning_effort(self, effort: str) -> None:
        """From the next turn on. Raises GptOssError for an unknown effort."""
        if effort not in EFFORTS:
            raise GptOssError(f"reasoning effort is {effort!r}, not one of {', '.join(EFFORTS)}")
        self.reasoning_effort = effort

    def set_response_schema(self, schema: Schema | None) -> None:
        """From the next turn on. Raises GptOssError for one that cannot be used."""
        self.response_schema = unwrapped(schema)
        self._grammar = None if schema is None else self._make_grammar(self.response_schema)

    def close(self) -> None:
        """End what the tools have started."""
        self.toolbox.close()

    def send(self, text: str, *, on_prefill: OnPrefill | None = None) -> TurnEvents:
        """Say something and yield the answer's events as they arrive, running the functions that the model calls.

        An answer that is interrupted (the iterator closed, or KeyboardInterrupt) stays in the conversation as far as
        it came, and `resume` continues it; after any other error the conversation is as it was. Ctrl-C is raised
        between two tokens. Raises ContextFull where it no longer fits.
        """
        if too_many := tokens_beyond(self.model.context, text, self.tokenizer):
            raise self.model.full(f"at least {too_many:,} tokens")
        return self._turn(self._history.plus(self._encoder.rendered(Message("user", text))), None, on_prefill)

    def retry(self, *, on_prefill: OnPrefill | None = None) -> TurnEvents:
        """Answer the last question once more, as `send` does. Raises GptOssError where there is none."""
        return self._turn(self._history.until(self._history.last_question() + 1), None, on_prefill)

    def resume(self, *, on_prefill: OnPrefill | None = None) -> TurnEvents:
        """Continue an answer that broke off, as `send` does. Raises GptOssError where there is none."""
        if self._draft is None:
            raise GptOssError("the last answer is complete: there is nothing to go on with")
        return self._turn(self._history.until(self._draft.messages), self._draft, on_prefill)

    def undo(self) -> str:
        """Remove the last question and all after it; returns its text. Raises GptOssError where there is none."""
        last = self._history.last_question()
        text = self.messages[last].content
        self._set_history(self._history.until(last))
        return text

    def prefill_ahead(self, max_tokens: int) -> int:
        """Prefill up to `max_tokens` of what the next prompt will begin with; returns how many are left.

        At first these are the instructions and tools; later an answer, which was sampled after its reasoning and has
        to be read without. Nothing is prefilled while an answer can be resumed.
        """
        if self._draft:
            return 0
        ids = [*self._ids_so_far(), *encode((START, "user", MESSAGE), self.tokenizer)]
        if len(ids) >= self.model.context:
            return 0
        left = self.prompt_cache.prepare(ids, max_tokens)
        if not left:
            self.prompt_cache.snapshot()
        return left

    def _turn(self, history: History, draft: Draft | None, on_prefill: OnPrefill | None) -> TurnEvents:
        """Answers and the calls in them, up to a final answer."""
        before = self._history, self._draft
        self._set_history(history)
        try:
            with Interrupts() as interrupts:
                clock = Clock(interrupts, on_prefill)
                written = draft.written if draft else []
                dropped = self._drop_turns(len(written))
                if draft is None or dropped:
                    draft = self._draft_after(self._history, written)
                self._draft = draft
                if dropped:
                    yield Dropped(dropped)
                for count in range(MAX_CALLS + 1):
                    rules = self._rules(must_answer=count == MAX_CALLS)
                    answer = Answer(draft, rules, self.prompt_cache, self.tokenizer, clock)
                    try:
                        with closing(answer.write()) as events:
                            for event in events:
                                if self.yields_steps or not isinstance(event, Prefill | Waiting):
                                    yield event
                    except (KeyboardInterrupt, GeneratorExit):
                        self._add(answer.fragment())
                        self._draft = answer.draft
                        raise
                    self._add(answer.emitted)
                    draft = answer.draft
                    if not answer.calls:
                        break
                    yield from self._run(answer.calls, interrupts)
                    draft = self._draft_after(self._history)
                self._draft = None if answer.finished else draft
                self.stats.append(clock.stats(self.context_used, answer.finished))
                yield self.stats[-1]
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException:
            self._history, self._draft = before
            raise

    def _rules(self, *, must_answer: bool) -> AnswerRules:
        reasons = self.reasoning_effort != "none"
        can_call = bool(self.toolbox.functions or self.toolbox.builtins) and not must_answer
        return AnswerRules(
            sampling=self.sampling,
            max_tokens=self.max_tokens,
            max_reasoning=self.max_reasoning if reasons else 0,
            grammar=self._grammar,
            opening=() if reasons and not must_answer else without_reasoning(can_call=can_call),
        )

    def _run(self, calls: Sequence[ToolCall], interrupts: Interrupts) -> Generator[TurnEvent, None, None]:
        """Run the tools that may run, and add their results; Ctrl-C ends them at once."""
        waiting = list(calls)
        try:
            while waiting:
                if self.outputs:
                    output = yield from self.outputs(waiting[0])
                else:
                    with interrupts.at_once():
                        output = self._output(waiting[0])
                name = waiting.pop(0).name
                yield ToolResult(name, self._add_result(name, output))
        except (KeyboardInterrupt, GeneratorExit):
            for stopped in waiting:
                self._add_result(stopped.name, error_result("the user stopped this call"))
            self._draft = self._draft_after(self._history)
            raise

    def _output(self, wanted: ToolCall) -> str:
        if self.toolbox.asks(wanted):
            if self.approve is None:
                return error_result("nobody is here to allow this call")
            if not self.approve(wanted, self.toolbox.preview(wanted)):
                return error_result("the user did not allow this call")
        return self.toolbox.run(wanted)

    def _add_result(self, name: str, output: str) -> str:
        """Returns what the model reads: the output, unless the context has no room for it and an answer."""
        room = room_for_result(len(self._prompt()), self.model.context)
        too_many = tokens_beyond(self.model.context, output, self.tokenizer)
        entry = None if too_many else self._encoder.rendered(result(name, output, self.toolbox.builtins))
        if entry is None or len(entry.ids) > room:
            tokens = f"{len(entry.ids):,}" if entry else f"at least {too_many:,}"
            output = error_result(f"the result has {tokens} tokens: the context has room for {room:,}")
            entry = self._encoder.rendered(result(name, output, self.toolbox.builtins))
        self._set_history(self._history.plus(entry))
        return output

    def _add(self, emitted: Iterable[Emitted]) -> None:
        """Add what the model wrote to the conversation."""
        entries = [self._encoder.emitted(each) for each in emitted if is_worth_saving(each.message)]
        self._set_history(self._history.plus(*entries))

    def _drop_turns(self, written: int) -> int:
        """Make room where the context is full, with so many ids `written` after the prompt. Returns how many messages
        were dropped."""
        before = self._history
        if self.drop_when_full:
            after = without_oldest_turns(before, lambda h: len(self._prompt(h)) + written, self.model.context)
            self._set_history(after)
        return len(before) - len(self._history)

    def _draft_after(self, history: History, written: Sequence[int] = ()) -> Draft:
        prompt, head = self._prompt(history), len(self._head())
        return Draft(prompt, head, len(history), history.ends_in_question, list(written))

    def _draft_at_end(self, history: History) -> Draft:
        """The answer that a history ends in, or that is missing after it. One that the schema does not allow is begun
        anew."""
        last = history.entries[-1] if history.entries else None
        if last is None or last.message.role != "assistant" or is_call(last.message):
            return self._draft_after(history)
        written = last.ids[len(self._encoder.start_of_answer) : -1]
        fits = fits_grammar(written, self.tokenizer, self._grammar)
        return self._draft_after(history.until(len(history) - 1), written if fits else ())

    def _prompt(self, history: History | None = None) -> list[int]:
        """The ids from which the model continues."""
        return [*self._ids_so_far(history), *self._encoder.start_of_answer]

    def _ids_so_far(self, history: History | None = None) -> list[int]:
        """The ids of all that a prompt still contains."""
        return [*self._head(), *(self._history if history is None else history).ids]

    def _head(self) -> list[int]:
        """The ids of the system message, the instructions and the tools; encoded again only when they have changed."""
        conversation = Conversation(
            messages=() if self.instructions is None else (Message("developer", self.instructions),),
            tools=self.toolbox.tools,
            builtin_tools=tuple(self.toolbox.builtins),
            reasoning_effort=TRAINED_EFFORTS[0] if self.reasoning_effort == "none" else self.reasoning_effort,
            current_date=self.current_date,
            response_schema=self.response_schema,
        )
        if self._encoded_head is None or self._encoded_head[0] != conversation:
            self._encoded_head = conversation, encode(render_head(conversation), self.tokenizer)
        return self._encoded_head[1]

    def _set_history(self, history: History) -> None:
        self._history, self._draft = history, None
