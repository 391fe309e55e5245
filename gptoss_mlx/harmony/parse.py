"""What a model emits -> events, while it arrives, and messages.

One state machine over pieces: special tokens by name (`Special`) and ordinary text. It never raises on what a model
emits, and markup never reaches an event.

How headers are read, since models get them wrong in many ways:
- the channel is the word behind `<|channel|>`; a recipient is a `to=...` in the role's place or behind the channel;
  the content type is the word behind `<|constrain|>`, or a bare word that is left over;
- a header that ends without `<|message|>` still gives a message, and what is left over in it is the text;
- a message without a channel is taken for the answer; one on an unknown channel, or in another's role, for reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .messages import FUNCTIONS, Message
from .render import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, START, Special

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

STOPS = {RETURN: "return", CALL: "call", END: "end", Special("<|endoftext|>"): "none"}
NAMES = (START, CHANNEL, CONSTRAIN, MESSAGE, *STOPS)
CHANNELS = ("analysis", "commentary", "final")
NOT_A_TOOL = ("all", "assistant", "user")


@dataclass(frozen=True)
class Reasoning:
    """More of the analysis."""

    text: str


@dataclass(frozen=True)
class Preamble:
    """More of a commentary message without recipient: said to the user before a tool is called."""

    text: str


@dataclass(frozen=True)
class Content:
    """More of the answer."""

    text: str


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


class Parser:
    """Takes the pieces that follow `<|start|>assistant`, cut anywhere. It is in a header, in a text, or in between."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.sound = True  # whether the last of the messages has the form that Harmony gives it, but for its end
        self.stop = "none"
        self._header: list[str] | None = []
        self._sound = False
        self._message: Message | None = None
        self._text: list[str] = []

    def feed(self, piece: str) -> Iterator[Event]:
        """The events that `piece` completes."""
        if not isinstance(piece, Special):
            yield from self._feed_text(piece)
        elif piece in STOPS:
            yield from self._close()
            self.stop = STOPS[piece]
        elif piece == START or (piece == CHANNEL and self._message):
            yield from self._close()
            self._header, self.stop = [], "none"
            if piece == CHANNEL:  # the model forgot to end one message and to start the next
                self._header.append(piece)
        elif piece == MESSAGE and not self._message:
            header = self._header or []
            self._sound = SOUND_HEADER.fullmatch("".join(header)) is not None
            self._message, _ = read_header(header, complete=True)
            self._header = None
        elif piece in (CHANNEL, CONSTRAIN) and not self._message:
            self._in_header(piece)
        else:  # a token that has no business in a text
            self._sound = False

    @property
    def message(self) -> Message | None:
        """What the header said of the message whose text is arriving; None between messages and in a header."""
        return self._message

    @property
    def opens_answer(self) -> bool:
        """Whether a header names the answer's channel, so that only its end is to come."""
        return self._message is None and OPENING_ANSWER.fullmatch("".join(self._header or ())) is not None

    def finish(self) -> Iterator[Event]:
        """The events of the end, whether or not the last message was ended."""
        ended = len(self.messages)
        yield from self._close()
        if len(self.messages) > ended:
            self.stop = "none"
        yield Stop(self.stop)

    def _feed_text(self, text: str) -> Iterator[Event]:
        if self._message is None:
            self._in_header(text)
        else:
            self._text.append(text)
            yield from _shown(self._message, text)

    def _in_header(self, piece: str) -> None:
        if self._header is None:  # between messages: the model forgot `<|start|>`
            self._header = []
        self._header.append(piece)

    def _close(self) -> Iterator[Event]:
        message, text = self._message, "".join(self._text)
        sound = message is not None and self._sound
        if message is None:
            message, text = read_header(self._header or [], complete=False)
            if text:
                yield from _shown(message, text)
        self._header, self._message, self._text = None, None, []
        if not text and not message.channel and not message.recipient:
            return
        message = replace(message, content=text)
        self.messages.append(message)
        self.sound = sound
        if is_call(message):
            yield ToolCall(message.recipient.removeprefix(FUNCTIONS), text)


def is_call(message: Message) -> bool:
    return message.role == "assistant" and message.recipient is not None


