"""The tool `python`: every way out of its sandbox that we know, and systems that have none."""

import ctypes
import errno
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_mlx.tools import python
from gptoss_mlx.tools.python import PythonTool, PythonUnavailable
from gptoss_mlx.tools.sandbox import keeper, macos, worker
from gptoss_mlx.tools.sandbox import linux as sandbox_of_linux
from tools.sandboxes import linux, tool_of


@pytest.fixture
def home(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret").write_text("the secret")
    monkeypatch.setenv("HOME", str(home))
    return home


def test_home_and_other_files_cannot_be_read(home, tmp_path):
    (tmp_path / "other").write_text("the secret")
    with tool_of() as tool:
        for path in (home / "secret", tmp_path / "other", Path(__file__)):
            assert "Error: " in tool.run("", f"open({str(path)!r}).read()"), path
    with tool_of(unsafe=True) as tool:
        assert tool.run("", f"open({str(home / 'secret')!r}).read()") == "'the secret'"


@linux
def test_an_interpreter_at_home_works_and_shows_nothing_else(tmp_path, monkeypatch):
    """As with pyenv and uv, and as when somebody made a virtual environment right in the home folder."""
    venv = tmp_path / "home"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (venv / "secret").write_text("the secret")
    monkeypatch.setenv("HOME", str(venv))
    monkeypatch.setattr(python.sys, "executable", str(venv / "bin" / "python"))
    with tool_of() as tool:
        shown = tool.run("", f"import os, sys, json, sqlite3\nsys.prefix, sorted(os.listdir({str(venv)!r}))")
    assert shown.startswith(repr(str(venv)).join("(,"))
    assert "secret" not in shown
    assert "'bin', 'lib'" in shown


@linux
def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "abc123")
    with tool_of() as tool:
        names = set(json.loads(tool.run("", "import json, os\nprint(json.dumps(list(os.environ)))")))
        assert names == {*python.ENVIRONMENT, "HOME"}
        found = "import glob\n[p for p in glob.glob('/proc/*/environ') if b'abc123' in open(p, 'rb').read()]"
        assert tool.run("", found) == "[]"


WRITE_EVERYWHERE = """
import os
written = []
for folder, names, _ in os.walk('/'):
    if folder.count('/') > 4 or folder.startswith(('/mnt/data', '/tmp', '/dev/shm', '/proc/')):
        names.clear()
        continue
    try:
        open(os.path.join(folder, 'escaped'), 'x').close()
        written.append(folder)
    except OSError:
        pass
written
"""


@linux
def test_nothing_but_the_folders_in_memory_can_be_written(sandbox):
    assert sandbox.run("", WRITE_EVERYWHERE) == "[]"
    assert sandbox.run("", "import os, sys\nopen(os.__file__, 'a')").endswith("'")
    for folder in ("/mnt/data", "/tmp", "/dev/shm"):
        assert sandbox.run("", f"open('{folder}/mine', 'w').write('12')") == "2"


