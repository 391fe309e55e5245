"""Locales without Unicode, and names that are no text: everything works that can, and the rest is one line."""

import shutil
import subprocess

import pytest

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
QUESTION = "größe 😀 \ud7ff 漢字"


@pytest.fixture
def run_bytes(command, environment):
    def run_bytes(*args, stdin=b"", **changes):
        env = environment | ASCII | changes
        return subprocess.run([*command, *args], input=stdin, capture_output=True, env=env, timeout=60)

    return run_bytes


@pytest.mark.parametrize("changes", [{}, {"PYTHONIOENCODING": "latin-1"}, {"PYTHONUTF8": "1"}], ids=str)
def test_a_chat_is_kept_and_found_again(run_bytes, demo_folder, tmp_path, changes):
    home = {"GPTOSS_MLX_HOME": str(tmp_path)} | changes
    chat = ["chat", str(demo_folder), "--temperature", "0"]
    done = run_bytes(*chat, stdin=f"{QUESTION}\n/context\n".encode(), **home)
    assert (done.returncode, b"error" in done.stderr) == (0, False)
    shown = run_bytes("sessions", "export", "--format", "json", "-o", str(tmp_path / "ä.json"), **home)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert QUESTION in (tmp_path / "ä.json").read_text(encoding="utf-8")
    assert run_bytes("sessions", **home).returncode == 0
    assert run_bytes("sessions", "show", **home).returncode == 0


def test_what_is_typed_is_utf_8(run_bytes, demo_folder):
    """The demo model says nothing of such words; that they arrive whole, a tokenizer's count tells."""
    args = ["generate", str(demo_folder), "--temperature", "0", "-p", QUESTION, "--system", QUESTION]
    ours, theirs = run_bytes(*args), run_bytes(*args, PYTHONUTF8="1")
    assert (ours.returncode, ours.stderr) == (0, b"")
    assert ours.stdout == theirs.stdout


@pytest.mark.parametrize(
    "args", [["plan"], ["inspect"], ["verify"], ["generate", "-p", "Hello"], ["eval", "--tokens=8"]]
)
def test_a_folder_with_any_name(run_bytes, demo_folder, tmp_path, args):
    folder = shutil.copytree(demo_folder, tmp_path / "größe")
    done = run_bytes(args[0], str(folder), *args[1:])
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("utf8", ["0", "1"])
def test_a_folder_whose_name_is_no_text(run_bytes, demo_folder, tmp_path, utf8):
    folder = bytes(tmp_path) + b"/\xff\x1b[2J"
    shutil.copytree(bytes(demo_folder), folder)
    assert run_bytes("plan", folder, PYTHONUTF8=utf8).returncode == 0
    done = run_bytes("generate", folder, "-p", "Hello", PYTHONUTF8=utf8)
    assert done.returncode in (0, 1)
    assert not done.returncode or done.stderr.startswith(b"error: cannot open")
    assert b"\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) == done.returncode


def test_a_name_that_the_locale_cannot_say(run_bytes, demo_folder, tmp_path):
    lines = "Hello\n/save ümlaut\n/save /tmp/ü/ü.json\n/export ü.md\n".encode()
    done = run_bytes("chat", str(demo_folder), stdin=lines, GPTOSS_MLX_HOME=str(tmp_path))
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"error: cannot ") == 3
