"""What is written for a model: the beginning of an answer without reasoning, or of its final part."""

from __future__ import annotations

from ..engine.special_tokens import CHANNEL, END, MESSAGE, START
from .render import START_OF_ANSWER

OPEN_FINAL = (START, START_OF_ANSWER, CHANNEL, "final", MESSAGE)
NO_REASONING = (CHANNEL, "analysis", MESSAGE, END)
