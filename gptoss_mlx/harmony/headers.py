"""The words of a header -> a message without content: the rules of `parse` for what a model writes around its texts.

Knows the words of a header, and nothing of how they arrive.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..engine.special_tokens import CHANNEL, CONSTRAIN, END_OF_TEXT, RETURN, START, Special
from .messages import Message

CHANNELS = ("analysis", "commentary", "final")
ROLES = ("system", "developer", "user", "assistant")
NOT_A_TOOL = ("all", *ROLES)
ANSWERED = (RETURN, END_OF_TEXT, None)  # what ends a text that is the answer without having a header
MAX_ROLE = 100  # characters

# A tool's name ends where its arguments may begin, and not with a punctuation mark.
_NAME = r"""(?!\d)\w(?:[^\s<>{}\[\]()"'`,;=|?!]*\w)?"""
_TO = rf"""_*to\s*=\s*["'`]?(?P<recipient>{_NAME})["'`]?"""
_ANY_CHANNEL = "|".join(CHANNELS)
_END_OF_WORD = r"(?![.\-]*\w)"
_MARKS = r"""[^\w{\[("'`]*"""
NAMESPACED = re.compile(rf"(?:functions|browser)\.{_NAME}|python")
# What the publisher's own renderings begin with, and what a model was seen to write as well.
SOUND_HEADER = re.compile(
    rf"(<\|start\|>assistant)?( to={_NAME})?<\|channel\|>({_ANY_CHANNEL})( to={_NAME})?"
    r"( ?<\|constrain\|>\w+| \w+)?"
)
OPENING_CALL = re.compile(
    rf"(<\|start\|>assistant)?(?=.* to=)( to={_NAME})?<\|channel\|>commentary( to={_NAME})? ?(<\|constrain\|>)?json\s*"
)
OPENING_ANSWER = re.compile(r"(<\|start\|>)?[^<=]*<\|channel\|>\W*final\s*")
# The words of a header by kind. Those of the last two are the only ones that say nothing.
_WORD = re.compile(
    rf"{_TO}|(?:(?:to|recipient)[\s:=]+)?(?P<tool>(?:functions|browser)\.{_NAME})|(?P<channel>{_ANY_CHANNEL}){_END_OF_WORD}"
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
    return [(kind, found[kind]) for found in _WORD.finditer(_GLUED.sub(r"\1 ", text)) if (kind := found.lastgroup)]


def preamble(pieces: Iterable[str]) -> str:
    """The text before the first header of an output: none, where all words are a header's."""
    place, text = _sections(pieces)[-1]
    if place == START and not _FIRST_ROLE.match(text):
        return ""
    said = _RECIPIENT.sub("", _FIRST_ROLE.sub("", text)).strip()
    return said if any(kind == "word" for kind, _ in _words(said)) else ""


def _is_header(text: str, *, breaks_off: bool) -> bool:
    """Whether a text is made of a header's words, but for the last one where that may have become one."""
    kinds = [kind for kind, _ in _words(text)]
    if breaks_off and kinds and kinds[-1] == "word":
        kinds[-1] = "to"
    return "word" not in kinds and any(kind != "mark" for kind in kinds)


def read_header(pieces: Iterable[str]) -> Message:
    """The message that a complete header announces, without content."""
    sections = _sections(pieces)
    before = [word for place, text in sections if place in ("", START) for word in _words(text)]
    groups = [_words(_FIRST_CHANNEL.sub(r"\1 ", text)) for place, text in sections if place == CHANNEL]
    constraints = [text for place, text in sections if place == CONSTRAIN]
    words = [*before, *(word for group in groups for word in group), *_words(" ".join(constraints))]

    channel = _channel(before, groups)
    role = _role(before, channel, started=any(place == START for place, _ in sections))
    named = [name for kind, name in words if kind == "recipient"]
    bare = [] if named or channel == "final" else [name for name in _bare(before, *groups) if name != role]
    recipient = next((name for name in [*named, *bare] if name not in NOT_A_TOOL), None)
    role = _speaker(role, recipient, channel)
    if role not in ROLES:
        recipient = next(iter(named), None)
    return Message(role, "", channel, recipient, _content_type(words, groups, constraints, channel))


def _bare(*groups: list[Word]) -> list[str]:
    """The tools that are named without `to=`, where no sentence may be about them."""
    return [name for group in groups if "word" not in dict(group) for kind, name in group if kind == "tool"]


def _channel(before: list[Word], groups: list[list[Word]]) -> str | None:
    """The channel of a complete header, from the words before `<|channel|>` and those after each."""
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
    said = [_RECIPIENT.sub("", text).strip() for text in constraints]
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
    """The message that text is which stands by itself, or after `<|start|>`."""
    text = text.lstrip().removeprefix("assistant") if place == START else _FIRST_ROLE.sub("", text)
    recipient, text = _recipient(text, None)
    if place == START and recipient is None and _is_others(text[:MAX_ROLE]):
        return None
    text = _unless_header(text, breaks_off=by is None and (place == START or recipient is not None))
    if recipient is None:
        return Message("assistant", text) if text and by in ANSWERED else None
    return Message("assistant", text, recipient=recipient) if text or by else None


def _is_others(text: str) -> bool:
    """Whether the text after `<|start|>` begins with another's role, or with a tool's answer."""
    kinds = [kind for kind, _ in _words(text)]
    return kinds[:1] == ["role"] or kinds[1:2] == ["recipient"] or kinds[1:2] == ["to"]


def _recipient(text: str, before: str | None) -> tuple[str | None, str]:
    """The tool that a text begins by addressing, unless one was addressed before, and the rest of the text."""
    name, rest = _taken(_FIRST_RECIPIENT, text)
    if name is None or name in NOT_A_TOOL:
        return before, rest
    return before or name, _taken(_KNOWN_TYPE, rest)[1]


def _unless_header(text: str, *, breaks_off: bool) -> str:
    return "" if _is_header(text, breaks_off=breaks_off) else text.strip()


def _taken(pattern: re.Pattern[str], text: str, otherwise: str | None = None) -> tuple[str | None, str]:
    """The match of a pattern where a text begins, and the rest."""
    found = pattern.match(text)
    return (found[1], text[found.end() :]) if found else (otherwise, text)
