"""Texts that no context holds: refused soon, in a few times their own memory, with the number of tokens."""

import os
import re
import subprocess

import pytest

KINDS = {
    "words": b"the quick brown fox jumps over the lazy dog. ",
    "one word": b"a",
    "blanks": b" ",
    "emoji": "\U0001f600".encode(),
    "no text": bytes(range(128, 256)),
}
ROOM = 100 * 10**6  # bytes that an input may take beside three times its own size


@pytest.fixture
def peak(command, environment, tmp_path):
    """Run `gptoss-mlx ARGS` with this input; what it wrote to standard error, and the most memory that it took."""

    def peak(data, *args):
        (tmp_path / "input").write_bytes(data)
        with open(tmp_path / "input", "rb") as file, open(tmp_path / "errors", "w+b") as errors:
            args = [*command, *map(str, args)]
            process = subprocess.Popen(args, env=environment, stdin=file, stdout=subprocess.DEVNULL, stderr=errors)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, (tmp_path / "errors").read_text(), usage.ru_maxrss * 1024

    return peak


@pytest.fixture(scope="module")
def usual(command, environment, demo_folder):
    """What the program takes that answers a short question."""
    args = [*command, "generate", str(demo_folder), "-p", "What is 12 + 30?", "--temperature", "0"]
    process = subprocess.Popen(args, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


DAILY = ("words", "one word")


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in DAILY)) for kind in KINDS])
def test_standard_input(peak, usual, demo_folder, kind):
    data = KINDS[kind] * (5 * 10**6 // len(KINDS[kind]))
    status, errors, memory = peak(data, "generate", demo_folder)
    assert status == 1
    least = re.fullmatch("error: at least ([0-9,]+) tokens exceed the model's context of 131,072\n", errors)
    assert least, errors
    assert int(least[1].replace(",", "")) > 131_072
    assert memory < usual + 3 * len(data) + ROOM


def test_a_line_of_a_pipe(peak, usual, demo_folder):
    data = b"x" * 5 * 10**6 + b"\nWhat is 12 + 30?\n"
    status, errors, memory = peak(data, "chat", demo_folder, "--no-kv", "--temperature", 0)
    assert status == 0
    assert errors.count("tokens exceed the model's context of 131,072") == 1
    assert memory < usual + 3 * len(data) + ROOM


def test_what_fits_behind_many_blanks(peak, demo_folder, run):
    """White space around what is piped in does not count, as long as a context has room for it."""
    done = run("generate", demo_folder, "--temperature", 0, stdin="\n" * 100_000 + "What is 12 + 30?" + " " * 100_000)
    assert (done.stdout, done.stderr) == ("12 + 30 = 42\n", "")


def test_nothing_is_cut_off_in_silence(run, demo_folder):
    done = run("generate", demo_folder, stdin="What is 12 + 30?" + " " * 5_000_000 + "No, 40 + 2?")
    assert (done.returncode, done.stdout) == (1, "")
    assert "tokens exceed" in done.stderr