def _shown(message: Message, text: str) -> Iterator[Event]:
    """What a reader sees of more text; a call is one event, when it is complete."""
    kind = kind_of(message)
    if kind is not ToolCall and text:
        yield kind(text)


def kind_of(message: Message) -> type[Reasoning | Preamble | Content | ToolCall]:
    """The event that the text of a message becomes."""
    if message.role != "assistant":
        return Reasoning
    if message.recipient is not None:
        return ToolCall
    return {"final": Content, None: Content, "commentary": Preamble}.get(message.channel, Reasoning)


# What the publisher's own renderings begin with, and what a model was seen to write as well.
SOUND_HEADER = re.compile(
    r"(assistant)?( to=[^\s<]+)?<\|channel\|>(analysis|commentary|final)( to=[^\s<]+)?( ?<\|constrain\|>\w+| \w+)?"
)
OPENING_ANSWER = re.compile(r"(assistant)?<\|channel\|>final")
_WORD = re.compile(r"\s*([\w.\-]+)")
_RECIPIENT = re.compile(r"\s*\bto=([^\s<]+)")


def read_header(pieces: Iterable[str], *, complete: bool) -> tuple[Message, str]:
    """What the pieces of a header say, as a message without content; and the text in them that says nothing.

    A `complete` header ended in `<|message|>`. Without it, words may well be what the message was meant to say.
    """
    sections: list[tuple[str, list[str]]] = [("", [])]
    for piece in pieces:
        if isinstance(piece, Special):
            sections.append((piece, []))
        else:
            sections[-1][1].append(piece)
    role, channel, recipient, content_type, rest = "assistant", None, None, None, ""
    for marker, parts in sections:
        text = "".join(parts)
        if marker == CONSTRAIN:
            content_type, text = _word(text)
        elif marker == CHANNEL:
            channel, text = _channel(text)
        elif not text.startswith("assistant") and (complete or len(sections) > 1) and not _RECIPIENT.match(text):
            word, text = _word(text)
            role = word or role
        else:
            text = text.removeprefix("assistant")
        if found := _RECIPIENT.match(text):
            recipient, text = recipient or found[1], text[found.end() :]
        rest += text
    if complete and content_type is None and (found := _WORD.fullmatch(rest.rstrip())):
        content_type = found[1]
    message = Message(role, "", channel, None if recipient in NOT_A_TOOL else recipient, content_type)
    return message, rest.strip()


def _word(text: str) -> tuple[str | None, str]:
    found = _WORD.match(text)
    return (found[1], text[found.end() :]) if found else (None, text)


def _channel(text: str) -> tuple[str | None, str]:
    """The channel and what follows it, even where nothing separates the two."""
    known = next((name for name in CHANNELS if text.lstrip().startswith(name)), None)
    return (known, text.lstrip().removeprefix(known)) if known else _word(text)


@dataclass(frozen=True)
class Emitted:
    """A message, and the ids in which the model wrote it: those behind `<|start|>assistant`, without the end token.

    None where they are not fit to be read again, as with a broken header: the message can be rendered anew.
    """

    message: Message
    ids: tuple[int, ...] | None


class IdParser:
    """The same for token ids: holds back a character until its last byte has come."""

    def __init__(self, tokenizer: Tokenizer):
        self.parser = Parser()
        self.emitted: list[Emitted] = []
        self._specials, self._stream = tokenizer.specials, tokenizer.stream()
        self._start = [tokenizer.special(START), *tokenizer.encode("assistant")]
        self._ends = {id_ for id_, name in tokenizer.specials.items() if name in (*STOPS, START, CHANNEL)}
        self._ids: list[int] = []  # of the message that is arriving

    def feed(self, id_: int) -> Iterator[Event]:
        """The events that a token completes."""
        self._ids.append(id_)
        if name := self._specials.get(id_):
            yield from self.parser.feed(self._stream.flush())
            yield from self.parser.feed(Special(name))
        else:
            yield from self.parser.feed(self._stream.feed(id_))
        ended = self._collect()
        if name == START or (ended and name == CHANNEL):  # not the end of one message but the beginning of the next
            self._ids = [id_]

    def finish(self) -> Iterator[Event]:
        yield from self.parser.feed(self._stream.flush())
        yield from self.parser.finish()
        self._collect()

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
