"""How an answer appears: code that copies clean, whole words, marks of direction, a sign of life, /stats."""

import json
import re
import sys

import pytest
from rich.console import Console

from gptoss_mlx.chat.turn import TurnStats
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.terminal import progress_bars, stats
from gptoss_mlx.terminal.safe_text import call_text, without_controls
from gptoss_mlx.terminal.screen import PlainScreen
from terminal.terminals import Terminal
from terminal.test_screens import CHATTING, IMPORTS, PROMPT, release

COLUMNS = 40
CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture
def narrow(environment, tmp_path):
    """Run lines of Python on a screen, in a terminal of 40 columns, until it says that it is done."""
    started = []

    def narrow(lines: str, screen: str = "RichScreen(show_reasoning=True)", wait: str = "done", **changes) -> Terminal:
        program = (
            f"{IMPORTS}\nscreen = {screen}\nscreen.prefill(1, 1)\n{lines}\nscreen.note('done')\nscreen.end()\ninput()"
        )
        started.append(Terminal([sys.executable, "-c", program], environment, COLUMNS, **changes))
        started[-1].wait(wait)
        return started[-1]

    yield narrow
    for terminal in started:
        terminal.child.close(force=True)


@pytest.fixture
def chat(environment, demo_folder, tmp_path):
    """Start a chat with the options of chatting.py in a window of 40 columns."""
    started = []

    def chat(variables=(), **options) -> Terminal:
        places = {"GPTOSS_MLX_HOME": str(tmp_path / "home"), "RELEASE": str(tmp_path / "release")}
        command = [sys.executable, str(CHATTING), str(demo_folder), json.dumps(options)]
        started.append(Terminal(command, environment | places, COLUMNS, **dict(variables)))
        started[-1].wait(PROMPT)
        return started[-1]

    yield chat
    for terminal in started:
        terminal.child.close(force=True)


PYTHON = (
    "def add(first, second):\n"
    "    if first:\n"
    "        return combine(first, second, with_a_name_that_is_longer_than_the_window=True)  # a comment\n"
    "\n"
    "    return second"
)
MAKE = "all: one two\n\tcc -o all one.o two.o -lm -lpthread -Wl,--as-needed\n\tstrip all"


@pytest.mark.parametrize(("language", "code"), [("python", PYTHON), ("make", MAKE), ("", PYTHON)])
@pytest.mark.parametrize("pieces", ["whole", "letters"])
def test_code_copies_as_it_was_written(narrow, language, code, pieces):
    """No line has anything around it, and none is broken but by the terminal's own edge."""
    text = f"Here:\n\n```{language}\n{code}\n```\n\nIt ends.\n"
    terminal = narrow(f"for text in {[text] if pieces == 'whole' else list(text)!r}: screen.content(text)")
    sent = CONTROL.sub("", terminal.sent.decode()).replace("\r\n", "\n")
    assert f"Here:\n\n{code}\n\n" in sent
    assert not re.search(r"\x1b\[[0-9;]*\b4[0-8]\b", terminal.sent.decode())


def test_code_that_arrives_fits_the_window(narrow):
    """While it may still change it is drawn again and again, in rows that are as wide as the window."""
    lines = f"Region.INTERVAL, Region.SHARE = 0, 1\nfor letter in '```python\\n' + {PYTHON!r}: screen.content(letter)"
    terminal = narrow(f"{lines}\ninput()", wait="return second")
    drawn = [row.rstrip() for row in terminal.seen.splitlines()]
    long = PYTHON.splitlines()[2]
    folded = [long[start : start + COLUMNS].rstrip() for start in range(0, len(long), COLUMNS)]
    assert drawn == [*PYTHON.splitlines()[:2], *folded, "", "    return second"]
    terminal.line("")
    terminal.wait("done")
    assert terminal.seen.splitlines()[: len(drawn)] == drawn


THOUGHT = (
    "The question is about extraordinarily long sentences, whose words nobody wants to see torn apart at the edge of a "
    f"window.\n\n{'x' * 50} is longer than a line. Then it goes on in words that end here."
)


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_reasoning_in_full_is_wrapped_at_words(narrow, size):
    pieces = [THOUGHT[start : start + size] for start in range(0, len(THOUGHT), size)]
    terminal = narrow(f"for text in {pieces!r}: screen.reasoning(text)\nscreen.content('So.')")
    rows = terminal.seen.splitlines()
    shown = rows[: rows.index("So.")]
    assert [word for row in shown for word in row.split()] == THOUGHT.replace(
        "x" * 50, f"{'x' * 40} {'x' * 10}"
    ).split()
    assert "" in shown  # the paragraphs are apart
    assert all(len(row) <= COLUMNS for row in shown)


def test_the_last_lines_of_reasoning_are_wrapped_at_words(narrow):
    lines = f"Region.INTERVAL, Region.SHARE = 0, 1\nscreen.reasoning({THOUGHT!r})\ninput()"
    terminal = narrow(lines, "RichScreen(show_reasoning=None)", wait="end here")
    assert {word for row in terminal.seen.splitlines() for word in row.split()} <= {
        *THOUGHT.split(),
        "x" * 40,
        "x" * 10,
    }


