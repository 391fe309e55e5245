"""What is said where the kernels are not built: why, from real outputs of builds, and the commands that mend it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import gptoss_mlx
import zygote
from gptoss_mlx import kernels
from gptoss_mlx.kernels import building

ROOT = Path(__file__).parents[2]

NO_COMPILER = """CMake Error at CMakeLists.txt:3 (project):
  No CMAKE_CXX_COMPILER could be found.

  Tell CMake where to find the compiler by setting either the environment
  variable "CXX" or the CMake cache entry CMAKE_CXX_COMPILER to the full path
  to the compiler, or to the compiler name if it is in the PATH.


-- Configuring incomplete, errors occurred!
"""
BROKEN_COMPILER = """CMake Error at Modules/CMakeTestCXXCompiler.cmake:71 (message):
  The C++ compiler

    "/usr/bin/c++"

  is not able to compile a simple test program.

  It fails with the following output:

    /usr/bin/ld: cannot find crt1.o: No such file or directory
"""
OLD_COMPILER = """CMake Error in CMakeLists.txt:
  Target "cmTC_2b2f8" requires the language dialect "CXX20" .  But the
  current compiler "GNU" does not support this, or CMake does not know the
  flags to enable it.

"""
NO_HEADERS = """CMake Error at FindPackageHandleStandardArgs.cmake:230 (message):
  Could NOT find Python (missing: Python_INCLUDE_DIRS Development.Module)
  (found suitable version "3.11.2", minimum required is "3.10")
Call Stack (most recent call first):
  CMakeLists.txt:38 (find_package)

"""
NO_HEADERS_FOR_GCC = "nanobind/nb_python.h:11:10: fatal error: Python.h: No such file or directory\n"
NO_HEADERS_FOR_CLANG = "nanobind/nb_python.h:11:10: fatal error: 'Python.h' file not found\n"
WRONG_CXX = """CMake Error at Modules/CMakeDetermineCXXCompiler.cmake:47 (message):
  Could not find the compiler specified in the environment variable CXX:

  foo++.

Call Stack (most recent call first):
  CMakeLists.txt:3 (project)
