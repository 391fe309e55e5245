"""Standard streams as a shell, a service or another program may leave them: closed, full, read-only, non-blocking."""

import json
import os
import subprocess
import time
from itertools import combinations

import pytest

import zygote

QUESTION, ANSWER = "What is 12 + 30?", "12 + 30 = 42\n"
CLOSED = ("<&-", ">&-", "2>&-")
OTHERS = [closed for count in (1, 2) for closed in combinations(CLOSED, count) if closed != (">&-",)]
SLOW = pytest.mark.slow


@pytest.fixture
def redirected(command, environment):
    """Run `gptoss-mlx ARGS` as a shell does with these redirections."""

    def redirected(redirections, *args, stdin=""):
        line = f'exec "$@" {" ".join(redirections)}'
        return subprocess.run(
            ["sh", "-c", line, "sh", *command, *map(str, args)],
            input=stdin,
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
        )

    return redirected


@pytest.mark.parametrize(
    "closed", [(">&-",), *(pytest.param(closed, marks=SLOW) for closed in [CLOSED, *OTHERS])], ids=" ".join
)
def test_closed_streams_are_as_the_null_device(redirected, demo_folder, closed):
    done = redirected(closed, "generate", demo_folder, "-p", QUESTION, "--temperature", 0)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("" if ">&-" in closed else ANSWER)
    assert done.stderr == ""


@pytest.mark.parametrize(
    "args",
    [["chat", "MODEL", "--no-kv"], *(pytest.param(args, marks=SLOW) for args in (["demo"], ["plan", "MODEL"]))],
    ids=" ".join,
)
def test_every_kind_of_command_does_without_an_output(redirected, demo_folder, args):
    done = redirected([">&-"], *[demo_folder if arg == "MODEL" else arg for arg in args], stdin=f"{QUESTION}\n")
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr


def test_no_file_takes_the_place_of_a_closed_stream(redirected, run, tmp_path):
    from gptoss_mlx.demo import CHECKPOINT

    done = redirected(CLOSED, "convert", CHECKPOINT, tmp_path / "made")
    assert done.returncode == 0
    assert json.loads((tmp_path / "made" / "config.json").read_text())["model_type"] == "gpt_oss"
    assert run("verify", tmp_path / "made").returncode == 0


@pytest.mark.parametrize("closed", [CLOSED[:2], pytest.param(CLOSED, marks=SLOW)], ids=" ".join)
def test_errors_keep_their_status(redirected, closed):
    done = redirected(closed, "plan", "no/such/model")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == ("2>&-" not in closed)
    assert redirected(closed, "fly").returncode == 2


@pytest.mark.parametrize("where", [">/dev/full", pytest.param("1</dev/null", marks=SLOW)])
def test_what_cannot_be_written_is_one_line(redirected, demo_folder, where):
    done = redirected([where], "generate", demo_folder, "-p", QUESTION)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")


def test_streams_that_do_not_block(command, environment, demo_folder, tmp_path):
    """As a parent leaves them that reads and writes by events: nothing is lost where its end is slow."""
    asking, writing = os.pipe()
    reading, answering = os.pipe()
    for end in (asking, answering):
        os.set_blocking(end, False)
    args = [*command[1:], "generate", str(demo_folder), "--temperature", "0"]
    with open(tmp_path / "errors", "wb") as errors:
        run = zygote.shared().start(args, environment, [asking, answering, errors.fileno()])
    os.close(answering)
    while not os.get_blocking(asking) and run.wait(0) is None:
        time.sleep(0.01)
    os.write(writing, QUESTION.encode())
    os.close(writing)
    with open(reading, encoding="utf-8") as answer:
        assert answer.read() == ANSWER
    assert (run.wait(), (tmp_path / "errors").read_bytes()) == (0, b"")
    os.close(asking)
