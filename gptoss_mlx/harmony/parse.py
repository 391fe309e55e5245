"""What a model emits -> events, while it arrives, and messages.

One state machine over pieces: special tokens by name (`Special`) and ordinary text. It never raises on what a model
emits, and markup never reaches an event. Models get the form wrong in many ways, so these are the rules:

A complete header, one that `<|message|>` ends, counts wherever in it a word stands.
- The recipient is the first `to=NAME` whose name is a tool's, or without any `to=`, a bare `functions.NAME`.
- The channel is the word behind the last `<|channel|>` that names one; before any, a channel's name is one too.
- A role stands right behind `<|start|>`: a known one, or a tool's name that stands alone. A channel's name is never a
  role. Elsewhere only `NAME to=assistant` is a role: what a tool is said to have answered.
- The content type is what `<|constrain|>` says, or a bare word that is left over. Other words say nothing.

A header that anything else ends is read strictly, since its words may be what the message was meant to say: channel,
recipient and content type count only side by side at its beginning, and what is left over is the text. What is left
over of header words alone is no text, nor is what may be a header's last word where the output breaks off.

Text without any header:
- before the first header of an output it is a preamble;
- closed by `<|return|>` or the end of the output, it is the answer;
- closed by anything else, it is noise between messages.

A message without a channel is taken for the answer; one on an unknown channel, or in another person's role, for
reasoning. One in a tool's role is a call of that tool where `<|call|>` ends it. Otherwise the model has invented what
the tool answers: that is told to nobody, and whoever feeds the parser should stop there (`invented`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .messages import FUNCTIONS, Message
from .render import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, START, Special

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

END_OF_TEXT = Special("<|endoftext|>")
STOPS = {RETURN: "return", CALL: "call", END: "end", END_OF_TEXT: "none"}
NAMES = (START, CHANNEL, CONSTRAIN, MESSAGE, *STOPS)
CHANNELS = ("analysis", "commentary", "final")
ROLES = ("system", "developer", "user", "assistant")
NOT_A_TOOL = ("all", *ROLES)
ANSWERED = (RETURN, END_OF_TEXT, None)  # what ends a text that is the answer without having a header
MOST_ROLE = 100  # characters


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


class Parser:
    """Takes the pieces that follow `<|start|>assistant`, cut anywhere. It is in a header, in a text, or in between."""

    def __init__(self, *, headers_needed: bool = False):
        """`headers_needed`: no text reaches the user, and none is kept, but that of messages with a complete header."""
        self.messages: list[Message] = []
        self.sound = True  # whether the last of the messages has the form that Harmony gives it, but for its end
        self.stop = "none"
        self.invented = False  # whether there is an answer of a tool's that no tool has given
        self.unfit = False  # whether there was an answer without the header that was needed
        self._headers_needed = headers_needed
        self._first = True  # whether no header has begun yet
        self._header: list[str] = []
        self._sound = False
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
        elif self._message is None:
            yield from self._feed_header(piece)
        else:  # a token that has no business in a text
            self._sound = False

    @property
    def message(self) -> Message | None:
        """What the header said of the message whose text is arriving; None between messages and in a header."""
        return self._message

    @property
    def opens_answer(self) -> bool:
        """Whether a header names the answer's channel, so that only its end is to come."""
        return self._message is None and OPENING_ANSWER.fullmatch("".join(self._header)) is not None

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
            self._sound = SOUND_HEADER.fullmatch("".join(self._header)) is not None
            self._message = read_header(self._header)
            self.invented |= is_result(self._message)
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
        if message and self._message is None:
            yield from self._add_at_once(message)
        elif message and (message.content or message.channel or message.recipient):
            yield from self._add(message, sound)
        self._first = self._first and by == START and not self._header  # a `<|start|>` written once more
        self._header, self._message, self._text = [], None, []

    def _add_at_once(self, message: Message) -> Iterator[Event]:
        """Tell and add a message that no complete header has announced."""
        kind = kind_of(message)
        if self._headers_needed and kind in (Content, Preamble):
            self.unfit |= kind is Content
            return
        yield from self._add(message, sound=False)
        yield from _shown(message, message.content, begins=True)

    def _add(self, message: Message, sound: bool) -> Iterator[Event]:
        self.messages.append(message)
        self.sound = sound
        if is_call(message):
            yield ToolCall(message.recipient.removeprefix(FUNCTIONS), message.content)


