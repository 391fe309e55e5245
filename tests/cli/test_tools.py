"""Tools and schemas from the command line, with the embedded model, which calls get_weather."""

import json
import subprocess

import pexpect
import pytest

from cli.test_cli import assert_one_line_error
from terminal.terminals import Spawn

WEATHER = """
[tools.get_weather]
description = "Gets the weather of a place."
command = ["sh", "-c", 'printf %s "{\\"temperature\\": ${#1}, \\"sky\\": \\"sunny\\"}"', "sh", "{location}"]
[tools.get_weather.parameters]
type = "object"
required = ["location"]
properties.location = { type = "string" }
"""
QUESTION = "What is the weather in Bermi?"


@pytest.fixture
def tools(tmp_path):
    path = tmp_path / "tools.toml"
    path.write_text(WEATHER)
    return path


def test_a_command_is_a_function(run, demo_folder, tools):
    done = run("chat", demo_folder, "--tools", tools, "--yes", "--temperature", "0", stdin=QUESTION)
    assert done.stdout == "It is 5 degrees and sunny in Bermi.\n"
    assert "get_weather sh -c" in done.stderr  # what was run
    done = run("generate", demo_folder, "--tools", tools, "--yes", "--temperature", "0", "-p", QUESTION)
    assert done.stdout == "It is 5 degrees and sunny in Bermi.\n"


def test_nothing_runs_unasked(run, demo_folder, tools, tmp_path):
    tools.write_text(WEATHER.replace("'printf", f"'touch {tmp_path}/ran; printf"))
    for command in (("chat",), ("generate", "-p", QUESTION)):
        name, *rest = command
        run(name, demo_folder, *rest, "--tools", tools, "--temperature", "0", "--max-tokens", "200", stdin=QUESTION)
        assert not (tmp_path / "ran").exists()


SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 100, "maximum": 999}},
    "required": ["sum"],
    "additionalProperties": False,
}


def test_an_answer_by_a_schema(run, demo_folder, tmp_path):
    path = tmp_path / "sum.json"
    path.write_text(json.dumps(SCHEMA))
    done = run("generate", demo_folder, "--json-schema", path, "--temperature", "0", "-p", "What is 347 + 285?")
    assert json.loads(done.stdout) == {"sum": 632}
    done = run("generate", demo_folder, "--json-schema", path, "--max-tokens", "3", "-p", "What is 347 + 285?")
    assert_one_line_error(done, "--max-tokens")


@pytest.mark.parametrize(
    ("option", "content", "complaint", "status"),
    [
        ("--tools", None, "does not exist", 2),
        ("--tools", "[tools", "not a file of tools", 1),
        ("--tools", "[tools.f]\ndescription = 'x'\ncommand = []", "list of words", 1),
        ("--json-schema", "{", "cannot read", 1),
        ("--json-schema", '{"not": {}}', "cannot be used", 1),
        ("--browse", "a file", "is a file", 2),
    ],
)
def test_what_is_wrong_is_told_before_the_model_is_loaded(run, tmp_path, option, content, complaint, status):
    path = tmp_path / "file"
    if content is not None:
        path.write_text(content)
    assert_one_line_error(run("chat", tmp_path / "no-model", option, path), complaint, status=status)
    assert_one_line_error(run("generate", tmp_path / "no-model", "-p", "x", option, path), complaint, status=status)


def test_the_built_in_tools_are_told_to_the_model(run, demo_folder, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    lines = "/tools\nWhat is 12 + 30?\n"
    done = run("chat", demo_folder, "--browse", tmp_path, "--unsafe-python", "--temperature", "0", stdin=lines)
    assert done.returncode == 0
    assert "browser" in done.stderr
    assert "python" in done.stderr


@pytest.mark.parametrize("encoding", ["utf-8:strict", pytest.param("utf-8:surrogateescape", marks=pytest.mark.slow)])
def test_bytes_that_are_no_text_are_read_all_the_same(command, environment, demo_folder, encoding):
    args = [*command, "generate", str(demo_folder), "-p", b"What is \xff gptoss-mlx?", "--temperature", "0"]
    environment = environment | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(args, input=b"a\xffb\n", capture_output=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(("reply", "runs"), [("y", True), ("n", False)])
def test_generate_asks_in_a_terminal(command, environment, demo_folder, tools, tmp_path, reply, runs):
    tools.write_text(WEATHER.replace("'printf", f"'touch {tmp_path}/ran; printf"))
    args = [*command[1:], "generate", str(demo_folder), "--tools", str(tools), "--temperature", "0", "-p", QUESTION]
    child = Spawn(command[0], args, env=environment, encoding="utf-8", timeout=30)
    child.expect("get_weather sh -c")
    child.expect("run this")
    child.sendline(reply)
    child.expect(pexpect.EOF)
    assert (tmp_path / "ran").exists() == runs
    assert "Traceback" not in child.before
