"""Text that is written for a model: the beginning of an answer without reasoning, or of its final part."""

from __future__ import annotations

from ..engine.special_tokens import CHANNEL, END, MESSAGE, START
from .render import START_OF_ANSWER

OPEN_FINAL = (START, START_OF_ANSWER, CHANNEL, "final", MESSAGE)
NO_REASONING = (CHANNEL, "analysis", MESSAGE, END)


def without_reasoning(*, can_call: bool) -> tuple[str, ...]:
    """An empty analysis, and the beginning of what follows: of the answer, where no tool can be called instead."""
    return (*NO_REASONING, *((START, START_OF_ANSWER) if can_call else OPEN_FINAL))
