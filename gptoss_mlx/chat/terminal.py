"""The chat loop: reads what a person says, shows what the model answers, and asks before a tool may run.

Policy only: what a conversation is, `session` knows; how it looks, `screen`; how it is typed, `input`; what begins with
a slash, `commands`.
"""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from ..engine import ContextFull
from ..errors import GptOssError
from ..harmony.parse import Content, Event, Preamble, Reasoning, Stop, ToolCall
from .attachments import expand, run_command
from .commands import COMMANDS, run_line
from .input import Input, PipedInput, TypedInput
from .screen import PlainScreen, RichScreen, Screen, printable
from .session import Dropped, Session, Thought, ToolResult, TurnStats

BROKE_OFF = "(broke off: --max-tokens or the end of the context; /continue goes on)"
FULL = "/reset starts anew, /save keeps this one, and chat --when-full drop would go on without the oldest turns"


class Keeper(Protocol):
    """Keeps the session on disk."""

    @property
    def name(self) -> str | None:
        """None while there is nothing to keep."""

    def keep(self, session: Session, *, kv: bool) -> None:
        """Write the conversation, and the KV state if `kv`. Raises GptOssError."""

    def rename(self, name: str) -> None:
        """Raises GptOssError."""

    def leave(self) -> None:
        """What is kept stays; the next session is a new one."""


