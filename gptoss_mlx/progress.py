"""Reports of the progress of long work, for whoever shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    stage: str
    done: int
    total: int
    """Bytes in a conversion; tokens in other work."""


OnProgress = Callable[[Progress], None]


def no_progress(progress: Progress) -> None:
    """The default: reports nothing."""
