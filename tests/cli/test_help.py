"""Help: headings, nothing cut off, and lines that fit into the terminal."""

import re

import click
import pytest

from cli.test_cli import COMMANDS
from gptoss_mlx.cli import PROGRAM, cli, help
from terminal.terminals import Terminal

MEMORY = ["Model and memory"]
HEADINGS = {
    "": ["Chat", "Models", "Measure", "Set up", "Formats", "Options"],
    "chat": ["Answers", "Sampling", "Tools", *MEMORY, "Saving", "Output", "Options"],
    "generate": ["Prompt", "Answers", "Sampling", "Tools", *MEMORY, "Experts", "Options"],
    "serve": ["Network", "Answers", "Sampling", "Tools", *MEMORY, "Saving", "Options"],
    "bench": ["What is measured", "Comparison", *MEMORY, "Experts", "Output", "Options"],
    "eval": ["What is measured", "Answers", *MEMORY, "Output", "Options"],
    "convert": ["Recipe", "Source", "Afterwards", "Options"],
    "plan": ["Options"],
    "sessions": ["Commands", "Options"],
}
HEADING = re.compile(r"^([A-Z][\w ]*):$", re.MULTILINE)
ALL = ["", "harmony", *COMMANDS]


def context_of(name: str) -> click.Context:
    context = cli.make_context(PROGRAM, [], resilient_parsing=True)
    for word in name.split():
        context = context.command.commands[word].make_context(word, [], parent=context, resilient_parsing=True)
    return context


def sections_of(name: str) -> list[tuple[str, list[tuple[str, str]]]]:
    context = context_of(name)
    commands = help.command_sections(context) if isinstance(context.command, click.Group) else ()
    return [*commands, *help.option_sections(context)]


@pytest.fixture
def help_of(run_here):
    """What `gptoss-mlx NAME --help` prints in a terminal of so many columns."""

    def help_of(name: str, columns: int = 100) -> str:
        return run_here(*name.split(), "--help", COLUMNS=str(columns)).stdout

    return help_of


@pytest.mark.parametrize("name", HEADINGS)
def test_headings(help_of, name):
    assert HEADING.findall(help_of(name)) == HEADINGS[name]


def test_in_a_process(run, help_of):
    assert run("chat", "--help").stdout == help_of("chat")


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize("name", ALL)
def test_all_is_there_and_fits(help_of, name, columns):
    shown = help_of(name, columns)
    sections = shown[HEADING.search(shown).start() : shown.rindex("\n\n  Example")]
    assert max(map(len, sections.splitlines())) <= columns
    found = " ".join(sections.split())
    for heading, rows in sections_of(name):
        assert f"{heading}:" in sections
        for row in rows:
            assert " ".join(" ".join(row).split()) in found


def test_texts_stand_in_one_column(help_of):
    """Of all sections, where the terminal is wide; below their names where it is narrow."""
    wide, narrow = (help_of("chat", columns) for columns in (100, 40))
    starts = {match.end() - match.start() for match in re.finditer(r"^  -\S+(?: \S+)*  +(?=\S)", wide, re.MULTILINE)}
    assert len(starts) == 1
    assert "  --system TEXT\n      System instructions for the\n      whole conversation.\n" in narrow


def test_no_option_is_broken_at_a_hyphen(help_of):
    for name in ALL:
        for columns in (40, 70, 100):
            assert not re.search(r"\w-$", help_of(name, columns), re.MULTILINE), (name, columns)


def test_every_command_has_a_heading():
    """And gptoss_mlx/cli/help.py lists no option that is not there."""
    listed = {name for names in cli.headings.values() for name in names}
    assert listed == set(cli.commands)
    assert all(isinstance(command, help.Command | help.Group) for command in cli.commands.values())
    known = {parameter.opts[0] for name in ALL for parameter in context_of(name).command.params}
    assert {option for options in help.OPTIONS.values() for option in options} <= known


def test_on_a_narrow_screen(command, environment):
    terminal = Terminal([*command, "convert", "--help"], environment, columns=40)
    assert terminal.exit_status() == 0
    assert "Source:\n  --revision NAME\n" in terminal.seen
    assert "  --dry-run\n      With --upload: print the model\n" in terminal.seen
