"""The build backend: scikit-build-core; if the kernels do not build, everything else is installed.

The output of a failed build becomes a file of the package, which `gptoss_mlx.kernels.building` reads.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from scikit_build_core import build

# Not its `prepare_metadata_for_...`: the tag of a wheel is known when the kernels are built.
from scikit_build_core.build import (  # noqa: F401
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)

NOT_BUILT = Path("gptoss_mlx/kernels/not_built.txt")
COMPILERS = ("c++", "g++", "clang++")  # as in `gptoss_mlx.kernels.building`, which cannot be imported before the build

Settings = dict[str, Any] | None


def build_wheel(folder: str, settings: Settings = None, metadata_folder: str | None = None) -> str:
    return _built("build_wheel", folder, settings or {})


def build_editable(folder: str, settings: Settings = None, metadata_folder: str | None = None) -> str:
    return _built("build_editable", folder, settings or {})


def _built(hook: str, folder: str, settings: dict[str, Any]) -> str:
    """Build a wheel in `folder` and return its name: without the kernels if they do not build, or as `settings` say."""
    NOT_BUILT.unlink(missing_ok=True)
    # scikit-build-core would take the compiler that built Python, which need not be installed.
    if compiler := next(filter(shutil.which, COMPILERS), None):
        os.environ.setdefault("CXX", compiler)
    if "wheel.cmake" in settings:
        return getattr(build, hook)(folder, settings)
    command = [sys.executable, __file__, hook, folder, json.dumps(settings)]
    lines = []
    # A process of its own, because a compiler writes to file descriptors.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout
        for line in process.stdout:
            os.write(1, line)
            lines.append(line)
    if process.returncode == 0:
        return lines[-1].decode().strip()
    NOT_BUILT.write_bytes(b"".join(lines))
    print("the kernels did not build: everything else is installed, and `gptoss-mlx doctor` has the next step")
    return getattr(build, hook)(folder, settings | {"wheel.cmake": "false"})


if __name__ == "__main__":
    hook, folder, settings = sys.argv[1:]
    print(getattr(build, hook)(folder, json.loads(settings)))
