"""Nothing that runs a model from a folder opens a connection, or asks for one.

Real processes with an empty home, each watched in all the ways that the system has: in a network namespace without a
configured interface, so that it has to work without; under strace, which sees every socket that is made; and by
Python's own audit, which is everywhere.
"""

import shutil
import subprocess
import sys

import pytest

COMMANDS = {
    "chat": ("--temperature", "0"),
    "generate": ("--temperature", "0"),
    "bench": ("--prompt", "4", "--generate", "2", "--depth", "0", "--repeat", "1", "--profile"),
    "eval": ("--tokens", "64", "--needle", "1024"),
    "inspect": (),
    "plan": (),
    "verify": (),
    "doctor": None,
    "config": None,
}
NAMESPACES = (("unshare", "--net"), ("unshare", "--map-root-user", "--net"))
STRACE = ("strace", "-f", "-qq", "-e", "trace=socket,connect", "-o")

# As sitecustomize it is imported before all else. Events: (socket, family, ...) for a new one, names to look up.
AUDIT = """
import sys

def hear(event, arguments):
    if event == "socket.getaddrinfo" or event == "socket.__new__" and arguments[1] != 1:
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


@pytest.fixture
def cold(environment, tmp_path):
    """The environment of somebody who has just installed this, with the audit that writes into `audit`."""
    (tmp_path / "home").mkdir()
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(AUDIT.format(log=str(tmp_path / "audit")))
    bare = {name: value for name, value in environment.items() if not name.startswith(("GPTOSS_", "HF_", "XDG_"))}
    return bare | {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(tmp_path / "path")}


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


def test_the_audit_sees_a_socket(cold, tmp_path):
    subprocess.run([sys.executable, "-c", ASKS_FOR_ONE], env=cold, check=True)
    assert "AF_INET" in (tmp_path / "audit").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_needs_no_network_and_asks_for_none(namespace, strace, command, cold, demo_folder, tmp_path, name):
    recorded = (*strace, str(tmp_path / "sockets")) if strace else ()
    options = COMMANDS[name]
    arguments = () if options is None else (str(demo_folder), *options)
    done = subprocess.run(
        [*namespace, *recorded, *command, name, *arguments],
        input="What is 12 + 30?\n",
        env=cold,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "12 + 30 = 42\n" if name in ("chat", "generate") else done.stdout
    assert not (tmp_path / "audit").exists()
    assert not strace or "AF_INET" not in (tmp_path / "sockets").read_text()
