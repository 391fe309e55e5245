"""Hostile folders and the command line: one line that names the file and the reason, whatever the folder holds."""

import re

import pytest

from checkpoints import config_of, write_checkpoint
from gptoss_convert import convert
from hostile.folders import ALL, CASES, hostile_copy

COMMANDS = sorted(ALL)
PROGRESS = re.compile(r"(convert|verify) \d+ %")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """What convert reads, and what the other commands read."""
    root = tmp_path_factory.mktemp("good")
    source = write_checkpoint(root / "source", config_of(num_hidden_layers=1), shards=2)
    (source / "LICENSE").write_text("a license\n")
    convert(source, root / "converted")
    return {command: source if command == "convert" else root / "converted" for command in COMMANDS}


def arguments(command, folder):
    name, *options = command.split()
    more = {
        "convert": [folder.parent / "made"],
        "generate": ["-p", "x", "--max-tokens", "2", "--temperature", "0"],
    }.get(name, options)
    return [name, *map(str, [folder, *more])]


def check(case, command, folder, status, stdout, stderr):
    assert "Traceback" not in stderr
    assert "\x1b" not in stdout + stderr
    lines = [line for line in stderr.splitlines() if not PROGRESS.fullmatch(line)]
    if status == 0:
        assert command not in CASES[case].refused_by
        return
    assert status == 1
    (line,) = lines
    assert line.startswith("error: ")
    assert line.isprintable()
    assert len(line) < 1500
    if command in CASES[case].refused_by and "NaN" not in case:
        assert str(folder) in line or "tokenizer" in line


def commands_for(case: str, all_of_them: bool) -> list[str]:
    """Those that must refuse it, and `inspect`; or two of them, by turns."""
    commands = sorted(CASES[case].refused_by | {"inspect"})
    turn = [*CASES].index(case)
    return commands if all_of_them else [commands[(turn + i) % len(commands)] for i in range(min(2, len(commands)))]


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["two", "all"])
@pytest.mark.parametrize("case", CASES)
def test_every_case(run_here, good, tmp_path, case, all_of_them):
    for command in commands_for(case, all_of_them):
        run_and_check(run_here, good, tmp_path / command / "model", case, command)


def run_and_check(run, good, folder, case, command):
    done = run(*arguments(command, hostile_copy(good[command], folder, CASES[case])))
    check(case, command, folder, done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("case", ["shard is a FIFO", "dtype that drives a terminal"])
@pytest.mark.parametrize("name", COMMANDS)
def test_processes(run, good, tmp_path, case, name):
    run_and_check(run, good, tmp_path / "model", case, name)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", COMMANDS)
def test_all_processes(run, good, tmp_path, case, name):
    run_and_check(run, good, tmp_path / "model", case, name)
