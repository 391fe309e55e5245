"""What a person sees: a chat in a terminal emulator of 30 rows by 100 columns, against the screens in golden/screens.

After a change that is meant, `REGENERATE_SCREENS=1 pytest tests/terminal/test_screens.py` writes them anew; then read
the difference. Figures that vary are replaced before they are compared.
"""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from terminal.terminals import Terminal, golden

CHATTING = Path(__file__).with_name("chatting.py")
PROMPT = "^>$"
IMPORTS = """
from gptoss_mlx.terminal.region import Region
from gptoss_mlx.terminal.rich_screen import RichScreen
from gptoss_mlx.terminal.screen import PlainScreen"""
# What a screen may send: colors and other attributes, showing and hiding the cursor, erasing below it, moving it up.
ALLOWED = re.compile(rb"\x1b\[([0-9;]*m|\?25[hl]|\?12l|J|\d+A)")


@pytest.fixture
def chat(environment, demo_folder, tmp_path):
    """Start a chat with the options of chatting.py, and wait for its first prompt."""
    started = []

    def chat(model=demo_folder, prompt=PROMPT, variables=(), **options) -> Terminal:
        places = {"GPTOSS_MLX_HOME": str(tmp_path / "home"), "RELEASE": str(tmp_path / "release")}
        command = [sys.executable, str(CHATTING), str(model), json.dumps(options)]
        started.append(Terminal(command, environment | places, **dict(variables)))
        started[-1].wait(prompt)
        return started[-1]

    yield chat
    for terminal in started:
        terminal.child.close(force=True)


def release(tmp_path, count):
    """Let a paused answer go on."""
    (tmp_path / f"release{count}").touch()


@pytest.fixture
def drawn(environment):
    """Run a few lines of Python on a `screen`, in a terminal."""

    def drawn(lines: str, screen="RichScreen(show_reasoning=None)", wait="done", **variables) -> Terminal:
        begin, end = f"screen = {screen}\nscreen.prefill(1, 1)", "screen.note('done')\nscreen.end()\ninput()"
        program = "\n".join([IMPORTS, begin, lines, end])
        terminal = Terminal([sys.executable, "-c", program], environment, **variables)
        terminal.wait(wait)
        return terminal

    return drawn


def test_messages_are_set_apart(drawn):
    texts = ["First, I look.", "Then I say.", "```\\ncode", "So."]
    terminal = drawn("\n".join(f"screen.begin()\nscreen.content('{text}')" for text in texts))
    lines = [line.strip() for line in terminal.seen.splitlines() if line.strip()]
    assert lines[:4] == ["First, I look.", "Then I say.", "code", "So."]


def test_answers_help_and_context(chat):
    terminal = chat(keep="talk")
    terminal.line("What is gptoss-mlx?")
    terminal.wait(r"machine\.\n\n>$")
    golden("answer", terminal)
    terminal.line("What is 12 + 30?")
    terminal.wait(r"= 42\n\n>$")
    terminal.line("/context")
    terminal.wait(r"snapshots: .*\n>$")
    golden("context", terminal)
    terminal.line("/help")
    terminal.wait(r"always a message\.\n>$")
    golden("help", terminal)
    terminal.line("/reasoning show")
    terminal.wait(r"632|02\.?.*\n>$")
    terminal.line("What is 12 + 30?")
    terminal.wait(r"= 42\n\n>$")
    golden("reasoning-shown", terminal)
    terminal.line("/exit")
    assert terminal.exit_status() == 0


def test_reasoning_and_an_answer_while_they_arrive(chat, tmp_path):
    terminal = chat(pauses=[12, 43], every_event=True)
    terminal.line("What is gptoss-mlx?")
    terminal.wait("question about")
    golden("reasoning-arrives", terminal)
    terminal.line("/reasoning")  # typed too early: seen when it can be read
    release(tmp_path, 12)
    terminal.wait("gptoss-mlx converts")
    golden("answer-arrives", terminal)
    terminal.resize(50)
    release(tmp_path, 43)
    terminal.wait(r"^reasoning effort: medium\n>$")
    golden("resized-to-50-columns", terminal)


def test_ctrl_c_stops_an_answer_that_goes_on_later(chat, tmp_path):
    terminal = chat(pauses=[43], every_event=True)
    terminal.line("What is gptoss-mlx?")
    terminal.wait("^machine")
    terminal.key("c")
    release(tmp_path, 43)
    terminal.wait(r"resumes\)\n>$")
    terminal.line("/continue")
    terminal.wait(r"machine\.\n\n>$")
    golden("stopped", terminal)
    terminal.key("c")
    terminal.wait(r"leaves\n>$")
    terminal.key("c")
    assert terminal.exit_status() == 0
    assert b"Traceback" not in terminal.sent


