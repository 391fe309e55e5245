"""What Tab and the menu offer: commands where a message begins, what they take, files after @ and where one is taken.

Knows prompt_toolkit and the file system; what commands do, others know.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from .attachments import mention

MAX_PATH = 4096
COMMAND = re.compile(r"/\S*")
MENTION = re.compile(r'(?:^|\s)@(?P<typed>"[^"]*|[^\s"]*)$')


def opens_menu(document: Document) -> bool:
    """Whether what was typed asks for a choice: a command's name, or a file's after @."""
    return bool(_command(document) or _mention(document))


class MessageCompleter(Completer):
    def __init__(self, commands: Mapping[str, str], values: Mapping[str, Callable[[], Iterable[str]]]):
        """`commands`: name -> usage, shown in the menu; FILE in a usage stands for the name of one. `values`: name ->
        what else its argument may be."""
        self._commands, self._values = commands, values

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        before = document.current_line_before_cursor
        if typed := _command(document):
            for name, usage in self._commands.items():
                if name.startswith(typed):
                    yield Completion(name, -len(typed), display=usage)
        elif mentioned := _mention(document):
            typed = mentioned["typed"]
            for path in _paths(typed.removeprefix('"')):
                written = mention(path, quoted=typed.startswith('"'))
                yield Completion(written, -len(typed) - 1, display=_last_part(path))
        elif document.text.startswith("/") and document.cursor_position_row == 0:
            name, _, typed = before.partition(" ")
            if "FILE" in self._commands.get(name, ""):
                for path in _paths(typed):
                    yield Completion(path, -len(typed), display=_last_part(path))
            for value in self._values[name]() if name in self._values else ():
                if value.startswith(typed) and value.isprintable():
                    yield Completion(value, -len(typed))


def _command(document: Document) -> str | None:
    """The beginning of a command's name, if nothing else stands before the cursor."""
    typed = document.current_line_before_cursor
    return typed if document.cursor_position_row == 0 and COMMAND.fullmatch(typed) else None


def _mention(document: Document) -> re.Match[str] | None:
    return MENTION.search(document.current_line_before_cursor[-MAX_PATH:])


def _paths(typed: str) -> Iterator[str]:
    """The paths that begin as typed, in order; those of folders end with a slash."""
    if typed == "~":
        yield "~/"
        return
    folder, slash, beginning = typed.rpartition("/")
    try:
        names = sorted(os.listdir(os.path.expanduser(folder + slash) or "."))
    except (OSError, ValueError):
        return
    for name in names:
        hidden = name.startswith(".") and not beginning
        if name.startswith(beginning) and name.isprintable() and '"' not in name and not hidden:
            path = folder + slash + name
            yield path + "/" if os.path.isdir(os.path.expanduser(path)) else path


def _last_part(path: str) -> str:
    """The name of a file or folder, without the folders that it is in."""
    return path[path.rstrip("/").rfind("/") + 1 :]
