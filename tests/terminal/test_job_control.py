"""Ctrl-Z, and signals that end the program: what they leave on a real terminal, under a shell with job control."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from gptoss_mlx.chat.transcript import Transcript
from terminal.terminals import Terminal, wait_for_an_answer

HERE = Path(__file__).parent
PROMPT = "^> ?$"
STOPPED = "shell: stopped echoes lines"
NOW_STOPPED = STOPPED + r"\s*\Z"  # nothing stands below that


@pytest.fixture
def job(environment, tmp_path):
    """Run Python with these words in a shell: forked by it, or `real`, a process of its own as from other shells."""
    started = []

    def job(*words, real=False, **variables) -> Terminal:
        places = {"GPTOSS_MLX_HOME": str(tmp_path / "home"), "RELEASE": str(tmp_path / "release")}
        command = [sys.executable if real else "fork", *map(str, words)]
        started.append(Terminal([sys.executable, str(HERE / "shell.py"), *command], environment | places | variables))
        return started[-1]

    yield job
    for terminal in started:
        terminal.child.close(force=True)


@pytest.fixture
def chat(job, demo_folder):
    def chat(prompt=PROMPT, real=False, **options):
        terminal = job(HERE / "chatting.py", demo_folder, json.dumps(options), real=real)
        terminal.wait(prompt)
        return terminal

    return chat


def stop(terminal):
    """Press Ctrl-Z; the shell says what it finds, nothing stands below that, and the cursor is there."""
    terminal.key("z")
    terminal.wait(NOW_STOPPED)
    assert not terminal.screen.cursor.hidden


def release(tmp_path, count):
    (tmp_path / f"release{count}").touch()


@pytest.mark.parametrize(
    ("pause", "options", "shown"),
    [
        (12, {}, "question about"),
        (12, {"show_reasoning": True}, "question about"),
        (12, {"show_reasoning": False}, "^thinking \\.\\.\\.$"),
        (43, {}, "^machine"),
    ],
)
def test_an_answer_is_stopped_and_goes_on(chat, tmp_path, pause, options, shown):
    terminal = chat(pauses=[pause], every_event=True, **options)
    terminal.line("What is gptoss-mlx?")
    terminal.wait(shown)
    is_kept = options.get("show_reasoning")  # on the screen: it is not redrawn
    for _ in range(2):
        stop(terminal)
        assert bool(re.search(shown, terminal.seen, re.MULTILINE)) == bool(is_kept)
        terminal.line("fg")
        assert terminal.read_until(lambda: not terminal.child.getecho(), 30)
        if not is_kept:
            terminal.wait(f"^fg\n(.*\n)*.*{shown.removeprefix('^')}")
            assert terminal.screen.cursor.hidden
    release(tmp_path, pause)
    terminal.wait(r"machine\.\n\n>$")
    assert terminal.seen.count("machine.") == 1
    terminal.line("/exit")
    terminal.wait("shell: ended exit 0 echoes lines")


def test_in_the_background_it_draws_nothing_until_it_comes_back(chat, tmp_path):
    terminal = chat(pauses=[8, 12], every_event=True)
    terminal.line("What is gptoss-mlx?")
    assert terminal.read_until(lambda: terminal.screen.cursor.hidden, 30)
    stop(terminal)
    terminal.line("bg")
    terminal.wait("shell: continued echoes lines")
    release(tmp_path, 8)
    terminal.read_until(lambda: False, 0.5)
    assert terminal.seen.rstrip().endswith("shell: continued echoes lines")
    terminal.line("fg")
    terminal.wait("^fg\n(.*\n)*.*question")
    release(tmp_path, 12)
    terminal.wait(r"machine\.\n\n>$")


def test_at_the_prompt_by_the_key_and_by_the_signal(chat):
    terminal = chat(real=True)
    terminal.keys("What is 12")
    terminal.wait("^> What is 12$")
    for press in (lambda: terminal.key("z"), lambda: os.kill(group_of(terminal), signal.SIGTSTP)):
        press()
        terminal.wait(NOW_STOPPED)
        assert not terminal.screen.cursor.hidden
        terminal.line("fg")
        terminal.wait(r"^fg\n> What is 12$(?![\s\S]*shell:)")
    terminal.line(" + 30?")
    terminal.wait(r"= 42\n\n>$")


def group_of(terminal):
    return os.tcgetpgrp(terminal.child.child_fd)


def test_at_a_plain_prompt(chat):
    terminal = chat(plain=True)
    terminal.keys("What is 12")
    terminal.wait("^> What is 12$")
    stop(terminal)
    terminal.line("fg")
    terminal.wait("^fg\n> What is 12$")
    terminal.line(" + 30?")
    terminal.wait(r"= 42\n>$")
    assert b"\x1b" not in terminal.sent


@pytest.mark.parametrize("plain", [False, True])
def test_at_a_question(chat, plain):
    terminal = chat(asks=True, plain=plain)
    terminal.line("What is the weather in Bermi?")
    terminal.wait("for this tool$")
    stop(terminal)
    terminal.line("fg")
    terminal.wait("^fg\nrun this.*for this tool$")
    terminal.line("y")
    terminal.wait(r"Bermi\.\n+>$")


def test_while_a_tool_runs(job, demo_folder, tmp_path):
    tools = tmp_path / "tools.toml"
    waiting = f"touch {tmp_path}/runs; while [ ! -e {tmp_path}/release ]; do sleep 0.05; done; echo 15 degrees"
    tools.write_text(f"""[tools.get_weather]
