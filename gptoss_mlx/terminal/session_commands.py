"""Slash commands for what is saved: sessions, and conversations in files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..chat.transcript import Transcript
from ..errors import GptOssError
from ..files import replace_file
from .input import choose
from .session_list import found_by, latest, lines
from .slash_command import NOTHING_YET, Command, WrongUsage

if TYPE_CHECKING:
    from ..chat.autosave import SessionAutosave
    from .controller import Chat

NUMBER = "number to switch to, Enter to stay: "


def _sessions(chat: Chat, words: str) -> None:
    """An exact name switches at once; in a pipe, it is the only way to."""
    autosave = _autosave(chat)
    if words in _names(chat):
        chat.switch(autosave.store.entry(words))
        return
    rows = found_by(autosave.store, words) if words else latest(autosave.store)
    if not rows:
        raise GptOssError(f"no session holds {words!r}" if words else "there are no sessions yet")
    chat.screen.note("\n".join(lines(rows, autosave.name)))
    if chat.is_asked and (number := choose(NUMBER, len(rows))):
        chat.switch(rows[number - 1].entry)


def _names(chat: Chat) -> Iterable[str]:
    return [entry.name for entry in chat.autosave.store] if chat.autosave else []


def _autosave(chat: Chat) -> SessionAutosave:
    if chat.autosave is None:
        raise GptOssError("this chat saves no sessions: /save FILE.json writes a file")
    return chat.autosave


def _save(chat: Chat, name: str) -> None:
    if os.sep in name or name.endswith(".json"):
        path = Path(os.path.expanduser(name))
        _transcript_for(chat, path).write(path)
        chat.screen.note(f"saved to {name}")
        return
    autosave = _autosave(chat)
    if autosave.name is None:
        raise GptOssError(NOTHING_YET)
    if name:
        autosave.rename(name)
    chat.screen.note(f"saved as {autosave.name}")


def _transcript_for(chat: Chat, path: Path) -> Transcript:
    """The conversation, for a file. Raises GptOssError if nothing was said, or if the file is not to be replaced."""
    if not chat.session.messages:
        raise GptOssError(NOTHING_YET)
    chat.check_replaced(path)
    return chat.session.transcript


def _load(chat: Chat, name: str) -> None:
    transcript = Transcript.read(Path(os.path.expanduser(name)))
    chat.session.restore(transcript)
    chat.leave()
    chat.screen.note(f"loaded {len(transcript.messages)} messages from {name}")
    chat.recall()


def _export(chat: Chat, name: str) -> None:
    path = Path(os.path.expanduser(name))
    if path.suffix == ".json":
        _transcript_for(chat, path).write(path)
    elif path.suffix == ".md":
        replace_file(path, _transcript_for(chat, path).as_markdown())
    else:
        raise WrongUsage
    chat.screen.note(f"written to {name}")


SESSION_COMMANDS = (
    Command("/sessions [NAME|WORDS]", "list the sessions, search them, switch to one", _sessions, values=_names),
    Command("/save [NAME|FILE]", "name this session, or save it to a file", _save),
    Command("/load FILE", "continue a conversation from a file", _load, changes=True, destroys=True),
    Command("/export FILE.md|FILE.json", "write this conversation to a file", _export),
)