def test_a_tool_asks_first(chat, tmp_path):
    terminal = chat(asks=True, pauses=[5], every_event=True)
    terminal.line("What is the weather in Bermi?")
    terminal.wait("I need")
    terminal.line("y")  # typed too early to be an answer
    release(tmp_path, 5)
    terminal.wait(r"for this tool$")
    golden("tool-asks", terminal)
    terminal.line("abort")
    terminal.wait(r"abort\nrun this.*tool$")
    terminal.line("n")
    terminal.wait(r"\n\n>$")
    golden("tool-refused", terminal)
    terminal.line("/reset")
    terminal.wait(r"new conversation\n>$")
    terminal.line("What is the weather in Bermi?")
    terminal.wait(r"for this tool$")
    terminal.line("a")
    terminal.wait(r"Bermi\.\n\n>$")
    terminal.line("What is the weather in Bermi?")
    terminal.wait(r"Bermi\.\n(.*\n)+.*Bermi\.\n\n>$")
    terminal.line("/tools")
    terminal.wait(r"last result: .*\n>$")
    golden("tool-always", terminal)


def test_a_shell_command_asks_first(chat, tmp_path):
    terminal = chat()
    terminal.line("!touch ${RELEASE}d")
    terminal.wait("send it as text$")
    golden("shell-asks", terminal)
    terminal.line("always")
    terminal.wait("always\nrun this.*text$")
    terminal.line("n")
    terminal.wait(r"\n\n>$")
    assert not (tmp_path / "released").exists()
    terminal.line("/edit")
    terminal.wait("^> !touch")
    terminal.line("")
    terminal.wait(r"edit\n> !touch.*\n.*\nrun this.*text$")
    terminal.line("yes")
    terminal.wait(r"more line\n(.*\n)+>$")
    assert (tmp_path / "released").exists()


def test_sigterm_leaves_the_terminal_as_it_was(chat):
    terminal = chat(pauses=[12], every_event=True)
    terminal.line("What is gptoss-mlx?")
    terminal.wait("question about")
    assert not terminal.child.getecho()
    terminal.child.kill(signal.SIGTERM)
    terminal.exit_status()
    assert terminal.child.signalstatus == signal.SIGTERM
    assert terminal.echoed
    assert terminal.sent.endswith(b"\x1b[?25h\r\n")


def test_what_goes_wrong(chat):
    terminal = chat(context=180, max_tokens=30, keep="full")
    for line in (
        "/continue",
        "/undo",
        "/hlep",
        "/load",
        "/load nowhere.json",
        "/model nothing",
        "/copy code",
        "/export a.md",
    ):
        terminal.line(line)
        terminal.wait(PROMPT)
    terminal.line("What is 12 + 30?")
    terminal.wait(r"resumes\)\n>$")
    terminal.line("What is 347 + 285 and what is 285 + 347 and what is the sum of the two in the end?")
    terminal.wait(r"error: .*context(.*\n)+>$")
    golden("errors", terminal)


@pytest.mark.parametrize(
    ("name", "variables", "options"),
    [("no-color", {"NO_COLOR": "1"}, {}), ("dumb", {"TERM": "dumb"}, {}), ("plain", {}, {"plain": True})],
)
def test_terminals_without_looks(chat, name, variables, options):
    terminal = chat(variables=variables, asks=True, **options)
    terminal.line("What is the weather in Bermi?")
    terminal.wait("for this tool$")
    terminal.line("y")
    terminal.wait(r"Bermi\.\n+>$")
    terminal.line("/edit")
    terminal.wait(r"Bermi\?$|Bermi\?\n>$")
    golden(name, terminal)
    if name == "no-color":
        assert not re.search(rb"\x1b\[[0-9;]*\b(3[0-8]|4[0-8]|9\d|10\d)\b[0-9;]*m", terminal.sent)
    else:
        assert b"\x1b" not in terminal.sent
    terminal.key("u")
    terminal.key("d")
    assert terminal.exit_status() == 0


def test_a_long_prompt(drawn):
    lines = """
import time
from gptoss_mlx.terminal import progress_bars as progress
progress.SHOWN_AFTER = 0
screen.prefill(0, 8000)
time.sleep(0.1)
screen.prefill(2000, 8000)
input()
screen.prefill(8000, 8000)"""
    terminal = drawn(lines, wait="2,000/8,000 tokens.*left$")
    golden("long-prompt", terminal)
    terminal.line("")
    terminal.wait("done")
    assert terminal.seen == "done\n"


