"""Locales without Unicode, and names that are no text: everything works that can, and the rest is one line."""

import os
import shutil

import pytest

import zygote

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
QUESTION = "größe 😀 \ud7ff 漢字"


@pytest.fixture
def run(environment, tmp_path):
    """Run `gptoss-mlx ARGS` without a terminal, in a locale without Unicode, but for changes."""

    def run(*args, stdin="", **changes):
        env = environment | ASCII | changes | {"GPTOSS_MLX_HOME": str(tmp_path)}
        return zygote.shared(env).run(["-m", "gptoss_mlx", *args], stdin, env, timeout=60)

    return run


@pytest.mark.parametrize(
    "changes",
    [{}, {"PYTHONUTF8": "1"}, pytest.param({"PYTHONIOENCODING": "latin-1"}, marks=pytest.mark.slow)],
    ids=str,
)
def test_a_chat_is_kept_and_found_again(run, demo_folder, tmp_path, changes):
    chat = ["chat", str(demo_folder), "--temperature", "0"]
    done = run(*chat, stdin=f"{QUESTION}\n/context\n", **changes)
    assert (done.returncode, "error" in done.stderr) == (0, False)
    shown = run("sessions", "export", "--format", "json", "-o", str(tmp_path / "ä.json"), **changes)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert QUESTION in (tmp_path / "ä.json").read_text(encoding="utf-8")
    assert run("sessions", **changes).returncode == 0
    assert run("sessions", "show", **changes).returncode == 0


def test_what_is_typed_is_utf_8(run, demo_folder):
    """The demo model says nothing of such words; that they arrive whole, a tokenizer's count tells."""
    args = ["generate", str(demo_folder), "--temperature", "0", "-p", QUESTION, "--system", QUESTION]
    ours, theirs = run(*args), run(*args, PYTHONUTF8="1")
    assert (ours.returncode, ours.stderr) == (0, "")
    assert ours.stdout == theirs.stdout


@pytest.mark.parametrize(
    "args", [["plan"], ["inspect"], ["verify"], ["generate", "-p", "Hello"], ["eval", "--tokens=8"]]
)
def test_a_folder_with_any_name(run, demo_folder, tmp_path, args):
    folder = shutil.copytree(demo_folder, tmp_path / "größe")
    done = run(args[0], str(folder), *args[1:])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("utf8", ["0", "1"])
def test_a_folder_whose_name_is_no_text(run, demo_folder, tmp_path, utf8):
    folder = bytes(tmp_path) + b"/\xff\x1b[2J"
    shutil.copytree(bytes(demo_folder), folder)
    assert run("plan", os.fsdecode(folder), PYTHONUTF8=utf8).returncode == 0
    done = run("generate", os.fsdecode(folder), "-p", "Hello", PYTHONUTF8=utf8)
    assert done.returncode in (0, 1)
    assert not done.returncode or done.stderr.startswith("error: cannot open")
    assert "\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) == done.returncode


def test_a_name_that_the_locale_cannot_say(run, demo_folder):
    """This also shows that the locale of these tests has no Unicode."""
    lines = "Hello\n/save ümlaut\n/save /tmp/ü/ü.json\n/export ü.md\n"
    done = run("chat", str(demo_folder), stdin=lines)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: cannot ") == 3