description = "Gets the weather of a place."
command = ["sh", "-c", {json.dumps(waiting)}, "--", "{{location}}"]
parameters = {{ type = "object", properties = {{ location = {{ type = "string" }} }}, required = ["location"] }}
""")
    terminal = job("-m", "gptoss_mlx", "chat", demo_folder, "--tools", tools, "--yes", "--temperature", "0")
    terminal.wait(PROMPT)
    terminal.line("What is the weather in Bermi?")
    assert terminal.read_until((tmp_path / "runs").exists, 30)
    stop(terminal)
    terminal.line("fg")
    release(tmp_path, "")
    terminal.wait("15 degrees\n(.*\n)+>$")


DRAWING = {
    "prefill": "with progress.prefill_progress() as show:\n show(0, 8000); show(2000, 8000); wait()",
    "steps": "with progress.step_progress() as show:\n show('measuring', 20.0); wait()",
    "stages": "with progress.conversion_progress() as show:\n show(Progress('convert', 2000, 8000)); wait()",
}
PROGRAM = """
import sys, time
from pathlib import Path
from gptoss_convert import Progress
from gptoss_mlx.terminal import progress_bars as progress
progress.SHOWN_AFTER = 0
def wait():
    while not Path(sys.argv[1]).exists():
        time.sleep(0.05)
"""


@pytest.mark.parametrize("what", DRAWING)
def test_bars_and_spinners(job, tmp_path, what):
    terminal = job("-c", PROGRAM + DRAWING[what], tmp_path / "release")
    shown = {"prefill": "2,000/8,000 tokens", "steps": "measuring; about 20 s left", "stages": "convert .*2.0 kB"}[what]
    terminal.wait(shown)
    assert terminal.screen.cursor.hidden
    stop(terminal)
    terminal.line("fg")
    terminal.wait(f"^fg\n(.*\n)*.*{shown}")
    assert terminal.screen.cursor.hidden
    release(tmp_path, "")
    terminal.wait("shell: ended exit 0 echoes lines")
    assert not terminal.screen.cursor.hidden


@pytest.mark.parametrize(("what", "name"), [("prefill", "SIGTERM"), ("steps", "SIGHUP"), ("stages", "SIGTERM")])
def test_bars_and_spinners_that_are_ended(job, tmp_path, what, name):
    terminal = job("-c", PROGRAM + DRAWING[what], tmp_path / "release")
    terminal.wait("000|measuring|convert")
    os.kill(group_of(terminal), getattr(signal, name))
    terminal.wait(f"shell: ended {int(getattr(signal, name))} echoes lines")
    assert not terminal.screen.cursor.hidden


@pytest.mark.parametrize(("name", "plain"), [("SIGTERM", False), ("SIGHUP", False), ("SIGTERM", True)])
def test_an_answer_that_is_ended_is_kept(job, endless_folder, tmp_path, name, plain):
    arguments = ["--temperature", "0", "--context", "100000", "--no-kv", *["--plain"] * plain]
    terminal = job("-m", "gptoss_mlx", "chat", endless_folder, *arguments, real=plain)
    terminal.wait(PROMPT)
    terminal.line("Hello")
    wait_for_an_answer(terminal)
    os.kill(group_of(terminal), getattr(signal, name))
    terminal.wait(f"shell: ended {int(getattr(signal, name))} echoes lines")
    assert not terminal.screen.cursor.hidden
    (kept,) = (tmp_path / "home" / "sessions").glob("*.json")
    transcript = Transcript.read(kept)
    assert [message.role for message in transcript.messages][:2] == ["user", "assistant"]
    assert transcript.unfinished
    assert b"Traceback" not in terminal.sent


def test_an_answer_is_kept_when_its_window_is_closed(environment, command, endless_folder, tmp_path):
    arguments = ["chat", str(endless_folder), "--temperature", "0", "--context", "100000", "--no-kv"]
    terminal = Terminal([*command, *arguments], environment | {"GPTOSS_MLX_HOME": str(tmp_path)})
    terminal.wait(PROMPT)
    terminal.line("Hello")
    wait_for_an_answer(terminal)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), terminal.child.child_fd)  # the number stays pexpect's: it closes it once more
    terminal.child.ptyproc.wait()
    (kept,) = (tmp_path / "sessions").glob("*.json")
    assert [message.role for message in Transcript.read(kept).messages][:2] == ["user", "assistant"]


def test_a_prompt_that_is_ended(chat):
    terminal = chat()
    os.kill(group_of(terminal), signal.SIGTERM)
    terminal.wait(f"shell: ended {signal.SIGTERM:d} echoes lines")
    assert terminal.sent.rfind(b"\x1b[?2004l") > terminal.sent.rfind(b"\x1b[?2004h")


IN_THE_BACKGROUND = """
import os, signal, termios
from gptoss_mlx.terminal.job_control import echo

child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    signal.signal(signal.SIGCONT, lambda *_: None)
    echo(False)
    os._exit(bool(termios.tcgetattr(0)[3] & termios.ECHO))
assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
os.tcsetpgrp(0, child)
os.kill(child, signal.SIGCONT)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_what_is_set_in_the_background_is_set_when_it_continues(environment):
    """There, the system stops whoever sets a mode, and fails the call when it continues."""
    assert Terminal([sys.executable, "-c", IN_THE_BACKGROUND], environment).exit_status() == 0