def test_no_network(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = server.getsockname()
        shown = sandbox.run("", f"import socket\nsocket.create_connection({address}, timeout=5)")
        assert "Error: " in shown.splitlines()[-1]
        with pytest.raises(TimeoutError):
            server.accept()
    assert "gaierror" in sandbox.run("", "socket.getaddrinfo('example.org', 80)")


@linux
def test_no_unix_sockets_of_others(sandbox, tmp_path):
    for address in (f"\0gptoss-mlx-test-{os.getpid()}", str(tmp_path / "agent")):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(address)
            server.listen()
            shown = sandbox.run("", f"import socket\nsocket.socket(socket.AF_UNIX).connect({address!r})")
            assert shown.splitlines()[-1].startswith(("ConnectionRefusedError", "FileNotFoundError"))


CALL = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    failed = getattr(libc, name)(*args) < 0
    return errno.errorcode[ctypes.get_errno()] if failed else "done"
"""
FIND_WRITABLE = """
WRITABLE = set()
for top in '/proc', '/dev':
    for folder, folders, names in os.walk(top):
        if '/task/' in folder: folders.clear()
        if folder == '/dev/shm': names.clear()
        paths = [folder, *(os.path.join(folder, name) for name in names)]
        WRITABLE |= {path for path in paths if not os.path.islink(path) and os.access(path, os.W_OK)}
"""
NUMBERS = {
    name: sandbox_of_linux.number_of(call)
    for name, call in sandbox_of_linux.DENIED.items()
    if platform.machine() in sandbox_of_linux.ARCHITECTURES
}


@linux
@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("call('umount2', b'/proc', 2)", "'EPERM'"),
        ("call('mount', b'none', b'/', None, 32 | 4096, None)", "'EPERM'"),  # read-write again
        ("call('mount', b'/usr', b'/tmp', None, 4096, None)", "'EPERM'"),
        ("call('unshare', 0x10000000)", "'ENOSPC'"),  # a user namespace, and with it capabilities
        ("call('unshare', 0x20000)", "'EPERM'"),
        ("call('chroot', b'/tmp')", "'EPERM'"),
        ("call('setns', os.open('/proc/1/ns/user', os.O_RDONLY), 0)", "'EINVAL'"),  # it is the same one
        ("call('ioctl', os.open('/proc/self/ns/user', os.O_RDONLY), 0xB702)", "'EPERM'"),  # the namespace around it
        ("call('ioctl', os.open('/proc/self/ns/mnt', os.O_RDONLY), 0xB701)", "'EPERM'"),  # the one that owns the mounts
        ("call('setuid', 0)", "'EINVAL'"),
        ("call('prctl', 22, 0, 0, 0, 0)", "'EINVAL'"),  # no filter
        *(
            (f"call('syscall', {number}, 0, 0, 0, 0, 0)", "'EPERM'")
            for number in NUMBERS.values() if number is not None
        ),
        (f"call('syscall', {sandbox_of_linux.NEWEST_CALL + 1}, 0, 0, 0, 0, 0)", "'ENOSYS'"),
        ("call('syscall', 2**31 - 1, 0, 0, 0, 0, 0)", "'ENOSYS'"),
        ("os.memfd_create('memory')", "PermissionError: [Errno 1] Operation not permitted"),
        ("import socket\nsocket.socket(40)", "PermissionError: [Errno 1] Operation not permitted"),  # AF_VSOCK
        ("import socket\nsocket.socket(38, 5)", "PermissionError: [Errno 1] Operation not permitted"),  # AF_ALG
        ("import socket\nsocket.socket(17, 3)", "PermissionError: [Errno 1] Operation not permitted"),  # AF_PACKET
        ("import socket\nsocket.if_nameindex()", "[(1, 'lo')]"),
        ("os.mknod('disk', 0o60666, os.makedev(254, 0))", "PermissionError: [Errno 1] Operation not permitted"),
        ("sorted(os.listdir('/dev'))", "['full', 'null', 'random', 'shm', 'urandom', 'zero']"),
        ("sorted(os.listdir('/proc/1/root')) == sorted(os.listdir('/'))", "True"),
        ("sorted(p for p in os.listdir('/proc') if p.isdigit())", "['1', '2']"),
        ("os.path.exists('/sys'), os.path.exists('/run'), os.path.exists('/var')", "(False, False, False)"),
        ("open('/proc/sys/user/max_user_namespaces', 'w')", "OSError: [Errno 30] Read-only file system: "),
        (f"{FIND_WRITABLE}\nsorted(WRITABLE)",
         "['/dev/full', '/dev/null', '/dev/random', '/dev/shm', '/dev/urandom', '/dev/zero']"),
        ("open('/proc/self/oom_score_adj').read()", "'1000\\n'"),
        *((f"open('/proc/{path}', 'w')", "OSError: [Errno 30] Read-only file system: ")
          for path in ("self/oom_score_adj", "1/oom_score_adj", "thread-self/oom_score_adj", "self/oom_adj",
                       "self/mem", "1/mem", "self/uid_map", "sys/kernel/ns_last_pid")),
        ("os.utime('/dev/null')", "OSError: [Errno 30] Read-only file system"),
        ("os.path.exists('/proc/self/fd/3') and os.readlink('/proc/self/fd/3').startswith('/proc')", "False"),
        ("os.stat('/proc/self').st_uid == os.getuid() > 0", "True"),
        ("open('/dev/tty')", "FileNotFoundError: [Errno 2] No such file or directory: '/dev/tty'"),
        ("os.close(0)\nos.uname().nodename", "'sandbox'"),
        ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "ValueError: not allowed to raise"),
        ("[line for line in open('/proc/self/status') if line.startswith(('CapEff', 'CapBnd', 'NoNewPrivs'))]",
         "['CapEff:\\t0000000000000000\\n', 'CapBnd:\\t0000000000000000\\n', 'NoNewPrivs:\\t1\\n']"),
    ],
)  # fmt: skip
def test_ways_out(sandbox, code, outcome):
    assert sandbox.run("", CALL + code).splitlines()[-1].startswith(outcome)


@linux
def test_no_open_files_of_others():
    with tool_of() as tool:
        shown = tool.run(
            "", "import glob, os\nfor p in glob.glob('/proc/*/fd/*'):\n  if os.path.exists(p): print(os.readlink(p))"
        )
    assert {line.split(":")[0] for line in shown.splitlines()} == {"/dev/null", "pipe"}


@linux
def test_no_signals_to_the_outside(sandbox):
    for pid in (os.getpid(), sandbox._worker._process.pid):
        assert sandbox.run("", f"import os\nos.kill({pid}, 9)").endswith(
            "ProcessLookupError: [Errno 3] No such process"
        )
    assert sandbox.run("", "os.kill(1, 9)\nos.kill(1, 19)\n'alive'") == "'alive'"


MACHINE_CODE = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("{}"))
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""


@linux
@pytest.mark.skipif(platform.machine() != "x86_64", reason="this is machine code of x86-64")
@pytest.mark.parametrize(
    "socket_of_vsock",
    ["b867010000 bb28000000 b901000000 31d2 cd80 c3", "b829000040 bf28000000 be01000000 31d2 0f05 c3"],
    ids=["i386", "x32"],
)
def test_no_calls_by_other_interfaces(sandbox, socket_of_vsock):
    """There, calls have other numbers than those that the filter knows."""
    shown = sandbox.run("", MACHINE_CODE.format(socket_of_vsock))
    assert shown in (str(-errno.EPERM), str(-errno.ENOSYS))


@linux
def test_keys_of_others(sandbox):
    """A key in the keyring of this session would be the sandbox's, too."""
    assert ctypes.CDLL(None).syscall(NUMBERS["add_key"], b"user", b"gptoss-mlx-test", b"secret", 6, -3) > 0
    shown = sandbox.run("", CALL + f"call('syscall', {NUMBERS['request_key']}, b'user', b'gptoss-mlx-test', None, 0)")
    assert shown == "'EPERM'"


# Where there is none


def test_no_sandbox_for_this_system(monkeypatch):
    monkeypatch.setattr(python, "ISOLATION", {})
    with pytest.raises(PythonUnavailable, match=f"there is none for {sys.platform}.*--unsafe-python"):
        PythonTool()


@linux
def test_no_sandbox_where_namespaces_are_forbidden(sandbox):
    """As in the sandbox itself, which has a look at its own source."""
    sources = {path.name: path.read_text() for path in python.SANDBOX.parent.glob("*.py")}
    settings = {"isolation": "namespaces", "memory": 2**30, "home": "/root", "requests": 0, "replies": 1}
    shown = sandbox.run(
        "",
        f"""
import os, subprocess, sys
os.mkdir('again')
for name, source in {sources!r}.items(): open(f'again/{{name}}', 'w').write(source)
words = [sys.executable, '-I', 'again/{python.SANDBOX.name}', {json.dumps(settings)!r}]
done = subprocess.run(words, capture_output=True, text=True)
done.returncode, done.stdout, done.stderr
""",
    )
    assert shown == f"(1, '', 'unshare: {os.strerror(errno.ENOSPC)}\\n')"


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has it")
def test_no_sandbox_without_sandbox_exec(monkeypatch):
    monkeypatch.setattr(python, "ISOLATION", {sys.platform: "seatbelt"})
    with pytest.raises(PythonUnavailable, match=r"\(/usr/bin/sandbox-exec: No such file or directory.*--unsafe-python"):
        PythonTool()


def test_seatbelt_profile():
    readable = (*keeper.interpreter(), keeper.HERE)
    profile = macos.profile('/private/tmp/with "quotes"', "/Users/someone", readable)
    assert f'(subpath "{Path(keeper.HERE).resolve()}")' in profile
    assert '(allow file-read* file-write* (subpath "/private/tmp/with \\"quotes\\""))' in profile
    assert profile.count("(") == profile.count(")")
    assert profile.index("(deny file-read* (subpath ") < profile.index("(allow file-read* file-map-executable ")
    assert f'(literal "{Path(sys.base_prefix).resolve().parent}")' in profile


def test_the_reason_is_told(monkeypatch, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text("import sys; sys.exit('unshare: Operation not permitted')")
    monkeypatch.setattr(python, "SANDBOX", worker)
    with pytest.raises(PythonUnavailable, match=r"\(unshare: Operation not permitted.*--unsafe-python"):
        PythonTool()


def test_a_sandbox_with_a_hole_is_none(monkeypatch):
    """The worker, started as if something around it kept it from files and network."""
    monkeypatch.setattr(python, "ISOLATION", {sys.platform: "inside"})
    with pytest.raises(PythonUnavailable, match=r"can be written|is there|can be reached"):
        PythonTool()


def test_a_sandbox_that_refuses_even_a_socket(monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(worker, "open", refused, raising=False)
    monkeypatch.setattr(socket, "socket", refused)
    assert worker.find_hole() is None
