"""Reading messages as a person writes them: keys in a real pseudo-terminal, and lines through real pipes."""

import ast
import os
import re
import selectors
import signal
import statistics
import subprocess
import sys
import time

import pexpect
import pytest

from gptoss_mlx.terminal.input import STEP_SECONDS, _IdleSelector, _ReadingAhead
from terminal.terminals import Terminal

# Reads messages until the end, and writes of each its end as Python writes it, its length, and the seconds of a
# processor that reading it took. What Ctrl-C does outside of `read` is for programs to say: here, nothing.
# Arguments: history, status.
TYPED = """
import signal, sys, time
from pathlib import Path
from gptoss_mlx.terminal.input import TypedInput
signal.signal(signal.SIGINT, signal.SIG_IGN)
commands = {"/save": "/save [NAME|FILE]", "/settle": "/settle", "/reset": "/reset"}
messages = TypedInput(lambda: None, commands, Path(sys.argv[1]))
draft, spent = "", time.process_time()
print("ready")
while (text := messages.read(sys.argv[2], draft)) is not None:
    draft = text.removeprefix("draft ") if text.startswith("draft ") else ""
    print(f"got {text[-100:]!r} {len(text)} {time.process_time() - spent:.3f}")
    spent = time.process_time()
print("the end")
"""
UP, ALT_ENTER = "\x1b[A", "\x1b\r"


