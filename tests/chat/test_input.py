"""Reading messages as a person writes them: keys in a real pseudo-terminal, and lines through real pipes."""

import os
import re
import signal
import subprocess
import sys
import time

import pexpect
import pytest

from gptoss_mlx.chat.input import _IdleSelector, _ReadingAhead

# Reads messages until the end, and writes each as Python writes it. Arguments: model, history, status.
TYPED = """
import sys
from pathlib import Path
from gptoss_mlx.chat.input import TypedInput
from gptoss_mlx.chat.session import Session
from gptoss_mlx.engine import load
session = Session(load(sys.argv[1]))
commands = {"/save": "/save [NAME|FILE]", "/settle": "/settle", "/reset": "/reset"}
messages = TypedInput(lambda: session, commands, Path(sys.argv[2]))
draft = ""
print("ready")
while (text := messages.read(sys.argv[3], draft)) is not None:
    draft = text.removeprefix("draft ") if text.startswith("draft ") else ""
    print(f"got {text!r}")
print("the end")
"""
CLEAR = "\x15"  # Ctrl-U
DOWN, UP, ALT_ENTER = "\x1b[B", "\x1b[A", "\x1b\r"
CURSOR_REQUEST, CURSOR_ANSWER = "\x1b[6n", "\x1b[1;1R"


class Terminal:
    """A pseudo-terminal in which `program` runs."""

    def __init__(self, program, args, env, columns=100, folder=None):
        self.child = pexpect.spawn(
            sys.executable,
            ["-c", program, *map(str, args)],
            env=env,
            dimensions=(30, columns),
            encoding="utf-8",
            timeout=20,
            cwd=folder and str(folder),
        )
        self.child.delaybeforesend = None

    def keys(self, text):
        self.child.send(text)
        return self

    def expect(self, pattern):
        self.child.expect(pattern)
        return plain(self.child.before)

    def got(self):
        """The next message that the program has read."""
        self.child.expect(r"got ('.*?'|\".*?\")\r\n")
        return eval(self.child.match[1])

    def prompt(self):
        self.child.expect(r">[^\r\n]*\?25h")  # drawn, and the cursor shown
        return self

    def end(self):
        """All that was written until the program had ended."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        return plain(self.child.before)


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[>=]", "", text)


@pytest.fixture
def typed(demo_folder, environment, tmp_path):
    def start(status="", folder=None, columns=100, **changes):
        terminal = Terminal(
            TYPED,
            [demo_folder, tmp_path / "history", status],
            environment | {"PROMPT_TOOLKIT_NO_CPR": "1"} | changes,
            columns,
            folder,
        )
        terminal.expect("ready")
        return terminal.prompt()

    return start


def test_lines(typed):
    terminal = typed()
    assert terminal.keys("one\r").got() == "one"
    assert terminal.prompt().keys("a\\\rb\\\rc\r").got() == "a\nb\nc"
    assert terminal.prompt().keys(f"a{ALT_ENTER}b\r").got() == "a\nb"
    assert terminal.prompt().keys('"""\ra\\\r\rb\r"""\r').got() == "a\\\n\nb"
    assert terminal.prompt().keys("\x1b[200~one\rtwo\r\n\\\r\x1b[201~end\r").got() == "one\ntwo\n\\\nend"
    assert terminal.prompt().keys("draft edit").keys("\r").got() == "draft edit"
    assert terminal.prompt().keys("ed\r").got() == "edited"
    assert terminal.prompt().keys("\r").got() == ""
    terminal.child.sendeof()
    assert "the end" in terminal.end()
