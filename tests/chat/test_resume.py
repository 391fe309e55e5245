"""What a person sees of a conversation that goes on: its last exchange."""

import re

import pytest

from gptoss_mlx.chat.transcript import Transcript
from gptoss_mlx.harmony.messages import Message, call, result
from terminal.terminals import Terminal, golden

PROMPT = r"^> ?$"
LONG = "".join(f"Line {number}.\n\n" for number in range(40)) + "```\n" + "code\n" * 3 + "```\n"


def transcript(*messages, unfinished=False):
    said = Message("user", "An older question?"), Message("assistant", "An older answer.", "final"), *messages
    return Transcript(None, None, "low", "2026-01-01", said, (None,) * len(said), unfinished)


def user(text):
    return Message("user", text)


def final(text):
    return Message("assistant", text, "final")


WEATHER = (
    user("What is the weather in Bermi?"),
    Message("assistant", "I look it up.", "analysis"),
    call("get_weather", '{"city": "Bermi"}'),
    result("get_weather", "15 degrees\nsunny\n" + "wind\n" * 10),
    final("It is **15** degrees."),
)
CONVERSATIONS = {
    "short": transcript(user("Which *type*?"), final("A `Vec<T>`\n\n- one\n- two")),
    "tools": transcript(*WEATHER),
    "unfinished": transcript(user("How many?"), final("As many as"), unfinished=True),
    "no answer": transcript(user("Is anybody there?"), unfinished=True),
    "stopped tool": transcript(*WEATHER[:4], unfinished=True),
    "long": transcript(user("question line\n" * 20), final(LONG)),
    "many calls": transcript(user("Go!"), *WEATHER[2:4] * 9, final("Done.")),
}


@pytest.fixture
def started(environment, command, demo_folder, tmp_path):
    """A chat that goes on with the first of the conversations; the others are files beside it."""
    terminals = []
    (tmp_path / "home" / "sessions").mkdir(parents=True)
    CONVERSATIONS["short"].write(tmp_path / "home" / "sessions" / "short one.json")
    for name, conversation in CONVERSATIONS.items():
        conversation.write(tmp_path / f"{name.replace(' ', '-')}.json")

    def started(*options, prompt=PROMPT):
        arguments = [*command, "chat", str(demo_folder), "--resume", "--temperature", "0", *options]
        terminals.append(
            Terminal(arguments, environment | {"GPTOSS_MLX_HOME": str(tmp_path / "home")}, folder=tmp_path)
        )
        terminals[-1].wait(prompt)
        return terminals[-1]

    yield started
    for terminal in terminals:
        terminal.child.close(force=True)


def after(terminal, line, last):
    """What the screen shows between a line that was typed and the next prompt."""
    terminal.line(line)
    terminal.wait(f"> {line}\n(.*\n)+.*{last}\n+{PROMPT}")
    return terminal.seen.rpartition(f"> {line}\n")[2].rpartition("\n>")[0]


def test_the_last_exchange_is_shown(started):
    terminal = started()
    golden("resumed", terminal)
    seen = after(terminal, "/load tools.json", "degrees.")
    assert re.search(r'Bermi\?\nget_weather \{"city": "Bermi"\}\n15 degrees\nsunny\nwind\nwind\n\.\.\. 8 more', seen)
    assert "I look it up" not in seen
    assert "An older" not in seen
    seen = after(terminal, "/load unfinished.json", "resumes\\)")
    assert seen.endswith("> How many?\nAs many as\n\n(this answer is unfinished; /continue resumes)")
    seen = after(terminal, "/load no-answer.json", "asks for one\\)")
    assert seen.endswith("> Is anybody there?\n(no answer; /continue asks for one)")
    seen = after(terminal, "/load stopped-tool.json", "asks for one\\)")
    assert "8 more lines\n(no answer" in seen
    seen = after(terminal, "/load long.json", "all of it\\)")
    assert "... 16 more lines\n...\n" in seen
    assert "Line 39.\n\ncode\ncode\ncode\n" in re.sub(" +\n", "\n", seen)
    assert "Line 30." not in seen
    assert "/export FILE.md writes all of it" in seen
    terminal.line("/load many-calls.json")
    terminal.wait("Done.\n\n\\(this is only the end of the answer: .* all of it\\)")
    assert terminal.seen.rpartition("> Go!")[2].count("get_weather") == 3
    terminal.line("/reasoning show")
    after(terminal, "/load tools.json", "degrees.")
    assert "I look it up." in terminal.seen


def test_without_drawing(started):
    terminal = started("--plain")
    golden("resumed-plain", terminal)
    seen = after(terminal, "/load long.json", "all of it\\)")
    assert "answer: ... Line 35.\n\nLine 36.\n" in seen
    seen = after(terminal, "/load tools.json", "degrees.")
    assert 'tool: get_weather {"city": "Bermi"}\nresult: 15 degrees\n' in seen
    assert b"\x1b" not in terminal.sent


def test_a_long_session_says_how_to_see_all_of_it_and_shows_its_reasoning(started, tmp_path):
    long = transcript(user("Lines?"), Message("assistant", "I look it up.", "analysis"), final(LONG))
    long.write(tmp_path / "home" / "sessions" / "a long one.json")
    terminal = started("--resume", "a long")
    assert "`gptoss-mlx sessions show 'a long one'` shows all of it" in terminal.seen
    assert "I look it up" not in terminal.seen
    terminal.line("/reasoning show")
    terminal.wait("^I look it up")


def test_a_pipe_is_told_nothing_of_it(run, demo_folder, tmp_path):
    (tmp_path / "sessions").mkdir()
    CONVERSATIONS["short"].write(tmp_path / "sessions" / "short.json")
    done = run("chat", demo_folder, "--resume", stdin="/load x.json\n", GPTOSS_MLX_HOME=str(tmp_path))
    assert done.stdout == ""
    assert "Vec" not in done.stderr