"""
NO_MEMORY = """[12/14] Building CXX object module.cc.o
FAILED: module.cc.o
c++: fatal error: Killed signal terminated program cc1plus
compilation terminated.
"""
NO_SPACE = "fatal error: error writing to /tmp/ccX.s: No space left on device\n"
NO_CMAKE = "Traceback (most recent call last):\nCMakeNotFoundError: Could not find CMake with version >=3.24\n"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Make this system one that has these programs, and Python's headers or not, and that a build failed on."""

    def make(said: str | None, *programs: str, headers: bool = True) -> None:
        monkeypatch.setattr(building, "NOT_BUILT", tmp_path / "not_built.txt")
        if said is not None:
            building.NOT_BUILT.write_text(said)
        for name in programs:
            (tmp_path / name).touch(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
        if headers:
            (tmp_path / "Python.h").touch()
        monkeypatch.setattr(building.sysconfig, "get_path", lambda name: str(tmp_path))
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setattr(building, "installing_again", lambda: "run `AGAIN`")

    return make


HEADERS = f"python3.{sys.version_info.minor}-dev"


@pytest.mark.parametrize(
    ("said", "programs", "headers", "reason", "remedy"),
    [
        (NO_HEADERS, ["c++"], False, "Python's headers", f"run `sudo apt install {HEADERS}`, then run `AGAIN`"),
        (NO_HEADERS_FOR_GCC, ["g++"], False, "Python's headers", f"run `sudo apt install {HEADERS}`, then run `AGAIN`"),
        (NO_HEADERS_FOR_CLANG, ["clang++"], False, "Python's headers", f"`sudo apt install {HEADERS}`, then"),
        (NO_HEADERS, ["c++"], True, "Python's headers", "run `AGAIN`"),  # they have come since
        (NO_COMPILER, [], True, "a C++ compiler", "run `sudo apt install g++`, then run `AGAIN`"),
        # The build stopped at the first: one command brings both.
        (NO_COMPILER, [], False, "a C++ compiler, Python's headers", f"run `sudo apt install g++ {HEADERS}`, then"),
        (BROKEN_COMPILER, ["c++"], True, "a C++ compiler", "run `sudo apt install g++`, then run `AGAIN`"),
        (OLD_COMPILER, ["c++"], True, "a newer C++ compiler", "install a newer C++ compiler (GCC 11, say)"),
        (OLD_COMPILER, ["c++"], False, "a newer C++ compiler, Python's", f"then run `sudo apt install {HEADERS}`"),
        (None, [], False, "a C++ compiler, Python's headers", f"run `sudo apt install g++ {HEADERS}`, then"),
    ],
)  # fmt: skip
def test_what_was_missing_and_what_brings_it(system, said, programs, headers, reason, remedy):
    system(said, "apt-get", *programs, headers=headers)
    assert f"not built (missing when gptoss-mlx was installed: {reason}" in building.why_not_built()
    assert remedy in building.how_to_build()


@pytest.mark.parametrize(
    ("said", "quoted"),
    [
        (WRONG_CXX, "Could not find the compiler specified in the environment variable CXX: foo++."),
        (NO_MEMORY, "c++: fatal error: Killed signal terminated program cc1plus"),
        (NO_SPACE, "fatal error: error writing to /tmp/ccX.s: No space left on device"),
        (NO_CMAKE, "CMakeNotFoundError: Could not find CMake with version >=3.24"),
        ("x.cc:1:1: error: \x1b[31m" + 999 * "long " + "\n", "x.cc:1:1: error: \\x1b[31m"),
    ],
)
def test_any_other_reason_is_quoted(system, said, quoted):
    system(said, "apt-get", "c++")
    reason = building.why_not_built()
    assert reason.startswith("not built (the build failed: ")
    assert quoted in reason
    assert len(reason) < 300
    assert reason.isprintable()
    assert building.how_to_build() == f"see {building.NOT_BUILT}, then run `AGAIN`"


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("apt-get", f"sudo apt install g++ {HEADERS}"),
        ("dnf", f"sudo dnf install gcc-c++ {HEADERS}el"),
        ("zypper", f"sudo zypper install gcc-c++ {HEADERS.replace('.', '')}el"),
        ("pacman", "sudo pacman -S gcc python"),
        ("apk", "sudo apk add g++ python3-dev"),
    ],
)
def test_the_command_is_the_distributions(system, monkeypatch, manager, command):
    system(NO_COMPILER, manager, headers=False)
    assert f"run `{command}`" in building.how_to_build()
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # in a container there is often no sudo
    assert f"run `{command.removeprefix('sudo ')}`" in building.how_to_build()


def test_where_no_command_is_known_words_do(system, monkeypatch):
    system(NO_COMPILER, headers=False)
    assert "install a C++ compiler and Python's headers, then" in building.how_to_build()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "run `xcode-select --install`, then" in building.how_to_build()


@pytest.mark.parametrize(
    ("installer", "origin", "command"),
    [
        ("pip", '{"url": "file:///a%20b", "dir_info": {"editable": true}}', "--no-cache-dir --editable '/a b'`"),
        ("pip", '{"url": "file:///a", "dir_info": {}}', "--no-cache-dir /a`"),
        ("pip", None, "--no-cache-dir gptoss-mlx`"),
        ("uv", '{"url": "file:///a", "dir_info": {"editable": true}}', "--reinstall-package gptoss-mlx --editable /a`"),
    ],
)  # fmt: skip
def test_installing_again_goes_around_caches(tmp_path, monkeypatch, installer, origin, command):
    folder = tmp_path / "gptoss_mlx-0.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: gptoss-mlx\nVersion: 0.1.0\n")
    (folder / "INSTALLER").write_text(f"{installer}\n")
    if origin:
        (folder / "direct_url.json").write_text(origin)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert building.installing_again().endswith(command)


