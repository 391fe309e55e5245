"""The tool `python`, with real processes: a notebook, its limits, and every way out of its sandbox that we know."""

import contextlib
import ctypes
import errno
import functools
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gptoss_mlx.harmony.parse import ToolCall
from gptoss_mlx.tools import python, python_sandbox
from gptoss_mlx.tools.python import LOST_BEFORE, PythonTool, PythonUnavailable, code_of
from gptoss_mlx.tools.toolbox import Toolbox

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc, or at what only Linux has")


@functools.cache
def why_no_sandbox() -> str:
    try:
        PythonTool().close()
    except PythonUnavailable as error:
        return str(error)
    return ""


@contextlib.contextmanager
def tool_of(**options):
    if not options.get("unsafe") and why_no_sandbox():
        pytest.skip(why_no_sandbox())
    tool = PythonTool(**options)
    try:
        yield tool
    finally:
        tool.close()


@pytest.fixture(scope="module")
def sandbox():
    with tool_of() as tool:
        yield tool


@pytest.fixture(scope="module", params=["sandbox", "unsafe"])
def tool(request):
    with tool_of(unsafe=request.param == "unsafe") as tool:
        yield tool


def processes_of(pid: int) -> dict[int, str]:
    """Number and command line of `pid` and each process below it, whatever PID namespace that is in."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {each: command_line(each) for each in found}


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def still_there(processes: dict[int, str]) -> dict[int, str]:
    return {pid: line for pid, line in processes.items() if line and command_line(pid) == line}


def becomes_true(condition) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def vanish(processes: dict[int, str]) -> bool:
    return becomes_true(lambda: not still_there(processes))


def run_by_code(tool: PythonTool) -> dict[int, str]:
    """The worker and all that its code has started, without those that watch over it."""
    autosave = tool._worker._process.pid
    found = processes_of(autosave)
    # By their parents: numbers begin anew after the largest.
    watching = {autosave} | (
        {pid for pid in found if parent_of(pid) == autosave} if tool.isolation != "none" else set()
    )
    return {pid: line for pid, line in found.items() if pid not in watching}


def parent_of(pid: int) -> int | None:
    """None for a process that has ended meanwhile."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def are_stopped(processes: dict[int, str]) -> bool:
    states = {pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in processes}
    stopped = {pid for pid, state in states.items() if state in "TZ"}
    # A shell that has called vfork waits in D until its child, which is stopped, has called exec.
    waiting = {parent_of(pid) for pid in stopped}
    return all(pid in stopped or (state == "D" and pid in waiting) for pid, state in states.items())


# A notebook


def test_state_persists(tool):
    assert tool.run("", "import math\ndef area(r): return math.pi * r**2") == "(no output)"
    assert tool.run("", "area(2)") == "12.566370614359172"


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("1 + 1", "2"),
        ("'a\\nb'", "'a\\nb'"),
        ("x = 3", "(no output)"),
        ("None", "(no output)"),
        ("x = 3; x", "3"),
        ("for i in range(2): print(i)", "0\n1"),
        ("print('é', end=''); '∑'", "é'∑'"),
        ("import sys\nprint(1); print(2, file=sys.stderr); print(3)", "1\n2\n3"),
        ("import ctypes\nc = ctypes.CDLL(None)\nc.puts(b'from C'); c.fflush(None); None", "from C"),
        ("import os\n_ = os.write(1, b'\\xff')", "�"),
        ("'\\ud800'[0:1]; print('\\ud800')", "\\ud800"),
        ("input()", "EOFError: EOF when reading a line"),
        ("1\x00", "source code string cannot contain null bytes"),
        ("\ud800", "UnicodeEncodeError"),
        ("", "(no output)"),
    ],
)
def test_shows_what_a_notebook_shows(sandbox, code, shown):
    text = sandbox.run("", code)
    assert text.endswith(shown) or shown in text.splitlines()[-1]
    assert "python_sandbox" not in text


@linux
def test_children_of_the_code(sandbox):
    assert sandbox.run("", "import subprocess\n_ = subprocess.run(['echo', 'from a child'])") == "from a child"
    assert sandbox.run("", "import os\npid = os.fork()\nif pid: _ = os.wait()") == "(no output)"
    assert sandbox.run("", "os.getpid(), pid != 0")[-5:] == "True)"


