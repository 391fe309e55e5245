"""Sessions as a person meets them in a terminal: in the chat, before it, and in a narrow window."""

import json
import os
from pathlib import Path

import pytest

from gptoss_mlx.chat.store import Store
from gptoss_mlx.chat.transcript import Transcript
from gptoss_mlx.harmony.messages import Message
from terminal.terminals import Terminal, golden

PROMPT = "^>$"
CONVERSATIONS = {
    "trip to Oslo": ("When does the ferry leave for Nesodden?", "At nine, from the quay below the town hall."),
    "bread": ("How long does rye bread stay in the oven?", "An hour."),
    "what-is-my-locker-code-for": ("My locker code is 4711.", "I will remember that your locker code is 4711."),
}


@pytest.fixture
def home(tmp_path):
    """A home with sessions, the first the latest."""
    folder = tmp_path / "home" / "sessions"
    folder.mkdir(parents=True)
    for age, (name, (question, answer)) in enumerate(CONVERSATIONS.items()):
        messages = Message("user", question), Message("assistant", answer, "final")
        Transcript(None, None, "medium", "2026-01-02", messages, (None, None)).write(folder / f"{name}.json")
        os.utime(folder / f"{name}.json", (10**9 - age, 10**9 - age))
    return {"GPTOSS_MLX_HOME": str(tmp_path / "home")}


@pytest.fixture
def started(environment, command, home):
    """Start the program in a terminal."""
    terminals = []

    def started(*args, wait=PROMPT, **options) -> Terminal:
        terminals.append(Terminal([*command, *map(str, args)], environment | home, **options))
        terminals[-1].wait(wait)
        return terminals[-1]

    yield started
    for terminal in terminals:
        terminal.child.close(force=True)


def test_listed_searched_and_switched_to_in_the_chat(started, demo_folder, run, home):
    terminal = started("chat", demo_folder, "--temperature", "0")
    terminal.line("What is 12 + 30?")
    terminal.wait(r"= 42\n\n>$")
    terminal.line("/sessions")
    terminal.wait(r"to stay:$")
    golden("sessions", terminal)
    terminal.line("5")
    terminal.wait(r"stay: 5\nnumber to switch to, Enter to stay:$")
    terminal.line("")
    terminal.wait(PROMPT)
    terminal.line("/sessions FERRY nine")
    terminal.wait(r"FERRY nine\n(.*\n)+.*to stay:$")
    golden("sessions-search", terminal)
    terminal.line("1")
    terminal.wait(r"^Resuming trip to Oslo \(1 turn\)\. Its KV cache is gone; re-reading .*\n(.*\n)+>$")
    terminal.line("/sessions what-is-12-30")
    terminal.wait(r"^Resuming what-is-12-30 \(1 turn\)\.\n> What is 12 \+ 30\?\n(.*\n)+>$")  # with its KV cache
    terminal.line("/sessions what-is-12-30")
    terminal.wait(r"^error: what-is-12-30 is the session of this chat\n>$")
    terminal.line("/sessions fjord")
    terminal.wait(r"^error: no session holds 'fjord'\n>$")
    store = Store(Path(home["GPTOSS_MLX_HOME"], "sessions"))
    with store.lock(store.find("bread")):
        terminal.line("/sessions bread")
        terminal.wait(r"^error: the session 'bread' is in use by another gptoss-mlx\n>$")
    terminal.keys("/sessions what-is-my\t\r")
    terminal.wait(r"^Resuming what-is-my-locker-code-for \(1 turn\)\..*\n(.*\n)+>$")
    terminal.line("What is my locker code?")
    terminal.wait(r"^Your locker code is 4711\.\n\n>$")
    terminal.line("/bye")
    assert terminal.exit_status() == 0
    listed = json.loads(run("sessions", "list", "--json", **home).stdout)
    turns = {row["name"]: row["turns"] for row in listed}
    assert turns == {"what-is-my-locker-code-for": 2, "what-is-12-30": 1, "trip to Oslo": 1, "bread": 1}


def test_in_a_narrow_window(started, demo_folder):
    terminal = started("chat", demo_folder, columns=40)
    terminal.line("/sessions")
    terminal.wait(r"to stay:$")
    golden("sessions-40-columns", terminal)


def test_one_is_chosen_to_resume(started, demo_folder):
    terminal = started("chat", demo_folder, "--resume", wait="for the latest:$")
    golden("resume-list", terminal)
    for wrong in ("four", "0", "4"):
        terminal.line(wrong)
        terminal.wait(rf"latest: {wrong}\nnumber to resume, Enter for the latest:$")
    terminal.line("2")
    terminal.wait(r"^Resuming bread \(1 turn\)(.*\n)+>$")


def test_the_latest_is_an_enter_away(started, demo_folder):
    terminal = started("chat", demo_folder, "--resume", wait="for the latest:$")
    terminal.line("")
    terminal.wait(r"^Resuming trip to Oslo \(1 turn\)(.*\n)+>$")


def test_nothing_is_resumed_that_nobody_chose(started, demo_folder):
    terminal = started("chat", demo_folder, "--resume", wait="for the latest:$")
    terminal.key("d")
    terminal.wait("^interrupted")
    assert terminal.exit_status() == 130


def test_the_latest_is_resumed_without_a_terminal(run, home, demo_folder):
    done = run("chat", demo_folder, "--resume", stdin="/exit\n", **home)
    assert done.stderr.startswith("Resuming trip to Oslo (1 turn).")


def test_a_pipe_is_asked_nothing(run, home, demo_folder):
    done = run("chat", demo_folder, stdin="/sessions oven\n/sessions bread\n/save\n", **home)
    assert done.returncode == 0
    listed, resumed, name = done.stderr.splitlines()
    assert listed.startswith(" 1  bread, ")
    assert resumed.startswith("Resuming bread (1 turn).")
    assert name == "saved as bread"


def test_settings_are_completed(started, demo_folder):
    terminal = started("chat", demo_folder)
    terminal.keys("/set tem\t 0.7\r")
    terminal.wait(r"^temperature  0\.7\n>$")
    terminal.keys("/reasoning hig\t\r")
    terminal.wait(r"^reasoning effort: high\n>$")
    terminal.line("/set seed x")
    terminal.wait(r"^error: seed takes a whole number from 0 to 2\^64 - 1, or none: not 'x'\n>$")
    terminal.line("exit")
    assert terminal.exit_status() == 0


def test_a_list_in_a_narrow_window(started):
    terminal = started("sessions", "list", columns=40, wait="rye bread")
    golden("sessions-list-40-columns", terminal)


def test_search_from_the_command_line(run, home):
    done = run("sessions", "search", "FERRY", "nine", **home)
    assert done.returncode == 0
    assert "trip to Oslo" in done.stdout
    assert "When does the ferry leave" in done.stdout
    assert "bread" not in done.stdout
    done = run("sessions", "search", "fjord", "nine", **home)
    assert (done.returncode, done.stderr) == (1, "error: no session holds 'fjord' and 'nine'\n")
