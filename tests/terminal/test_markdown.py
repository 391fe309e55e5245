"""Nothing of an answer is lost on a screen: what is drawn in a terminal emulator holds the text, whatever it is."""

import io
import re
import sys
from collections import Counter
from itertools import pairwise

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from gptoss_mlx.chat.store import Store
from gptoss_mlx.chat.transcript import Transcript
from gptoss_mlx.harmony.messages import Message
from gptoss_mlx.terminal.region import Region
from gptoss_mlx.terminal.rich_screen import RichScreen
from gptoss_mlx.terminal.screen import PlainScreen
from terminal.terminals import Terminal

ROWS = 30
NO_MARKS = "abyz<>\\$ "
MARKS = "ab12<>\\$*_`#-+=|[]()!~&;:.\n \t/\"'"
FRAGMENTS = (
    *(
        "| a | b |\n",
        "|---|---|\n",
        "- ",
        "1. ",
        "12)",
        "    ",
        "```",
        "~~~\n",
        "\n",
        "\n\n",
        "> ",
        "# ",
        "**",
        "*",
        "_",
    ),
    *("__", "`", "$", "$$", "\\(", "\\)", "\\[", "\\]", "[a](", "http://x/_y_", ")", "![", "](", "<div>", "</b>"),
    *("<!-- ", "-->", "&lt;", "abc", "x1", "a_b", "|", "~~", "---\n", "===\n", "=\n", "  \n", "\\\n", "\\", "2*3*4"),
    *("C:\\Users\\_me", "\\begin{a}", "\\end{a}", "[a]: http://x\n", "[^1]", "\t", "日本", "(", '"t"'),
)
WIDTHS = st.sampled_from([20, 40, 100])


def screen_of(text: str, width: int, cuts=()) -> str:
    """All rows of a terminal on which the text has arrived as an answer, cut into pieces."""
    screen, file = RichScreen(show_reasoning=None), io.StringIO()
    screen._console = Console(file=file, force_terminal=True, width=width, height=ROWS, highlight=False)
    screen._region = Region(screen._console)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for begin, end in pairwise(places):
        screen.content(text[begin:end])
    screen._close()
    terminal = pyte.HistoryScreen(width, ROWS, history=10000)
    terminal.set_mode(pyte.modes.LNM)
    pyte.Stream(terminal).feed(file.getvalue())
    above = ["".join(row[column].data for column in range(width)) for row in terminal.history.top]
    return "\n".join(row.rstrip() for row in [*above, *terminal.display]).strip("\n")


def lost(text: str, shown: str, marks: str = "") -> str:
    """From where on a text is not what is shown, in its order; blanks and marks apart."""
    wanted, left = [c for c in text if not c.isspace() and c not in marks], iter(shown)
    for index, character in enumerate(wanted):
        if character not in left:
            return "".join(wanted[index:])
    return ""


@settings(max_examples=40, deadline=None)
@given(st.text(NO_MARKS), WIDTHS, st.lists(st.integers(0, 30), max_size=3))
def test_text_without_marks_is_shown_to_the_letter(text, width, cuts):
    assert not lost(text, screen_of(text, width, cuts))


@settings(max_examples=40, deadline=None)
@given(st.text(MARKS), WIDTHS, st.lists(st.integers(0, 30), max_size=3))
def test_nothing_but_marks_is_lost(text, width, cuts):
    assert not lost(text, screen_of(text, width, cuts), marks="*_`#-+=|[]!~")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=20).map("".join), WIDTHS, st.lists(st.integers(0, 60), max_size=3))
def test_nothing_but_marks_is_lost_of_pieces_of_markdown(text, width, cuts):
    assert not lost(text, screen_of(text, width, cuts), marks="*_`#-+=|[]!~")


@settings(max_examples=40, deadline=None)
@given(st.text(NO_MARKS + MARKS))
def test_plain_answers_and_shown_sessions_are_what_was_written(text):
    message = Message("assistant", text, "final")
    transcript = Transcript(None, None, "low", "2026-01-01", (Message("user", "?"), message), (None, None))
    assert f"\n\n{text}\n" in transcript.as_markdown()


@pytest.mark.parametrize("text", ["a < b > c \\ $x$ <b>Vec<T></b> \\(x\\)\n    <!-- &lt; -->\n# 2*3*4 __init__\n"])
def test_what_sessions_show_and_plain_screens_print(run, capsys, tmp_path, text):
    messages = Message("user", "Hello?"), Message("assistant", text, "final")
    transcript = Transcript(None, None, "low", "2026-01-01", messages, (None, None))
    (tmp_path / "sessions").mkdir()
    transcript.write(Store(tmp_path / "sessions").entry("hello").transcript)
    assert run("sessions", "show", GPTOSS_MLX_HOME=str(tmp_path)).stdout.endswith(f"\n\n## Hello?\n\n{text}\n")
    screen = PlainScreen(show_reasoning=None, words=True)
    for character in text:
        screen.content(character)
    assert capsys.readouterr().out == f"answer: {text}"


