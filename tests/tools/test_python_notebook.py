"""The tool `python` as a notebook, with real processes: what the model is shown, and what ordinary code needs."""

import pytest

from gptoss_mlx.tools.python import code_of
from tools.sandboxes import OURS, linux, tool_of


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
    assert OURS not in text


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
    assert OURS not in text
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
    assert OURS not in text
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
