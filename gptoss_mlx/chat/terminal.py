"""The chat loop: reads what a person types, shows the session's events, and runs the slash commands.

In a terminal: line editing, history, dim reasoning, Markdown. Without one: a message per line of standard input, the
answers alone on standard output, no control codes. Policy only: what a conversation is, `session` knows.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol

from ..engine import ContextFull
from ..errors import GptOssError
from ..harmony.parse import Content, Preamble, Reasoning, Stop, ToolCall
from ..memory import size_text
from ..progress import PrefillProgress
from .session import EFFORTS, Dropped, Session, ToolResult, TurnStats
from .transcript import Transcript

HELP = """\
/help                       this list
/reset                      start a new conversation
/reasoning none|low|medium|high  how long to think
/system TEXT                set the instructions (without TEXT: none); starts a new conversation
/save FILE                  save the conversation
/load FILE                  continue a saved conversation
/stats                      speed and context of this conversation
/exit                       leave (also Ctrl-D)
Ctrl-C stops an answer and keeps the session. A line that ends in \\ goes on in the next one, and so does Alt-Enter;
a message between two lines of \"\"\" may have any number of lines."""


class Screen(Protocol):
    """Where the events of one answer go."""

    def reasoning(self, text: str) -> None: ...
    def content(self, text: str) -> None: ...
    def note(self, text: str) -> None:
        """One line about the answer, not part of it."""

    def prefill(self, done: int, total: int) -> None: ...
    def end(self) -> None:
        """The answer is over, or broke off."""


def run(session: Session, *, show_reasoning: bool | None, history: Path) -> None:
    """Chat until /exit or the end of input."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        lines = _typed_lines(session, history)
        screen: Screen = RichScreen(show_reasoning=show_reasoning is not False)
        screen.note(f"context {session.model.context:,} tokens. /help lists the commands, /exit leaves.")
    else:
        lines, screen = _piped_lines(), PlainScreen(show_reasoning=show_reasoning is True)
    for text in lines:
        try:
            if text.startswith("/"):
                if not _command(session, text, screen):
                    return
            elif text.strip():
                _answer(session, text, screen)
        except ContextFull as error:
            screen.note(
                f"error: {error}: /reset starts anew, /save keeps this one, and chat --when-full drop would go on"
                " without the oldest turns"
            )
        except GptOssError as error:
            screen.note(f"error: {error}")


def ask(session: Session, text: str, *, show_reasoning: bool) -> None:
    """Show one question and its answer, as if it had been typed."""
    if sys.stdout.isatty():
        screen: Screen = RichScreen(show_reasoning=show_reasoning)
    else:
        screen = PlainScreen(show_reasoning=show_reasoning)
    screen.note(f"> {text}")
    _answer(session, text, screen)
    stats = session.stats[-1]
    screen.note(f"first token after {stats.first_token_seconds:.2f} s, {stats.tokens_per_second:.1f} tokens/s")


def _answer(session: Session, text: str, screen: Screen) -> None:
    """Send, and show the events; Ctrl-C stops the answer."""
    answered = False
    try:
        with closing(session.send(text, on_prefill=screen.prefill)) as events:
            for event in events:
                match event:
                    case Reasoning(text):
                        screen.reasoning(printable(text))
                    case Content(text) | Preamble(text):
                        answered = True
                        screen.content(printable(text))
                    case ToolCall(name, arguments):
                        screen.note(f"calls {printable(name)} {printable(arguments)}")
                    case ToolResult(name, output):
                        screen.note(f"{printable(name)} answers {printable(output)}")
                    case Dropped(messages):
                        screen.note(f"(the context is full: the {messages} oldest messages were dropped)")
                    case Stop("none"):
                        screen.note("(the answer broke off: --max-tokens or the end of the context)")
                    case TurnStats() if not answered:
                        screen.note("(no answer)")
    except KeyboardInterrupt:
        screen.end()
        screen.note("(stopped)")
    finally:
        screen.end()


def _command(session: Session, line: str, screen: Screen) -> bool:
    """Run a slash command; False to leave."""
    name, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    match name:
        case "/exit":
            return False
        case "/help":
            screen.note(HELP)
        case "/reset":
            session.reset()
            screen.note("new conversation")
        case "/reasoning" if rest in EFFORTS:
            session.set_reasoning_effort(rest)
            screen.note(f"reasoning {rest}")
        case "/reasoning":
            screen.note(f"usage: /reasoning {'|'.join(EFFORTS)} (it is {session.reasoning_effort})")
        case "/system":
            session.instructions = rest or None
            session.reset()
            screen.note("new conversation with these instructions" if rest else "new conversation without instructions")
        case "/save" | "/load" if not rest:
            screen.note(f"usage: {name} FILE")
        case "/save":
            session.transcript.write(Path(rest).expanduser())
            screen.note(f"saved to {rest}")
        case "/load":
            session.restore(Transcript.read(Path(rest).expanduser()))
            screen.note(f"{len(session.messages)} messages from {rest}")
        case "/stats":
            screen.note(_stats(session))
        case _:
            screen.note(f"there is no command {name}: /help lists them")
    return True


def _stats(session: Session) -> str:
    lines = [f"context {session.context_used} of {session.model.context} tokens"]
    if experts := session.model.expert_stats:
        lines.append(
            f"experts: {experts.hit_rate:.1%} were in memory, {size_text(experts.bytes_read)} read,"
            f" {experts.stall_seconds:.1f} s of waiting for them"
        )
    for number, turn in enumerate(session.stats, 1):
        lines.append(
            f"turn {number}: {turn.prefilled} tokens read, first token after {turn.first_token_seconds:.2f} s,"
            f" {turn.decoded} tokens at {turn.tokens_per_second:.1f} tokens/s"
        )
    return "\n".join(lines)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text without the characters that would steer a terminal: a model's output is data."""
    return _CONTROL.sub("\ufffd", text)


