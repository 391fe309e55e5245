"""Completion, in the shells themselves."""

import os
import shutil
import subprocess
import sys
import time

import pexpect
import pytest

from gptoss_convert import RECIPES
from gptoss_mlx.cli.completion import SHELLS

# How each begins, and what makes it ready.
START = {
    "bash": ("bash --norc --noprofile -i", "PS1='ready$ '", 'eval "$(gptoss-mlx completion bash)"'),
    "zsh": (
        "zsh -f -i",
        "PROMPT='ready$ '",
        "autoload -U compinit; compinit -u -D",
        'eval "$(gptoss-mlx completion zsh)"',
    ),
    "fish": (
        "fish --no-config -i",
        "function fish_prompt; echo 'ready$ '; end; set -g fish_autosuggestion_enabled 0",
        "gptoss-mlx completion fish | source",
    ),
}
# The line before Tab is pressed, and after it.
TYPED = {
    "gptoss-mlx gen": "gptoss-mlx generate",
    "gptoss-mlx chat gpt-oss-2": "gptoss-mlx chat gpt-oss-20b",
    "gptoss-mlx chat some": "gptoss-mlx chat somebody/tuned",
    "gptoss-mlx chat any": "gptoss-mlx chat anybody/model:q8",
    "gptoss-mlx chat anybody/model:q": "gptoss-mlx chat anybody/model:q8",
    "gptoss-mlx verify fold": r"gptoss-mlx verify folder\ of\ mine/",
    "gptoss-mlx convert folder dest --recipe mxfp4-m": "gptoss-mlx convert folder dest --recipe mxfp4-mixed",
    "gptoss-mlx plan gpt-oss-20b --device iphone-1": "gptoss-mlx plan gpt-oss-20b --device iphone-12gb",
    "gptoss-mlx chat --reasoning l": "gptoss-mlx chat --reasoning low",
    "gptoss-mlx chat --when-f": "gptoss-mlx chat --when-full",
    "gptoss-mlx config conv": "gptoss-mlx config convert",
}


@pytest.fixture
def place(tmp_path, environment, monkeypatch):
    """A folder with a model in its cache, another folder, and the program on the PATH; gives the environment."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gptoss-mlx"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gptoss_mlx "$@"\n')
    program.chmod(0o755)
    for name in ("anybody--model--q8", "somebody--tuned"):
        (tmp_path / "cache" / name).mkdir(parents=True)
        (tmp_path / "cache" / name / "config.json").write_text("{}")
    (tmp_path / "folder of mine").mkdir()
    monkeypatch.chdir(tmp_path)
    return environment | {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{environment['PATH']}",
        "GPTOSS_MLX_HOME": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
        "TERM": "dumb",
    }


@pytest.mark.parametrize("shell", SHELLS)
def test_tab(place, shell):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    if shell == "bash" and subprocess.check_output(["bash", "-c", "echo $BASH_VERSINFO"]) < b"4":
        pytest.skip("bash is older than 4.4, as on a Mac")
    start, *lines = START[shell]
    child = pexpect.spawn(start, env=place, dimensions=(30, 120), encoding="utf-8", timeout=10)
    for line in lines:
        child.sendline(line)
    child.sendline('echo set""up')
    child.expect_exact("setup")
    for typed, completed in TYPED.items():
        child.send(f"{typed}\t")
        child.expect_exact(completed)
        child.send("\x15")  # Ctrl-U: forget the line
    child.sendline("exit")
    child.expect(pexpect.EOF)


def test_every_shell_has_a_script(run):
    assert START.keys() == set(SHELLS)
    for shell in SHELLS:
        assert "_GPTOSS_MLX_COMPLETE" in run("completion", shell).stdout
    assert run("completion", "csh").returncode == 2


def asking(words):
    """The environment in which click completes the end of `words`, for bash."""
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    return asked | {"_GPTOSS_MLX_COMPLETE": "bash_complete"}


def test_all_recipes_and_models_are_candidates(run, place):
    done = run(**place, **asking("gptoss-mlx convert a b --recipe "))
    assert done.stdout.splitlines() == ["file,", *(f"plain,{name}" for name in RECIPES)]
    done = run(**place, **asking("gptoss-mlx chat "))
    names = ("gpt-oss-20b", "gpt-oss-120b", "anybody/model:q8", "somebody/tuned")
    assert done.stdout.splitlines() == ["dir,", *(f"plain,{name}" for name in names)]


def test_a_broken_config_file_does_not_stop_it(run, place, tmp_path):
    (tmp_path / "config.toml").write_text("[")
    done = run(**place | {"GPTOSS_MLX_CONFIG": str(tmp_path / "config.toml")}, **asking("gptoss-mlx ver"))
    assert done.stdout == "plain,verify\n"


PROGRAM = [sys.executable, "-m", "gptoss_mlx"]
RECIPE = "gptoss-mlx convert a b --recipe mx"


@pytest.mark.timing
def test_it_is_quick(place):
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(PROGRAM, env=place | asking(RECIPE), check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.3


def test_it_imports_little(place):
    done = subprocess.run(
        [PROGRAM[0], "-X", "importtime", *PROGRAM[1:]],
        env=place | asking(RECIPE),
        check=True,
        capture_output=True,
        text=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "gptoss_mlx.cli.completion" in imported
    assert not {"mlx.core", "numpy", "tokenizers", "rich", "prompt_toolkit", "huggingface_hub"} & imported
