"""How a person's messages are read: typed with an editor, typed without control codes, or a line at a time from a pipe.

Also how a person is asked a question. Knows terminals and prompt_toolkit, and nothing of what messages and commands
mean. While a person types, the session reads ahead: in steps so short that no key waits for one, on the thread that
also reads the keys.
"""

from __future__ import annotations

import asyncio
import math
import os
import selectors
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..errors import GptOssError, printable
from ..untrusted import os_error_text
from .editor import edited
from .job_control import nothing, stop, suspendable
from .safe_text import without_controls

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    from ..chat.session import Session
    from .looks import Background

PROMPT, CONTINUATION = "> ", "... "
QUOTES = '"""'
HOW_TO_LEAVE = "Ctrl-D or /exit leaves"

STEP_SECONDS = 0.05, 0.1  # of a step of reading ahead: shorter ones grow, longer ones shrink
SLOWEST_STEP = 0.5  # seconds of a step of one token, above which nothing more is read ahead
QUIET = 0.2  # seconds without a key before the next step: while somebody types fast, no key waits

T = TypeVar("T")
REPLIES = {"y": "yes", "n": "no", "a": "always"}


class Input(Protocol):
    """Where messages come from."""

    def read(self, status: str, draft: str = "") -> str | None:
        """The next message or command; None at the end. An editor shows `status`, and `draft` as text to be edited.
        Raises GptOssError if nothing can be read."""


class TypedInput:
    """Messages from an editor with history and completion, while the session reads ahead."""

    def __init__(
        self,
        session_of: Callable[[], Session],
        commands: Mapping[str, str],
        history: Path,
        values: Mapping[str, Callable[[], Iterable[str]]] | None = None,
        background: Callable[[Background], None] | None = None,
    ):
        """`commands`: name -> usage; commands whose usage has a FILE are completed by names of files, others by their
        `values`: name -> what it takes. `background` hears which one the terminal has, if it says so."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.styles import Style

        from .background import BackgroundQuestion
        from .completion import MessageCompleter, opens_menu
        from .history import open_history

        self._completer = MessageCompleter(commands, values or {})
        self._prompts: PromptSession[str] = PromptSession(
            PROMPT,
            prompt_continuation=CONTINUATION,
            history=open_history(history),
            completer=self._completer,
            complete_while_typing=Condition(lambda: opens_menu(self._prompts.default_buffer.document)),
            key_bindings=self._keys(),
            style=Style.from_dict({"bottom-toolbar": "noreverse dim"}),
        )
        self._prompts.app.terminal_size_polling_interval = None  # SIGWINCH reports it, without waking up twice a second
        self._prompts.default_buffer.on_text_changed += self._forget_ctrl_c
        self._pressed_ctrl_c = False
        self._reading_ahead = _ReadingAhead(session_of)
        self._question = BackgroundQuestion(self._prompts.input, self._prompts.output, background)

    def read(self, status: str, draft: str = "") -> str | None:
        self._prompts.bottom_toolbar = " ".join(status.split()) or None
        self._pressed_ctrl_c = False
        with self._signals(), _idle_loop(self._reading_ahead.step) as loop:
            try:
                text = loop.run_until_complete(
                    self._prompts.prompt_async(default=draft, handle_sigint=False, pre_run=self._question.ask)
                )
            except EOFError:
                return None
            finally:
                self._question.wait()
        return _message(text).encode(errors="replace").decode()  # bytes that are no UTF-8 arrive as surrogates

    def _keys(self) -> KeyBindings:
        from prompt_toolkit.application import run_in_terminal
        from prompt_toolkit.completion import CompleteEvent, get_common_complete_suffix
        from prompt_toolkit.enums import DEFAULT_BUFFER
        from prompt_toolkit.filters import completion_is_selected, has_focus
        from prompt_toolkit.key_binding import KeyBindings

        keys, in_message = KeyBindings(), has_focus(DEFAULT_BUFFER)

        @keys.add("enter", filter=in_message & ~completion_is_selected)
        def send(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if _is_unfinished(buffer.text):
                buffer.text = _continued(buffer.text)
                buffer.cursor_position = len(buffer.text)
            else:
                buffer.validate_and_handle()

        @keys.add("enter", filter=in_message & completion_is_selected)
        def choose(event: KeyPressEvent) -> None:
            event.current_buffer.complete_state = None

        @keys.add("escape", "enter", filter=in_message)
        def open_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("tab", filter=in_message & ~completion_is_selected)
        def complete(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            found = list(self._completer.get_completions(buffer.document, CompleteEvent(completion_requested=True)))
            if len(found) == 1:
                buffer.apply_completion(found[0])
            elif common := get_common_complete_suffix(buffer.document, found):
                buffer.insert_text(common)
                buffer.start_completion()
            elif buffer.complete_state:
                buffer.complete_next()
            else:
                buffer.start_completion()

        @keys.add("c-c", filter=in_message)
        def interrupt(event: KeyPressEvent) -> None:
            self._ctrl_c()

        @keys.add("c-x", "c-e", filter=in_message)
        @keys.add("c-g", filter=in_message)
        def edit(event: KeyPressEvent) -> None:
            run_in_terminal(self._edit)

        @keys.add("c-z")
        def suspend(event: KeyPressEvent) -> None:
            os.kill(0, signal.SIGTSTP)  # to everything that Ctrl-Z would stop outside the editor's raw mode

        return keys

    def _edit(self) -> None:
        """Let a person edit in another program what is typed; if that fails, it stays."""
        buffer = self._prompts.default_buffer
        try:
            text = edited(buffer.text)
        except GptOssError as error:
            print(f"error: {printable(str(error))}")
            return
        buffer.save_to_undo_stack()
        buffer.text = text
        buffer.cursor_position = len(text)

    def _ctrl_c(self) -> None:
        """Clear what is typed; if nothing is, say how to leave, and leave the second time."""
        from prompt_toolkit.application import run_in_terminal

        app, buffer = self._prompts.app, self._prompts.default_buffer
        if app.future is None or app.future.done():
            return
        if buffer.text:
            buffer.reset()
        elif self._pressed_ctrl_c:
            app.exit(exception=EOFError)
        else:
            self._pressed_ctrl_c = True
            run_in_terminal(lambda: print(HOW_TO_LEAVE))

    def _forget_ctrl_c(self, _: Any) -> None:
        self._pressed_ctrl_c = False

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Inside, Ctrl-C and Ctrl-Z do outside the editor's raw mode what they do in it, and raise nothing: an event
        loop that is half made, or half closed, would print a traceback when it is deleted."""
        before = {
            signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: self._soon(self._ctrl_c)),
            signal.SIGTSTP: signal.signal(signal.SIGTSTP, lambda *_: self._soon(self._suspend)),
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _soon(self, action: Callable[[], None]) -> None:
        """Do it in the loop that runs the editor; before that has begun there is nothing to interrupt."""
        if loop := self._prompts.app.loop:
            loop.call_soon_threadsafe(action)

    def _suspend(self) -> None:
        from prompt_toolkit.application import run_in_terminal

        run_in_terminal(stop)


