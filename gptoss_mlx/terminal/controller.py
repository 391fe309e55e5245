"""A chat at a terminal: shows what the model answers, keeps the conversation, and asks before a tool may run.

Policy only: what a conversation is, `session` knows; how it looks, `screen`. What a person types, `loop` reads.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..chat.autosave import SessionAutosave
from ..chat.session import Session
from ..chat.turn import Dropped, Thought, ToolResult, TurnStats
from ..errors import GptOssError, printable
from ..harmony.messages import FUNCTIONS, Message
from ..harmony.parse import Content, Event, Preamble, Reasoning, Stop, ToolCall, is_call, kind_of
from .job_control import NOT_DRAWN, Ended, ending_raises, nothing, suspendable
from .screen import Screen, shortened, with_all_visible, without_controls

BROKE_OFF = "(broke off at --max-tokens; /continue goes on)"
REPEATED = "(stopped: the model was repeating {repeated}; /continue resumes)"
BROKE_OFF_FULL = "(broke off at the end of the context: {ways_out})"
BROKE_OFF_DROP = "(broke off at the end of the context; /continue drops the oldest turns and goes on)"
WAYS_OUT = "/undo takes the last question back, /reset starts anew"
NO_ANSWER = "(no answer; /continue asks for one)"
UNFINISHED = "(this answer is not finished; /continue goes on)"
OR_DROP = ", and chat --when-full drop would go on without the oldest turns"

RECALLED_MESSAGES = 7  # of the last exchange of a conversation that goes on: a turn may have called many tools
RECALLED_LINE = 300  # characters of a line of a question or a call in it

REPLIES = {"y": "yes", "n": "no", "a": "always"}


@dataclass
class Chat:
    """A session and what a chat has beside it."""

    session: Session
    screen: Screen
    autosave: SessionAutosave | None = None
    load: Callable[[str], Session] | None = None
    is_asked: bool = False
    """Whether there is a person to ask."""
    yes: bool = False
    draft: str = ""
    """What the next message begins with."""
    over: bool = False
    reasoning: list[str] = field(default_factory=list)
    """Of the last answer."""
    typed: dict[str, str] = field(default_factory=dict)
    """What was sent -> what was typed, of the questions of this conversation."""
    _allowed: set[str] = field(default_factory=set)
    _keeping_failed: bool = False

    def __post_init__(self) -> None:
        self.use(self.session)

    def use(self, session: Session) -> None:
        """Go on with this session, whose tools hold nothing and may do nothing unasked."""
        self.session = session
        session.approve = self._approve
        self._allowed.clear()

    def leave(self) -> None:
        """The conversation is over: what is kept of it stays as it is, and what its tools hold is gone."""
        self.reasoning.clear()
        self.typed.clear()
        self._allowed.clear()
        self.session.toolbox.close()
        if self.autosave:
            self.autosave.leave()

    def recall(self) -> None:
        """Show the last exchange of a conversation that goes on, to a person: a pipe has no use for it."""
        messages = self.session.messages
        asked = [index for index, message in enumerate(messages) if message.role == "user"]
        if not asked or not (self.is_asked and sys.stdout.isatty()):
            return
        question, *answer = messages[asked[-1] :]
        self.reasoning[:] = [message.content for message in answer if _is_reasoning(message)]
        self.screen.note(f"> {shortened(question.content, RECALLED_LINE)}")
        said = [message for message in answer if self.screen.show_reasoning or not _is_reasoning(message)]
        cut = [self._recall(message) for message in said[-RECALLED_MESSAGES:]]
        if any(cut) or len(said) > RECALLED_MESSAGES:
            kept = self.autosave and self.autosave.name
            where = f"`gptoss-mlx sessions show {shlex.quote(kept)}` shows" if kept else "/export FILE.md writes"
            self.screen.note(f"(this is the end of a longer answer: {where} all of it)")
        if self.session.transcript.unfinished:
            is_open = said and said[-1].role == "assistant" and kind_of(said[-1]) is Content
            self.screen.note(UNFINISHED if is_open else NO_ANSWER)

    def _recall(self, message: Message) -> bool:
        """Show an earlier message; whether only its end."""
        if message.role != "assistant":
            self.screen.result(message.role.removeprefix(FUNCTIONS), message.content)
        elif is_call(message):
            self.screen.call(message.recipient.removeprefix(FUNCTIONS), shortened(message.content, RECALLED_LINE))
        elif kind_of(message) is Reasoning:
            self.screen.reasoning(shortened(message.content, RECALLED_LINE))
            self.screen.end()
        else:
            return self.screen.recall(message.content)
        return False

    def answer(self, start: Callable[..., Iterator[Event]], so_far: str = "") -> None:
        """Show an answer while it arrives, behind what was shown of it, and keep it; Ctrl-C stops it, and a
        signal that ends the program loses nothing of it. `start` takes `on_prefill`."""
        try:
            with ending_raises():
                self._answer(start, so_far)
        except Ended as ended:
            with suppress(*NOT_DRAWN):
                self.screen.end()
            signal.raise_signal(ended.number)

    def _answer(self, start: Callable[..., Iterator[Event]], so_far: str) -> None:
        self.reasoning.clear()
        accepted = ended = False

        def on_prefill(done: int, total: int) -> None:
            nonlocal accepted
            if not accepted:
                accepted = True
                self.keep(kv=False)
            self.screen.prefill(done, total)

        try:
            with closing(start(on_prefill=on_prefill)) as events:
                self.screen.resume(so_far)
                self._show(events)
        except Ended:
            ended = True
            raise
        except KeyboardInterrupt:
            self.screen.note("(stopped; /continue goes on)")
        finally:
            if not ended:
                self.screen.end()
            if accepted:
                self.keep(kv=not ended)  # a KV state may be half written

    def _show(self, events: Iterator[Event]) -> None:
        screen, reason = self.screen, ""
        for event in events:
            match event:
                case Reasoning(text, begins):
                    if begins:
                        screen.begin()
                    self.reasoning.append("\n\n" * (begins and bool(self.reasoning)) + text)
                    screen.reasoning(text)
                case Thought(tokens, seconds):
                    screen.thought(tokens, seconds)
                case Content(text, begins) | Preamble(text, begins):
                    if begins:
                        screen.begin()
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
                    screen.note(self._broke_off(event) if reason == "none" else NO_ANSWER)

    def _broke_off(self, stats: TurnStats) -> str:
        """Why an answer did, and what to do."""
        if stats.repeated:
            return REPEATED.format(repeated=stats.repeated)
        if self.session.context_used < self.session.model.context - 1:
            return BROKE_OFF
        can_drop = self.session.drop_when_full and self.session.transcript.turns > 1
        return BROKE_OFF_DROP if can_drop else BROKE_OFF_FULL.format(ways_out=self.ways_out())

    def ways_out(self) -> str:
        return WAYS_OUT + OR_DROP * (not self.session.drop_when_full)

    def check_replaced(self, path: Path) -> None:
        """Ask before a file is replaced. Raises GptOssError where nobody agrees."""
        question = f"{printable(str(path))} exists already: replace it? [y]es, [n]o "
        if os.path.lexists(path) and not (self.is_asked and reply(question, "yn") == "y"):
            raise GptOssError(f"{path} exists already, and stays as it is: choose another name")

    def _approve(self, call: ToolCall, preview: str) -> bool:
        """Show a call that wants to be agreed to, and ask."""
        self.screen.call(call.name, preview)
        if self.yes or call.name in self._allowed:
            return True
        if not self.is_asked:
            self.screen.note("(not run: nobody is here to allow it, and --yes was not given)")
            return False
        lines = with_all_visible(preview).strip().count("\n") + 1  # more than the window shows, perhaps
        question = f"run {'this' if lines == 1 else f'these {lines} lines'}? [y]es, [n]o, [a]lways for this tool "
        self.screen.end()
        chosen = reply(question, "yna")
        if chosen == "a":
            self._allowed.add(call.name)
        return chosen != "n"

    def keep(self, *, kv: bool) -> None:
        """Keep the session as it is now; a disk that is full, say, ends no conversation."""
        if self.autosave is None:
            return
        try:
            self.autosave.save(self.session, kv=kv)
            self._keeping_failed = False
        except GptOssError as error:
            if not self._keeping_failed:
                self.screen.note(f"(this session is not kept: {error})")
            self._keeping_failed = True

    def status(self) -> str:
        """One line, the weightiest first: a narrow window cuts the rest."""
        used, most = self.session.prompt_tokens, self.session.model.context
        parts = [self.autosave.name] if self.autosave and self.autosave.name else []
        parts += [f"{used:,}/{most:,} tokens ({used / most:.0%})", self.session.model.path.name]
        if self.session.stats:
            parts.append(f"{self.session.stats[-1].tokens_per_second:.1f} tokens/s")
        return without_controls(" · ".join(parts))


def _is_reasoning(message: Message) -> bool:
    return message.role == "assistant" and kind_of(message) is Reasoning


def reply(question: str, letters: str) -> str:
    """Which of the letters a person answers, "n" at the end of the input. What was typed before the question is no
    answer to it, and the question comes again after any other."""
    shown = sys.stdout if sys.stdout.isatty() else sys.stderr
    meant = {reply: letter for letter in letters for reply in (letter, REPLIES[letter])}
    put = partial(print, question, end="", file=shown, flush=True)
    while True:
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
        put()
        try:
            with suspendable(nothing, put):
                line = sys.stdin.readline()
        except KeyboardInterrupt:
            print(file=shown)
            raise
        if not line:
            print(file=shown)
            return "n"
        if letter := meant.get(line.strip().lower()):
            return letter
