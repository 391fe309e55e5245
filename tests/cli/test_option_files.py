"""Files that options name: what is no such file is one line, and soon; what a shell puts in their place works."""

import json
import os
import subprocess
import threading

import pytest

from gptoss_mlx import untrusted
from gptoss_mlx.demo import CHECKPOINT

COMMANDS = {
    "render": ["harmony", "render", "FILE"],
    "parse": ["harmony", "parse", "FILE"],
    "compare": ["compare", str(CHECKPOINT), "MODEL", "--text", "FILE"],
    "calibrate": ["convert", str(CHECKPOINT), "MADE", "--calibrate", "FILE"],
    "recipe": ["convert", str(CHECKPOINT), "MADE", "--recipe", "FILE"],
    "tools": ["generate", "MODEL", "-p", "Hello", "--tools", "FILE"],
    "schema": ["generate", "MODEL", "-p", "Hello", "--json-schema", "FILE"],
    "eval": ["eval", "MODEL", "--text", "FILE"],
    "prompts": ["eval", "MODEL", "--prompts", "FILE"],
    "baseline": ["bench", "MODEL", "--baseline", "FILE"],
    "routing": ["bench", "MODEL", "--replay-routing", "FILE"],
}


def sparse(path):
    with path.open("wb") as file:
        file.truncate(10 * 10**9)


BAD = {
    "a FIFO to which nobody writes": os.mkfifo,
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a folder": os.mkdir,
    "10 GB": sparse,
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe{\0}\0"),
    "a link that leads nowhere": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path),
}
GOOD = '{"messages": [{"role": "user", "content": "Hi"}]}'


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_no_such_file_is_one_line(run_here, demo_folder, tmp_path, monkeypatch, name, bad):
    BAD[bad](tmp_path / "bad.toml")
    names = {"FILE": tmp_path / "bad.toml", "MODEL": demo_folder, "MADE": tmp_path / "made"}
    monkeypatch.setattr(untrusted, "WRITER_MILLISECONDS", 10)
    done = run_here(*(names.get(word, word) for word in COMMANDS[name]))
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    *usage, line = done.stderr.splitlines()
    assert not usage or done.returncode == 2
    assert line.lower().startswith("error: ")
    assert "bad.toml" in line
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("way", ['<(printf %s "$GOOD")', '<(sleep 0.1; printf %s "$GOOD")', "/dev/stdin"])
def test_what_a_shell_puts_in_place_of_a_file(command, environment, way):
    args = ["bash", "-c", f'"$@" harmony render {way}', "bash", *command]
    done = subprocess.run(args, input=GOOD, env=environment | {"GOOD": GOOD}, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.endswith("<|start|>user<|message|>Hi<|end|><|start|>assistant")


def test_a_pipe_with_nothing_in_it(command, environment):
    done = subprocess.run([*command, "harmony", "parse", "/dev/stdin"], env=environment, input=b"", capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["content"] == ""


def test_a_fifo_whose_writer_comes_later(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    read = []
    reader = threading.Thread(target=lambda: read.append(untrusted.read_named(tmp_path / "fifo", 10)))
    reader.start()
    with open(tmp_path / "fifo", "wb") as fifo:  # which waits for the reader
        fifo.write(b"a word")
    reader.join()
    assert read == [b"a word"]


def test_tools_are_not_cut(run, demo_folder, tmp_path):
    tool = '[tools.{0}]\ndescription = "Says {0}."\ncommand = ["echo", "{0}"]\n'
    comments = "# a comment\n" * 400_000
    (tmp_path / "tools.toml").write_text(tool.format("first") + comments + tool.format("second"))
    done = run("generate", demo_folder, "-p", "Hello", "--tools", tmp_path / "tools.toml")
    assert done.returncode == 1
    assert "tools.toml" in done.stderr
    assert "more than 4,194,304 bytes" in done.stderr
