"""Why the compiled kernels are not built, and the commands that build them: from the output of a failed build, which
`build_backend.py` saves as NOT_BUILT in the package, and from this system.
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
COMPILERS = ("c++", "g++", "clang++")  # `build_backend.py` has the same: it cannot import a package that it builds
MAX_QUOTE = 200  # characters of a build's output

COMPILER, HEADERS, NEWER = "a C++ compiler", "Python's headers", "a newer C++ compiler"
# Patterns of the messages of CMake and of compilers where one is missing.
SIGNS = {
    COMPILER: r"No CMAKE_CXX_COMPILER could be found|is not able to compile a simple test program",
    NEWER: r"requires the language dialect|std=(c|gnu)\+\+2[0a]\W",
    HEADERS: r"Could NOT find Python[^)]*Development\.Module|Python\.h['\"]?( file not found|: No such file)",
}
# A package manager, the first that is found -> its command, and its packages with the compiler and the headers.
MANAGERS = {
    "apt-get": ("apt install", {COMPILER: "g++", HEADERS: "python{0}.{1}-dev"}),
    "dnf": ("dnf install", {COMPILER: "gcc-c++", HEADERS: "python{0}.{1}-devel"}),
    "yum": ("yum install", {COMPILER: "gcc-c++", HEADERS: "python{0}.{1}-devel"}),
    "zypper": ("zypper install", {COMPILER: "gcc-c++", HEADERS: "python{0}{1}-devel"}),
    "pacman": ("pacman -S", {COMPILER: "gcc", HEADERS: "python"}),
    "apk": ("apk add", {COMPILER: "g++", HEADERS: "python{0}-dev"}),
}


def why_not_built() -> str:
    """The reason, to follow "the kernels are"."""
    if others := _for_other_pythons():
        return f"built for another Python: {others[0]}, and this one is {sysconfig.get_config_var('SOABI')}"
    output = _build_output()
    if missing := _missing(output):
        return f"not built (missing when gptoss-mlx was installed: {', '.join(missing)})"
    return f"not built (the build failed: {_first_error(output)})" if output else "not built"


def how_to_build() -> str:
    """The steps, as a sentence."""
    output = _build_output()
    missing = _missing(output)
    steps = []
    if output and not missing:
        steps.append(f"see {printable(str(NOT_BUILT))}")
    if NEWER in missing:
        steps.append("install a newer C++ compiler (GCC 11, say) and set CXX to its name")
    if packages := [part for part in missing if part == COMPILER or (part == HEADERS and not _has_headers())]:
        steps.append(_installing(packages))
    return ", then ".join((*steps, installing_again()))


def installing_again() -> str:
    """The command that builds and installs the package anew, without the wheels in the caches of pip and uv."""
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


def _build_output() -> str:
    """The output of the build that failed; empty if none did."""
    try:
        return NOT_BUILT.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _missing(output: str) -> list[str]:
    """The tools that the failed build lacked, and those that another build would lack."""
    output = " ".join(output.split())
    here = {COMPILER: "CXX" in os.environ or any(map(shutil.which, COMPILERS)), HEADERS: _has_headers(), NEWER: True}
    return [part for part, sign in SIGNS.items() if re.search(sign, output) or not here[part]]


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


def _first_error(output: str) -> str:
    """The first error of CMake, or of a compiler; the last line if there is neither."""
    found = re.search(r"^CMake Error[^\n]*:\n((?:[ \t]+[^\n]*\n|\n)+)|^([^\n]*\berror: [^\n]*)", output, re.MULTILINE)
    text = (found[1] or found[2]) if found else output.strip().splitlines()[-1]
    return printable(" ".join(text.split())[:MAX_QUOTE])
