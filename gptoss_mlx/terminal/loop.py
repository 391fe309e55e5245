"""The chat loop: reads what a person types, and has a chat do it: answer a message, run a command.

Chooses the screen and the input for what the standard streams are. How messages are typed, `input` knows; what begins
with a slash, `slash_commands`; what a chat does, `controller`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from ..chat.session import Session
from ..engine.generate import ContextFull, NotFinite
from ..errors import GptOssError
from .attachments import expand, run_command
from .controller import Chat
from .input import DumbInput, Input, PipedInput, TypedInput, reply
from .job_control import restored, suspendable
from .screen import PlainScreen, Screen
from .slash_commands import COMMANDS, is_command, run_line

if TYPE_CHECKING:
    from ..chat.autosave import SessionAutosave
    from ..chat.presets import Presets

LEAVING = ("exit", "quit")  # typed alone; a pipe's lines are messages


def run(
    session: Session,
    *,
    show_reasoning: bool | None,
    history: Path,
    autosave: SessionAutosave | None = None,
    load: Callable[[str], Session] | None = None,
    yes: bool = False,
    plain: bool = False,
    presets: Presets | None = None,
) -> None:
    """Chat until /exit or the end of input.

    `load` makes the session of another model, for /model. `yes`: tools run unasked. `plain`: nothing is redrawn, and
    words say what each part is.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    is_asked = sys.stdin.isatty()
    is_shown = is_asked and sys.stdout.isatty()
    is_drawn = is_shown and not plain and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    screen = _screen(show_reasoning, is_drawn=is_drawn, words=is_shown)
    chat = Chat(session, screen, autosave, load, is_asked=is_asked, yes=yes, presets=presets)
    del session  # /model has to be able to let go of it
    if is_drawn:
        usages = {name: command.usage for name, command in COMMANDS.items()}
        values = {name: partial(command.values, chat) for name, command in COMMANDS.items() if command.values}
        messages: Input = TypedInput(lambda: chat.session, usages, history, values, screen.use_background)
    else:
        messages = DumbInput() if is_asked else PipedInput(lambda: chat.session.longest_text)
    if is_asked:
        screen.note(f"context {chat.session.model.context:,} tokens. /help lists the commands, /exit leaves.")
    try:
        with _guarded(screen) if is_asked else nullcontext():
            if not chat.session.stats:  # what was answered here has been seen
                chat.recall()
            converse(chat, messages)
    finally:
        chat.close()


def _screen(show_reasoning: bool | None, *, is_drawn: bool, words: bool = False) -> Screen:
    if not is_drawn:
        return PlainScreen(show_reasoning=show_reasoning, words=words)
    from .rich_screen import RichScreen  # a pipe need not wait for rich

    return RichScreen(show_reasoning=show_reasoning)


@contextmanager
def _guarded(screen: Screen) -> Iterator[None]:
    """Inside, the shell finds the terminal as it left it while the program is stopped or when a signal has ended it."""
    with suspendable(screen.hide, screen.show), restored(screen.hide):
        yield


def ask(session: Session, text: str, *, show_reasoning: bool) -> None:
    """Show one question and its answer, as if it had been typed."""
    screen = _screen(show_reasoning, is_drawn=sys.stdout.isatty())
    screen.note(f"> {text}")
    with _guarded(screen):
        Chat(session, screen).answer(partial(session.send, text))
    for stats in session.stats[-1:]:  # none if Ctrl-C stopped it
        screen.note(f"first token after {stats.first_token_seconds:.2f} s, {stats.tokens_per_second:.1f} tokens/s")


def converse(chat: Chat, messages: Input) -> None:
    """Chat until a command or the end of the input ends it. Raises GptOssError if the input cannot be read."""
    while not chat.over:
        draft, chat.draft = chat.draft, ""
        try:
            text = messages.read(chat.status(), draft)
            if text is None:
                return
            _take(chat, text)
        except KeyboardInterrupt:  # neither at a prompt nor in an answer
            chat.screen.note("(stopped)")


def _take(chat: Chat, text: str) -> None:
    """Run a command, or send a message."""
    try:
        if is_command(text):
            run_line(chat, text)
        elif chat.is_asked and text.strip().lower() in LEAVING:
            chat.over = True
        elif (message := _message(chat, text)).strip():
            chat.typed[message] = text
            chat.answer(partial(chat.session.send, message))
    except ContextFull as error:
        chat.screen.note(f"error: {error}: {chat.ways_out()}")
    except NotFinite:  # the next answer would fail as well
        raise
    except GptOssError as error:
        chat.screen.note(f"error: {error}")


def _message(chat: Chat, text: str) -> str:
    """The message to send for what was typed; a pipe's lines are sent as they are."""
    is_line = "\n" not in text
    if is_line and text.startswith("//"):
        text = text[1:]
    if not chat.is_asked:
        return _filled(chat, text)
    if is_line and text.startswith("!") and text[1:].strip() and _may_run(chat, text[1:]):
        output = run_command(text[1:])
        chat.screen.result(text, output)
        return output
    expanded = expand(_filled(chat, text))
    for note in expanded.notes:
        chat.screen.note(note)
    return expanded.text


def _filled(chat: Chat, text: str) -> str:
    """In the template of the preset that holds; an empty line stays one, and nothing is sent for it."""
    return chat.presets.filled(text) if chat.presets and text.strip() else text


def _may_run(chat: Chat, command: str) -> bool:
    """Ask about a command for the shell: a message that begins like one may have been pasted."""
    chat.screen.call("!", command)
    chat.screen.end()
    return reply("run this in your shell? [y]es, [n]o, send it as text ", "yn") == "y"
