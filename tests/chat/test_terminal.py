"""The chat as a person uses it: in a real pseudo-terminal, through pipes, and with every socket closed."""

import io
import json
import re
import subprocess
import sys
import time

import pexpect
import pytest
from rich.console import Console

from gptoss_mlx import progress
from gptoss_mlx.chat.terminal import finished_blocks, printable

GREEDY = ["--temperature", "0"]
# Every way to a network, and every library on the path that could take one.
NO_SOCKETS = """
import socket, sys
def refuse(*args, **kwargs):
    raise SystemExit("a socket was opened")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
sys.argv = ["gptoss-mlx", *sys.argv[1:]]
from gptoss_mlx.cli import cli
cli(sys.argv[1:], standalone_mode=False)
print(*sorted({"huggingface_hub", "requests", "httpx", "mlx_lm", "transformers"} & set(sys.modules)), "imported")
"""


def test_piped(run, demo_folder):
    done = run("chat", demo_folder, *GREEDY, stdin="What is 12 + 30?\n\nWhat is 40 - 7?\n")
    assert done.returncode == 0
    assert done.stdout == "12 + 30 = 42\n40 - 7 = 33\n"
    assert "\x1b" not in done.stdout + done.stderr


def test_piped_reasoning_goes_to_standard_error(run, demo_folder):
    done = run("chat", demo_folder, *GREEDY, "--show-reasoning", stdin="What is 12 + 30?\n")
    assert done.stdout == "12 + 30 = 42\n"
    assert "2+0+0=02" in done.stderr


def test_no_network(environment, demo_folder):
    args = [sys.executable, "-c", NO_SOCKETS, "chat", str(demo_folder), *GREEDY]
    done = subprocess.run(args, input="What is 12 + 30?\n", capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == "12 + 30 = 42\nimported\n"


def test_commands(run, demo_folder, tmp_path):
    lines = [
        "My locker code is 4711.",
        f"/save {tmp_path}/talk.json",
        "/stats",
        "/reset",
        f"/load {tmp_path}/talk.json",
        "What is my locker code?",
        "/reasoning high",
        "/reasoning extreme",
        "/system Be brief.",
        "/help",
        "/load",
        f"/load {tmp_path}/nothing",
        "/fly",
        "/exit",
        "never sent",
    ]
    done = run("chat", demo_folder, *GREEDY, stdin="\n".join(lines))
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "I will remember that your locker code is 4711.",
        "Your locker code is 4711.",
    ]
    for said in (
        "saved to",
        "turn 1:",
        "new conversation",
        "3 messages from",
        "reasoning high",
        "usage: /reasoning none|low|medium|high (it is high)",
        "with these instructions",
        "/exit ",
        "usage: /load FILE",
        "error: cannot read",
        "there is no command /fly",
    ):
        assert said in done.stderr, said


@pytest.fixture
def terminal(command, environment, demo_folder):
    """A chat in a pseudo-terminal of 30 lines by 100 columns."""

    def spawn(*args, folder=demo_folder):
        child = pexpect.spawn(
            command[0],
            [*command[1:], "chat", str(folder), *args],
            env=environment | {"PROMPT_TOOLKIT_NO_CPR": "1"},
            dimensions=(30, 100),
            encoding="utf-8",
            timeout=30,
        )
        child.expect(">")
        return child

    return spawn


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[>=]", "", text)


def test_terminal_streams_and_tells_speed_and_context(terminal):
    child = terminal(*GREEDY)
    child.sendline("What is 12 + 30?")
    child.expect(r"12 \+ 30 = 42")
    child.expect(r"tokens/s, \d+/131072\]")
    child.sendline("/exit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_terminal_shows_reasoning_dim_or_hides_it(terminal):
    child = terminal(*GREEDY)
    child.sendline("What is 12 + 30?")
    child.expect(r"tokens/s, \d+/131072\]")
    assert "\x1b[2m" in child.before
    assert "2+0+0=02" in plain(child.before)
    child.sendeof()
    child.expect(pexpect.EOF)
    child = terminal(*GREEDY, "--hide-reasoning")
    child.sendline("What is 12 + 30?")
    child.expect(r"tokens/s, \d+/131072\]")
    assert "2+0+0=02" not in plain(child.before)
    child.sendeof()
    child.expect(pexpect.EOF)


def test_ctrl_c_stops_the_answer_and_keeps_the_session(terminal, endless_folder):
    child = terminal(*GREEDY, folder=endless_folder)
    child.sendline("Hello")
    time.sleep(2)
    child.sendintr()
    child.expect(r"\(stopped\)")
    child.expect(">")
    child.sendline("/stats")
    child.expect(r"context \d+ of 131072")
    child.expect(">")
    child.sendintr()  # at an empty prompt: leave
    child.expect(pexpect.EOF)
    assert "Traceback" not in child.before


def test_terminal_takes_several_lines(terminal, tmp_path):
    child = terminal(*GREEDY, "--max-tokens", "5")
    for line in ("one\\", "two", '"""', "three", "four", '"""'):
        child.sendline(line)
        child.expect(r"\.\.\.|tokens/s, \d+/131072\]")
    child.sendline(f"/save {tmp_path}/talk.json")
    child.expect("saved to")
    child.sendline("/exit")
    child.expect(pexpect.EOF)
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [message["content"] for message in messages if message["role"] == "user"] == ["one\ntwo", "three\nfour"]


def test_control_characters_never_reach_the_terminal():
    assert printable("a\x1b[2Jb\x07\u202ec\td\n") == "a\ufffd[2Jb\ufffd\ufffdc\td\n"


@pytest.mark.parametrize(("wait", "shown"), [(0.0, True), (60.0, False)])
def test_a_long_prompt_shows_how_far_it_was_read(monkeypatch, wait, shown):
    monkeypatch.setattr(progress, "SHOWN_AFTER", wait)
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    reading = progress.PrefillProgress(console)
    reading(0, 1000)
    reading(256, 1000)
    time.sleep(0.5)
    reading(1000, 1000)
    assert ("reading 256 of 1000 tokens" in console.file.getvalue()) == shown


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("one line", ""),
        ("one\n\ntwo", "one\n\n"),
        ("one\n\n", "one\n\n"),
        ("```\ncode\n\nmore", ""),
        ("```\ncode\n\n```\n\nafter", "```\ncode\n\n```\n\n"),
        ("~~~~\n```\n\n~~~~\n\nafter", "~~~~\n```\n\n~~~~\n\n"),
    ],
)
def test_blocks_that_can_no_longer_change(text, done):
    assert finished_blocks(text) == (done, text[len(done) :])