def _piped_lines() -> Iterator[str]:
    for line in sys.stdin:
        yield line.rstrip("\r\n")


def _typed_lines(session: Session, history: Path) -> Iterator[str]:
    """Messages with line editing; the prompt tells the speed of the last answer and the context used."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    history.parent.mkdir(parents=True, exist_ok=True)
    prompts = PromptSession(history=FileHistory(str(history)), key_bindings=keys)
    while True:
        try:
            yield _whole_message(prompts.prompt, _status(session) + "> ")
        except (EOFError, KeyboardInterrupt):
            return


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


def _status(session: Session) -> str:
    if not session.stats:
        return ""
    used, most = session.context_used, session.model.context
    return f"[{session.stats[-1].tokens_per_second:.1f} tokens/s, {used}/{most}] "


class PlainScreen:
    """Answers on standard output; everything else on standard error."""

    def __init__(self, *, show_reasoning: bool):
        self._show_reasoning = show_reasoning
        self._open = None

    def reasoning(self, text: str) -> None:
        if self._show_reasoning:
            self._write(sys.stderr, text)

    def content(self, text: str) -> None:
        self._write(sys.stdout, text)

    def note(self, text: str) -> None:
        self.end()
        print(text, file=sys.stderr, flush=True)

    def prefill(self, done: int, total: int) -> None:
        pass

    def end(self) -> None:
        if self._open is not None:
            print(file=self._open, flush=True)
            self._open = None

    def _write(self, file, text: str) -> None:
        if self._open is not file:
            self.end()
        self._open = file
        print(text, end="", file=file, flush=True)


class RichScreen:
    """Reasoning dim; the answer as Markdown, of which only the last block is still redrawn."""

    def __init__(self, *, show_reasoning: bool):
        from rich.console import Console

        self._console = Console(highlight=False)
        self._show_reasoning = show_reasoning
        self._in_reasoning = False
        self._live = None
        self._block = ""
        self.prefill = PrefillProgress(self._console)

    def reasoning(self, text: str) -> None:
        self._finish_block()
        if self._show_reasoning:
            self._in_reasoning = True
            self._console.print(text, style="dim", end="", markup=False, soft_wrap=True)
        elif not self._live:
            self._status("thinking ...")

    def content(self, text: str) -> None:
        self._end_reasoning()
        if not self._block:
            self._stop_live()
        self._block += text
        done, self._block = finished_blocks(self._block)
        if done:
            self._stop_live()
            self._markdown(done)
        if self._block.strip():
            self._draw()

    def note(self, text: str) -> None:
        self.end()
        self._console.print(text, style="dim", markup=False)

    def end(self) -> None:
        self.prefill.stop()
        self._end_reasoning()
        self._finish_block()

    def _end_reasoning(self) -> None:
        if self._in_reasoning:
            self._in_reasoning = False
            self._console.print("\n")

    def _finish_block(self) -> None:
        self._stop_live()
        if self._block.strip():
            self._markdown(self._block)
        self._block = ""

    def _markdown(self, text: str) -> None:
        from rich.markdown import Markdown

        self._console.print(Markdown(text))
        self._console.print()

    def _draw(self) -> None:
        from rich.live import Live
        from rich.markdown import Markdown

        if self._live is None:
            self._live = Live(console=self._console, transient=True, refresh_per_second=12)
            self._live.start()
        self._live.update(Markdown(self._block))

    def _status(self, text: str) -> None:
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            self._live = Live(console=self._console, transient=True, refresh_per_second=4)
            self._live.start()
        self._live.update(Text(text, style="dim"))

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def finished_blocks(text: str) -> tuple[str, str]:
    """Markdown split where it can no longer change: behind the last blank line outside a code fence."""
    cut = 0
    fence = None
    position = 0
    for line in text.splitlines(keepends=True):
        position += len(line)
        mark = re.match(r" {0,3}(`{3,}|~{3,})", line)
        if mark and (fence is None or mark[1].startswith(fence)):
            fence = None if fence else mark[1]
        # An indented line after a blank one may still belong to the list above it; a plain one ends it.
        if not line.strip() and line.endswith("\n") and fence is None:
            cut = position
    return text[:cut], text[cut:]
