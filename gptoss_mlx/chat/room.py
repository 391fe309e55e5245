"""How a context is shared out: between a long conversation and the next answer, and for a text that may not fit."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..engine.tokenizer import Tokenizer
from .history import History

ROOM_FOR_ANSWER = 1 / 8  # of the context, which a prompt leaves free before it counts as full
MIN_ROOM = 1 / 16  # of the context, which results of tools leave for the answer
SHORTENED = 1 / 2  # of the context, the maximum of a prompt after turns were dropped


def without_oldest_turns(history: History, tokens_of: Callable[[History], int], context: int) -> History:
    """Drop turns, the oldest first, from a history whose prompt fills the context, until it is well below: a shorter
    prompt has to be prefilled again, which should not happen in every turn."""
    if tokens_of(history) <= context * (1 - ROOM_FOR_ANSWER):
        return history
    while tokens_of(history) > context * SHORTENED and (shorter := history.without_oldest_turn()):
        history = shorter
    return history


def room_for_result(prompt: int, context: int) -> int:
    """Tokens that the result of a tool may have after a prompt of so many."""
    return max(int(context * (1 - MIN_ROOM)) - prompt, 0)


def tokens_beyond(context: int, text: str, tokenizer: Tokenizer) -> int:
    """A lower bound of the tokens of a text that has more than the context by itself; 0 for any other. No more of it
    is encoded than it takes to know."""
    if len(text) <= context:
        return 0
    tokens = math.ceil(len(text) / tokenizer.longest)
    tokens = tokens if tokens > context else len(tokenizer.encode(text, context + 1))
    return tokens if tokens > context else 0
