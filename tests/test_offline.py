"""Nothing that runs a model from a folder opens a connection, or asks for one.

Processes with an empty home, each watched in all the ways that the system has: in a network namespace without a
configured interface, so that it has to work without; under strace, which sees every socket that is made; and by
Python's own audit, which is everywhere. One is started for itself; the others are forks of one that is watched from its
start, imports included.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zygote import Zygote

COMMANDS = {
    "chat": ("--temperature", "0"),
    "generate": ("--temperature", "0"),
    "bench": ("--prompt", "4", "--generate", "2", "--depth", "0", "--repeat", "1", "--profile", "--memory", "300MB"),
    "eval": ("--tokens", "64", "--needle", "1024"),
    "inspect": (),
    "plan": (),
    "verify": (),
    "doctor": None,
    "config": None,
}
NAMESPACES = (("unshare", "--net"), ("unshare", "--map-root-user", "--net"))
STRACE = ("strace", "-f", "-qq", "-e", "trace=socket,connect", "-o")

# As sitecustomize it is imported before all else. Events: (socket, family, ...) for a new one, names to look up. With
# family -1, the socket is no new one, but made from a descriptor.
AUDIT = """
import sys

def hear(event, arguments):
    if event == "socket.getaddrinfo" or event == "socket.__new__" and arguments[1] not in (-1, 1):
        with open({log!r}, "a") as file:
            print(event, "AF_INET", arguments[1:], file=file)

sys.addaudithook(hear)
"""
# What a watcher must not miss.
ASKS_FOR_ONE = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
CONNECTS = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"


def works(*command):
    return bool(shutil.which(command[0])) and subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def namespace():
    """What runs a command without a network; empty where the system gives no namespace."""
    return next((prefix for prefix in NAMESPACES if works(*prefix, "true")), ())


@pytest.fixture(scope="module")
def strace():
    """What records the sockets of a command in the file named next; empty where there is none that works."""
    return STRACE if works(*STRACE, "/dev/null", "true") else ()


def cold(environment, folder: Path) -> dict[str, str]:
    """The environment of somebody who has just installed this, with the audit that writes into `audit`."""
    (folder / "home").mkdir()
    (folder / "path").mkdir()
    (folder / "path" / "sitecustomize.py").write_text(AUDIT.format(log=str(folder / "audit")))
    bare = {name: value for name, value in environment.items() if not name.startswith(("GPTOSS_", "HF_", "XDG_"))}
    return bare | {"HOME": str(folder / "home"), "PYTHONPATH": str(folder / "path")}


@pytest.fixture(scope="module")
def watched(namespace, strace, environment, tmp_path_factory):
    """A folder with what the watchers write, an environment, and a process that is watched."""
    folder = tmp_path_factory.mktemp("watched")
    variables = cold(environment, folder)
    zygote = Zygote(variables, [*namespace, *recorded(strace, folder)])
    yield folder, variables, zygote
    zygote.close()


def recorded(strace, folder: Path) -> list[str]:
    return [*strace, str(folder / "sockets")] if strace else []


def test_the_namespace_has_no_network(namespace):
    if not namespace:
        pytest.skip("this system gives no network namespace")
    done = subprocess.run([*namespace, sys.executable, "-c", CONNECTS], capture_output=True, text=True)
    assert "unreachable" in done.stderr


def test_strace_sees_a_socket(strace, tmp_path):
    if not strace:
        pytest.skip("there is no strace that works here")
    subprocess.run([*strace, tmp_path / "log", sys.executable, "-c", ASKS_FOR_ONE], check=True)
    assert "AF_INET" in (tmp_path / "log").read_text()


def test_the_audit_sees_a_socket(environment, tmp_path):
    subprocess.run([sys.executable, "-c", ASKS_FOR_ONE], env=cold(environment, tmp_path), check=True)
    assert "AF_INET" in (tmp_path / "audit").read_text()


QUESTION = "What is 12 + 30?\n"


def words(name, folder) -> list[str]:
    options = COMMANDS[name]
    return [name] if options is None else [name, str(folder), *options]


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def check(name, done, folder, strace, since=0):
    assert done.returncode == 0, done.stderr
    assert done.stdout == "12 + 30 = 42\n" if name in ("chat", "generate") else done.stdout
    assert not (folder / "audit").exists()
    if strace:
        assert "AF_INET" not in (folder / "sockets").read_text()[since:]


@pytest.mark.parametrize("name", COMMANDS)
def test_needs_no_network_and_asks_for_none(watched, strace, demo_folder, tmp_path, name):
    folder, variables, zygote = watched
    since = size_of(folder / "sockets")
    (folder / "audit").unlink(missing_ok=True)
    # The starts that `bench` measures are processes of their own.
    line = [*words(name, demo_folder), *(["--no-start"] if name == "bench" else [])]
    done = zygote.run(["-m", "gptoss_mlx", *line], QUESTION, variables | {"HOME": str(tmp_path)}, timeout=100)
    check(name, done, folder, strace, since)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "generate")) for name in COMMANDS]
)
def test_a_process_of_its_own(namespace, strace, command, environment, demo_folder, tmp_path, name):
    line = [*namespace, *recorded(strace, tmp_path), *command, *words(name, demo_folder)]
    variables = cold(environment, tmp_path)
    done = subprocess.run(line, input=QUESTION, env=variables, capture_output=True, text=True, timeout=100)
    check(name, done, tmp_path, strace)
