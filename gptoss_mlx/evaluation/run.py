"""Measure what is not in the journal yet, item by item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..engine.generate import Model
from ..progress import Progress
from .journal import EvaluationJournal

OnRead = Callable[[int], None]
"""Gets how many tokens of an item have been read, where nothing is half done; may raise Interrupted."""


@dataclass(frozen=True)
class Item:
    name: str
    """Unique within one command."""
    tokens: int
    """Tokens to read."""


class Evaluation(Protocol):
    name: str
    """The name shown with progress."""
    key: Any
    """All that decides the values, beside the model, as JSON can say it."""
    context: int
    """Positions that an item takes at most."""

    @property
    def items(self) -> Sequence[Item]: ...

    def measure(self, model: Model, index: int, on_read: OnRead) -> Any:
        """The value of an item, as JSON can say it."""


def run(
    evaluation: Evaluation,
    model: Model,
    journal: EvaluationJournal,
    check: Callable[[], None],
    show: Callable[[Progress], None],
) -> None:
    """Measure every item into the journal. `check` may raise Interrupted; what is finished is then kept."""
    total = sum(item.tokens for item in evaluation.items)
    done = sum(item.tokens for item in evaluation.items if item.name in journal.values)
    show(Progress(evaluation.name, done, total))
    for index, item in enumerate(evaluation.items):
        if item.name in journal.values:
            continue

        def on_read(count: int, before: int = done) -> None:
            check()
            show(Progress(evaluation.name, before + count, total))

        journal.add(item.name, evaluation.measure(model, index, on_read))
        done += item.tokens
        on_read(0, done)


def measured(evaluation: Evaluation, journal: EvaluationJournal) -> dict[int, Any]:
    """The values of finished items, by index."""
    names = enumerate(item.name for item in evaluation.items)
    return {index: journal.values[name] for index, name in names if name in journal.values}