# A `gptoss_mlx` that is not installed, without its kernels, and its command line: a small model counts as a large one.
COMMAND = """
import sys
for name in [name for name in sys.modules if name.partition(".")[0] in ("gptoss_mlx", "gptoss_convert")]:
    del sys.modules[name]  # those that the zygote has imported
sys.path[0] = sys.argv.pop(1)
sys.meta_path = [finder for finder in sys.meta_path if isinstance(finder, type)]  # not those of an editable install
from gptoss_mlx.cli import loading, main
loading.LARGE = 0
main()
"""


@pytest.fixture(scope="module")
def without_kernels(tmp_path_factory):
    """A folder with the packages as a build without kernels installs them."""
    folder = tmp_path_factory.mktemp("installed")
    for package in (Path(gptoss_mlx.__file__).parent, ROOT / "convert" / "gptoss_convert"):
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("*.so", "native"))
    (folder / "gptoss_mlx/kernels/not_built.txt").write_text(WRONG_CXX)
    return folder


@pytest.fixture
def run(without_kernels, environment):
    def run(*args: object, folder: Path = without_kernels, **changes: str) -> subprocess.CompletedProcess[str]:
        return zygote.shared().run(["-c", COMMAND, *map(str, (folder, *args))], "", environment | changes, timeout=100)

    return run


BUILD_FAILED = (
    "not built (the build failed: Could not find the compiler specified in the environment variable CXX: foo++.)"
)


def test_doctor_says_why_there_are_no_kernels(run):
    done = run("doctor")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["kernels"] == f"off: {BUILD_FAILED}"
    assert f"{'to enable them':24}see " in done.stdout
    assert "not_built.txt, then run `" in done.stdout


def test_loading_a_large_model_says_so_in_a_line(run, demo_folder):
    done = run("generate", demo_folder, "-p", "What is 12 + 30?", "--temperature", "0")
    assert done.stdout == "12 + 30 = 42\n"
    assert done.stderr.startswith(f"warning: the compiled kernels are {BUILD_FAILED}, and a CPU is many times slower")
    assert len(done.stderr.splitlines()) == 1
    switched_off = run("generate", demo_folder, "-p", "What?", "--max-tokens", "1", GPTOSS_MLX_KERNELS="0")
    assert "the compiled kernels are switched off by GPTOSS_MLX_KERNELS=0" in switched_off.stderr
    assert "unset it" in switched_off.stderr


def test_a_small_model_is_loaded_without_a_word(demo_folder, environment):
    words = ["-m", "gptoss_mlx", "generate", str(demo_folder), "-p", "What is 12 + 30?", "--temperature", "0"]
    done = zygote.shared().run(words, "", environment | {"GPTOSS_MLX_KERNELS": "0"}, timeout=100)
    assert (done.stdout, done.stderr) == ("12 + 30 = 42\n", "")


@pytest.mark.slow
def test_the_demo_ends_with_it(run):
    done = run("demo")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1].startswith(f"warning: the compiled kernels are {BUILD_FAILED}")


def test_kernels_for_another_python_are_named(run, without_kernels, tmp_path):
    folder = tmp_path / "installed"
    shutil.copytree(without_kernels, folder)
    (folder / "gptoss_mlx/kernels/_native.cpython-39-x86_64-linux-gnu.so").touch()
    done = run("doctor", folder=folder)
    assert "off: built for another Python: _native.cpython-39-x86_64-linux-gnu.so, and this one is" in done.stdout


def test_kernels_that_cannot_be_loaded_say_so(run, without_kernels, tmp_path):
    folder = tmp_path / "installed"
    shutil.copytree(without_kernels, folder)
    suffix = building.sysconfig.get_config_var("EXT_SUFFIX")
    (folder / f"gptoss_mlx/kernels/_native{suffix}").write_bytes(b"no library")
    done = run("doctor", folder=folder)
    assert "off: not loadable: " in done.stdout
    assert f"{'to enable them':24}run `" in done.stdout