def test_the_last_lines_of_reasoning(drawn):
    lines = """
Region.INTERVAL, Region.SHARE = 0, 1
for number in range(40):
    screen.reasoning(f"{number} " + "long " * (number % 3 * 20) + "\\n")
screen.reasoning("40")
input()
screen.thought(400, 4.2)"""
    terminal = drawn(lines, wait="^40")
    golden("reasoning-window", terminal)
    terminal.line("")
    terminal.wait("done")
    assert terminal.seen == "thought for 4.2 s, 400 tokens\ndone\n"


def test_reasoning_that_is_hidden(drawn):
    lines = "screen.reasoning('secret')\ninput()\nscreen.reasoning('secret')\nscreen.content('It ends.')\nscreen.end()"
    terminal = drawn(lines, "RichScreen(show_reasoning=False)", wait="^thinking ...$")
    terminal.line("")
    terminal.wait("done")
    assert terminal.seen == "It ends.\n\ndone\n"
    assert b"secret" not in terminal.sent


MARKDOWN = r"""
# Title

A *paragraph* with `code` and a [link](https://example.org/a?b).

- one
- two

```python
def double(x):
    return 2 * x
```

| a | b |
| - | - |
| 1 | 2 |
"""


def test_markdown(drawn):
    terminal = drawn(f"for letter in {MARKDOWN!r}: screen.content(letter)\nscreen.end()")
    golden("markdown", terminal)


def test_a_code_block_longer_than_the_screen(drawn):
    lines = """
Region.INTERVAL, Region.SHARE = 0, 1
screen.content("```\\n" + "".join(f"line {number}\\n" for number in range(40)))
for number in range(40, 60):
    screen.content(f"line {number}\\n")
input()
screen.content("```\\n\\nIt ends.\\n")
screen.end()"""
    terminal = drawn(lines, wait="line 59")
    golden("long-code-arrives", terminal)
    terminal.line("")
    terminal.wait("done")
    golden("long-code", terminal)
    above = ["".join(cell.data for _, cell in sorted(row.items())) for row in terminal.screen.history.top]
    everything = "\n".join(above) + terminal.seen
    assert [int(number) for number in re.findall(r"line (\d+)", everything)] == list(range(60))


HOSTILE = "\x1b[2J\x1b]0;title\x07\x1b]52;c;AAAA\x07\x9b31m\u202eevil\u2066\r\x08\x7f\ud800"
ENTITIES = "<http://a/%1b%5b2J%07> &#x202e;x &rlm; [link](http://b/%1b]8;;c) ![image](http://c/%9b) `\x1b[2J`"


@pytest.mark.parametrize("screen", ["RichScreen(show_reasoning={})", "PlainScreen(show_reasoning={}, words=True)"])
@pytest.mark.parametrize("show", [None, True])
def test_no_text_steers_the_terminal(drawn, screen, show):
    lines = f"""
text = {HOSTILE!r}
Region.INTERVAL, Region.SHARE = 0, 1
screen.reasoning(text)
screen.thought(1, 1.0)
for content in (text, "\\n\\n```\\x1b[2J\\n" + text + "\\n```\\n\\n", {ENTITIES!r}):
    screen.content(content)
screen.call(text, text + "\\n" + text)
screen.result(text, text)
screen.note(text)
screen.end()"""
    terminal = drawn(lines, screen.format(show))
    sent = ALLOWED.sub(b"", terminal.sent)
    assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", sent)
    text = sent.decode()
    assert not re.search(r"[\x80-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", text)
    assert not re.search(r"\r(?![\r\n])[^\r\n]*evil", text) or "RichScreen" in screen


def test_copy(chat, tmp_path):
    program = tmp_path / "bin" / "pbcopy"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/clipboard\n")
    program.chmod(0o755)
    terminal = chat(variables={"PATH": f"{program.parent}:/usr/bin:/bin"})
    terminal.line("What is 12 + 30?")
    terminal.wait(r"= 42\n\n>$")
    terminal.line("/copy")
    terminal.wait("copied 12 characters with pbcopy, and asked the terminal to copy them")
    assert (tmp_path / "clipboard").read_text() == "12 + 30 = 42"
    assert b"\x1b]52;c;MTIgKyAzMCA9IDQy\x07" in terminal.sent


def test_screens_are_imported_without_what_they_draw_with():
    heavy = "{'rich', 'mlx', 'numpy', 'prompt_toolkit'}"
    program = f"import sys; from gptoss_mlx.terminal.screen import PlainScreen; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"