def test_a_standard_output_that_is_closed():
    with tool_of() as tool:
        assert tool.run("", "import sys\nsys.stdout.close()\n5") == "5"


def test_tracebacks_have_the_code_and_no_frames_of_ours(tool):
    tool.run("", "def broken(x):\n    return 1 / x")
    text = tool.run("", "a = 1\nbroken(a - 1)")
    assert text.startswith("Traceback (most recent call last):\n")
    assert "    broken(a - 1)\n" in text
    assert "    return 1 / x\n" in text
    assert text.endswith("ZeroDivisionError: division by zero")
    assert "python_sandbox" not in text
    assert tool.run("", "a") == "1"


@pytest.mark.parametrize(
    ("code", "last"),
    [
        ("1 +", "SyntaxError: invalid syntax"),
        ("exit(3)", "SystemExit: 3"),
        ("class E(Exception):\n  def __str__(self): raise self\nraise E", "E: <exception str() failed>"),
        ("class R:\n  def __repr__(self): return 5\nR()", "TypeError: __repr__ returned non-string (type int)"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_errors_are_results(tool, code, last):
    text = tool.run("", code)
    assert text.splitlines()[-1].startswith(last)
    assert "python_sandbox" not in text
    assert tool.run("", "'alive'") == "'alive'"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("1 + 1", "1 + 1"),
        ('{"code": "1 + 1"}', "1 + 1"),
        ('{"code": "```python\\n1\\n```"}', "1"),
        ("```python\nx = 1\nx\n```", "x = 1\nx"),
        ("\n```\n1\n```\n", "1"),
        ('{"name": "value"}', '{"name": "value"}'),
        ('{"code": 1}', '{"code": 1}'),
        ("[" * 100_000, "[" * 100_000),
        ("'''\n```\n'''", "'''\n```\n'''"),
    ],
)
def test_wrapped_code(text, code):
    assert code_of(text) == code


def test_long_code(sandbox):
    assert sandbox.run("", "x = '" + "y" * 2**21 + "'\nlen(x)") == str(2**21)


@linux
def test_modules_and_multiprocessing(sandbox):
    assert sandbox.run("", "open('mine.py', 'w').write('value = 7')\nimport mine\nmine.value") == "7"
    sandbox.run("", "import multiprocessing\ndef double(x): return 2 * x")
    assert sandbox.run("", "with multiprocessing.Pool(2) as pool: r = pool.map(double, [1, 2])\nr") == "[2, 4]"


ORDINARY = """
import concurrent.futures, ctypes, multiprocessing, os, subprocess, tempfile, threading
from multiprocessing import shared_memory
def put(queue, lock):
    with lock: queue.put(os.getpid())
def ordinary(method):
    context = multiprocessing.get_context(method)
    queue, lock = context.Queue(), context.Lock()
    child = context.Process(target=put, args=(queue, lock))
    child.start()
    answer = queue.get()
    child.join()
    return answer == child.pid
"""


@linux
@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("ordinary('fork')", "True"),
        ("open('mine.py', 'w').write(SOURCE)\nimport mine\nmine.ordinary('spawn')", "True"),
        ("mine.ordinary('forkserver')", "True"),
        ("block = shared_memory.SharedMemory(create=True, size=100)\nblock.buf[0] = 7\nblock.unlink()\n"
         "block.buf[0]", "7"),
        ("with concurrent.futures.ThreadPoolExecutor(4) as pool: r = list(pool.map(abs, [-1, 2]))\nr", "[1, 2]"),
        ("ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda n: n + 1)(1)", "2"),
        ("with tempfile.NamedTemporaryFile() as f: n = f.write(b'abc')\nn", "3"),
        ("subprocess.run('echo a | tr a b', shell=True, capture_output=True, text=True).stdout", "'b\\n'"),
        ("import asyncio\nasync def f(): return (await (await asyncio.create_subprocess_exec('true')).wait())\n"
         "asyncio.run(f())", "0"),
        ("import signal, time\nsignal.signal(signal.SIGALRM, lambda *_: print('rang'))\n"
         "signal.setitimer(signal.ITIMER_REAL, 0.01)\nsignal.pause()", "rang"),
        ("import sqlite3\nsqlite3.connect('a.db').execute('select 1 + 1').fetchone()", "(2,)"),
        ("import numpy\nfloat((numpy.ones((50, 50)) @ numpy.ones((50, 50))).sum())", "125000.0"),
    ],
)  # fmt: skip
def test_what_ordinary_code_needs(ordinary, code, shown):
    assert ordinary.run("", code).splitlines()[-1] == shown


