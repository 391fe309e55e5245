"""`gptoss-mlx sessions` on conversations that real chats have kept."""

import json
import re
import subprocess

import pytest

from cli.test_cli import assert_one_line_error
from gptoss_mlx.chat.store import Store
from gptoss_mlx.chat.transcript import Transcript
from gptoss_mlx.harmony.messages import Message
from terminal.terminals import Terminal


@pytest.fixture
def keep(run, demo_folder, tmp_path):
    """Commands with a home of their own, in which these conversations were held."""

    def keep(*conversations):
        def command(*args, **options):
            return run(*args, GPTOSS_MLX_HOME=str(tmp_path / "home"), **options)

        for lines in conversations:
            assert command("chat", demo_folder, "--temperature", "0", stdin="\n".join(lines)).returncode == 0
        return command

    return keep


def test_what_was_said_is_kept(keep):
    command = keep(["My locker code is 4711.", "What is 12 + 30?"], ["What is 40 - 7?"])
    listed = json.loads(command("sessions", "list", "--json").stdout)
    assert [(row["name"], row["turns"]) for row in listed] == [("what-is-40-7", 1), ("my-locker-code-is-4711", 2)]
    assert all(row["state_bytes"] > 0 for row in listed)
    table = command("sessions").stdout
    assert "my-locker-code-is-4711" in table
    assert "What is 40 - 7?" in table
    shown = command("sessions", "show", "my").stdout
    assert "## What is 12 + 30?" in shown
    assert "\n12 + 30 = 42\n" in shown
    assert command("sessions", "show").stdout.count("40 - 7 = 33") == 1


def test_export_rename_delete(keep, tmp_path):
    command = keep(["What is 12 + 30?"], ["What is 40 - 7?"])
    assert json.loads(command("sessions", "export", "--format", "json").stdout)["messages"][0]["role"] == "user"
    command("sessions", "export", "what-is-12", "-o", tmp_path / "sum.md")
    assert "12 + 30 = 42" in (tmp_path / "sum.md").read_text()
    assert command("sessions", "rename", "what-is-12", "sums").stdout == "renamed to sums\n"
    assert_one_line_error(command("sessions", "rename", "sums", "../x"), "no name for a session")
    assert_one_line_error(command("sessions", "show", "fly"), "fly")
    assert command("sessions", "delete", "sums", "--kv-only", "--yes").stdout == "deleted the KV cache of sums\n"
    assert [row["state_bytes"] > 0 for row in json.loads(command("sessions", "list", "--json").stdout)] == [True, False]
    assert command("sessions", "delete", "sums", stdin="n\n").returncode != 0
    assert command("sessions", "delete", "sums", stdin="y\n").stdout == "deleted sums\n"
    assert "sums" not in command("sessions").stdout


def test_a_damaged_session_is_told_in_the_list(keep, tmp_path):
    command = keep(["What is 12 + 30?"])
    next((tmp_path / "home" / "sessions").glob("*.json")).write_text("{")
    assert "is not JSON" in json.loads(command("sessions", "list", "--json").stdout)[0]["title"]
    assert_one_line_error(command("sessions", "show"), "is not JSON")


def test_none_yet(run, tmp_path):
    done = run("sessions", GPTOSS_MLX_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "")
    assert "no sessions yet" in done.stderr
    assert_one_line_error(run("sessions", "show", GPTOSS_MLX_HOME=str(tmp_path)), "no sessions yet")


def test_resume(keep, demo_folder):
    command = keep(["My locker code is 4711."])
    done = command("chat", "--resume", "my", "--temperature", "0", stdin="What is my locker code?\n")
    assert done.stdout == "Your locker code is 4711.\n"
    assert "Resuming my-locker-code-is-4711 (1 turn).\n" in done.stderr
    command("sessions", "delete", "my", "--kv-only", "--yes")
    done = command("chat", demo_folder, "--resume", "--temperature", "0", stdin="What is my locker code?\n/stats\n")
    assert done.stdout == "Your locker code is 4711.\n"
    assert "re-reading" in done.stderr
    assert json.loads(command("sessions", "list", "--json").stdout)[0]["turns"] == 3
    assert_one_line_error(command("chat", "--resume", "fly"), "fly")


def test_without_kv(run, demo_folder, tmp_path):
    home = {"GPTOSS_MLX_HOME": str(tmp_path / "home")}
    run("chat", demo_folder, "--no-kv", "--temperature", "0", stdin="Hello\n", **home)
    assert json.loads(run("sessions", "list", "--json", **home).stdout)[0]["state_bytes"] == 0


@pytest.fixture
def write(tmp_path):
    """Write a session of one question."""

    def write(name, question):
        folder = tmp_path / "home" / "sessions"
        folder.mkdir(parents=True, exist_ok=True)
        transcript = Transcript(None, None, "low", "2026-01-02", (Message("user", question),), (None,))
        transcript.write(folder / f"{name}.json")

    return write