class Typist(Terminal):
    """A terminal in which `program` reads messages, without a report of where the cursor is if nothing asks for it."""

    def __init__(self, program, args, environment, **options):
        command = [sys.executable, "-c", program, *map(str, args)]
        super().__init__(command, environment, **{"PROMPT_TOOLKIT_NO_CPR": "1"} | options)

    def got(self):
        """The next message that the program has read."""
        match = self.expect(r"got ('.*?'|\".*?\") (\d+) ([\d.]+)\r\n")
        self.length, self.spent = int(match[2]), float(match[3])
        return ast.literal_eval(match[1])

    def prompt(self):
        self.expect(r">[^\r\n]*\?25h")  # drawn, and the cursor shown
        return self

    def end(self):
        """All that was written until the program had ended."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        return plain(self.child.before.decode())


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[>=]", "", text)


@pytest.fixture
def typed(environment, tmp_path):
    def start(status="", **options):
        terminal = Typist(TYPED, [tmp_path / "history", status], environment, **options)
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
    terminal.prompt().keys("\x04")
    assert "the end" in terminal.end()


def test_ctrl_c_clears_tells_how_to_leave_and_leaves(typed):
    terminal = typed()
    terminal.keys("never sent\x03kept\r")
    assert terminal.got() == "kept"
    terminal.prompt().keys("\x03").expect("Ctrl-D or /exit leaves")
    terminal.prompt().keys("on\r")
    assert terminal.got() == "on"
    terminal.prompt().keys("\x03").expect("leaves")
    terminal.prompt().keys("text\x03").keys("\x03").expect("leaves")  # not two in a row
    terminal.prompt().keys("\x03")
    assert "the end" in terminal.end()


@pytest.mark.parametrize("moments", [5, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("press", ["key", "signal"])
def test_ctrl_c_at_any_moment_around_the_start_of_a_prompt(typed, press, moments):
    terminal = typed(PYTHONDEVMODE="1")  # tells of what is not closed, or awaited
    for count in range(moments):
        terminal.keys("\r")
        time.sleep(count * 0.024 / moments)
        terminal.keys("\x03") if press == "key" else terminal.child.kill(signal.SIGINT)
        terminal.keys(f"end of {count}\r").expect(f"got 'end of {count}'")
        terminal.prompt()
    assert "the end" in terminal.keys("\x04").end()
    for complaint in ("Traceback", "Exception", "Warning", "never"):
        assert complaint not in terminal.sent.decode()


def test_history(typed, tmp_path):
    terminal = typed()
    terminal.keys("first\r").got()
    terminal.prompt().keys("two\\\rlines\r").got()
    terminal.prompt().keys("\x04").end()
    assert os.stat(tmp_path / "history").st_mode & 0o777 == 0o600
    terminal = typed()
    assert terminal.keys(f"{UP}\r").got() == "two\nlines"
    assert terminal.prompt().keys(f"{UP}{UP}{UP}!\r").got() == "first!"
    terminal.prompt().keys("\x04").end()


@pytest.mark.parametrize("kind", ["folder", "fifo", "garbage", "huge", "unwritable"])
def test_a_history_that_cannot_be_used_stops_nothing(typed, tmp_path, kind):
    path = tmp_path / "history"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "garbage":
        path.write_bytes(os.urandom(100_000))
    elif kind == "huge":
        path.write_bytes(b"\n# then\n+old\n" * 500_000)
    else:
        path.symlink_to("/proc/self/nothing/history")
    terminal = typed()
    assert terminal.keys("one\r").got() == "one"
    assert terminal.prompt().keys(f"{UP}\r").got() == "one"
    terminal.prompt().keys("\x04").end()
    if kind == "huge":
        assert path.stat().st_size < 3 * 2**20


def test_completion_of_commands(typed):
    terminal = typed()
    assert terminal.keys("/sav\t \r").got() == "/save "
    terminal.prompt().keys("/s")
    terminal.expect(r"/save \[NAME\|FILE\]")  # the menu opens by itself
    assert terminal.keys("\t\t\r").keys("\r").got() == "/settle"


def test_completion_of_files(typed, tmp_path):
    for name in ("notes.txt", "my file.txt", "my folder/deep.md", ".hidden", "caf\u00e9.txt"):
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).touch()
    terminal = typed(folder=tmp_path / "here", HOME=str(tmp_path))

    def completed(keys):
        terminal.keys(keys)
        time.sleep(0.1)
        text = terminal.keys("\r").got()
        terminal.prompt()
        return text

    assert completed("see @no\t") == "see @notes.txt"
    assert completed("see @caf\t ok") == "see @caf\u00e9.txt ok"
    assert completed('@"my fi\t') == '@"my file.txt"'
    assert completed("/save no\t") == "/save notes.txt"
    assert completed("/save my fi\t") == "/save my file.txt"
    assert completed("/reset no\t") == "/reset no"
    assert completed("no\t") == "no"
    assert completed("me@no\t") == "me@no"
    assert completed("@.h\t") == "@.hidden"
    assert completed("@~/here/no\t") == "@~/here/notes.txt"
    assert completed("@/dev/null/\t") == "@/dev/null/"
    terminal.keys("@my\t").expect("my folder/")


@pytest.fixture
def editor(tmp_path):
    """A script that edits as `lines` say; gives the environment in which it is the editor."""

    def editor(lines, variable="EDITOR"):
        program = tmp_path / "my editor"
        program.write_text(f"#!/bin/sh\n{lines}\n")
        program.chmod(0o755)
        return {"VISUAL": "", "EDITOR": ""} | {variable: f"'{program}' --wait"}

    return editor


@pytest.mark.parametrize("keys", ["\x18\x05", "\x07"])
@pytest.mark.parametrize("variable", ["VISUAL", "EDITOR"])
def test_an_editor_takes_what_is_typed_and_gives_it_back(typed, editor, tmp_path, keys, variable):
    script = f'echo "$1" > {tmp_path}/option; cat "$2" > {tmp_path}/before; printf "caf\\303\\251\\r\\nlast\\n" >> "$2"'
    terminal = typed(**editor(script, variable))
    terminal.keys(f"one\x1b\rtwo {keys}").expect("last")
    assert terminal.keys("!\r").got() == "one\ntwo caf\u00e9\nlast!"
    assert (tmp_path / "before").read_text() == "one\ntwo "
    assert (tmp_path / "option").read_text() == "--wait\n"
    terminal.prompt().keys(f"{UP}\r")
    assert terminal.got() == "one\ntwo caf\u00e9\nlast!"
    terminal.prompt().keys("\x04").end()


def test_an_editor_may_leave_nothing(typed, editor):
    terminal = typed(**editor(': > "$2"; echo emptied > /dev/tty'))
    terminal.keys("gone\x07").expect("emptied")
    terminal.prompt().keys("new\r")
    assert terminal.got() == "new"


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ('echo lost > "$2"; exit 3', "my editor ended with exit status 3: the text is as it was"),
        ("kill -9 $$", "my editor was ended by signal 9: the text is as it was"),
        ('rm "$2"', "my editor: No such file or directory: VISUAL or EDITOR names the editor to use"),
    ],
)
def test_an_editor_that_fails_loses_nothing(typed, editor, lines, complaint):
    terminal = typed(columns=200, **editor(lines))
    terminal.keys("kept\x07").expect(complaint)
    terminal.prompt().keys("!\r")
    assert terminal.got() == "kept!"


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"EDITOR": "/no/editor"}, "error: cannot edit with /no/editor: No such file or directory: VISUAL or EDITOR"),
        ({"EDITOR": "'open"}, "error: cannot edit with 'open: No closing quotation"),
        ({"EDITOR": "", "PATH": "/nowhere"}, "error: no editor is installed: VISUAL or EDITOR names the editor"),
    ],
)
def test_an_editor_that_is_missing_loses_nothing(typed, variables, complaint):
    terminal = typed(columns=200, **{"VISUAL": ""} | variables)
    terminal.keys("kept\x18\x05").expect(complaint)
    terminal.prompt().keys("!\r")
    assert terminal.got() == "kept!"


def test_ctrl_c_in_an_editor_is_the_editors(typed, editor):
    """One that is interrupted has failed, and what was typed stays."""
    terminal = typed(columns=200, **editor("echo opened > /dev/tty; exec sleep 60"))
    terminal.keys("kept\x07").expect("opened")
    terminal.keys("\x03").expect("my editor was ended by signal 2: the text is as it was")
    terminal.prompt().keys("!\r")
    assert terminal.got() == "kept!"


def test_the_status_is_one_dim_line_without_colors(typed):
    terminal = typed(status="1234567890" * 5, columns=40, PROMPT_TOOLKIT_NO_CPR="", NO_COLOR="1")
    assert 38 <= len(terminal.expect(r"\x1b\[0;2m(\d+)")[1]) <= 40
    terminal.resize(20)
    assert 18 <= len(terminal.expect(r"\x1b\[0;2m(\d+)")[1]) <= 20
    terminal.keys("/s").expect("/settle")
    assert terminal.keys("\r").got() == "/s"
    terminal.prompt()
    assert not re.search(r"\x1b\[[0-9;]*[34][0-9;]*m", terminal.sent.decode())
    terminal.keys("\x04").end()


def test_a_paste_of_a_megabyte(typed):
    terminal = typed()
    lines = "a line of some fifty characters in several words\r" * 20_000
    terminal.keys(f"\x1b[200~{lines}\x1b[201~the end").expect("the end")
    assert terminal.keys("\r").got().endswith("words\na line of some fifty characters in several words\nthe end")
    assert terminal.length == len(lines) + len("the end")
    assert terminal.spent < 10


def test_nothing_to_do_takes_no_time_of_a_processor(typed):
    terminal = typed()
    terminal.keys("first\r").got()
    terminal.prompt().keys("a\r").got()
    without_waiting = terminal.spent
    terminal.prompt()
    time.sleep(1)
    terminal.keys("b\r").got()
    assert terminal.spent < without_waiting + 0.3


# The first step reads one token, and is quick enough on the busiest machine.
ANSWERS = """
import sys
from pathlib import Path
from gptoss_mlx.terminal import input
from gptoss_mlx.terminal.input import TypedInput
input.SLOWEST_STEP = 1000
from gptoss_mlx.chat.session import Session
from gptoss_mlx.engine.generate import load
from gptoss_mlx.harmony.parse import Content
from gptoss_mlx.engine.sampling import Sampling
session = Session(load(sys.argv[1]), sampling=Sampling(temperature=0))
def prefill_ahead(tokens, prefill_ahead=session.prefill_ahead):
    left.append(prefill_ahead(tokens))
    if left[-2:][0] > left[-1] == 0:
        print("all is read")
    return left[-1]
