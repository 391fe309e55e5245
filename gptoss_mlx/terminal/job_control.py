"""Leaving the terminal to the shell when a signal stops or ends the program: its modes, its cursor, nothing half drawn.

Knows signals and terminal modes. What is drawn, whoever draws it takes off the screen, and draws again afterwards. A
signal that was ignored when the program started stays ignored: a shell without job control, or nohup, wants it so.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGHUP)
NOT_DRAWN = OSError, RuntimeError  # the terminal is gone, or the signal came in the middle of a write to it
Modes = list[Any]


def nothing() -> None:
    """Hides and shows nothing, for callers that draw nothing."""


class Ended(KeyboardInterrupt):
    """A signal ends the program, and something has to be saved first."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def stop() -> None:
    """Stop the process, as Ctrl-Z does, until it is continued."""
    before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, before)


@contextmanager
def suspendable(hide: Callable[[], None], show: Callable[[], None]) -> Iterator[None]:
    """Inside, Ctrl-Z leaves the terminal to the shell as it was at the beginning, and what was hidden is drawn again
    when the process continues in the foreground. `hide` and `show` are called between any two instructions."""
    before, while_stopped, is_hidden = _modes(), None, False

    def suspend(*_: object) -> None:
        nonlocal while_stopped, is_hidden
        is_hidden = True
        with suppress(*NOT_DRAWN):
            hide()
        while_stopped = _modes()
        _set_modes(before)
        stop()
        come_back()  # a process that nobody could continue was not stopped, and gets no SIGCONT

    def come_back(*_: object) -> None:
        nonlocal is_hidden
        if is_hidden and _in_foreground():
            is_hidden = False
            _set_modes(while_stopped)
            with suppress(*NOT_DRAWN):
                show()

    with _handled({signal.SIGTSTP: suspend, signal.SIGCONT: come_back}):
        yield


@contextmanager
def restored(hide: Callable[[], None]) -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP end the process as usual, but leave the terminal as it was at the beginning."""
    before = _modes()

    def end(number: int, _: FrameType | None) -> None:
        with suppress(*NOT_DRAWN):
            hide()
        _set_modes(before)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    with _handled(dict.fromkeys(ENDING, end)):
        yield


@contextmanager
def ending_raises() -> Iterator[None]:
    """Inside, the first SIGTERM or SIGHUP raises Ended where it falls; another one ends the process at once."""

    def end(number: int, _: FrameType | None) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        raise Ended(number)

    with _handled(dict.fromkeys(ENDING, end)) as before:
        yield


@contextmanager
def _handled(handlers: dict[int, Callable[[int, FrameType | None], None]]) -> Iterator[dict[int, Any]]:
    """Install these handlers, except for ignored signals. Yields the handlers that they replace."""
    before = {number: signal.getsignal(number) for number in handlers}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, handlers[number])
    try:
        yield before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _modes() -> Modes | None:
    """The modes of the terminal that is typed on; None if there is none."""
    with suppress(OSError, ValueError, AttributeError, termios.error):
        return termios.tcgetattr(sys.stdin)
    return None


def _set_modes(modes: Modes | None) -> None:
    """Set them if they differ: in the background, a process that sets any is stopped. Continued, it sets them again."""
    while modes is not None and modes != _modes():
        try:
            termios.tcsetattr(sys.stdin, termios.TCSANOW, modes)
        except termios.error as error:
            if error.args[0] == errno.EINTR:
                continue
        return


def echo(on: bool) -> None:
    """Have the terminal show what is typed, or not."""
    if modes := _modes():
        modes[3] = modes[3] | termios.ECHO if on else modes[3] & ~termios.ECHO
        _set_modes(modes)


def _in_foreground() -> bool:
    for stream in (sys.stdin, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    return True