def is_call(message: Message) -> bool:
    return message.role == "assistant" and message.recipient is not None


def is_result(message: Message) -> bool:
    """Whether a header says that a tool answers the model."""
    return message.role not in ROLES and message.recipient == "assistant"


def _call_by(message: Message) -> Message:
    """The call that a message in a tool's role is."""
    tool = message.role if NAMESPACED.fullmatch(message.role) else FUNCTIONS + message.role
    return replace(message, role="assistant", recipient=tool)


def _shown(message: Message, text: str, *, begins: bool) -> Iterator[Event]:
    """What a reader sees of more text; a call is one event, when it is complete."""
    kind = kind_of(message)
    if text and kind not in (ToolCall, None):
        yield kind(text, begins)


def kind_of(message: Message) -> type[Reasoning | Preamble | Content | ToolCall] | None:
    """The event that the text of a message becomes; a tool's becomes none."""
    if message.role not in ROLES:
        return None
    if message.role != "assistant":
        return Reasoning
    if message.recipient is not None:
        return ToolCall
    return {"final": Content, None: Content, "commentary": Preamble}.get(message.channel, Reasoning)


# A tool's name ends where its arguments may begin, and with no mark of a sentence.
_NAME = r"""(?!\d)\w(?:[^\s<>{}\[\]()"'`,;=|?!]*\w)?"""
_TO = rf"""to\s*=\s*["'`]?(?P<recipient>{_NAME})["'`]?"""
_ANY_CHANNEL = "|".join(CHANNELS)
_END_OF_WORD = r"(?![.\-]*\w)"
_MARKS = r"""[^\w{\[("'`]*"""
NAMESPACED = re.compile(rf"(?:functions|browser)\.{_NAME}|python")
# What the publisher's own renderings begin with, and what a model was seen to write as well.
SOUND_HEADER = re.compile(
    rf"(<\|start\|>assistant)?( to={_NAME})?<\|channel\|>({_ANY_CHANNEL})( to={_NAME})?"
    r"( ?<\|constrain\|>\w+| \w+)?"
)
OPENING_ANSWER = re.compile(r"(<\|start\|>)?[^<=]*<\|channel\|>\W*final\s*")
# The words of a header by kind. Those of the last two are the only ones that say nothing.
_WORD = re.compile(
    rf"{_TO}|(?P<tool>(?:functions|browser)\.{_NAME})|(?P<channel>{_ANY_CHANNEL}){_END_OF_WORD}"
    rf"|(?P<role>{'|'.join(ROLES)}){_END_OF_WORD}|(?P<type>json|code){_END_OF_WORD}|(?P<to>to\s*(?:=|\Z))"
    r"|(?P<mark>[^\s\w]+)|(?P<word>\w(?:[\w.\-]*\w)?)"
)
_GLUED = re.compile(rf"(assistant|json|code|{_ANY_CHANNEL})(?={_ANY_CHANNEL}|to\s*=)")
_FIRST_ROLE = re.compile(rf"\A\s*assistant{_END_OF_WORD}")
_FIRST_CHANNEL = re.compile(rf"\A{_MARKS}({_ANY_CHANNEL})")
_FIRST_RECIPIENT = re.compile(rf"{_MARKS}(?:(?:json|code)\s+)?{_TO}")
_FIRST_TYPE = re.compile(rf"\s*((?:json|code){_END_OF_WORD}|\w+(?=\s*(?:[{{\[]|\Z)))")
_KNOWN_TYPE = re.compile(rf"\s*((?:json|code){_END_OF_WORD})")
_RECIPIENT = re.compile(_TO)
_AGAIN = {name: re.compile(rf"((?:{_MARKS}{name}(?=\W|\Z|{name}))+{_MARKS})") for name in CHANNELS}

