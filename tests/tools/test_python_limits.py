"""The tool `python`: limits of time, memory, output and files, and how its worker ends."""

import errno
import os
import signal

import pytest

from gptoss_mlx.tools import python
from tools.sandboxes import BROKEN, LOST, ctrl_c_when_it_writes, linux, processes_of, run_by_code, tool_of, vanish


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
    with tool_of(output=1000) as tool:
        tool.run("", "import time\nx = 5")
        tool.seconds = 0.5
        text = tool.run("", "print('working')\ntime.sleep(60)")
        assert text.startswith("working\nTraceback")
        assert text.endswith("KeyboardInterrupt\n(stopped after 0.5 s; variables and imports are kept)")
        text = tool.run("", "while True: print(x)")
        assert text.endswith("are kept)")
        assert len(text) < 1200
        tool.seconds = 60
        assert tool.run("", "x") == "5"


STUBBORN = """
import time
lines = ['try me']
while True:
    try:
        while lines: print(lines.pop())
        time.sleep(60)
    except KeyboardInterrupt: pass
"""


def test_code_that_does_not_stop_is_killed(monkeypatch):
    monkeypatch.setattr(python, "GRACE_SECONDS", 0.2)
    with tool_of(seconds=1) as tool:
        text = tool.run("", STUBBORN)
        assert text == "try me\n(Python was killed after 1 s; variables, imports and files are lost)"
        tool.seconds = 60
        assert tool.run("", "1") == "1"


def test_ctrl_c_stops_the_code_and_keeps_the_state(tool):
    tool.run("", "x = 8")
    with ctrl_c_when_it_writes(), pytest.raises(KeyboardInterrupt):
        tool.run("", "print('begun')\nimport time\ntime.sleep(60)")
    assert tool.run("", "x") == "8"


def test_ctrl_c_on_code_that_does_not_stop(monkeypatch):
    monkeypatch.setattr(python, "GRACE_SECONDS", 0.2)
    with tool_of() as tool:
        with ctrl_c_when_it_writes(), pytest.raises(KeyboardInterrupt):
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


def with_and_without(cases):
    """In the sandbox, and also without it: daily only the first."""
    inside = [("sandbox", *case) for case in cases]
    first, *others = [("unsafe", *case) for case in cases]
    return [*inside, first, *(pytest.param(*each, marks=pytest.mark.slow) for each in others)]


DEATHS = [
    ("print('before')\nimport os\nos._exit(3)", "ended with status 3"),
    ("print('before')\nimport os\nos._exit(255)", "ended with status 255"),
    ("print('before')\nimport ctypes\nctypes.string_at(1)", "was ended by SIGSEGV"),
    ("print('before')\nimport os\nos.kill(os.getpid(), 9)", "was killed, perhaps for want of memory"),
]


@pytest.mark.parametrize(("tool", "code", "how"), with_and_without(DEATHS), indirect=["tool"], scope="module")
def test_a_worker_that_dies(tool, code, how):
    assert tool.run("", code) == f"before\n(Python {how}; variables, imports and files are lost)"
    assert tool.run("", "1 + 1") == "2"


FORGED = """
import os
for descriptor in range(3, 250):
    try: os.write(descriptor, {})
    except OSError: pass
"""


FORGERIES = [("b'garbage'",), ("bytes(10**6)",), ("b'\\x07\\0\\0\\0' * 3",)]


@pytest.mark.parametrize(("tool", "answer"), with_and_without(FORGERIES), indirect=["tool"], scope="module")
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
        tool.seconds = 60
        assert tool.run("", "1") == "1"


@linux
def test_a_worker_that_dies_between_calls(tool):
    tool.run("", "1")
    processes = run_by_code(tool)
    os.kill(min(processes), signal.SIGKILL)
    assert vanish(processes)
    assert tool.run("", "1") == LOST
    assert tool.run("", "1") == "1"
