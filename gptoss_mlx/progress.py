"""How far long work has come, as it is told to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    stage: str
    done: int
    total: int
    """Bytes, in a conversion."""


OnProgress = Callable[[Progress], None]


def no_progress(progress: Progress) -> None:
    """Nobody listens."""