session.prefill_ahead, left = prefill_ahead, []
messages = TypedInput(lambda: session, {}, Path(sys.argv[2]))
print("ready")
while (text := messages.read("")) is not None:
    answer = "".join(event.text for event in session.send(text) if isinstance(event, Content))
    print(f"answer {answer!r}")
"""


def test_the_session_reads_ahead_between_keys(demo_folder, environment, tmp_path):
    terminal = Typist(ANSWERS, [demo_folder, tmp_path / "history"], environment)
    terminal.prompt().keys("What is 12 + 30?\r").expect(r"answer '12 \+ 30 = 42'")
    terminal.prompt().keys("never sent")
    terminal.child.kill(signal.SIGINT)
    terminal.keys("What is 40 - 7?").expect("all is read")
    terminal.keys("\r").expect(r"answer '40 - 7 = 33'")
    terminal.prompt().keys("\x04").end()


# A session that takes 12 ms for a token. Arguments: history, and how many tokens are left whatever was read.
SLOW = """
import sys, time
from pathlib import Path
from gptoss_mlx.terminal.input import TypedInput
class Session:
    steps = []
    def prefill_ahead(self, tokens):
        time.sleep(tokens * 0.012)
        self.steps.append(tokens)
        return int(sys.argv[2])
session = Session()
messages = TypedInput(lambda: session, {}, Path(sys.argv[1]))
print("ready")
text = messages.read("")
print("got", text, session.steps)
"""


@pytest.mark.timing
def test_no_key_waits_long_while_the_session_reads_ahead(environment, tmp_path):
    busy, idle = (Typist(SLOW, [tmp_path / left, left], environment) for left in ("1", "0"))
    for terminal in (busy, idle):
        terminal.expect("ready")
        terminal.prompt()

    def seconds(terminal, keys, shown):
        started = time.monotonic()
        terminal.keys(keys).expect(shown)
        return time.monotonic() - started

    waits = {busy: [], idle: []}
    for key in "noqrstuvwxyz":  # none of which ends a control sequence
        time.sleep(0.03)
        for terminal, of_this in waits.items():
            of_this.append(seconds(terminal, key, key))
    assert statistics.median(waits[busy]) < 3 * statistics.median(waits[idle]) + STEP_SECONDS[1]
    time.sleep(0.5)
    last = {terminal: seconds(terminal, "!\r", "got noqrstuvwxyz!") for terminal in waits}
    assert last[busy] < 3 * last[idle] + 5 * STEP_SECONDS[1]
    steps = ast.literal_eval(busy.expect(r"\[.*\]")[0])
    assert len(steps) > 2
    assert max(steps) * 0.012 < 0.2


def test_an_idle_selector_works_until_something_is_ready_or_time_is_up(monkeypatch):
    monkeypatch.setattr("gptoss_mlx.terminal.input.QUIET", 1)
    ours, theirs = os.pipe()
    steps = []

    def step():
        steps.append(time.monotonic())
        if len(steps) == 3:
            os.write(theirs, b"x")
        return len(steps) < 5

    selector = _IdleSelector(step)
    selector.register(ours, selectors.EVENT_READ)
    assert selector.select(0) == []
    assert not steps
    assert [key.fd for key, _ in selector.select()] == [ours]
    assert len(steps) == 3
    os.read(ours, 1)
    ready = time.monotonic()
    assert selector.select(0.05) == []  # somebody types: no step yet
    assert len(steps) == 3
    assert selector.select(1.3) == []
    assert len(steps) == 5
    assert steps[3] - ready > 0.95
    assert time.monotonic() - ready > 1.33
    selector.close()


@pytest.mark.parametrize(
    ("per_token", "asked"),
    [(0.001, [1, 2, 3, 4, 6, 9]), (0.02, [1, 2, 3, 3, 3, 3]), (0.1, [1, 1, 1, 1, 1, 1]), (0.6, [1])],
)
def test_steps_take_as_long_as_a_key_may_wait(monkeypatch, per_token, asked):
    class Session:
        def prefill_ahead(self, tokens):
            clock.append(clock[-1] + tokens * per_token)
            steps.append(tokens)
            return 1

    clock, steps = [0.0], []
    monkeypatch.setattr("gptoss_mlx.terminal.input.time.monotonic", lambda: clock[-1])
    ahead = _ReadingAhead(Session)
    while ahead.step() and len(steps) < 6:
        pass
    assert steps == asked


def test_a_step_that_took_too_long_is_followed_by_a_shorter_one(monkeypatch):
    class Session:
        def prefill_ahead(self, tokens):
            steps.append(tokens)
            clock.append(clock[-1] + (2 if len(steps) == 8 else 0.001))
            return 1

    clock, steps = [0.0], []
    monkeypatch.setattr("gptoss_mlx.terminal.input.time.monotonic", lambda: clock[-1])
    ahead = _ReadingAhead(Session)
    while ahead.step() and len(steps) < 10:
        pass
    assert steps == [1, 2, 3, 4, 6, 9, 13, 19, 1, 2]


def test_what_fails_is_not_read_ahead():
    class Session:
        def prefill_ahead(self, tokens):
            raise RuntimeError("out of memory")

    assert not _ReadingAhead(Session).step()


DUMB = """
from gptoss_mlx.terminal.input import DumbInput
messages = DumbInput()
draft = ""
while (text := messages.read("status", draft)) is not None:
    draft = text.removeprefix("draft ") if text.startswith("draft ") else ""
    print(f"got {text!r}")