AS_WRITTEN = [
    "Vec<T> and std::vector<int>",
    "#include <vector>",
    "<div>",
    "a <b>bold</b> word<br>and <!-- a comment -->",
    "<!-- a comment -->",
    "<script>alert(1)</script>",
    "<?xml version='1.0'?>",
    "&lt;b&gt; &nbsp; &amp;amp; &#65; &#x202e;",
    "<https://example.org/a_b_c>",
    "[a]: http://x 'title'",
    "[a] and [a][b] and [^1]",
    "[^1]: a footnote",
    "\\(E=mc^2\\) and \\[x\\] and a\\,b and \\\\ and \\{1\\}",
    "C:\\Users\\_me\\_x",
    "\\*no emphasis\\*",
    "$a_1$ and $b*c*d$ and $\\mathbf{x}_{i}\\cdot\\mathbf{y}_{j}$",
    "$$\\sum_{i}^{n} x_{i}^* y_{i}^*$$",
    "It costs $5 or $6*2*3, or US$ 7",
    "snake_case_name and __init__ and __main__.py and _me",
    "2*3*4 and 2**3**4 and 2 * 3 * 4 and (a)*b*(c) and *p is 2*q",
    "f(*args, **kwargs) and char **argv",
    "/usr/_a_/b and **/*.py and *.txt, *.c and *.* and /* a */ or /* b */",
    "\\begin{align} a &= b \\\\ c &= d \\end{align}",
    "a ~~ b ~~ c and ~/x~",
    "- [ ] open".replace("- ", "+ "),
    "+ 30",
    "42.",
    "1986. A great year",
    "7) seven",
    "#",
    ">",
    "-",
    "```",
    "#hashtag",
    "C# and F#",
    "a | b",
]


@pytest.mark.parametrize("text", AS_WRITTEN)
def test_as_it_is_written(text):
    assert screen_of(text, 100).strip() == text


MARKED = {
    "5. five\n6. six\n9. nine": " 5. five\n 6. six\n 9. nine",
    "# Title #\n\ntext": " " * 47 + "Title\n\ntext",
    "a\nb  \nc\\\nd": "a\nb\nc\\\nd",
    "a\n=\nb": "a\n=\nb",
    "Title\n=====\ntext": " " * 47 + "Title\n\ntext",
    "**R**andom **A**ccess, *em*, _two words_": "Random Access, em, two words",
    "这是**重点**内容, ~~gone~~": "这是重点内容, gone",
    '[text](http://a_b_c/ä "title")': 'text (http://a_b_c/ä "title")',
    "[**b** `c`](<a b>)": "b c (<a b>)",
    "![alt](x.png)": "alt (x.png)",
    "[![alt](x.png)](http://y)": "alt (x.png) (http://y)",
    "> a\n>> b": "> a\n> > b",
    "\\[\na\n+ b\n= c\n=\n- d\n\\]\nthen": "\\[\na\n+ b\n= c\n=\n- d\n\\]\n\nthen",
    "```c++ title='a.cc'\nint x;\n```": "c++ title='a.cc'\nint x;",
    "```Vec<T>\nx\n```": "Vec<T>\nx",
    "````\n```py\nx\n```\n````": "```py\nx\n```",
    "```\n```py\n\n# no title\n```\n\nend": "```py\n\n# no title\n\nend",
    "```a``` is *code*\n\nend": "a is code\n\nend",
    "1. a\n\n       code\n\n2. b": " 1. a\n    code\n 2. b",
    "- [x] done\n- [ ] open": " • [x] done\n • [ ] open",
    ">" * 40 + "x": "> " * 20 + ">" * 20 + "x",
    "| a | b |\n|---|---|\n| <b>1</b> | x\\|y |": "a         b\n ─────────────\n <b>1</b>  x|y",
    "| a | b |\n|---|---|\n| 1 | 2 | 3 |": "| a | b |\n|---|---|\n| 1 | 2 | 3 |",
}


@pytest.mark.parametrize(("text", "shown"), MARKED.items())
def test_how_it_is_shown(text, shown):
    assert screen_of(text, 100).strip() == shown.strip()


@pytest.mark.parametrize("text", [*AS_WRITTEN, *MARKED, "a\n\n- b\n\n      c\n\n  d\n\ne\n\n```\n\nf\n\n```\n\ng\n\n"])
def test_it_looks_the_same_however_it_arrives(text):
    assert screen_of(text, 100, range(len(text))) == screen_of(text, 100)


@pytest.mark.parametrize("columns", [2, 5, 12])
@pytest.mark.parametrize("width", [20, 40, 100])
def test_no_cell_of_a_table_is_cut(columns, width):
    head = "|".join(f"head{column}" for column in range(columns))
    row = "|".join(f"{column}-" + "x" * 20 + " <b>end</b>" for column in range(columns))
    table = f"{head}\n{'|'.join(['---'] * columns)}\n{row}\n"
    shown = screen_of(table, width)
    assert "…" not in shown
    assert not Counter(re.sub(r"[\s|]", "", head + row)) - Counter(shown)


def test_answers_in_a_real_terminal(environment):
    """The same through the program's own screen; escapes do not act, and what is wide or a tab is shown."""
    text = "\x1b[2JVec<T>\t日本 \\(x\\) <div>\n\n<p>\x9b31m</p>\n"
    program = f"""
from gptoss_mlx.terminal.rich_screen import RichScreen
screen = RichScreen(show_reasoning=None)
screen.content({text!r})
screen.end()
input()"""
    terminal = Terminal([sys.executable, "-c", program], environment)
    terminal.wait("</p>")
    assert "\ufffd[2JVec<T> 日本 \\(x\\) <div>\n\n<p>\ufffd31m</p>\n" in re.sub(" +", " ", terminal.seen)
    terminal.child.close(force=True)
