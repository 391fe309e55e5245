"""What a chat asks of presets, and the template that one may have: `Translate into $language: $input`.

Where presets are kept and what their settings are, others know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import Template as Text
from typing import TYPE_CHECKING, Protocol

from ..errors import GptOssError

if TYPE_CHECKING:
    from ..engine.generate import Model
    from .session import Session

INPUT = "input"


class Presets(Protocol):
    """Settings under names, of which one may hold."""

    name: str | None
    """The name of the one that holds."""

    def names(self) -> Iterable[str]:
        """Those that there are."""

    def switch(self, name: str | None, values: Mapping[str, str], model: Model) -> Session:
        """A new conversation, with another preset and values of its template's variables, or without one. Raises
        GptOssError, and then nothing has changed."""

    def filled(self, message: str) -> str:
        """What is sent for a message."""


@dataclass(frozen=True)
class Template:
    text: str
    values: Mapping[str, str]
    """The variables' values, `$input` apart."""

    def __post_init__(self) -> None:
        """Raises GptOssError for a text that is no template, and for values that are missing or too many."""
        found = list(Text.pattern.finditer(self.text))
        if any(match["invalid"] is not None for match in found):
            raise GptOssError("template: a $ that begins no variable is written $$")
        variables = dict.fromkeys(name for match in found if (name := match["named"] or match["braced"]))
        if INPUT not in variables:
            raise GptOssError("template: write $input where the message goes")
        if missing := [name for name in variables if name not in self.values and name != INPUT]:
            names, first = ", ".join(f"${name}" for name in missing), missing[0]
            raise GptOssError(f"template: no value for {names}: --param {first} VALUE, in a chat {first}=VALUE")
        for name in self.values:
            if name == INPUT or name not in variables:
                raise GptOssError(f"template: there is no variable ${name} to set")

    def filled(self, message: str) -> str:
        return Text(self.text).substitute(self.values, **{INPUT: message})