HEBREW = "\u200f\u05e9\u05dc\u05d5\u05dd\u200f (C++\u200e), \u0645\u061c"
OVERRIDES = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.mark.parametrize("screen", ["RichScreen(show_reasoning=True)", "PlainScreen(show_reasoning=True, words=True)"])
def test_marks_of_direction_reach_the_terminal_and_overrides_do_not(narrow, screen):
    lines = f"""
for text in {list(HEBREW + OVERRIDES)!r}: screen.content(text)
screen.content("\\n\\n")
screen.reasoning({HEBREW!r} + "\\n")
screen.result("tool", {HEBREW!r})"""
    sent = narrow(lines, screen).sent.decode()
    assert CONTROL.sub("", sent).count(HEBREW) == 3
    assert "\ufffd" * len(OVERRIDES) in sent
    assert not set(sent) & set(OVERRIDES)


def test_marks_of_direction_in_messages_and_in_calls():
    assert without_controls(HEBREW) == HEBREW
    assert str(GptOssError(f"no {HEBREW}{OVERRIDES[4]}")) == f"no {HEBREW}\\u202e"
    assert str(GptOssError("no a\u200fb")) == "no a\\u200fb"  # in a name without such letters, it hides
    assert call_text("tool", "a\u200fb") == "tool a\\u200fb"


def test_a_sign_of_life_until_the_first_token(chat, tmp_path):
    terminal = chat(pauses=[1, 2], steps=True, shown_after=0)
    terminal.line("What is 12 + 30?")
    terminal.wait("^reading .*tokens")
    release(tmp_path, 1)
    terminal.wait("^. waiting for the first token$")
    release(tmp_path, 2)
    terminal.wait(r"= 42\n\n>$")
    assert "waiting" not in terminal.seen
    assert "reading" not in terminal.seen


def test_ctrl_c_takes_the_sign_of_life_away(chat, tmp_path):
    terminal = chat(pauses=[2], steps=True, shown_after=0)
    terminal.line("What is 12 + 30?")
    terminal.wait("waiting for the first token$")
    terminal.key("c")
    release(tmp_path, 2)
    terminal.wait(r"resumes\)\n>$")
    assert "waiting" not in terminal.seen


def test_the_sign_of_life_comes_after_a_second(monkeypatch):
    now = [100.0]
    progress = progress_bars.AnswerProgress(Console(force_terminal=True, width=80))
    monkeypatch.setattr(progress._area, "show", lambda: None)
    monkeypatch.setattr(progress_bars.time, "monotonic", lambda: now[0])
    progress(0, 8)
    progress(8, 8)
    shown = []
    for now[0] in (100.0, 100.99, 101.0, 160.0):
        with progress._console.capture() as captured:
            progress._console.print(progress._picture())
        shown.append("waiting for the first token" in captured.get())
    assert shown == [False, False, True, True]


def test_a_pipe_and_a_plain_screen_show_no_sign_of_life(run, demo_folder, capsys, tmp_path):
    screen = PlainScreen(show_reasoning=None)
    screen.prefill(0, 8)
    screen.prefill(8, 8)
    screen.end()
    assert capsys.readouterr() == ("", "")
    places = {"RELEASE": str(tmp_path), "GPTOSS_MLX_HOME": str(tmp_path)}
    done = chat_through_pipes(run, demo_folder, places)
    assert (done.stdout, done.stderr) == ("12 + 30 = 42\n", "")


def chat_through_pipes(run, folder, variables):
    return run("chat", folder, "--temperature", "0", stdin="What is 12 + 30?\n", **variables)


def turn(decoded, seconds):
    return TurnStats(1234, decoded, 0, 0.5, seconds, 10, True)


def test_the_speed_and_the_memory_as_pictures(chat):
    terminal = chat()
    for question in ("What is 12 + 30?", "What is 40 - 7?"):
        terminal.line(question)
        terminal.wait(r"= \d+\n\n>$")
    terminal.line("/stats")
    terminal.wait(r"tokens/s\n>$")
    shown = terminal.seen.partition("/stats\n")[2]
    assert re.match(r"context  [█░]{6,} \d+ of 131,072 tokens\nmemory   [█░]{6,} [\d.]+ .B of [\d.]+ .B\n", shown), (
        shown
    )
    assert re.search(r"\nspeed    [▁-█]{2} [\d.]+ to [\d.]+ tokens/s\nturn 1: [\d,]+ tokens read\n  first", shown), (
        shown
    )
    assert "█" in shown.partition("speed")[2]


@pytest.mark.parametrize(
    "variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_pictures_where_there_is_no_unicode(chat, variables):
    terminal = chat(variables=variables)
    terminal.line("/stats")
    terminal.wait(r"memory   [#.]{6,} [\d.]+ .B of [\d.]+ .B\n>$")


def test_no_pictures_for_who_hears_them(chat):
    terminal = chat(plain=True)
    terminal.line("/stats")
    terminal.wait(r"memory   [\d.]+ .B of [\d.]+ .B\n>$")


@pytest.mark.parametrize(("share", "drawn"), [(0, "...."), (0.5, "##.."), (1, "####"), (1.7, "####"), (-1, "....")])
def test_bars(share, drawn):
    assert stats.bar(share, 4, stats.ASCII) == drawn


def test_a_curve():
    assert stats.curve([10, 5, 0.01, 10], stats.BLOCKS) == "█▅▁█"
    assert stats.curve([7.0], stats.ASCII) == "#"


@pytest.mark.parametrize(("columns", "lines"), [(100, 1), (40, 3)])
def test_the_figures_of_a_turn(columns, lines):
    text = stats.turn_text(12, turn(100, 4.0), columns)
    assert text.count("\n") == lines - 1
    assert re.sub(r"\n *", ", ", text) == (
        "turn 12: 1,234 tokens read, first token after 0.50 s, 100 tokens at 25.0 tokens/s"
    )
    assert max(map(len, text.split("\n"))) < columns