class DumbInput:
    """Messages from a terminal that takes no control codes, or that shows only standard error.

    Ctrl-C gives up a line, and leaves when it is pressed twice in a row: readline keeps to itself what was typed.
    """

    def __init__(self) -> None:
        _decode_stdin()
        os.environ["TERM"] = "dumb"  # for readline, which would greet other terminals with control codes
        self._readline: ModuleType | None = None
        with suppress(ImportError):
            self._readline = import_module("readline")

    def read(self, status: str, draft: str = "") -> str | None:
        pressed_ctrl_c = False
        if draft and ("\n" in draft or not self._readline):  # cannot be edited here, but copied
            print(without_controls(draft), file=sys.stderr)
            draft = ""
        while True:
            try:
                text = self._line(PROMPT, draft)
                while _is_unfinished(text):
                    text = _continued(text) + self._line(CONTINUATION)
                return _message(text)
            except EOFError:
                print(file=sys.stderr)
                return None
            except KeyboardInterrupt:
                print(file=sys.stderr)
                if pressed_ctrl_c:
                    return None
                pressed_ctrl_c, draft = True, ""
                print(HOW_TO_LEAVE, file=sys.stderr)

    def _line(self, asked: str, draft: str = "") -> str:
        if readline := self._readline:
            readline.set_startup_hook(lambda: readline.insert_text(draft))
        shown = sys.stdout if sys.stdout.isatty() else sys.stderr

        def again() -> None:
            typed = self._readline.get_line_buffer() if self._readline else ""
            print(f"{asked}{typed}", end="", file=shown, flush=True)

        with suspendable(nothing, again):
            if shown is sys.stdout:
                return input(asked)
            print(asked, end="", file=shown, flush=True)  # answers alone go to standard output
            return input()


