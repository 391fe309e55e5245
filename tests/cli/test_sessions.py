"""`gptoss-mlx sessions` on conversations that real chats have kept."""

import json

import pytest

from cli.test_cli import assert_one_line_error


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
    assert command("sessions", "delete", "sums", "--kv-only", "--yes").stdout == "deleted the KV state of sums\n"
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
    assert "goes on" in done.stderr
    command("sessions", "delete", "my", "--kv-only", "--yes")
    done = command("chat", demo_folder, "--resume", "--temperature", "0", stdin="What is my locker code?\n/stats\n")
    assert done.stdout == "Your locker code is 4711.\n"
    assert "read again" in done.stderr
    assert json.loads(command("sessions", "list", "--json").stdout)[0]["turns"] == 3
    assert_one_line_error(command("chat", "--resume", "fly"), "fly")


def test_without_kv(run, demo_folder, tmp_path):
    home = {"GPTOSS_MLX_HOME": str(tmp_path / "home")}
    run("chat", demo_folder, "--no-kv", "--temperature", "0", stdin="Hello\n", **home)
    assert json.loads(run("sessions", "list", "--json", **home).stdout)[0]["state_bytes"] == 0