@pytest.fixture(scope="module")
def ordinary():
    with tool_of() as tool:
        assert tool.run("", f"SOURCE = {ORDINARY!r}\nexec(SOURCE)") == "(no output)"
        yield tool


# Limits


def test_output_is_cut_in_the_middle():
    with tool_of(output=1000) as tool:
        text = tool.run("", "print('begin' + 'x' * 10**6 + 'end')")
        assert text.startswith("beginxxx")
        assert text.endswith("xxxend")
        assert "\n... (999,008 characters left out) ...\n" in text
        assert len(text) < 1100
        assert len(tool.run("", "'é' * 1100")) < 1100
        assert tool.run("", "'é' * 998") == repr("é" * 998)


def test_time_is_limited_and_an_interrupt_keeps_the_state():
    with tool_of(seconds=0.3, output=1000) as tool:
        tool.run("", "x = 5")
        text = tool.run("", "print('working')\nimport time\ntime.sleep(60)")
        assert text.startswith("working\nTraceback")
        assert text.endswith("KeyboardInterrupt\n(stopped after 0.3 s; variables and imports are kept)")
        text = tool.run("", "while True: print(x)")
        assert text.endswith("are kept)")
        assert len(text) < 1200
        assert tool.run("", "x") == "5"


STUBBORN = """
print('try me', flush=True)
import time
while True:
    try: time.sleep(60)
    except KeyboardInterrupt: pass
"""


def test_code_that_does_not_stop_is_killed(monkeypatch):
    monkeypatch.setattr(python, "GRACE_SECONDS", 0.2)
    with tool_of(seconds=0.2) as tool:
        text = tool.run("", STUBBORN)
        assert text == "try me\n(Python was killed after 0.2 s; variables, imports and files are lost)"
        assert tool.run("", "1") == "1"


def test_ctrl_c_stops_the_code_and_keeps_the_state(tool):
    tool.run("", "x = 8")
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        tool.run("", "import time\ntime.sleep(60)")
    assert tool.run("", "x") == "8"


def test_ctrl_c_on_code_that_does_not_stop(monkeypatch):
    monkeypatch.setattr(python, "GRACE_SECONDS", 0.2)
    with tool_of() as tool:
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            tool.run("", STUBBORN)
        lost = "(Python was restarted before this call: earlier variables, imports and files are lost)"
        assert tool.run("", "1") == f"{lost}\n1"
        assert tool.run("", "1") == "1"


@pytest.mark.parametrize("unsafe", [False, True])
@linux
def test_memory_is_limited(unsafe):
    with tool_of(unsafe=unsafe, memory=2**29) as tool:
        assert tool.run("", "x = 1\nbytearray(2**29)").endswith("\nMemoryError")
        assert tool.run("", "x") == "1"


FORK_BOMB = """
import os, time
children = []
try:
    while True:
        if not (child := os.fork()): time.sleep(60)
        children.append(child)
except OSError as error:
    print(error.strerror)
len(children)
"""


@linux
def test_fork_bomb():
    with tool_of() as tool:
        failure, children = tool.run("", FORK_BOMB).splitlines()
        assert failure == os.strerror(errno.EAGAIN)
        assert 10 < int(children) < 64
        assert tool.run("", "1 + 1") == "2"
        below = processes_of(tool._worker._process.pid)
        assert len(below) > int(children)
    assert vanish(below)


@linux
def test_files_are_limited(sandbox):
    assert "OSError: [Errno 27]" in sandbox.run("", "f = open('one', 'wb')\nf.truncate(2**30)")
    code = "import os\nfiles = [open(name, 'wb') for name in ('two', 'three')]\n"
    code += "for file in files: os.posix_fallocate(file.fileno(), 0, 2**28 + 1)"
    assert "OSError: [Errno 28]" in sandbox.run("", code)
    assert sandbox.run("", "for name in 'one', 'two', 'three': os.remove(name)") == "(no output)"


