"""The output of a model -> events, while it arrives, and messages.

One state machine over pieces: special tokens by name (`Special`) and ordinary text. It never raises on anything that a
model emits, and markup never reaches an event. Models get the form wrong in many ways, so these are the rules (those
about headers are in `headers`):

A complete header, one that `<|message|>` ends, counts wherever in it a word stands.
- The recipient is the first `to=NAME` whose name is a tool's, or without any `to=`, a `functions.NAME`
  that stands beside a header's words only.
- The channel is the word after the last `<|channel|>` that names one; before any, a channel's name is one too.
- A role stands right after `<|start|>`: a known one, or a tool's name that stands alone. A channel's name is never a
  role. Elsewhere only `NAME to=assistant` is a role: the invented answer of a tool.
- The content type is what `<|constrain|>` says, or a bare word that is left over. Other words say nothing.

A header that anything else ends is read strictly, since its words may be the text of the message: channel, recipient
and content type count only side by side at its beginning, and the rest is the text. A rest of header words alone is no
text, nor is a word that may be a header's last one where the output breaks off.

Text without any header:
- before the first header of an output it is a preamble;
- closed by `<|return|>` or the end of the output, it is the answer;
- closed by anything else, it is noise between messages.

A message without a channel is taken for the answer; one on an unknown channel, or in another person's role, for
reasoning. One in a tool's role is a call of that tool where `<|call|>` ends it. Otherwise the model has invented
the tool's answer: that makes no event, and whoever feeds the parser should stop there (`invented`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..engine.special_tokens import CALL, CHANNEL, CONSTRAIN, END, END_OF_TEXT, MESSAGE, NAMES, RETURN, START, Special
from .headers import (
    NAMESPACED,
    OPENING_ANSWER,
    OPENING_CALL,
    ROLES,
    SOUND_HEADER,
    preamble,
    read_header,
    read_unfinished_header,
)
from .messages import FUNCTIONS, Message

if TYPE_CHECKING:
    from ..engine.tokenizer import Tokenizer

STOPS = {RETURN: "return", CALL: "call", END: "end", END_OF_TEXT: "none"}


@dataclass(frozen=True)
class _Text:
    text: str
    begins: bool = field(default=False, compare=False)
    """Whether a message begins with it, which readers want to see apart from the one before."""


class Reasoning(_Text):
    """More of the analysis."""


class Preamble(_Text):
    """More of a commentary message without recipient: said to the user before a tool is called."""


class Content(_Text):
    """More of the answer."""


@dataclass(frozen=True)
class ToolCall:
    """A complete call; `name` is the recipient without `functions.`."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Stop:
    """How it ended: "return", "call", "end", or "none" where it broke off."""

    reason: str


Event = Reasoning | Preamble | Content | ToolCall | Stop
Kind = type[Reasoning | Preamble | Content | ToolCall]


class Parser:
    """Takes the pieces that follow `<|start|>assistant`, cut anywhere. It is in a header, in a text, or in between."""

    def __init__(self, *, headers_needed: Collection[Kind] = (), calls: bool = True):
        """`headers_needed`: text of these kinds counts only in messages with a complete header; all other is dropped.
        Without `calls`, a call is taken for invented, and dropped."""
        self.messages: list[Message] = []
        self.sound = True  # whether the last of the messages has the form that Harmony gives it, but for its end
        self.stop = "none"
        self.invented = False  # whether the model has answered for a tool, or calls one where it must not
        self.unfit = False  # whether there was an answer without the header that was needed
        self._headers_needed, self._calls = headers_needed, calls
        self._first = True  # whether no header has begun yet
        self._header: list[str] = []
        self._sound = True
        self._message: Message | None = None
        self._text: list[str] = []

    def feed(self, piece: str) -> Iterator[Event]:
        """The events that `piece` completes."""
        if not isinstance(piece, Special):
            yield from self._feed_text(piece)
        elif piece in STOPS:
            yield from self._close(piece)
            self.stop = STOPS[piece]
        elif piece == START or (piece == CHANNEL and self._message):  # which may be all that begins the next message
            yield from self._close(piece)
            self._header, self.stop = [piece], "none"
        elif self._message is None and piece in (CHANNEL, CONSTRAIN, MESSAGE):
            yield from self._feed_header(piece)
        else:  # a token that has no business here
            self._sound = False

    @property
    def message(self) -> Message | None:
        """The message whose text is arriving, as its header announced it; None between messages and in a header."""
        return self._message

    @property
    def opens_answer(self) -> bool:
        """Whether a header names the answer's channel, so that only its end is to come."""
        return self._message is None and OPENING_ANSWER.fullmatch("".join(self._header)) is not None

    @property
    def opens_call(self) -> bool:
        """Whether a header names a tool, the channel and the type of a call, so that only its end is to come."""
        return self._message is None and OPENING_CALL.fullmatch("".join(self._header)) is not None

    def finish(self) -> Iterator[Event]:
        """The events of the end, whether or not the last message was ended."""
        ended = len(self.messages)
        yield from self._close(None)
        if len(self.messages) > ended:
            self.stop = "none"
        yield Stop(self.stop)

    def _feed_text(self, text: str) -> Iterator[Event]:
        if self._message is None:
            self._header.append(text)
        elif text:
            self._text.append(text)
            yield from _shown(self._message, text, begins=len(self._text) == 1)

    def _feed_header(self, piece: Special) -> Iterator[Event]:
        if self._first and (text := preamble(self._header)):
            yield from self._add_at_once(Message("assistant", text, "commentary"))
        self._first = False
        if piece == MESSAGE:
            self._sound &= SOUND_HEADER.fullmatch("".join(self._header)) is not None
            self._message = read_header(self._header)
            self.invented |= is_result(self._message) or not (self._calls or tool_of(self._message) is None)
        else:
            self._header.append(piece)

    def _close(self, by: Special | None) -> Iterator[Event]:
        """End the message, or the header that has become none; `by` is None at the end of the output."""
        if self._message is None:
            message, sound = read_unfinished_header(self._header, by), False
        else:
            message, sound = replace(self._message, content="".join(self._text)), self._sound
        if message and message.role not in ROLES:
            if by == CALL and not is_result(message):
                message, sound = _call_by(message), False
            else:
                self.invented = True
        if message and is_call(message) and not self._calls:
            message = None
        if message and self._message is None:
            yield from self._add_at_once(message)
        elif message and (message.content or message.channel or message.recipient):
            yield from self._add(message, sound)
        self._first = self._first and by == START and not self._header  # a `<|start|>` written once more
        self._header, self._message, self._text, self._sound = [], None, [], True

    def _add_at_once(self, message: Message) -> Iterator[Event]:
        """Add a message that no complete header has announced, with its events."""
        kind = kind_of(message)
        if kind in self._headers_needed:
            self.unfit |= kind is Content
            return
        yield from self._add(message, sound=False)
        yield from _shown(message, message.content, begins=True)

    def _add(self, message: Message, sound: bool) -> Iterator[Event]:
        self.messages.append(message)
        self.sound = sound
        if call := call_of(message):
            yield call


