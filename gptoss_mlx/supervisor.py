"""The parent of one program: when the program ends, or has to, all that it has started ends too.

`process` starts it: `python -I -S supervisor.py DESCRIPTOR WORDS...`, with the standard library alone. If WORDS cannot
be run, it writes the number of the error to the descriptor; otherwise it ends as the program does. It passes SIGINT on
to the program's process group; SIGTERM ends everything.

On Linux it becomes the parent of all orphans below it, so that no process escapes, not even by `setsid`. macOS has no
such call: there it reaches the program's process group.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress

PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


def main() -> None:
    failure, words = int(sys.argv[1]), sys.argv[2:]
    os.set_inheritable(failure, False)
    program = None
    # A handler and not SIG_IGN, which the program would inherit.
    signal.signal(signal.SIGINT, lambda *_: program and signal_group(program, signal.SIGINT))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    process_control(PR_SET_CHILD_SUBREAPER, 1)
    try:
        program = os.posix_spawnp(words[0], words, os.environ, setpgroup=0, setsigdef=IGNORED_BY_PYTHON)
        for stream in (0, 1, 2, failure):  # so that the pipes end when the program closes them
            os.close(stream)
        status = outcome(program)
    except OSError as error:
        os.write(failure, str(error.errno).encode())
        return
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if program:
            signal_group(program, signal.SIGKILL)
        end_children()
    end_as(status)


def process_control(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def outcome(program: int) -> int:
    """The wait status with which the program ends; one that is traced by its parent also reports its stops."""
    while True:
        ended, status = os.wait()
        if ended == program and not os.WIFSTOPPED(status):
            return status


def signal_group(leader: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody is left; macOS reports zombies by the latter
        os.killpg(leader, number)


def end_children() -> None:
    """Kill all children; theirs become ours, and are killed next."""
    with suppress(ChildProcessError):
        while True:
            for child in children():
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(child, signal.SIGKILL)
            os.wait()


def children() -> list[int]:
    if sys.platform != "linux":
        return []
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                found.append(int(name))
    return found


def end_as(status: int) -> None:
    """End with the exit status or by the signal of another process."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        process_control(PR_SET_DUMPABLE, 0)  # a core dump of this process would help nobody
        with suppress(OSError):  # SIGKILL has no other
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
