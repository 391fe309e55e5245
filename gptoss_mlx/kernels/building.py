"""Why the compiled kernels are not built, and the commands that build them: from what a failed build said, and from
this system.

`build_backend.py` keeps that output as NOT_BUILT in the package.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..errors import printable

NOT_BUILT = Path(__file__).with_name("not_built.txt")
COMPILERS = ("c++", "g++", "clang++")
LONGEST = 200  # of what is quoted of a build

COMPILER, HEADERS, NEWER = "a C++ compiler", "Python's headers", "a newer C++ compiler"
# What a build says where they are missing, in the words of CMake and of compilers.
SIGNS = {
    COMPILER: r"No CMAKE_CXX_COMPILER could be found|is not able to compile a simple test program",
    NEWER: r"requires the language dialect|std=(c|gnu)\+\+2[0a]\W",
    HEADERS: r"Could NOT find Python[^)]*Development\.Module|Python\.h['\"]?( file not found|: No such file)",
}
# The first program that is found -> what installs packages, and the names of those with the compiler and the headers.
MANAGERS = {
    "apt-get": ("apt install", {COMPILER: "g++", HEADERS: "python{0}.{1}-dev"}),
    "dnf": ("dnf install", {COMPILER: "gcc-c++", HEADERS: "python{0}.{1}-devel"}),
    "yum": ("yum install", {COMPILER: "gcc-c++", HEADERS: "python{0}.{1}-devel"}),
    "zypper": ("zypper install", {COMPILER: "gcc-c++", HEADERS: "python{0}{1}-devel"}),
    "pacman": ("pacman -S", {COMPILER: "gcc", HEADERS: "python"}),
    "apk": ("apk add", {COMPILER: "g++", HEADERS: "python{0}-dev"}),
}


def why_not_built() -> str:
    """The reason, which can follow on "the kernels are"."""
    if others := _for_other_pythons():
        return f"built for another Python: {others[0]}, and this one is {sysconfig.get_config_var('SOABI')}"
    said = _output()
    if missing := _missing(said):
        return f"not built (missing when gptoss-mlx was installed: {', '.join(missing)})"
    return f"not built (the build said: {_first_error(said)})" if said else "not built"


def how_to_build() -> str:
    """What to do, as a sentence."""
    said = _output()
    missing = _missing(said)
    steps = []
    if said and not missing:
        steps.append(f"see {printable(str(NOT_BUILT))}")
    if NEWER in missing:
        steps.append("install a newer C++ compiler (GCC 11, say) and set CXX to its name")
    if packages := [part for part in missing if part == COMPILER or (part == HEADERS and not _has_headers())]:
        steps.append(_installing(packages))
    return ", then ".join((*steps, installing_again()))


def installing_again() -> str:
    """The command for it, which goes around caches: pip and uv keep a wheel without kernels in theirs."""
    try:
        package = distribution("gptoss-mlx")
    except PackageNotFoundError:
        return "install gptoss-mlx again"
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    url = urlsplit(origin.get("url", ""))
    source = shlex.quote(unquote(url.path)) if url.scheme == "file" else package.name
    editable = "--editable " if origin.get("dir_info", {}).get("editable") else ""
    python = shlex.quote(sys.executable)
    if (package.read_text("INSTALLER") or "").strip() == "uv":
        command = f"uv pip install --python {python} --reinstall-package {package.name}"
    else:
        command = f"{python} -m pip install --force-reinstall --no-deps --no-cache-dir"
    return f"run `{command} {editable}{source}`"


def _for_other_pythons() -> list[str]:
    own = f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    found = [path.name for folder in sys.modules[__package__].__path__ for path in Path(folder).glob("_native.*.so")]
    return [name for name in found if name != own]


def _output() -> str:
    """Of the build that failed; empty where there was none."""
    try:
        return NOT_BUILT.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _missing(said: str) -> list[str]:
    """What the build missed, or what a next one would."""
    said = " ".join(said.split())
    here = {COMPILER: "CXX" in os.environ or any(map(shutil.which, COMPILERS)), HEADERS: _has_headers(), NEWER: True}
    return [part for part, sign in SIGNS.items() if re.search(sign, said) or not here[part]]


def _has_headers() -> bool:
    return Path(sysconfig.get_path("include"), "Python.h").is_file()


def _installing(parts: list[str]) -> str:
    if sys.platform == "darwin":
        return "run `xcode-select --install`"
    for program, (command, packages) in MANAGERS.items():
        if shutil.which(program):
            names = " ".join(packages[part] for part in parts).format(*sys.version_info)
            return f"run `{'sudo ' if os.geteuid() else ''}{command} {names}`"
    return f"install {' and '.join(parts)}"


def _first_error(said: str) -> str:
    """The first complaint of CMake, or of a compiler; the last line where there is neither."""
    found = re.search(r"^CMake Error[^\n]*:\n((?:[ \t]+[^\n]*\n|\n)+)|^([^\n]*\berror: [^\n]*)", said, re.MULTILINE)
    text = (found[1] or found[2]) if found else said.strip().splitlines()[-1]
    return printable(" ".join(text.split())[:LONGEST])
