"""The page for `man`: current, without faults, and readable as `man` shows it."""

import os
import re
import runpy
import shutil
import subprocess

import pytest

from cli.test_cli import COMMANDS
from docs.pages import ROOT
from gptoss_mlx.terminal.slash_commands import COMMANDS as SLASH_COMMANDS

PAGE = ROOT / "docs" / "gptoss-mlx.1"


def test_it_is_current():
    assert PAGE.read_text(encoding="utf-8") == runpy.run_path(str(ROOT / "docs" / "man.py"))["page"](), (
        "run `make docs`"
    )


@pytest.mark.parametrize("columns", [40, 80])
def test_groff_warns_of_nothing(columns):
    if not shutil.which("groff"):
        pytest.skip("groff is not installed")
    options = ["-man", "-Tutf8", "-ww", "-Wbreak", f"-rLL={columns}n"]  # a name may be longer than a line
    done = subprocess.run(["groff", *options, PAGE], capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.fixture(scope="module")
def shown():
    if not shutil.which("man"):
        pytest.skip("man is not installed")
    environment = os.environ | {"MANWIDTH": "100", "MANPAGER": "cat", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    return subprocess.run(["man", "-l", PAGE], env=environment, capture_output=True, text=True, check=True).stdout


def test_man_shows_every_command(shown):
    headings = set(re.findall(r"^(\S.*)$", shown, re.MULTILINE))
    assert {f"gptoss-mlx {name}" for name in COMMANDS} <= headings
    assert {"NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "FILES", "EXIT STATUS"} <= headings
    assert all(command.usage in shown for command in SLASH_COMMANDS.values())


def test_what_is_copied_is_what_is_typed(shown):
    """Hyphens, quotes and a dot at the start of a line are not roff's."""
    for typed in (
        "gptoss-mlx chat gpt-oss-20b --reasoning low",
        "git diff | gptoss-mlx generate gpt-oss-20b -p 'Write a commit message.'",
        """echo 'eval "$(gptoss-mlx completion bash)"' >> ~/.bashrc""",
        "--repetition-penalty X",
    ):
        assert typed in shown
