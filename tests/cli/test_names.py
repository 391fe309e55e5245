"""Names from the disk, which anybody may have chosen: on a terminal they are shown, and steer nothing."""

import json
import shutil

import pytest

from gptoss_mlx.demo import CHECKPOINT
from terminal.terminals import Terminal

NAME = "a\x1b[2J\x1b]0;b\x07\u009b2J\u202ec"


@pytest.mark.parametrize(
    "args",
    [
        ["plan", NAME],
        ["inspect", NAME],
        ["verify", NAME],
        ["plan", f"{NAME}/nothing"],
        ["plan", NAME, NAME],
        ["convert", NAME, "made"],
        ["convert", f"{NAME}-source", "made"],
        ["models", "path", NAME],
        ["models", "default", NAME],
        ["models", "rm", NAME],
        ["harmony", "parse", f"{NAME}.txt"],
        ["harmony", "render", f"{NAME}.json"],
        ["harmony", "render", f"{NAME}.txt"],
    ],
    ids=lambda args: " ".join(args).replace(NAME, "NAME"),
)
def test_a_name_cannot_drive_a_terminal(command, environment, demo_folder, tmp_path, args):
    shutil.copytree(demo_folder, tmp_path / NAME)
    (tmp_path / NAME / "tokenizer.json").write_text("{}")
    shutil.copytree(CHECKPOINT, tmp_path / f"{NAME}-source", ignore=shutil.ignore_patterns("tokenizer.json"))
    (tmp_path / f"{NAME}.txt").write_text(f"<|channel|>final<|message|>{NAME}<|return|>")
    (tmp_path / f"{NAME}.json").write_text(json.dumps({"messages": [{"role": "user", "content": NAME}]}))
    home = {"GPTOSS_MLX_HOME": str(tmp_path / "home")}
    terminal = Terminal([*command, *args], environment | home, folder=tmp_path, NO_COLOR="1", TERM="dumb")
    terminal.exit_status()
    assert terminal.sent
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(terminal.sent.decode())


def test_what_goes_to_a_file_is_exact(run, tmp_path):
    """Also escapes, which click would take out."""
    (tmp_path / "talk.json").write_text(json.dumps({"messages": [{"role": "user", "content": NAME}]}))
    assert f"<|start|>user<|message|>{NAME}<|end|>" in run("harmony", "render", tmp_path / "talk.json").stdout


def test_the_path_of_a_model_in_a_pipe_is_exact(run, demo_folder, tmp_path):
    folder = shutil.copytree(demo_folder, tmp_path / NAME)
    assert run("models", "path", folder).stdout == f"{folder}\n"


@pytest.mark.parametrize(
    "args",
    [
        ["convert", "~nobody/model"],
        ["convert", "somebody/model", "made", "--adapter", "~nobody/adapter"],
        ["convert", "somebody/model", "~nobody/made", "--recipe", "~nobody/own.toml"],
        ["inspect", "~nobody/model", "--revision", "main"],
    ],
    ids=" ".join,
)
def test_a_home_of_nobody(run, tmp_path, args):
    """A name that begins so is a name like others."""
    args = [arg.replace("nobody", "nobody-is-called-so") for arg in args]
    home = {"GPTOSS_MLX_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = run(*args, **home)
    assert done.returncode in (1, 2)
    assert done.stderr.splitlines()[-1].lower().startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("way", ["--threads", "GPTOSS_MLX_THREADS"])
def test_no_more_threads_than_cores(run, demo_folder, way):
    args = ["generate", demo_folder, "-p", "What is 12 + 30?", "--temperature", "0"]
    done = run(*args, "--threads", 1000) if way == "--threads" else run(*args, GPTOSS_MLX_THREADS="1000")
    assert (done.returncode, done.stdout) == (0, "12 + 30 = 42\n")
    assert done.stderr.endswith(" threads instead of 1000\n")
    assert len(done.stderr.splitlines()) == 1
