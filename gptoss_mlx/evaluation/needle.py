"""A needle in a haystack: a code that is mentioned once, in a context of any length, and asked for at its end.

The haystack is English prose in one message, sentences of the built-in text drawn at random; the code and the question
are worded as the embedded model was taught, and as anybody would say them. Everything is drawn from the length and the
position, so that the same needle is always in the same place.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate

from ..engine.builtin_text import TEXT
from ..engine.generate import Model
from ..engine.tokenizer import Tokenizer
from ..harmony.messages import Conversation, Message
from ..harmony.render import encode
from .prompts import Asking, reply_to
from .run import Item, OnRead

POSITIONS = (0.1, 0.5, 0.9)  # shares of the haystack that come before the needle
ROOM = 512  # tokens of a context that are left for the answer
MIN_CONTEXT = 2 * ROOM
DIGITS = 5
PROSE = (0, 1, -1)  # paragraphs of the built-in text
NEEDLE = "Please remember: my locker code is {}."
QUESTION = "What is my locker code?"


@dataclass(frozen=True)
class Needle:
    context: int
    position: float
    code: str
    ids: list[int]


@dataclass(frozen=True)
class Find:
    """The outcome of one needle."""

    context: int
    position: float
    prompt_tokens: int
    code: str
    found: bool
    answer: str


class Needles:
    """A needle in contexts of some lengths, at each of POSITIONS."""

    name = "needle"

    def __init__(self, contexts: Sequence[int], tokenizer: Tokenizer, asking: Asking):
        self._tokenizer = tokenizer
        self.needles = [make_needle(length, at, tokenizer, asking) for length in contexts for at in POSITIONS]
        self.items = [Item(f"needle {each.context} {each.position}", len(each.ids)) for each in self.needles]
        self.key, self.context = [asdict(each) for each in self.needles], max(contexts)

    def measure(self, model: Model, index: int, on_read: OnRead) -> str:
        """The answer."""
        return reply_to(model, self._tokenizer, self.needles[index].ids, ROOM, on_read).answer

    def results(self, values: dict[int, str]) -> list[Find]:
        """The needles that were asked for."""
        return [self._find(self.needles[index], values[index]) for index in sorted(values)]

    def _find(self, needle: Needle, answer: str) -> Find:
        found = re.search(rf"(?<!\d){needle.code}(?!\d)", answer) is not None
        return Find(needle.context, needle.position, len(needle.ids), needle.code, found, answer)


def make_needle(context: int, position: float, tokenizer: Tokenizer, asking: Asking) -> Needle:
    """The longest prompt that leaves ROOM in the context, MIN_CONTEXT at least."""
    r = random.Random(f"{context} {position}")
    code = "".join(r.choices("0123456789", k=DIGITS))
    sentences = prose()

    def ids_of(hay: list[str]) -> list[int]:
        before = int(position * len(hay))
        said = " ".join([*hay[:before], NEEDLE.format(code), *hay[before:], QUESTION])
        conversation = Conversation((Message("user", said),), reasoning_effort=asking.effort)
        return encode(asking.pieces(conversation), tokenizer)

    tokens = {sentence: len(tokenizer.encode(f" {sentence}")) for sentence in sentences}
    drawn = r.choices(sentences, k=context // min(tokens.values()))
    room = context - ROOM - len(ids_of([]))
    count = sum(length <= room for length in accumulate(tokens[sentence] for sentence in drawn))
    return Needle(context, position, code, ids_of(drawn[:count]))


def prose() -> list[str]:
    """The sentences of the haystack."""
    paragraphs = TEXT.read_text(encoding="utf-8").strip().split("\n\n")
    return [sentence for index in PROSE for sentence in re.split(r"(?<=\.) ", paragraphs[index])]
