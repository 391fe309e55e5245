"""The command line as a person meets it: real processes, their output, their exit status."""

import re
import subprocess
import sys
import time

import click
import pytest

from gptoss_mlx.cli import ELSEWHERE, cli

COMMANDS = [
    "convert",
    "inspect",
    "compare",
    "verify",
    "upload",
    "chat",
    "generate",
    "serve",
    "bench",
    "eval",
    "plan",
    "doctor",
    "demo",
    "config",
    "completion",
    "sessions",
    "sessions list",
    "sessions search",
    "sessions show",
    "sessions export",
    "sessions rename",
    "sessions delete",
    "models",
    "models list",
    "models rm",
    "models path",
    "models default",
    "models move",
    "harmony render",
    "harmony parse",
]


def assert_one_line_error(done, *parts, status=1):
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.lower().startswith("error:")
    for part in parts:
        assert part in line, line
    if status == 1:
        assert len(done.stderr.strip().splitlines()) == 1


def test_every_command_is_listed():
    groups = {name for name, command in cli.commands.items() if isinstance(command, click.Group)}
    below = {f"{name} {child}" for name in groups for child in cli.commands[name].commands}
    assert set(COMMANDS) - {"sessions", "models"} == (set(cli.commands) - groups) | below


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(run, name):
    done = run(*name.split(), "--help")
    assert done.returncode == 0
    line = f"Examples?: {'git diff [|] ' if name == 'generate' else ''}gptoss-mlx {name}"
    assert re.search(line, " ".join(done.stdout.split()))


@pytest.mark.timing
def test_help_starts_quickly(command, environment):
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([*command, "--help"], env=environment, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.3


def test_help_imports_little():
    code = (
        "import sys, contextlib, io\nfrom gptoss_mlx.cli import cli\n"
        "with contextlib.redirect_stdout(io.StringIO()): cli(['--help'], standalone_mode=False)\n"
        "print(*sys.modules)"
    )
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "mlx",
        "mlx.core",
        "mlx_lm",
        "numpy",
        "tokenizers",
        "transformers",
        "rich",
        "prompt_toolkit",
        "huggingface_hub",
    }
    assert not heavy & set(modules)


def test_version(run):
    expected = r"gptoss-mlx \d+\.\d+\.\d+ \(MLX \d+\.\d+\.\d+, Python 3\.\d+\.\S+\)\n"
    assert re.fullmatch(expected, run("--version").stdout)


@pytest.mark.parametrize("word", ["run", "pull", "list", "ls", "rm", "ps", "help", "version"])
def test_commands_of_other_programs_are_answered_with_ours(run, word):
    done = run(word, "gpt-oss-20b")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Error: there is no command {word}: {ELSEWHERE[word]}\n"
    named = set(re.findall(r"`gptoss-mlx ([a-z]+)", ELSEWHERE[word]))
    assert named <= {*cli.commands, "models"}
    assert named or word in ("ps", "help", "version")


def test_no_command_of_ours_is_taken_for_another_programs():
    assert not set(ELSEWHERE) & set(cli.commands)


def test_unknown_command_is_a_usage_error(run):
    assert_one_line_error(run("fly"), "fly", status=2)
