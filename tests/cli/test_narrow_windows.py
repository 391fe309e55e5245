"""Tables in a terminal of 40 columns, or few more: no word of them is broken, and none is missing."""

import re
from io import StringIO

import pytest
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from gptoss_mlx.bench.report import print_report
from gptoss_mlx.bench.tables import Report, TextTable
from gptoss_mlx.demo import CHECKPOINT
from gptoss_mlx.evaluation.prompts import PromptResults, Share
from gptoss_mlx.evaluation.report import _print_prompts
from gptoss_mlx.tables import print_table
from terminal.terminals import Terminal

COLUMNS = 40
LOOKS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|[\u2500-\u257f]")  # colors and frames


def words(text):
    return {word.strip(",") for word in LOOKS.sub(" ", text).split() if len(word) < COLUMNS and word.strip("#")}


@pytest.mark.parametrize(
    "name",
    [
        "plan --device mac-16gb",
        "plan gpt-oss-20b --device mac-16gb",
        "inspect",
        "inspect --tensors",
        "inspect --tensor model.norm.weight",
        "compare --tokens 2",
        "config chat",
        "sessions",
    ],
)
def test_a_command(run, command, environment, demo_folder, tmp_path, name):
    home = {"GPTOSS_MLX_HOME": str(tmp_path)}
    args = name.split()
    if name == "sessions":
        ask = ["--reasoning", "none", "--max-tokens", "3"]
        assert run("chat", demo_folder, *ask, stdin="What is gptoss-mlx about?\n", **home).returncode == 0
    elif name not in ("config chat", "plan gpt-oss-20b --device mac-16gb"):
        args += [str(CHECKPOINT)] * name.startswith("compare") + [str(demo_folder)]
    wide = run(*args, COLUMNS="300", **home)
    assert wide.returncode == 0
    terminal = Terminal([*command, *args], environment | home, columns=COLUMNS)
    assert terminal.exit_status() == 0
    assert words(wide.stdout) - words(terminal.sent.decode()) == set()


def bench(console):
    names = ("test", "depth", "tokens/s", "spread", "of the limit", "memory")
    row = ("prefill 512", "4,096", "1,234.5", "1,200.0 to 1,300.1", "93 % of 1,330.0", "1.2 GB")
    print_report(Report(("model",), [TextTable("Speed", names, [row])], ()), console)


def held_out(console):
    shares = [Share("remembers names", 11, 12, 0.9), Share("knows itself", 3, 12, 0.9)]
    _print_prompts(console, "held-out prompts", PromptResults(24, Share(None, 14, 24, 0.9), shares, []), False)


def printed(show, width):
    console = Console(file=StringIO(), width=width)
    show(console)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("show", [bench, held_out])
def test_a_report(show):
    wide, narrow = printed(show, 200), printed(show, COLUMNS)
    assert max(map(len, narrow)) <= COLUMNS
    assert words("\n".join(wide)) - words("\n".join(narrow)) == set()


def test_each_row_is_a_list():
    def show(console):
        table = Table("name", Column("number", justify="right"), "", title=Text("A title"))
        table.add_row("one [b]", "1", Text("abcdefghij" * 3))
        table.add_row(Text("two [b]"), "", "three four")
        print_table(table, console)

    assert printed(show, 30) == [
        *("A title", "name", "", "one", "  number  1", "          abcdefghijabcdefghij", "          abcdefghij"),
        *("", "two [b]", "          three four", ""),
    ]
    assert any("┃" in line for line in printed(show, 60))


@pytest.mark.parametrize("width", range(40, 101, 4))
def test_no_word_is_broken_in_any_window(width):
    def show(console):
        table = Table("recipe", Column("disk", no_wrap=True), "given up", title="A title")
        table.add_row("mxfp4-q4-small", "11.17 GB", "experts of 2 layers on the CPU, embeddings on the CPU")
        table.add_row("mxfp4-mixed", "11.82 GB", "prefill in chunks of 512 tokens, embeddings on the CPU, " * 3)
        print_table(table, console)

    lines = printed(show, width)
    assert max(map(len, lines)) <= width
    assert words("\n".join(lines)) == words("\n".join(printed(show, 1000)))
    assert any("11.17 GB" in line for line in lines)


def test_what_fits_stays_a_table():
    def show(console):
        table = Table("name", "number")
        table.add_row("one two three four five six", "1")
        print_table(table, console)

    assert printed(show, 20)[1] == "┃ name    ┃ number ┃"
