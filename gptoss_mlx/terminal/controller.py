"""A chat at a terminal: shows what the model answers, saves the conversation, and asks before a tool may run.

Policy only: what a conversation is, `session` knows; how it looks, `screen`; how a person is asked, `input`. `loop`
hands it the messages, and `slash_commands` change it.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..chat.autosave import SessionAutosave
from ..chat.presets import Presets
from ..chat.session import Session
from ..chat.store import SessionEntry
from ..chat.turn import Dropped, Thought, ToolResult, TurnEvent, TurnEvents, TurnStats
from ..chat.visible import with_all_visible
from ..errors import GptOssError, printable
from ..harmony.messages import FUNCTIONS, Message
from ..harmony.parse import Content, Preamble, Reasoning, Stop, ToolCall, kind_of
from .input import reply
from .job_control import NOT_DRAWN, Ended, ending_raises
from .safe_text import shortened, without_controls
from .screen import Screen

STOPPED = "(stopped; /continue resumes)"
MAX_TOKENS = "(stopped at --max-tokens; /continue resumes)"
REPEATED = "(stopped: the model was repeating {repeated}; /continue resumes)"
FULL = "(stopped: the context is full; {ways_out})"
FULL_CAN_DROP = "(stopped: the context is full; /continue drops the oldest turns and resumes)"
WAYS_OUT = "/undo removes the last question, /reset clears the chat"
OR_DROP = ", and `gptoss-mlx chat --when-full drop` drops the oldest turns"
NO_ANSWER = "(no answer; /continue asks for one)"
UNFINISHED = "(this answer is unfinished; /continue resumes)"

RECALLED_MESSAGES = 7  # shown of the last exchange of a resumed conversation: a turn may have called many tools
RECALLED_LINE = 300  # characters of a line of a question or a call in it


@dataclass
class Chat:
    """A session and what a chat has beside it."""

    session: Session
    """The conversation; missing while /model replaces it, and if that fails for good."""
    screen: Screen
    autosave: SessionAutosave | None = None
    load: Callable[[str], Session] | None = None
    is_asked: bool = False
    """Whether there is a person to ask."""
    yes: bool = False
    presets: Presets | None = None
    draft: str = ""
    """Text that the next message begins with."""
    over: bool = False
    reasoning: list[str] = field(default_factory=list)
    """The reasoning of the last answer."""
    typed: dict[str, str] = field(default_factory=dict)
    """Message as it was sent -> as it was typed, of the questions of this conversation."""
    _allowed: set[str] = field(default_factory=set)
    _saving_failed: bool = False

    def __post_init__(self) -> None:
        self.use(self.session)

    def use(self, session: Session) -> None:
        """Continue with this session, whose tools hold nothing and may do nothing unasked."""
        self.session = session
        session.approve = self._approve
        self._allowed.clear()

    def leave(self) -> None:
        """The conversation is over: what is saved of it stays as it is, and its tools let go of what they hold."""
        self._forget()
        if self.autosave:
            self.autosave.leave()

    def switch(self, entry: SessionEntry) -> None:
        """Save this conversation, and continue with a saved one. Raises GptOssError, and then this one goes on."""
        assert self.autosave
        if entry.name == self.autosave.name:
            raise GptOssError(f"{entry.name} is the session of this chat")
        self.autosave.switch(self.session, entry)
        self._forget()
        self.screen.note(self.autosave.resumed_text(self.session))
        self.recall()

    def _forget(self) -> None:
        """Let go of what belongs to the conversation that was."""
        self.reasoning.clear()
        self.typed.clear()
        self._allowed.clear()
        self.session.toolbox.close()

    def close(self) -> None:
        """Let go of the model."""
        if hasattr(self, "session"):
            self.session.close()

    def recall(self) -> None:
        """Show the last exchange of a resumed conversation, to a person: a pipe has no use for it."""
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
            name = self.autosave and self.autosave.name
            how = f"`gptoss-mlx sessions show {shlex.quote(name)}` shows" if name else "/export FILE.md writes"
            self.screen.note(f"(this is only the end of the answer: {how} all of it)")
        if self.session.transcript.unfinished:
            is_open = said and said[-1].role == "assistant" and kind_of(said[-1]) is Content
            self.screen.note(UNFINISHED if is_open else NO_ANSWER)

    def _recall(self, message: Message) -> bool:
        """Show an earlier message. Returns whether it was cut."""
        if message.role != "assistant":
            self.screen.result(message.role.removeprefix(FUNCTIONS), message.content)
        elif message.recipient is not None:
            self.screen.call(message.recipient.removeprefix(FUNCTIONS), shortened(message.content, RECALLED_LINE))
        elif kind_of(message) is Reasoning:
            self.screen.reasoning(shortened(message.content, RECALLED_LINE))
            self.screen.end()
        else:
            return self.screen.recall(message.content)
        return False

    def answer(self, start: Callable[..., TurnEvents], so_far: str = "") -> None:
        """Show an answer while it arrives, after what was shown of it before, and save it; Ctrl-C stops it, and a
        signal that ends the program loses nothing of it. `start` takes `on_prefill`."""
        try:
            with ending_raises():
                self._answer(start, so_far)
        except Ended as ended:
            with suppress(*NOT_DRAWN):
                self.screen.end()
            signal.raise_signal(ended.number)

    def _answer(self, start: Callable[..., TurnEvents], so_far: str) -> None:
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
            self.screen.note(STOPPED)
        finally:
            if not ended:
                self.screen.end()
            if accepted:
                self.keep(kv=not ended)  # the KV cache may be half written

    def _show(self, events: Iterable[TurnEvent]) -> None:
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
                    screen.note(self._why_stopped(event) if reason == "none" else NO_ANSWER)

    def _why_stopped(self, stats: TurnStats) -> str:
        """Why the answer is unfinished, and what to do."""
        if stats.repeated:
            return REPEATED.format(repeated=stats.repeated)
        if self.session.context_used < self.session.model.context - 1:
            return MAX_TOKENS
        can_drop = self.session.drop_when_full and self.session.transcript.turns > 1
        return FULL_CAN_DROP if can_drop else FULL.format(ways_out=self.ways_out())

    def ways_out(self) -> str:
        return WAYS_OUT + OR_DROP * (not self.session.drop_when_full)

    def check_replaced(self, path: Path) -> None:
        """Ask before a file is replaced. Raises GptOssError if nobody agrees."""
        question = f"{printable(str(path))} exists. Replace it? [y]es, [n]o "
        if os.path.lexists(path) and not (self.is_asked and reply(question, "yn") == "y"):
            raise GptOssError(f"{path} exists and was not replaced: choose another name")

    def _approve(self, call: ToolCall, preview: str) -> bool:
        """Show a call that needs a person's approval, and ask for it."""
        self.screen.call(call.name, preview)
        if self.yes or call.name in self._allowed:
            return True
        if not self.is_asked:
            self.screen.note("(not run: there is nobody to ask, and --yes was not given)")
            return False
        lines = with_all_visible(preview).strip().count("\n") + 1  # may be more than the window shows
        question = f"run {'this' if lines == 1 else f'these {lines} lines'}? [y]es, [n]o, [a]lways for this tool "
        self.screen.end()
        chosen = reply(question, "yna")
        if chosen == "a":
            self._allowed.add(call.name)
        return chosen != "n"

    def keep(self, *, kv: bool) -> None:
        """Save the session as it is now; a full disk, say, ends no conversation."""
        if self.autosave is None:
            return
        try:
            self.autosave.save(self.session, kv=kv)
            self._saving_failed = False
        except GptOssError as error:
            if not self._saving_failed:
                self.screen.note(f"(this session is not saved: {error})")
            self._saving_failed = True

    def status(self) -> str:
        """One line, the most important part first: a narrow window cuts the rest."""
        used, context = self.session.prompt_tokens, self.session.model.context
        parts = [self.autosave.name] if self.autosave and self.autosave.name else []
        parts += [f"{used:,}/{context:,} tokens ({used / context:.0%})", self.session.model.path.name]
        if self.presets and self.presets.name:
            parts.append(f"preset {self.presets.name}")
        if self.session.stats:
            parts.append(f"{self.session.stats[-1].tokens_per_second:.1f} tokens/s")
        return without_controls(" · ".join(parts))


def _is_reasoning(message: Message) -> bool:
    return message.role == "assistant" and kind_of(message) is Reasoning