def call_of(message: Message) -> ToolCall | None:
    """The call that a message is, if it is one."""
    if message.role != "assistant" or message.recipient is None:
        return None
    return ToolCall(message.recipient.removeprefix(FUNCTIONS), message.content)


def is_call(message: Message) -> bool:
    return call_of(message) is not None


def tool_of(message: Message) -> str | None:
    """The tool that a message calls, or would call if `<|call|>` ended it; None where it can be no call."""
    speaks = message.role not in ROLES and not is_result(message)
    called = call_of(_call_by(message) if speaks else message)
    return called.name if called else None


def is_result(message: Message) -> bool:
    """Whether a header says that a tool answers the model."""
    return message.role not in ROLES and message.recipient == "assistant"


def _call_by(message: Message) -> Message:
    """The call that a message in a tool's role is."""
    tool = message.role if NAMESPACED.fullmatch(message.role) else FUNCTIONS + message.role
    return replace(message, role="assistant", recipient=tool)


def _shown(message: Message, text: str, *, begins: bool) -> Iterator[Event]:
    """The event of more text; a call is one event, when it is complete."""
    kind = kind_of(message)
    if text and kind is not None and issubclass(kind, _Text):
        yield kind(text, begins)


def kind_of(message: Message) -> Kind | None:
    """The event that the text of a message becomes; a tool's becomes none."""
    if message.role not in ROLES:
        return None
    if message.role != "assistant":
        return Reasoning
    if message.recipient is not None:
        return ToolCall
    if message.channel in ("final", None):
        return Content
    return Preamble if message.channel == "commentary" else Reasoning


@dataclass(frozen=True)
class Emitted:
    """A message, and the ids in which the model wrote it: those after `<|start|>assistant`, without the end token.

    None where they are not fit to be read again, as with a broken header: the message can be rendered anew.
    """

    message: Message
    ids: tuple[int, ...] | None


class IdParser:
    """A parser of token ids: a character arrives with its last byte."""

    def __init__(self, tokenizer: Tokenizer, *, headers_needed: Collection[Kind] = (), calls: bool = True):
        self.parser = Parser(headers_needed=headers_needed, calls=calls)
        self.emitted: list[Emitted] = []
        self._specials, self._stream = tokenizer.specials, tokenizer.stream()
        self._start = [tokenizer.special(START), *tokenizer.encode("assistant")]
        self._ends = {id_ for id_, name in tokenizer.specials.items() if name in (*STOPS, START, CHANNEL)}
        self._ids: list[int] = []  # of the message that is arriving

    def feed(self, id_: int) -> Iterator[Event]:
        """The events that a token completes."""
        self._ids.append(id_)
        in_text = self.parser.message is not None
        if name := self._specials.get(id_):
            yield from self.parser.feed(self._stream.flush())
            yield from self.parser.feed(Special(name))
        else:
            yield from self.parser.feed(self._stream.feed(id_))
        ended = self._collect() or in_text
        if name == START or (ended and name == CHANNEL):  # not the end of one message but the beginning of the next
            self._ids = [id_]
        elif name in STOPS:
            self._ids = []

    def finish(self) -> Iterator[Event]:
        yield from self.parser.feed(self._stream.flush())
        yield from self.parser.finish()
        self._collect()
        self._ids = []

    def drop_invented(self) -> None:
        """Forget the invented answer of a tool, or the call, and continue after it."""
        list(self.parser.feed(END))
        self.parser.invented = False
        self._collect()
        self._ids = []

    def _collect(self) -> bool:
        """Whether a message was complete."""
        if len(self.parser.messages) == len(self.emitted):
            return False
        start, ids = len(self._start), self._ids
        ids = ids[start:] if ids[:start] == self._start else ids
        ids = ids[:-1] if ids and ids[-1] in self._ends else ids
        self.emitted.append(Emitted(self.parser.messages[-1], tuple(ids) if self.parser.sound else None))
        self._ids = []
        return True


def pieces_of(text: str) -> Iterator[str]:
    """Text in which special tokens are written by name -> pieces."""
    for part in re.split("(" + "|".join(map(re.escape, NAMES)) + ")", text):
        if part:
            yield Special(part) if part in NAMES else part
