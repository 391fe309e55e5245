"""A conversation with a model: what was said, the KV state behind it, and the next answer as events.

Knows Harmony and the engine; knows no terminal and no network. The date is fixed when the session starts, because a
prompt that changes at midnight would have to be read again.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..engine import Model
from ..errors import GptOssError
from ..harmony.messages import Conversation, Message, call, result
from ..harmony.parse import Event, IdParser, ToolCall, is_call
from ..harmony.render import START, START_OF_ANSWER, encode, render_ids, render_message
from ..sampling import Sampling
from ..tokenizer import Tokenizer
from .tools import Function, run_call

STOPS = ("<|return|>", "<|call|>", "<|endoftext|>")
MAX_CALLS = 8  # rounds of tool calls in one turn, before a model that loops is stopped
FORMAT = "gptoss-mlx conversation 1"
ROOM_FOR_ANSWER = 1 / 8  # of the context, which a prompt leaves free before it counts as full
SHORTENED = 1 / 2  # of the context, which a prompt takes at most after turns were dropped


@dataclass(frozen=True)
class ToolResult:
    """What a function answered to the model."""

    name: str
    output: str


@dataclass(frozen=True)
class TurnStats:
    """One turn, in tokens and seconds; the last event of `send`."""

    prefilled: int
    decoded: int
    """Sampled tokens, without the first after each prefill, whose time belongs to the prefill."""
    first_token_seconds: float
    decode_seconds: float
    context_used: int

    @property
    def tokens_per_second(self) -> float:
        return self.decoded / self.decode_seconds if self.decoded else 0.0


@dataclass(frozen=True)
class Dropped:
    """The context was full: this many messages, the oldest, are no longer part of the conversation."""

    messages: int


class Session:
    """`Session(model).send("Hello")` yields events: reasoning, preambles, content, tool calls, and `TurnStats` last."""

    def __init__(
        self,
        model: Model,
        *,
        functions: Sequence[Function] = (),
        instructions: str | None = None,
        reasoning_effort: str = "medium",
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        current_date: str | None = None,
        drop_when_full: bool = False,
    ):
        """`drop_when_full`: the oldest turns leave when the context is full, instead of ContextFull."""
        self.model = model
        self.drop_when_full = drop_when_full
        self.tokenizer = Tokenizer.load(model.path)
        self.functions = {function.tool.name: function for function in functions}
        self.sampling, self.max_tokens = sampling or Sampling(), max_tokens
        self.instructions = instructions
        self.conversation = Conversation(
            tools=tuple(function.tool for function in functions),
            reasoning_effort=reasoning_effort,
            current_date=current_date or datetime.date.today().isoformat(),
        )
        self._stops = frozenset(self.tokenizer.special(name) for name in STOPS)
        self._cache, self._held = model.make_cache(), []  # the KV state, and the ids that it holds
        self.stats: list[TurnStats] = []

    @property
    def messages(self) -> tuple[Message, ...]:
        """All that was said, instructions apart."""
        return self.conversation.messages

    @property
    def context_used(self) -> int:
        """Positions in the KV state."""
        return self._cache.offset

    def reset(self) -> None:
        """Forget what was said; settings stay."""
        self._set_messages(())
        self.stats.clear()

    def set_reasoning_effort(self, effort: str) -> None:
        """From the next turn on. Raises GptOssError for an effort that there is not."""
        self.conversation = replace(self.conversation, reasoning_effort=effort)

    def send(self, text: str, *, on_prefill: Callable[[int, int], None] | None = None) -> Iterator[Event]:
        """Say something and yield the answer's events as they arrive, running the functions that the model calls.

        An answer that is interrupted (the iterator closed, or KeyboardInterrupt) stays in the conversation as far as
        it came; after any other error the conversation is as it was. Raises ContextFull where it no longer fits.
        """
        before = self.messages
        self._set_messages((*before, Message("user", text)))
        try:
            yield from self._answer(on_prefill)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException:
            self._set_messages(before)
            raise

    def _answer(self, on_prefill: Callable[[int, int], None] | None) -> Iterator[Event]:
        """Rounds of sampling and tool calls, up to a final answer."""
        clock = _Clock()
        prompt = render_ids(self._rendered(), self.tokenizer)
        if self.drop_when_full and len(prompt) > self.model.context * (1 - ROOM_FOR_ANSWER):
            prompt, dropped = self._shortened(prompt)
            if dropped:
                yield Dropped(dropped)
        for _ in range(MAX_CALLS + 1):
            sampled: list[int] = []
            parser = IdParser(self.tokenizer)
            calls: list[ToolCall] = []
            try:
                for id_ in self._sample(prompt, sampled, clock, on_prefill):
                    for event in parser.feed(id_):
                        calls += [event] if isinstance(event, ToolCall) else []
                        yield event
            except (KeyboardInterrupt, GeneratorExit):
                list(parser.finish())
                self._keep([m for m in parser.parser.messages if not is_call(m) and m.channel != "analysis"])
                raise
            for event in parser.finish():
                calls += [event] if isinstance(event, ToolCall) else []
                yield event
            self._keep(parser.parser.messages)
            if not calls:
                break
            # The ids as they were sampled: rendered anew they could differ, and the KV state would be lost.
            prompt = prompt + sampled
            for wanted in calls:
                output = run_call(self.functions, wanted.name, wanted.arguments)
                yield ToolResult(wanted.name, output)
                self._set_messages((*self.messages, result(wanted.name, output)))
                prompt = prompt + encode(render_message(self.messages[-1]), self.tokenizer)
            prompt = prompt + encode((START, START_OF_ANSWER), self.tokenizer)
        self.stats.append(clock.stats(self.context_used))
        yield self.stats[-1]

    def _shortened(self, prompt: list[int]) -> tuple[list[int], int]:
        """Drop turns, the oldest first, until the prompt is well below the context: a shorter prompt has to be read
        anew, which should not happen in every turn. Returns the new prompt and how many messages left."""
        before = len(self.messages)
        while len(prompt) > self.model.context * SHORTENED:
            starts = [index for index, message in enumerate(self.messages) if message.role == "user" and index]
            if not starts:
                break
            self._set_messages(self.messages[starts[0] :])
            prompt = render_ids(self._rendered(), self.tokenizer)
        return prompt, before - len(self.messages)

    def _sample(
        self, prompt: list[int], sampled: list[int], clock: _Clock, on_prefill: Callable[[int, int], None] | None
    ) -> Iterator[int]:
        """Sampled ids, also appended to `sampled`. Feeds what the KV state does not hold yet."""
        if self._held != prompt[: len(self._held)] or len(self._held) == len(prompt):
            self._cache, self._held = self.model.make_cache(), []
        new = prompt[len(self._held) :]
        clock.start(len(new))
        self._held = []  # nothing is certain about a state that an error leaves behind
        try:
            for id_ in self.model.generate(
                new,
                sampling=self.sampling,
                max_tokens=self.max_tokens,
                stop=self._stops,
                cache=self._cache,
                on_prefill=on_prefill,
            ):
                clock.token()
                sampled.append(id_)
                yield id_
        finally:
            self._held = (prompt + sampled)[: self._cache.offset]

    def _keep(self, emitted: Sequence[Message]) -> None:
        """Add what the model emitted to the conversation, in the form in which it is rendered."""
        kept = [
            call(message.recipient.removeprefix("functions."), message.content)
            if is_call(message)
            else replace(message, channel=message.channel or "final", content_type=None)
            for message in emitted
            if message.role == "assistant"
        ]
        self._set_messages((*self.messages, *kept))

    def _rendered(self) -> Conversation:
        head = () if self.instructions is None else (Message("developer", self.instructions),)
        return replace(self.conversation, messages=(*head, *self.messages))

    def _set_messages(self, messages: tuple[Message, ...]) -> None:
        self.conversation = replace(self.conversation, messages=messages)

    def save(self, path: Path) -> None:
        """Write the conversation as JSON; an existing file is replaced in one step. Raises GptOssError."""
        data = {
            "format": FORMAT,
            "instructions": self.instructions,
            "reasoning_effort": self.conversation.reasoning_effort,
            "current_date": self.conversation.current_date,
            "messages": [asdict(message) for message in self.messages],
        }
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(partial, path)
        except OSError as error:
            raise GptOssError(f"cannot write {path}: {error.strerror}") from None

    def load(self, path: Path) -> None:
        """Continue a saved conversation. Raises GptOssError, and then nothing has changed."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise GptOssError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise GptOssError(f"{path} is not JSON: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise GptOssError(f"{path} is not a saved conversation")
        try:
            loaded = replace(
                self.conversation,
                messages=tuple(_message(entry) for entry in data["messages"]),
                reasoning_effort=data["reasoning_effort"],
                current_date=_optional_text(data["current_date"]),
            )
            self.instructions = _optional_text(data["instructions"])
        except (KeyError, TypeError, GptOssError) as error:
            raise GptOssError(f"{path} is damaged: {error}") from None
        self.conversation = loaded
        self.stats.clear()


def _message(entry: Any) -> Message:
    message = Message(**entry)
    for text in (message.channel, message.recipient, message.content_type):
        _optional_text(text)
    if not isinstance(message.role, str) or not isinstance(message.content, str):
        raise TypeError("a message has no text")
    return message


def _optional_text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


class _Clock:
    """Counts and times one turn, over all its rounds."""

    def __init__(self) -> None:
        self.prefilled = self.decoded = 0
        self.first_token_seconds = self.decode_seconds = 0.0
        self._started = self._last = 0.0
        self._fresh = True

    def start(self, prefilled: int) -> None:
        self.prefilled += prefilled
        self._started = time.monotonic()
        self._fresh = True

    def token(self) -> None:
        now = time.monotonic()
        if self._fresh:
            self.first_token_seconds = self.first_token_seconds or now - self._started
        else:
            self.decode_seconds += now - self._last
            self.decoded += 1
        self._last, self._fresh = now, False

    def stats(self, context_used: int) -> TurnStats:
        return TurnStats(self.prefilled, self.decoded, self.first_token_seconds, self.decode_seconds, context_used)
