"""Whether a model that writes goes round in a circle."""

from __future__ import annotations

# A model that has fallen into a loop seldom leaves it. What a person wants repeats as well (a table of zeros, a log),
# but not for so long: none of 11,000 source files, logs and tables does.
LOOP = 4096  # tokens that are one cycle over and over
MAX_CYCLE = 512  # tokens, so that a loop is eight repetitions or more
CHECK_EVERY = 256  # tokens


def cycle_since(start: int, ids: list[int]) -> int | None:
    """`cycle_at_end` of the ids from `start` on, which is looked for once every CHECK_EVERY ids."""
    return None if (len(ids) - start) % CHECK_EVERY else cycle_at_end(ids[start:])


def cycle_at_end(ids: list[int]) -> int | None:
    """The length of the cycle, up to MAX_CYCLE, that the last LOOP of `ids` repeat; None where they do not."""
    tail = ids[-LOOP:]
    if len(tail) < LOOP:
        return None
    some = tail[:16]  # which spares most of the long comparisons
    lengths = (n for n in range(1, MAX_CYCLE + 1) if tail[n : n + len(some)] == some)
    return next((n for n in lengths if tail[n:] == tail[:-n]), None)