def test_kernels_for_another_mlx_are_refused(monkeypatch):
    class Module:
        mlx_version, built_for_mlx = "0.33.0", "0.32.4"

    kernels._unusable.cache_clear()
    monkeypatch.setattr(kernels, "_load", Module)
    try:
        assert kernels.native() is None
        assert kernels.why_not_native() == "built for MLX 0.32.4, and this is MLX 0.33.0"
        assert kernels.how_to_have_native() == "install MLX 0.32.4"
    finally:
        kernels._unusable.cache_clear()


@pytest.fixture
def source(tmp_path):
    """A source tree with the build backend, on a scikit-build-core that fails where BROKEN is set and kernels are asked
    for, as the real one does."""
    folder = tmp_path / "source"
    for name in (
        "gptoss_mlx/__init__.py",
        "gptoss_mlx/errors.py",
        "gptoss_mlx/kernels/__init__.py",
        "build_backend.py",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(building.__file__, folder / "gptoss_mlx/kernels")
    (folder / "scikit_build_core").mkdir()
    (folder / "scikit_build_core/__init__.py").touch()
    (folder / "scikit_build_core/build.py").write_text(
        """
import os
build_sdist = get_requires_for_build_editable = get_requires_for_build_sdist = get_requires_for_build_wheel = None
def build_wheel(folder, settings):
    kernels = settings.get("wheel.cmake") != "false"
    os.system(f"echo compiling with {os.environ['CXX']}")
    if kernels and "BROKEN" in os.environ:
        os.write(2, b"x.cc: fatal error: $HOME is \\xff\\n")
        raise SystemExit(1)
    return f"with-{kernels}.whl"
build_editable = build_wheel
"""
    )
    return folder


def build(source, hook="build_wheel", settings=None, **changes):
    code = f"import build_backend; print('made', build_backend.{hook}('.', {settings!r}))"
    env = {**os.environ, "PYTHONPATH": "", "CXX": "g++", **changes}
    return subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=source, env=env, capture_output=True, text=True, errors="replace"
    )


@pytest.mark.parametrize("hook", ["build_wheel", "build_editable"])
def test_a_build_that_fails_installs_the_rest_and_its_own_words(source, hook):
    told = source / "gptoss_mlx/kernels/not_built.txt"
    done = build(source, hook, BROKEN="1")
    assert done.stdout.splitlines()[-1] == "made with-False.whl"
    assert told.read_bytes() == b"compiling with g++\nx.cc: fatal error: $HOME is \xff\n"
    done = build(source, hook)
    assert done.stdout.splitlines()[-1] == "made with-True.whl"
    assert not told.exists()


def test_where_kernels_are_demanded_a_build_that_fails_is_an_error(source):
    done = build(source, settings={"wheel.cmake": "true"}, BROKEN="1")
    assert done.returncode == 1
    assert not (source / "gptoss_mlx/kernels/not_built.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("headers", [True, False])
def test_a_real_build_that_fails(tmp_path, headers):
    """Needs a package index; without headers, the right to hide them."""
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".venv", ".git", "build", "*.so", "__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(tree)]
    env = {**os.environ, "CXX": "g++"}
    if headers:
        env["CXX"] = "/nonexistent/c++"
    else:
        folder = building.sysconfig.get_path("include")
        hide = f"mount -t tmpfs none {folder}"
        if subprocess.run(["unshare", "-m", "sh", "-c", hide], capture_output=True).returncode:
            pytest.skip("headers cannot be hidden here")
        command = ["unshare", "-m", "sh", "-c", f'{hide} && exec "$@"', "sh", *command]
    subprocess.run(command, env=env, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        said = archive.read("gptoss_mlx/kernels/not_built.txt").decode()
    assert building._missing(said) == ([] if headers else [building.HEADERS])
    assert "/nonexistent/c++" in said or not headers