# Ends


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("print('before')\nimport os\nos._exit(3)", "ended with status 3"),
        ("print('before')\nimport os\nos._exit(255)", "ended with status 255"),
        ("print('before')\nimport ctypes\nctypes.string_at(1)", "was ended by SIGSEGV"),
        ("print('before')\nimport os\nos.kill(os.getpid(), 9)", "was killed, perhaps for want of memory"),
    ],
)
def test_a_worker_that_dies(tool, code, how):
    assert tool.run("", code) == f"before\n(Python {how}; variables, imports and files are lost)"
    assert tool.run("", "1 + 1") == "2"


FORGED = """
import os
for descriptor in range(3, 250):
    try: os.write(descriptor, {})
    except OSError: pass
"""
BROKEN = "(Python broke the protocol of its notebook; variables, imports and files are lost)"


@pytest.mark.parametrize("answer", ["b'garbage'", "bytes(10**6)", "b'\\x07\\0\\0\\0' * 3"])
def test_forged_answers(tool, answer):
    assert tool.run("", FORGED.format(answer)).endswith(BROKEN)
    assert tool.run("", "'back'") == "'back'"
    # With the right number, there is an answer too many, in this call or the next.
    assert BROKEN in tool.run("", FORGED.format("b'\\x02\\0\\0\\0'")) + tool.run("", "1")
    assert tool.run("", "'back'") == "'back'"


def test_a_worker_that_reads_nothing():
    thief = "import threading, os\n"
    thief += "def steal():\n  for n in range(3, 250):\n    try: os.close(n)\n    except OSError: pass\nsteal()"
    with tool_of(seconds=1) as tool:
        assert "are lost)" in tool.run("", thief)
        assert tool.run("", "1") == "1"


@linux
def test_a_worker_that_dies_between_calls(tool):
    tool.run("", "1")
    processes = run_by_code(tool)
    os.kill(min(processes), signal.SIGKILL)
    assert vanish(processes)
    how = "was killed, perhaps for want of memory"
    assert tool.run("", "1") == f"(Python {how}; variables, imports and files are lost)"
    assert tool.run("", "1") == "1"


# Between two calls


COUNT = """
import os, subprocess, sys, threading, time
def count(name):
    for number in range(10**9):
        open(name + '.new', 'w').write(str(number))
        os.replace(name + '.new', name)
def below(*steps):
    if child := os.fork(): return 'fork' in steps and os.waitpid(child, 0)
    for step in steps:
        if step == 'setsid': os.setsid()
        elif os.fork(): os._exit(0)
    try: count('counter')
    finally: os._exit(0)
def progress():
    while not os.path.exists('counter'): time.sleep(0.01)
    return open('counter').read()
"""
BACKGROUND = {
    "thread": "threading.Thread(target=count, args=['counter'], daemon=True).start()",
    "child": "below()",
    "orphan": "below('fork')",
    "session": "below('setsid')",
    "daemon": "below('setsid', 'fork')",
    "program": "p = subprocess.Popen(['sh', '-c', 'while :; do echo $((n += 1)) > new; mv new counter; done'])",
    "daemon program": "p = subprocess.Popen(['setsid', '-f', 'sh', '-c',"
    " 'while :; do echo $((n += 1)) > new; mv new counter; done'])",
}


@linux
@pytest.mark.parametrize("unsafe", [False, True])
@pytest.mark.parametrize("background", BACKGROUND.values(), ids=list(BACKGROUND))
def test_what_a_call_leaves_behind_stands_still_until_the_next(background, unsafe):
    with tool_of(unsafe=unsafe) as tool:
        tool.run("", COUNT)
        before = tool.run("", f"{background}\nprogress()")
        processes = run_by_code(tool)
        assert len(processes) > ("threading" not in background)
        assert becomes_true(lambda: are_stopped(processes))
        assert tool.run("", f"while progress() == {before}: pass\n'went on'") == "'went on'"
        everything = processes_of(tool._worker._process.pid)
    assert vanish(everything)


