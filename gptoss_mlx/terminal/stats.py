"""What /stats says of a chat: its context, its memory and the speed of its turns, as figures, bars and a curve.

A bar has the columns that its figures leave in the window, and is left out where these are too few.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..chat.session import Session
from ..chat.turn import TurnStats
from ..memory.system import process_memory, size_text

LABEL = 9  # columns of what stands before a bar
MIN_BAR, MAX_BAR = 6, 20  # columns
LAST_TURNS = 16  # whose speeds are drawn
MIN_COLUMNS = 80  # of a window in which the figures of a turn share a line


@dataclass(frozen=True)
class Marks:
    full: str
    empty: str
    levels: str


BLOCKS = Marks("█", "░", "▁▂▃▄▅▆▇█")
ASCII = Marks("#", ".", "_.-=+*%#")


def stats_lines(session: Session, *, has_pictures: bool) -> Iterator[str]:
    columns = shutil.get_terminal_size().columns
    marks = None
    if has_pictures:
        marks = BLOCKS if (sys.stdout.encoding or "").lower().startswith("utf") else ASCII
    used, context = session.prompt_tokens, session.model.context
    yield measured("context", used / context, f"{used:,} of {context:,} tokens", columns, marks)
    plan, memory = session.model.plan, process_memory()
    if plan and memory:
        held = memory.anonymous + memory.mapped
        text = f"{size_text(held)} of {size_text(plan.total)}"
        yield measured("memory", held / plan.total, text, columns, marks)
    if experts := session.model.expert_stats:
        yield (
            f"experts: {experts.hit_rate:.1%} found in memory, {size_text(experts.bytes_read)} read,"
            f" {experts.stall_seconds:.1f} s waiting for them"
        )
    speeds = [turn.tokens_per_second for turn in session.stats if turn.decoded][-LAST_TURNS:]
    if marks and len(speeds) > 1:
        text = f"{min(speeds):.1f} to {max(speeds):.1f} tokens/s"
        yield f"{'speed':{LABEL}}{curve(speeds, marks)} {text}"
    for number, turn in enumerate(session.stats, 1):
        yield turn_text(number, turn, columns)


def measured(label: str, share: float, text: str, columns: int, marks: Marks | None) -> str:
    """A line with a bar, or without where there is no room for one."""
    width = min(columns - LABEL - len(text) - 2, MAX_BAR)
    drawn = f"{bar(share, width, marks)} " if marks and width >= MIN_BAR else ""
    return f"{label:{LABEL}}{drawn}{text}"


def bar(share: float, width: int, marks: Marks) -> str:
    full = round(min(max(share, 0), 1) * width)
    return marks.full * full + marks.empty * (width - full)


def curve(values: Sequence[float], marks: Marks) -> str:
    """A sign for each value, whose height is its share of the largest."""
    top = len(marks.levels) - 1
    return "".join(marks.levels[round(value / max(values) * top)] for value in values)


def turn_text(number: int, turn: TurnStats, columns: int) -> str:
    parts = (
        f"turn {number}: {turn.prefilled:,} tokens read",
        f"first token after {turn.first_token_seconds:.2f} s",
        f"{turn.decoded:,} tokens at {turn.tokens_per_second:.1f} tokens/s",
    )
    return (", " if columns >= MIN_COLUMNS else "\n  ").join(parts)