class PipedInput:
    """A message per line of standard input; a line that no context could hold is cut where that is certain."""

    def __init__(self, max_length: Callable[[], int]):
        """`max_length`: the characters that a message may have."""
        _decode_stdin("utf-8-sig")
        self._max_length = max_length
        self._is_cut = False

    def read(self, status: str, draft: str = "") -> str | None:
        read = self._max_length() + 1
        try:
            while self._is_cut:
                self._is_cut = _continues(sys.stdin.readline(read))
            line = sys.stdin.readline(read)
        except OSError as error:
            raise GptOssError(f"cannot read standard input: {os_error_text(error)}") from None
        self._is_cut = len(line) == read and _continues(line)
        return line.rstrip("\r\n") if line else None


def _decode_stdin(encoding: str | None = None) -> None:
    """Bytes that are no text are replaced."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(encoding=encoding, errors="replace")


def _continues(line: str) -> bool:
    return line[-1:] not in ("", "\n")


def _is_unfinished(text: str) -> bool:
    """Whether more lines follow: after a backslash, and until a second line of three quotes."""
    if _is_quoted(text):
        return all(line.strip() != QUOTES for line in text.split("\n")[1:])
    return text.endswith("\\")


def _is_quoted(text: str) -> bool:
    return text.partition("\n")[0].strip() == QUOTES


def _continued(text: str) -> str:
    """An unfinished text with a new line opened."""
    return (text if _is_quoted(text) else text.removesuffix("\\")) + "\n"


def _message(text: str) -> str:
    """A finished text without the lines of quotes around it."""
    lines = text.split("\n")
    return "\n".join(lines[1:-1]) if _is_quoted(text) and lines[-1].strip() == QUOTES else text


def reply(question: str, letters: str) -> str:
    """The one of the letters that a person answers, "n" at the end of the input."""
    meant = {word: letter for letter in letters for word in (letter, REPLIES[letter])}
    return _answer(question, meant.get) or "n"


def choose(question: str, count: int) -> int | None:
    """The number, up to `count`, that a person types; 0 for an empty line, and None at the end of the input."""
    numbers = {"": 0} | {str(number): number for number in range(1, count + 1)}
    return _answer(question, numbers.get)


def _answer(question: str, meaning: Callable[[str], T | None]) -> T | None:
    """What a person's line means, None at the end of the input. What was typed before the question is no answer to it,
    and after a line that means nothing the question comes again."""
    shown = sys.stdout if sys.stdout.isatty() else sys.stderr
    ask = partial(print, question, end="", file=shown, flush=True)
    while True:
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
        ask()
        try:
            with suspendable(nothing, ask):
                line = sys.stdin.readline()
        except KeyboardInterrupt:
            print(file=shown)
            raise
        if not line:
            print(file=shown)
            return None
        if (meant := meaning(line.strip().lower())) is not None:
            return meant


@contextmanager
def _idle_loop(step: Callable[[], bool]) -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.SelectorEventLoop(_IdleSelector(step))
    try:
        yield loop
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


class _IdleSelector(selectors.DefaultSelector):
    """A selector that works while nothing is ready or was a moment ago: a `step` at a time, until one returns False."""

    def __init__(self, step: Callable[[], bool]):
        super().__init__()
        self._step, self._has_work, self._work_from = step, True, 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """The files that are ready, after at most `timeout` seconds and a step; None waits for ever."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        while self._has_work:
            ready = super().select(max(min(end, self._work_from) - time.monotonic(), 0))
            if ready:
                self._work_from = time.monotonic() + QUIET
            if ready or time.monotonic() >= end:
                return ready
            self._has_work = self._step()
        return super().select(None if timeout is None else max(end - time.monotonic(), 0))


class _ReadingAhead:
    """Has the session read ahead, in steps that take as long as a key may wait."""

    def __init__(self, session_of: Callable[[], Session]):
        self._session_of = session_of
        self._tokens = 1

    def step(self) -> bool:
        """Read a little; whether there is more to read, and time for it."""
        started = time.monotonic()
        try:
            left = self._session_of().prefill_ahead(self._tokens)
        except Exception:  # the next turn meets it again, and reports it
            return False
        return left > 0 and self._keep_pace(time.monotonic() - started)

    def _keep_pace(self, seconds: float) -> bool:
        """Adapt the next step to the time that the last one took; False if not even one token is quick enough."""
        shortest, longest = STEP_SECONDS
        if self._tokens == 1 and seconds > SLOWEST_STEP:
            return False
        if seconds > longest:
            self._tokens = max(1, int(self._tokens * longest / seconds))
        elif seconds < shortest:
            self._tokens += max(1, self._tokens // 2)
        return True
