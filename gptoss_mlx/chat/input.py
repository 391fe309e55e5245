"""Where messages come from: a person at a terminal, or the lines of standard input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from .session import Session


class Input(Protocol):
    def read(self, status: str, draft: str = "") -> str | None:
        """The next message or command; None at the end. `draft` is a text to edit. KeyboardInterrupt: Ctrl-C."""


class PipedInput:
    """A message per line of standard input."""

    def read(self, status: str, draft: str = "") -> str | None:
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None


class TypedInput:
    """Messages with line editing and history."""

    def __init__(self, session_of: Callable[[], Session], commands: Mapping[str, str], history: Path):
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()
        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        history.parent.mkdir(parents=True, exist_ok=True)
        self._prompts = PromptSession(
            history=FileHistory(str(history)),
            key_bindings=keys,
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
        )

    def read(self, status: str, draft: str = "") -> str | None:
        try:
            return _whole_message(
                lambda prompt: self._prompts.prompt(prompt, default=draft, bottom_toolbar=status), "> "
            )
        except EOFError:
            return None


def _whole_message(read: Callable[[str], str], prompt: str) -> str:
    """A message of one line, or of several by a trailing backslash or between lines of three quotes."""
    text = read(prompt)
    if text.strip() == '"""':
        lines = []
        while (line := read("... ")).strip() != '"""':
            lines.append(line)
        return "\n".join(lines)
    while text.endswith("\\"):
        text = text[:-1] + "\n" + read("... ")
    return text
