"""What tests of the tool `python` share: tools that are closed again, and a look at their processes."""

import contextlib
import functools
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from gptoss_mlx.process import Output
from gptoss_mlx.tools.python import SANDBOX, PythonTool, PythonUnavailable

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc, or at what only Linux has")
OURS = str(SANDBOX.parent)  # in each traceback with a frame that is not the code's
BROKEN = "(Python broke the protocol of its notebook; variables, imports and files are lost)"
LOST = "(Python was killed, perhaps for want of memory; variables, imports and files are lost)"


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
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def vanish(processes: dict[int, str]) -> bool:
    return becomes_true(lambda: not still_there(processes))


def run_by_code(tool: PythonTool) -> dict[int, str]:
    """The worker and all that its code has started, without those that watch over it."""
    keeper = tool._worker._process.pid
    found = processes_of(keeper)
    # By their parents: numbers begin anew after the largest.
    watching = {keeper} | ({pid for pid in found if parent_of(pid) == keeper} if tool.isolation != "none" else set())
    return {pid: line for pid, line in found.items() if pid not in watching}


@contextlib.contextmanager
def ctrl_c_when_it_writes():
    """Press Ctrl-C, once, as soon as there is output of the code, which then certainly runs."""
    add, pressed = Output.add, []

    def add_and_press(output: Output, data: bytes) -> None:
        add(output, data)
        if data and not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Output, "add", add_and_press)
        yield


def parent_of(pid: int) -> int | None:
    """None for a process that has ended meanwhile."""
    fields = stat_of(pid)
    return int(fields[1]) if fields else None


def stat_of(pid: int) -> list[str]:
    """State, parent and more; nothing for a process that has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def are_stopped(processes: dict[int, str]) -> bool:
    """Whether those that have not ended meanwhile are stopped."""
    states = {pid: fields[0] for pid in processes if (fields := stat_of(pid))}
    stopped = {pid for pid, state in states.items() if state in "TZ"}
    # A shell that has called vfork waits in D until its child, which is stopped, has called exec.
    waiting = {parent_of(pid) for pid in stopped}
    return bool(stopped) and all(pid in stopped or (state == "D" and pid in waiting) for pid, state in states.items())