print("the end")
"""


def test_a_dumb_terminal(environment):
    terminal = Typist(DUMB, [], environment)
    terminal.expect("> ")
    for keys, text in [
        ("one\r", "one"),
        ("a\\\rb\r", "a\nb"),
        ('"""\ra\\\r\rb\r"""\r', "a\\\n\nb"),
        ("draft edit\r", "draft edit"),
        ("ed\r", "edited"),
    ]:
        assert ast.literal_eval(terminal.keys(keys).expect(r"got ('.*?')\r\n")[1]) == text
        terminal.expect("> ")
    terminal.keys("draft a\\\rb\r").expect("got")
    terminal.expect("\r\na\r\nb\r\n> ")  # to be copied: readline would show it as a^Jb
    assert ast.literal_eval(terminal.keys("new\r").expect(r"got ('.*?')\r\n")[1]) == "new"
    terminal.expect("> ")
    terminal.keys("\x03").expect("Ctrl-D or /exit leaves")
    terminal.expect("> ")
    os.write(terminal.child.child_fd, b"\xff\r")
    terminal.expect("got '\ufffd'")
    terminal.expect("> ")
    terminal.keys("\x03").expect("leaves")
    terminal.expect("> ")
    assert "the end" in terminal.keys("\x03").end()
    assert b"\x1b" not in terminal.sent


def test_a_terminal_whose_output_goes_elsewhere_prompts_on_standard_error(environment, tmp_path):
    program = f"import sys; sys.stdout = open({str(tmp_path / 'out')!r}, 'w')\n{DUMB}"
    terminal = Typist(program, [], environment)
    terminal.expect("> ")
    terminal.keys("one\r").expect("> ")
    terminal.keys("\x04").end()
    assert (tmp_path / "out").read_text() == "got 'one'\nthe end\n"


def test_piped_lines(environment):
    program = """
from gptoss_mlx.terminal.input import PipedInput
messages = PipedInput(lambda: 8)
while (text := messages.read("status")) is not None:
    print(ascii(text))
"""
    text = b"\xef\xbb\xbfone\r\n\n caf\xc3\xa9 \xff\n\xc3\n12345678\n123456789 and more\n1234567890\nlast"
    done = subprocess.run([sys.executable, "-c", program], input=text, capture_output=True, env=environment, timeout=60)
    whole = ["'one'", "''", r"' caf\xe9 \ufffd'", r"'\ufffd'", "'12345678'"]
    assert done.stdout.decode().splitlines() == [*whole, "'123456789'", "'123456789'", "'last'"]
