"""A person's terminal for tests: a program in a pseudo-terminal, and a terminal emulator that shows what it drew.

A Python program is a fork of the zygote's, in a session of its own that the pseudo-terminal controls.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte
from ptyprocess import PtyProcess

import zygote

ROWS, COLUMNS = 30, 100
GOLDEN = Path(__file__).parents[1] / "golden" / "screens"
# What differs from run to run and from machine to machine.
VARYING = [
    (r"thought for \d+\.\d s", "thought for #.# s"),
    (r"\d+\.\d tokens/s", "#.# tokens/s"),
    (r"[\d,]+ tokens/s, \d+ s left", "# tokens/s, # s left"),
    (r"KV cache: .*", "KV cache: #"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d", "####-##-## ##:##"),
]


class Forked(PtyProcess):
    """A process that the zygote has forked, for pexpect."""

    def __init__(self, run: zygote.Run, descriptor: int):
        super().__init__(run.pid, descriptor)
        self._run = run

    def isalive(self) -> bool:
        self.wait(None if self.flag_eof else 0)
        return not self.terminated

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit status; None if a signal has ended it, or it still runs."""
        if (status := self._run.wait(seconds)) is not None:
            code, self.status, self.terminated = os.waitstatus_to_exitcode(status), status, True
            self.exitstatus, self.signalstatus = (code, None) if code >= 0 else (None, -code)
        return self.exitstatus


class Spawn(pexpect.spawn):
    def _spawnpty(self, args, env, cwd=None, dimensions=(24, 80), **options):
        args = [os.fsdecode(arg) for arg in args]
        if args[0] != sys.executable or not zygote.shared().fits(env):
            return super()._spawnpty(args, env=env, cwd=cwd, dimensions=dimensions, **options)
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *dimensions, 0, 0))
        run = zygote.shared().start(args[1:], env, [slave] * 3, cwd, terminal=True)
        os.close(slave)
        return Forked(run, master)


class Terminal:
    """`seen` are the rows on the screen, `sent` all that the program has written to it.

    `wait` looks at the screen; `expect` at what was written since the last time, pictures and control codes alike.
    """

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        columns: int = COLUMNS,
        folder: Path | None = None,
        **changes: str,
    ):
        unwanted = {"COLUMNS", "LINES", "NO_COLOR", "PROMPT_TOOLKIT_NO_CPR"}
        env = {k: v for k, v in environment.items() if k not in unwanted} | {"TERM": "xterm-256color"} | changes
        self.child = Spawn(
            command[0], command[1:], env=env, dimensions=(ROWS, columns), timeout=30, cwd=folder and str(folder)
        )
        self.child.delaybeforesend = None
        self.child.logfile_read = self
        self.screen = pyte.HistoryScreen(columns, ROWS, history=1000)
        self.screen.write_process_input = self.child.send  # a terminal answers where its cursor is
        self._stream = pyte.ByteStream(self.screen)
        self.sent = b""

    def write(self, data: bytes) -> None:
        """What the program has written."""
        self.sent += data
        self._stream.feed(data)

    def flush(self) -> None:
        """For pexpect, to which this is a log file."""

    @property
    def seen(self) -> str:
        return "\n".join(row.rstrip() for row in self.screen.display).rstrip() + "\n"

    def wait(self, pattern: str) -> None:
        """Until the screen shows what the pattern describes."""
        found = self.read_until(lambda: re.search(pattern, self.seen, re.MULTILINE), 30)
        assert found, f"no {pattern!r} on\n{self.seen}"

    def read_until(self, condition: Callable[[], object], seconds: float, *, at_rest: bool = True) -> bool:
        """Whether it comes true, `at_rest` while nothing more arrives."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            more = self._read()
            if not (more and at_rest) and condition():
                return True
        return False

    def expect(self, pattern: str) -> re.Match[str]:
        """The match, when the program has written what the pattern describes."""
        self.child.expect(pattern.encode())
        return re.search(pattern, self.child.after.decode(errors="replace"))

    def keys(self, text: str) -> Terminal:
        self.child.send(text)
        return self

    def line(self, text: str) -> None:
        """Type a line."""
        self.child.send(text + "\r")

    def key(self, letter: str) -> None:
        """Press a key together with Ctrl."""
        self.child.sendcontrol(letter)

    def resize(self, columns: int) -> None:
        self.screen.resize(ROWS, columns)
        self.child.setwinsize(ROWS, columns)

    def exit_status(self) -> int:
        """Of the program, which ends now; `echoed` tells afterwards whether the terminal then showed what is typed."""
        while self.child.isalive() or self._read():
            self._read()
        self.echoed = self.child.getecho()
        self.child.close()
        return self.child.exitstatus

    def _read(self) -> bool:
        with contextlib.suppress(pexpect.TIMEOUT, pexpect.EOF):
            self.child.read_nonblocking(65536, timeout=0.06)
            return True
        return False


def wait_for_an_answer(terminal: Terminal) -> None:
    """Until something but the status line stands below the question "Hello", or that has scrolled away."""

    def is_answered() -> object:
        scrolled = b"Hello\r\n" in terminal.sent and "> Hello" not in terminal.seen
        return scrolled or re.search(r"> Hello\n\s*(?!.* tokens)\S", terminal.seen)

    assert terminal.read_until(is_answered, 30, at_rest=False), terminal.seen


def golden(name: str, terminal: Terminal) -> None:
    """The screen is, or becomes, the one that is kept, apart from what varies."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("REGENERATE_SCREENS"):
        terminal.read_until(lambda: False, 1)
        path.parent.mkdir(exist_ok=True)
        path.write_text(masked(terminal.seen), encoding="utf-8")
    expected = path.read_text(encoding="utf-8")
    terminal.read_until(lambda: masked(terminal.seen) == expected, 30)
    assert masked(terminal.seen) == expected, f"not as in {path.name}:\n{masked(terminal.seen)}"


def masked(seen: str) -> str:
    for pattern, instead in VARYING:
        seen = re.sub(pattern, instead, seen)
    return seen