@linux
def test_what_has_been_interrupted_stands_still():
    with tool_of(seconds=1) as tool:
        assert "are kept)" in tool.run("", f"{COUNT}\nbelow('setsid')\ntime.sleep(60)")
        processes = run_by_code(tool)
        assert len(processes) == 2
        assert becomes_true(lambda: are_stopped(processes))
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            tool.run("", "time.sleep(60)")
        assert becomes_true(lambda: are_stopped(processes))


@linux
@pytest.mark.parametrize("unsafe", [False, True])
@pytest.mark.parametrize(
    "stop",
    [
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "os.kill(os.getpid(), signal.SIGTSTP)",
        "for _ in range(100): os.kill(os.getpid(), signal.SIGSTOP)",
        "t = threading.Thread(target=os.kill, args=[os.getpid(), signal.SIGSTOP])\nt.start()\nt.join()",
        "c = subprocess.Popen(['sh', '-c', 'kill -STOP $$'])\n_ = os.waitid(os.P_PID, c.pid, os.WSTOPPED)",
        "c = subprocess.Popen(['sleep', '60'])\nos.kill(c.pid, signal.SIGSTOP)",
    ],
)
def test_a_stop_holds_nobody_up(stop, unsafe):
    with tool_of(unsafe=unsafe) as tool:
        assert tool.run("", f"import os, signal, subprocess, threading\n{stop}\n'on'") == "'on'"
        assert tool.run("", "'on'") == "'on'"


@linux
def test_orders_that_the_code_gives_itself():
    """It can signal the first process of the sandbox, and with that only harm itself."""
    with tool_of() as tool:
        assert tool.run("", "import os, signal\nos.kill(1, signal.SIGUSR2)\nos.kill(1, signal.SIGCHLD)\n'on'") == "'on'"
        assert tool.run("", "import time\nos.kill(1, signal.SIGINT)\ntime.sleep(60)").endswith("KeyboardInterrupt")
        assert tool.run("", "os.kill(1, signal.SIGUSR1)\ntime.sleep(60)").endswith(BROKEN)
        assert tool.run("", "1") == "1"


@linux
def test_traced_by_its_parent_it_is_no_traceback(monkeypatch):
    """Then a stop is reported to the keeper as if it had asked for it; the sandbox allows no tracing."""
    monkeypatch.setattr(python, "GRACE_SECONDS", 0.2)
    with tool_of(unsafe=True, seconds=1) as tool:
        text = tool.run("", "import ctypes, os\nctypes.CDLL(None).ptrace(0, 0, 0, 0)\nos.kill(os.getpid(), 19)")
        assert text == "(Python was killed after 1 s; variables, imports and files are lost)"
        assert tool.run("", "1") == "1"


@linux
def test_a_close_is_told_to_a_model_that_has_run_something():
    with tool_of(unsafe=True) as tool:
        tool.close()
        assert tool.run("", "a = 1\na") == "1"
        tool.close()
        tool.close()
        assert tool.run("", "'a' in globals()") == f"{LOST_BEFORE}\nFalse"
        assert tool.run("", "1") == "1"
        assert "variables, imports and files are lost" in tool.run("", "import os\nos._exit(3)")
        tool.close()
        assert tool.run("", "1") == "1"


def test_the_code_that_runs_is_what_a_person_is_asked_about():
    with tool_of(unsafe=True) as tool:
        toolbox = Toolbox(builtins=[tool])
        for text in ("1 + 1", "```python\n1 + 1\n```", json.dumps({"code": "1 + 1"})):
            assert toolbox.preview(ToolCall("python", text)) == "1 + 1"


@pytest.mark.parametrize("unsafe", [False, True])
def test_close_leaves_nothing(unsafe):
    with tool_of(unsafe=unsafe) as tool:
        tool.run("", "import subprocess\nchild = subprocess.Popen(['sleep', '1000'])\nopen('file', 'w').close()")
        folder = tool.run("", "import os\nprint(os.getcwd())")
        below = processes_of(tool._worker._process.pid)
        assert any("sleep" in line for line in below.values())
    assert vanish(below)
    assert not Path(folder, "file").exists()