def run(
    session: Session,
    *,
    show_reasoning: bool | None,
    history: Path,
    keeper: Keeper | None = None,
    load: Callable[[str], Session] | None = None,
    yes: bool = False,
    plain: bool = False,
) -> None:
    """Chat until /exit or the end of input.

    `load` makes the session of another model, for /model. `yes`: tools run unasked. `plain`: nothing is redrawn, and
    words say what each thing is.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if not is_terminal:
        screen: Screen = PlainScreen(show_reasoning=show_reasoning)
    elif plain or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        screen = PlainScreen(show_reasoning=show_reasoning, words=True)
    else:
        screen = RichScreen(show_reasoning=show_reasoning)
    chat = Chat(session, screen, keeper, load, is_asked=is_terminal, yes=yes)
    del session  # /model has to be able to let go of it
    if not is_terminal:
        messages: Input = PipedInput()
    elif isinstance(screen, PlainScreen):
        messages = PlainInput()
    else:
        usages = {name: command.usage for name, command in COMMANDS.items()}
        messages = TypedInput(lambda: chat.session, usages, history)
    if is_terminal:
        screen.note(f"context {chat.session.model.context:,} tokens. /help lists the commands, /exit leaves.")
    try:
        chat.run(messages)
    except BrokenPipeError:  # whoever read the answers has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def ask(session: Session, text: str, *, show_reasoning: bool) -> None:
    """Show one question and its answer, as if it had been typed."""
    if sys.stdout.isatty():
        screen: Screen = RichScreen(show_reasoning=show_reasoning)
    else:
        screen = PlainScreen(show_reasoning=show_reasoning)
    screen.note(f"> {text}")
    Chat(session, screen).answer(partial(session.send, text))
    stats = session.stats[-1]
    screen.note(f"first token after {stats.first_token_seconds:.2f} s, {stats.tokens_per_second:.1f} tokens/s")


class PlainInput:
    """A terminal on which nothing is redrawn: a line is edited as the system does it."""

    def read(self, status: str, draft: str = "") -> str | None:
        if draft:
            print(f"it was: {printable(draft)}", file=sys.stderr)
        try:
            return input("> ")
        except EOFError:
            return None


@dataclass
class Chat:
    """A session and what a chat has beside it."""

    session: Session
    screen: Screen
    keeper: Keeper | None = None
    load: Callable[[str], Session] | None = None
    is_asked: bool = False
    """Whether there is a person to ask."""
    yes: bool = False
    draft: str = ""
    """What the next message begins with."""
    over: bool = False
    reasoning: list[str] = field(default_factory=list)
    """Of the last answer."""
    _allowed: set[str] = field(default_factory=set)
    _keeping_failed: bool = False

    def __post_init__(self) -> None:
        self.use(self.session)

    def use(self, session: Session) -> None:
        """Go on with this session."""
        self.session = session
        session.approve = self._approve

    def run(self, messages: Input) -> None:
        pressed = False  # Ctrl-C, with nothing said since
        while not self.over:
            draft, self.draft = self.draft, ""
            try:
                text = messages.read(self._status(), draft)
                if text is None:
                    return
                pressed = False
                self._take(text)
            except KeyboardInterrupt:
                if pressed:
                    return
                pressed = True
                self.screen.note("Ctrl-D or /exit leaves")

    def answer(self, start: Callable[..., Iterator[Event]]) -> None:
        """Show an answer while it arrives, and keep it. `start` takes `on_prefill`. Ctrl-C stops the answer."""
        self.reasoning.clear()
        accepted = False

        def on_prefill(done: int, total: int) -> None:
            nonlocal accepted
            if not accepted:
                accepted = True
                self._keep(kv=False)
            self.screen.prefill(done, total)

        try:
            with closing(start(on_prefill=on_prefill)) as events:
                self._show(events)
        except KeyboardInterrupt:
            self.screen.note("(stopped; /continue goes on)")
        finally:
            self.screen.end()
            if accepted:
                self._keep(kv=True)

    def _take(self, text: str) -> None:
        """Do what a line says: run a command, or send a message."""
        try:
            if text.startswith("/") and not text.startswith("//"):
                run_line(self, text)
            elif (message := self._message(text)).strip():
                self.answer(partial(self.session.send, message))
        except ContextFull as error:
            self.screen.note(f"error: {error}: {FULL}")
        except GptOssError as error:
            self.screen.note(f"error: {error}")

    def _message(self, text: str) -> str:
        """What is sent for what was typed; a pipe's lines are sent as they are."""
        text = text.removeprefix("/")  # of two: one alone would be a command
        if not self.is_asked:
            return text
        if text.startswith("!"):
            output = run_command(text[1:])
            self.screen.result(text[1:], output)
            return output
        expanded = expand(text, lambda question: self._reply(f"{question} [y]es, [n]o ", "yn") == "y")
        for note in expanded.notes:
            self.screen.note(note)
        return expanded.text

    def _show(self, events: Iterator[Event]) -> None:
        screen, reason = self.screen, ""
        for event in events:
            match event:
                case Reasoning(text):
                    self.reasoning.append(text)
                    screen.reasoning(text)
                case Thought(tokens, seconds):
                    screen.thought(tokens, seconds)
                case Content(text) | Preamble(text):
                    screen.content(text)
                case ToolCall(name, arguments) if not self.session.toolbox.asks(event):
                    screen.call(name, arguments)
                case ToolResult(name, output):
                    screen.result(name, output)
                case Dropped(messages):
                    screen.note(f"(the context is full: the {messages} oldest messages were dropped)")
                case Stop(reason):
                    pass
                case TurnStats(finished=False):
                    screen.note(BROKE_OFF if reason == "none" else "(no answer; /continue asks for one)")

    def _approve(self, call: ToolCall, preview: str) -> bool:
        """Show a call that wants to be agreed to, and ask."""
        self.screen.call(call.name, preview)
        if self.yes or call.name in self._allowed:
            return True
        if not self.is_asked:
            self.screen.note("(not run: nobody is here to allow it, and --yes was not given)")
            return False
        reply = self._reply("run this? [y]es, [n]o, [a]lways for this tool ", "yna")
        if reply == "a":
            self._allowed.add(call.name)
        return reply != "n"

    def _reply(self, question: str, letters: str) -> str:
        """One of the letters, as a person types it now; what was typed before is no answer to this."""
        self.screen.end()
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
        while True:
            try:
                reply = input(printable(question)).strip().lower()[:1]
            except EOFError:
                reply = "n"
                print()
            except KeyboardInterrupt:
                print()
                raise
            if reply and reply in letters:
                return reply

    def _keep(self, *, kv: bool) -> None:
        """A disk that is full, say, ends no conversation."""
        if self.keeper is None:
            return
        try:
            self.keeper.keep(self.session, kv=kv)
            self._keeping_failed = False
        except GptOssError as error:
            if not self._keeping_failed:
                self.screen.note(f"(this session is not kept: {error})")
            self._keeping_failed = True

    def _status(self) -> str:
        used, most = self.session.context_used, self.session.model.context
        parts = [self.session.model.path.name, f"{used:,}/{most:,} tokens ({used / most:.0%})"]
        if self.session.stats:
            parts.append(f"{self.session.stats[-1].tokens_per_second:.1f} tokens/s")
        if self.keeper and self.keeper.name:
            parts.append(self.keeper.name)
        return printable("  ".join(parts))
