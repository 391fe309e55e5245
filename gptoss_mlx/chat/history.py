"""The messages of a conversation, each with the ids that stand for it in a prompt.

The model's own messages stand in the ids in which it wrote them, so that a prompt begins with what the prompt cache
holds. Knows Harmony and the tokenizer; what a conversation does next, `session` knows.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

from ..engine.special_tokens import CALL, END, START
from ..engine.tokenizer import Tokenizer
from ..errors import GptOssError
from ..harmony.messages import Message, call
from ..harmony.parse import Emitted, IdParser, call_of, is_call
from ..harmony.render import START_OF_ANSWER, encode, is_stale, render_message


@dataclass(frozen=True)
class HistoryEntry:
    """A message, and the ids that stand for it in a prompt."""

    message: Message
    ids: tuple[int, ...]


@dataclass(frozen=True)
class History:
    """All that was said, instructions apart."""

    entries: tuple[HistoryEntry, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(entry.message for entry in self.entries)

    @property
    def token_counts(self) -> list[int]:
        """Tokens of each message in the next prompt; 0 for those that Harmony drops."""
        stale = is_stale(self.messages)
        return [0 if drops else len(entry.ids) for entry, drops in zip(self.entries, stale, strict=True)]

    @property
    def ids(self) -> list[int]:
        """The ids of all that the next prompt contains."""
        stale = is_stale(self.messages)
        return [id_ for entry, drops in zip(self.entries, stale, strict=True) if not drops for id_ in entry.ids]

    @property
    def ends_in_question(self) -> bool:
        return bool(self.entries) and self.entries[-1].message.role == "user"

    def plus(self, *entries: HistoryEntry) -> History:
        return History((*self.entries, *entries))

    def until(self, count: int) -> History:
        """The first `count` messages."""
        return History(self.entries[:count])

    def last_question(self) -> int:
        """The index of the last question. Raises GptOssError where there is none."""
        asked = self._questions()
        if not asked:
            raise GptOssError("nothing has been asked yet")
        return asked[-1]

    def without_oldest_turn(self) -> History | None:
        """The messages from the second question on; None where there is no second one."""
        later = [index for index in self._questions() if index]
        return History(self.entries[later[0] :]) if later else None

    def _questions(self) -> list[int]:
        return [index for index, entry in enumerate(self.entries) if entry.message.role == "user"]


class HistoryEncoder:
    """Makes the entries of a history."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, builtin_tools: Container[str]):
        self.start_of_answer = encode((START, START_OF_ANSWER), tokenizer)
        self._tokenizer, self._vocab_size, self._builtin_tools = tokenizer, vocab_size, builtin_tools

    def rendered(self, message: Message) -> HistoryEntry:
        return HistoryEntry(message, tuple(encode(render_message(message), self._tokenizer)))

    def emitted(self, emitted: Emitted) -> HistoryEntry:
        """The model's own ids where they are fit to be read again, with the end that belongs to the message."""
        message = self._as_harmony_writes(emitted.message)
        if emitted.ids is None:
            return self.rendered(message)
        end = encode((CALL if is_call(message) else END,), self._tokenizer)
        return HistoryEntry(message, (*self.start_of_answer, *emitted.ids, *end))

    def restored(self, message: Message, ids: Sequence[int] | None) -> HistoryEntry:
        """A saved message, with the ids that were saved if they say exactly what the message says."""
        vocabulary = range(self._vocab_size)
        if ids is not None and message.role == "assistant" and all(id_ in vocabulary for id_ in ids):
            parser = IdParser(self._tokenizer)
            for id_ in ids[len(self.start_of_answer) :]:
                list(parser.feed(id_))
            saved = HistoryEntry(message, tuple(ids))
            if [self.emitted(emitted) for emitted in parser.emitted] == [saved]:
                return saved
        return self.rendered(message)

    def _as_harmony_writes(self, message: Message) -> Message:
        if called := call_of(message):
            return call(called.name, called.arguments, self._builtin_tools)
        return replace(message, channel=message.channel or "final", content_type=None)


def is_worth_saving(message: Message) -> bool:
    """Whether a message of the model's joins the history: not what it said in another's role, and no empty answer; an
    empty analysis holds the place of reasoning."""
    return message.role == "assistant" and bool(message.content or is_call(message) or message.channel == "analysis")
