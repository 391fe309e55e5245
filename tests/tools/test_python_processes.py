"""The tool `python`: what its code starts stands still between two calls, and ends with the tool."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_mlx.harmony.parse import ToolCall
from gptoss_mlx.tools import python
from gptoss_mlx.tools.python import LOST_BEFORE
from gptoss_mlx.tools.toolbox import Toolbox
from tools.sandboxes import (
    BROKEN,
    LOST,
    are_stopped,
    becomes_true,
    ctrl_c_when_it_writes,
    linux,
    processes_of,
    run_by_code,
    tool_of,
    vanish,
)

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


def with_and_without(names, daily):
    """Each with the sandbox, False, and without it, True: daily only some."""
    without = [pytest.param(name, True, marks=[] if name in daily else pytest.mark.slow) for name in names]
    return [*((name, False) for name in names), *without]


@linux
@pytest.mark.parametrize(("background", "unsafe"), with_and_without(BACKGROUND, ["thread", "daemon program"]))
def test_what_a_call_leaves_behind_stands_still_until_the_next(background, unsafe):
    with tool_of(unsafe=unsafe) as tool:
        tool.run("", COUNT)
        before = tool.run("", f"{BACKGROUND[background]}\nprogress()")
        processes = run_by_code(tool)
        assert len(processes) > (background != "thread")
        assert becomes_true(lambda: are_stopped(processes))
        assert tool.run("", f"while progress() == {before}: pass\n'went on'") == "'went on'"
        everything = processes_of(tool._worker._process.pid)
    assert vanish(everything)


@linux
def test_what_has_been_interrupted_stands_still():
    with tool_of() as tool:
        tool.run("", COUNT)
        tool.seconds = 1
        assert "are kept)" in tool.run("", "below('setsid')\ntime.sleep(60)")
        processes = run_by_code(tool)
        assert len(processes) == 2
        assert becomes_true(lambda: are_stopped(processes))
        tool.seconds = 60
        with ctrl_c_when_it_writes(), pytest.raises(KeyboardInterrupt):
            tool.run("", "print('begun')\ntime.sleep(60)")
        assert becomes_true(lambda: are_stopped(processes))


STOPS = [
    "os.kill(os.getpid(), signal.SIGSTOP)",
    "os.kill(os.getpid(), signal.SIGTSTP)",
    "for _ in range(100): os.kill(os.getpid(), signal.SIGSTOP)",
    "t = threading.Thread(target=os.kill, args=[os.getpid(), signal.SIGSTOP])\nt.start()\nt.join()",
    "c = subprocess.Popen(['sh', '-c', 'kill -STOP $$'])\n_ = os.waitid(os.P_PID, c.pid, os.WSTOPPED)",
    "c = subprocess.Popen(['sleep', '60'])\nos.kill(c.pid, signal.SIGSTOP)",
]


@linux
@pytest.mark.parametrize(("stop", "unsafe"), with_and_without(STOPS, [STOPS[0], STOPS[-1]]))
def test_a_stop_holds_nobody_up(stop, unsafe):
    with tool_of(unsafe=unsafe) as tool:
        assert tool.run("", f"import os, signal, subprocess, threading\n{stop}\n'on'") == "'on'"
        assert tool.run("", "'on'") == "'on'"


@linux
def test_orders_that_the_code_gives_itself():
    """It can signal the first process of the sandbox, and with that only harm itself."""
    with tool_of() as tool:
        assert tool.run("", "import os, signal\nos.kill(1, signal.SIGUSR2)\nos.kill(1, signal.SIGCHLD)\n'on'") == "'on'"
        # Short sleeps: Python would sleep to the end of one that a signal just precedes.
        interrupted = tool.run("", "import time\nos.kill(1, signal.SIGINT)\nwhile True: time.sleep(0.01)")
        assert interrupted.endswith("KeyboardInterrupt")
        assert tool.run("", "os.kill(1, signal.SIGUSR1)\ntime.sleep(60)").endswith(BROKEN)
        assert tool.run("", "1") == "1"


@linux
def test_traced_by_its_parent_it_is_no_traceback(monkeypatch):
    """Then a stop is reported to the keeper as if it had asked for it; the sandbox allows no tracing."""
    monkeypatch.setattr(python, "GRACE_SECONDS", 0.2)
    with tool_of(unsafe=True) as tool:
        tool.run("", "import ctypes, os")
        tool.seconds = 1
        text = tool.run("", "ctypes.CDLL(None).ptrace(0, 0, 0, 0)\nos.kill(os.getpid(), 19)")
        assert text == "(Python was killed after 1 s; variables, imports and files are lost)"
        tool.seconds = 60
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
        keeper = tool._worker._process
        below = processes_of(keeper.pid)
        tool.close()
        assert keeper.returncode >= 0  # it has ended by itself, and was not killed after END_SECONDS
    assert vanish(below)


@linux
def test_the_death_of_the_keeper_leaves_nothing():
    with tool_of() as tool:
        below = processes_of(tool._worker._process.pid)
        assert len(below) == 3
        assert not any(os.getsid(pid) == os.getsid(0) for pid in below)  # Ctrl-C in a terminal does not reach them
        tool._worker._process.kill()
        assert vanish(below)
        assert tool.run("", "1") == LOST
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