def test_a_session_in_use_is_left_alone(run, write, tmp_path):
    write("hello", "Hello")
    store, home = Store(tmp_path / "home" / "sessions"), {"GPTOSS_MLX_HOME": str(tmp_path / "home")}
    with store.lock(store.find()):
        assert_one_line_error(run("sessions", "rename", "hello", "other", **home), "'hello' is in use")
        assert_one_line_error(run("sessions", "delete", "hello", "--yes", **home), "'hello' is in use")
        assert_one_line_error(run("sessions", "delete", "hello", "--yes", "--kv-only", **home), "'hello' is in use")
    assert [kept.name for kept in store] == ["hello"]
    assert run("sessions", "delete", "hello", "hello", "--yes", **home).stdout == "deleted hello\n"
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize(("answer", "deleted"), [("", False), ("n\n", False), ("\n", False), ("y\n", True)])
def test_nothing_is_deleted_that_nobody_agreed_to(run, write, tmp_path, answer, deleted):
    write("hello", "Hello")
    done = run("sessions", "delete", "hello", stdin=answer, GPTOSS_MLX_HOME=str(tmp_path / "home"))
    assert done.returncode == (not deleted)
    assert (tmp_path / "home" / "sessions" / "hello.json").exists() != deleted
    assert ("nothing was deleted: answer y, or give --yes" in done.stderr.splitlines()[-1]) != deleted


@pytest.mark.parametrize("answer", ["", "n\n", "y\n"])
def test_no_file_is_replaced_that_nobody_agreed_to(run, write, tmp_path, answer):
    write("hello", "Hello")
    (tmp_path / "hello.md").write_text("precious")
    args = ["sessions", "export", "hello", "-o", tmp_path / "hello.md"]
    done = run(*args, stdin=answer, GPTOSS_MLX_HOME=str(tmp_path / "home"))
    assert done.returncode == (answer != "y\n")
    assert ((tmp_path / "hello.md").read_text() == "precious") == (answer != "y\n")
    if answer != "y\n":
        assert "hello.md exists already" in done.stderr.splitlines()[-1]


def test_text_is_cleaned_for_a_terminal_only(run, write, command, environment, tmp_path):
    question = "left\N{LEFT-TO-RIGHT MARK}right\N{LINE SEPARATOR}\x1b[2Jend"
    write("hello", question)
    home = {"GPTOSS_MLX_HOME": str(tmp_path / "home")}
    assert question in run("sessions", "show", **home).stdout
    assert (
        json.loads(run("sessions", "export", "--format", "json", **home).stdout)["messages"][0]["content"] == question
    )
    terminal = Terminal([*command, "sessions", "show"], environment, **home)
    assert terminal.exit_status() == 0
    assert "left\N{LEFT-TO-RIGHT MARK}right\N{REPLACEMENT CHARACTER}" in terminal.sent.decode()
    assert question not in terminal.sent.decode()
    assert "\x1b[2J" not in terminal.sent.decode()


def test_a_name_cannot_drive_a_terminal(run, write, tmp_path):
    home = {"GPTOSS_MLX_HOME": str(tmp_path / "home")}
    for name in ("a\x1b[2Jb", "c\udcffd"):
        write(name, "Hello")
        shown = name.encode("unicode_escape").decode()
        assert json.loads(run("sessions", "list", "--json", **home).stdout)[0]["name"] == name
        assert shown in run("sessions", **home).stdout
        done = run("sessions", "delete", name[0], stdin="y\n", **home)
        assert (done.returncode, done.stdout) == (0, f"deleted {shown}\n")
        assert f"delete {shown}?" in done.stderr


def test_names_are_not_cut(run, write, tmp_path):
    name = "".join(f"{number:04}" for number in range(20))
    write(name, "How long may a name be? " * 3)
    table = run("sessions", GPTOSS_MLX_HOME=str(tmp_path / "home"), COLUMNS="80").stdout
    column = [line.split("│")[1].strip() for line in table.splitlines() if line.startswith("│")]
    assert "".join(column) == name
    assert re.search(r"│ \d{4}-\d\d-\d\d \d\d:\d\d │", table)


def test_without_a_home_it_is_one_line(command, environment):
    program = "import os, pwd, runpy, sys; pwd.getpwuid = {}.__getitem__; sys.argv = ['gptoss-mlx', 'sessions']"
    unset = ("GPTOSS_MLX_HOME", "HOME", "XDG_DATA_HOME")
    env = {name: value for name, value in environment.items() if name not in unset}
    args = [command[0], "-c", f"{program}; runpy.run_module('gptoss_mlx', run_name='__main__')"]
    assert_one_line_error(subprocess.run(args, env=env, capture_output=True, text=True), "no home")
