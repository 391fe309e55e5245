"""Which Python `make` takes, with programs in the place of Pythons: nothing is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Answers for another version, or on another machine, and makes an environment that answers as it does.
PYTHON = f"""#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then
  mkdir -p "$3/bin"
  for name in python pip gptoss-mlx; do cp "$0" "$3/bin/$name"; done
elif [ "$1" = -c ]; then
  exec {sys.executable} -c 'import platform, sys
sys.executable, sys.version, sys.version_info, sys.platform, machine = "NAME", "VERSION", (VERSION), "SYSTEM", "MACHINE"
platform.python_version, platform.machine = lambda: "VERSION".replace(", ", "."), lambda: machine
exec(sys.argv[1])' "$2"
elif [ "$1" = demo ]; then
  echo "demo of NAME"
else
  echo "NAME $*" >>LOG
fi
"""


@pytest.fixture
def make(tmp_path):
    """Runs `make` in a folder with a Makefile; `.log` has the installations."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "make", "mkdir", "cp", "rm", "touch", "cat"):
        (tools / tool).symlink_to(shutil.which(tool))
    place = tmp_path / "project"
    place.mkdir()
    shutil.copy(ROOT / "Makefile", place)
    for name in ("pyproject.toml", "build_backend.py", "CMakeLists.txt"):
        (place / name).touch()

    def python(name, version, system="linux", machine="arm64"):
        words = {"NAME": name, "VERSION": version, "SYSTEM": system, "MACHINE": machine, "LOG": str(make.log)}
        text = PYTHON
        for word, value in words.items():
            text = text.replace(word, value)
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def make(*words):
        environment = {"PATH": str(tools), "HOME": str(tmp_path)}
        environment |= {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        return subprocess.run(["make", *words], cwd=place, env=environment, capture_output=True, text=True)

    make.log, make.python, make.place = tmp_path / "log", python, place
    return make


def test_an_old_python_is_told_at_once(make):
    make.python("python3", "3, 9, 6")
    result = make("demo")
    assert result.returncode
    assert "Python 3.10 or later is needed, and python3 is 3.9.6" in result.stderr
    assert "`make demo PYTHON=" in result.stderr
    assert not (make.place / ".venv").exists()


def test_another_python_makes_the_environment_anew(make):
    make.python("python3", "3, 12, 1")
    make.python("python3.13", "3, 13, 0")
    assert make("demo").stdout.endswith("demo of python3\n")
    (make.place / ".venv" / "left-from-before").touch()
    assert make("demo", "PYTHON=python3.13").stdout.endswith("demo of python3.13\n")
    assert not (make.place / ".venv" / "left-from-before").exists()


def test_what_is_installed_stays_as_long_as_nobody_names_another(make):
    make.python("python3", "3, 9, 6")
    make.python("python3.13", "3, 13, 0")
    for words in (["PYTHON=python3.13"], [], ["PYTHON=python3.13"]):
        assert make("demo", *words).stdout.endswith("demo of python3.13\n"), words
    assert len(make.log.read_text().splitlines()) == 1


def test_an_environment_without_a_stamp_stays(make):
    make.python("python3", "3, 12, 1")
    assert make("demo").returncode == 0
    (make.place / ".venv" / "checked-python").unlink()
    (make.place / ".venv" / "left-from-before").touch()
    assert make("demo", "PYTHON=python3").returncode == 0
    assert (make.place / ".venv" / "left-from-before").exists()


def test_an_environment_of_an_old_python_is_replaced(make):
    make.python("python3", "3, 9, 6")
    make.python("python3.13", "3, 13, 0")
    subprocess.run([make.place.parent / "tools" / "python3", "-m", "venv", make.place / ".venv"], check=True)
    assert "is 3.9.6" in make("demo").stderr
    assert make("demo", "PYTHON=python3.13").stdout.endswith("demo of python3.13\n")


@pytest.mark.parametrize("machine", ["x86_64", "arm64"])
def test_a_python_for_intel_on_a_mac(make, machine):
    make.python("python3", "3, 12, 1", system="darwin", machine=machine)
    result = make("demo")
    if machine == "arm64":
        assert result.stdout.endswith("demo of python3\n")
    else:
        assert "python3 is for Intel processors" in result.stderr
        assert not (make.place / ".venv").exists()