Word = tuple[str, str]
"""Its kind, and what it names."""


def _sections(pieces: Iterable[str]) -> list[tuple[str, str]]:
    """The texts of a header, each with the token before it; the first has none."""
    sections: list[tuple[str, list[str]]] = [("", [])]
    for piece in pieces:
        if isinstance(piece, Special):
            sections.append((piece, []))
        else:
            sections[-1][1].append(piece)
    return [(place, "".join(parts)) for place, parts in sections]


def _words(text: str) -> list[Word]:
    return [(found.lastgroup, found[found.lastgroup]) for found in _WORD.finditer(_GLUED.sub(r"\1 ", text))]


def preamble(pieces: Iterable[str]) -> str:
    """What is said before the first header of an output: nothing, where all words are a header's."""
    place, text = _sections(pieces)[-1]
    if place == START and not _FIRST_ROLE.match(text):
        return ""
    return _unless_header(_RECIPIENT.sub("", _FIRST_ROLE.sub("", text)))


def _is_header(text: str, *, breaks_off: bool = False) -> bool:
    """Whether a text is made of a header's words, but for the last one where that may have become one."""
    kinds = [kind for kind, _ in _words(text)]
    if breaks_off and kinds and kinds[-1] == "word":
        kinds[-1] = "to"
    return "word" not in kinds and any(kind != "mark" for kind in kinds)


def read_header(pieces: Iterable[str]) -> Message:
    """What a complete header says, as a message without content."""
    sections = _sections(pieces)
    before = [word for place, text in sections if place in ("", START) for word in _words(text)]
    groups = [_words(_FIRST_CHANNEL.sub(r"\1 ", text)) for place, text in sections if place == CHANNEL]
    constraints = [text for place, text in sections if place == CONSTRAIN]
    words = [*before, *(word for group in groups for word in group), *_words(" ".join(constraints))]

    channel = _channel(before, groups)
    role = _role(before, channel, started=any(place == START for place, _ in sections))
    named = [name for kind, name in words if kind == "recipient"]
    bare = [] if named else [name for kind, name in words if kind == "tool" and name != role]
    recipient = next((name for name in [*named, *bare] if name not in NOT_A_TOOL), None)
    role = _speaker(role, recipient, channel)
    if role not in ROLES:
        recipient = next(iter(named), None)
    return Message(role, "", channel, recipient, _content_type(words, groups, constraints, channel))


def _channel(before: list[Word], groups: list[list[Word]]) -> str | None:
    """The channel of a complete header, from the words before `<|channel|>` and those behind each."""
    first = [word for group in groups for word in [w for w in group if w[0] in ("channel", "word", "role")][:1]]
    known = [name for kind, name in first if kind == "channel"]
    unknown = [name for _, name in first]
    bare = [] if "word" in dict(before) else [name for kind, name in before if kind == "channel"]
    return next(iter([*known[-1:], *unknown[-1:], *bare]), None)


def _role(before: list[Word], channel: str | None, started: bool) -> str:
    """The role of a complete header, from the words before `<|channel|>`, which `<|start|>` may have `started`."""
    named = [word for word in before if word[0] != "recipient"]
    kind, name = named[0] if named else ("", "")
    alone, answers = len(named) == 1, ("recipient", "assistant") in before
    if started and (kind in ("role", "tool") or (kind == "word" and alone)):
        return name
    if alone and ((kind in ("tool", "word") and answers) or (kind == "role" and channel is None)):
        return name
    return "assistant"


def _speaker(role: str, recipient: str | None, channel: str | None) -> str:
    """The role, unless it is a tool's that does what only the assistant can: call a tool, or give the answer."""
    return "assistant" if role not in ROLES and (recipient or channel == "final") else role