def test_close_deletes_folders_in_folders():
    with tool_of(unsafe=True) as tool:
        code = "import os\nprint(os.getcwd())\nfor _ in range(1100):\n  os.mkdir('d')\n  os.chdir('d')"
        folder = tool.run("", code)
        assert Path(folder).exists()
    assert becomes_true(lambda: not Path(folder).exists())


HOLD_ALL_PIPES = """
import glob, os
held = []
for path in glob.glob('/proc/[0-9]*/fd/*'):
    try: held.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError: pass
print(len(held) > 0)
"""


@linux
def test_code_cannot_keep_the_keeper_from_its_end():
    with tool_of() as tool:
        assert tool.run("", HOLD_ALL_PIPES) == "True"
        below = processes_of(tool._worker._process.pid)
        started = time.monotonic()
        tool.close()
        assert time.monotonic() - started < python.END_SECONDS
    assert vanish(below)


@linux
def test_the_death_of_the_keeper_leaves_nothing():
    with tool_of() as tool:
        below = processes_of(tool._worker._process.pid)
        assert len(below) == 3
        assert not any(os.getsid(pid) == os.getsid(0) for pid in below)  # Ctrl-C in a terminal does not reach them
        tool._worker._process.kill()
        assert vanish(below)
        assert (
            tool.run("", "1")
            == "(Python was killed, perhaps for want of memory; variables, imports and files are lost)"
        )
        assert tool.run("", "1") == "1"


@linux
@pytest.mark.parametrize("then", ['tool.run("", "while True: pass")', "input()"], ids=["in a call", "between two"])
@pytest.mark.parametrize("unsafe", [False, True])
def test_the_death_of_the_parent_leaves_nothing(unsafe, then):
    with tool_of(unsafe=unsafe):
        pass
    script = f"""
from gptoss_mlx.tools.python import PythonTool
tool = PythonTool(unsafe={unsafe})
print(tool.run("", "import os, subprocess; c = subprocess.Popen(['setsid', 'sleep', '1000']); print(os.getcwd())"))
print(flush=True)
{then}
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], **pipes, text=True) as parent:
        folder = parent.stdout.readline().strip()
        below = processes_of(parent.pid)
        assert any("sleep" in line for line in below.values())
        parent.kill()
    assert vanish(below)
    assert folder.startswith("/tmp/" if unsafe else "/mnt/data")
    assert becomes_true(lambda: not unsafe or not Path(folder).exists())


# The sandbox


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
    for address in ("\0gptoss-mlx-test", str(tmp_path / "agent")):
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
    name: python_sandbox.number_of(call)
    for name, call in python_sandbox.DENIED.items()
    if platform.machine() in python_sandbox.ARCHITECTURES
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
        (f"call('syscall', {python_sandbox.NEWEST_CALL + 1}, 0, 0, 0, 0, 0)", "'ENOSYS'"),
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
    settings = {"isolation": "namespaces", "memory": 2**30, "home": "/root", "requests": 0, "replies": 1}
    shown = sandbox.run(
        "",
        f"""
open('again.py', 'w').write({Path(python_sandbox.__file__).read_text()!r})
import subprocess, sys
done = subprocess.run([sys.executable, '-I', 'again.py', {json.dumps(settings)!r}], capture_output=True, text=True)
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
    profile = python_sandbox.seatbelt('/private/tmp/with "quotes"', "/Users/someone")
    assert '(allow file-read* file-write* (subpath "/private/tmp/with \\"quotes\\""))' in profile
    assert profile.count("(") == profile.count(")")
    assert profile.index("(deny file-read* (subpath ") < profile.index("(allow file-read* file-map-executable ")
    assert f'(literal "{Path(sys.base_prefix).resolve().parent}")' in profile


def test_the_reason_is_told(monkeypatch, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text("import sys; sys.exit('unshare: Operation not permitted')")
    monkeypatch.setattr(python, "WORKER", worker)
    with pytest.raises(PythonUnavailable, match=r"\(unshare: Operation not permitted.*--unsafe-python"):
        PythonTool()


def test_a_sandbox_with_a_hole_is_none(monkeypatch):
    """The worker, started as if something around it kept it from files and network."""
    monkeypatch.setattr(python, "ISOLATION", {sys.platform: "inside"})
    with pytest.raises(PythonUnavailable, match=r"can be written|is there|can be reached"):
        PythonTool()
