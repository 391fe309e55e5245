"""What a slash command is. Which there are, `slash_commands` knows; what each does, the modules that it collects."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .controller import Chat

NOTHING_YET = "nothing has been said yet"
RE_READS = "; the next turn reads the conversation again"


@dataclass(frozen=True)
class Command:
    usage: str
    """The name and its argument, in brackets if it is optional."""
    purpose: str
    run: Callable[[Chat, str], None]
    changes: bool = False
    """Whether it changes the conversation or its settings, which are then saved; answers are saved anyway."""
    destroys: bool = False
    """Whether it takes something away: then it is suggested to nobody who has mistyped something."""
    also: tuple[str, ...] = ()
    """Names that it has in other programs."""
    values: Callable[[Chat], Iterable[str]] | None = None
    """What Tab offers as its argument."""

    @property
    def name(self) -> str:
        return self.usage.split()[0]

    @property
    def help(self) -> str:
        return self.purpose + (f" (also {', '.join(self.also)})" if self.also else "")

    def takes(self, rest: str) -> bool:
        argument = self.usage.removeprefix(self.name).strip()
        return bool(argument) if rest else not argument or argument.startswith("[")


class WrongUsage(Exception):
    """The argument is missing, unknown or too much."""