def _content_type(
    words: list[Word], groups: list[list[Word]], constraints: list[str], channel: str | None
) -> str | None:
    said = [" ".join(_RECIPIENT.sub("", text).split()) for text in constraints]
    known = [name for kind, name in words if kind == "type"]
    left = [name for group in groups for kind, name in group if kind == "word" and name != channel]
    return next(iter([*filter(None, said), *known, *(left if len(left) == 1 else ())]), None)


def read_unfinished_header(pieces: Iterable[str], by: Special | None) -> Message | None:
    """The message that a header has become which ended without `<|message|>`; None where it says nothing."""
    sections = _sections(pieces)
    if all(place in ("", START) for place, _ in sections):
        return _without_header(*sections[-1], by)
    channel = recipient = content_type = None
    left = []
    for place, text in sections:
        if place == CHANNEL:
            channel, text = _taken(_FIRST_CHANNEL, text, channel)
            _, text = _taken(_AGAIN[channel], text) if channel else (None, text)
        elif place == CONSTRAIN:
            content_type, text = _taken(_FIRST_TYPE, text, content_type)
        recipient, text = _recipient(text, recipient)
        left += [text] if place in (CHANNEL, CONSTRAIN) else []
    text = _unless_header("".join(left), breaks_off=by is None)
    if not text and (recipient is None or by is None):
        return None
    if channel is None and recipient is None:
        if all(place != CHANNEL for place, _ in sections):
            return Message("assistant", text) if by in ANSWERED else None
        channel = "analysis"
    before = [word for place, text in sections if place in ("", START) for word in _words(text)]
    role = _role(before, channel, started=any(place == START for place, _ in sections))
    return Message(_speaker(role, recipient, channel), text, channel, recipient, content_type)


def _without_header(place: str, text: str, by: Special | None) -> Message | None:
    """What text is that stands by itself, or behind `<|start|>`."""
    text = text.lstrip().removeprefix("assistant") if place == START else _FIRST_ROLE.sub("", text)
    recipient, text = _recipient(text, None)
    if place == START and recipient is None and _is_others(text[:MOST_ROLE]):
        return None
    text = _unless_header(text, breaks_off=by is None and (place == START or recipient is not None))
    if recipient is None:
        return Message("assistant", text) if text and by in ANSWERED else None
    return Message("assistant", text, recipient=recipient) if text or by else None


def _is_others(text: str) -> bool:
    """Whether the text behind `<|start|>` begins with another's role, or with what a tool would have answered."""
    kinds = [kind for kind, _ in _words(text)]
    return kinds[:1] == ["role"] or kinds[1:2] == ["recipient"] or kinds[1:2] == ["to"]


def _recipient(text: str, before: str | None) -> tuple[str | None, str]:
    """The tool that a text begins by addressing, unless one was addressed before, and the rest of the text."""
    name, rest = _taken(_FIRST_RECIPIENT, text)
    if name is None or name in NOT_A_TOOL:
        return before, rest
    return before or name, _taken(_KNOWN_TYPE, rest)[1]


def _unless_header(text: str, *, breaks_off: bool = False) -> str:
    return "" if _is_header(text, breaks_off=breaks_off) else text.strip()


def _taken(pattern: re.Pattern[str], text: str, otherwise: str | None = None) -> tuple[str | None, str]:
    """What a pattern finds where a text begins, and the rest."""
    found = pattern.match(text)
    return (found[1], text[found.end() :]) if found else (otherwise, text)


@dataclass(frozen=True)
class Emitted:
    """A message, and the ids in which the model wrote it: those behind `<|start|>assistant`, without the end token.

    None where they are not fit to be read again, as with a broken header: the message can be rendered anew.
    """

    message: Message
    ids: tuple[int, ...] | None


class IdParser:
    """The same for token ids: holds back a character until its last byte has come."""

    def __init__(self, tokenizer: Tokenizer, *, headers_needed: bool = False):
        self.parser = Parser(headers_needed=headers_needed)
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

    def drop_invented(self) -> None:
        """Be behind what a tool is said to have answered, which is not to be read again."""
        list(self.parser.feed(END))
        self.parser.invented = False
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
