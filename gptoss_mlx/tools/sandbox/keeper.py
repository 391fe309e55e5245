"""The processes of the sandbox: who starts, stops and ends whom.

- The keeper starts the others and outlives them. Its standard input is the parent's life: a byte there is an order,
  the end of it (a close, or the parent's death) ends everything. Whatever the model's code does, it cannot reach the
  keeper.
- `init` (on Linux) builds the sandbox around itself and is the first process of a PID namespace: when it ends, the
  kernel kills all that is left in there.
- The worker runs code, one request after another. Between two calls it is stopped, with all threads and processes that
  the code has started: they go on with the next call.

Memory is limited for each process and each folder in memory, not for all of them together: where it ends, the kernel
kills these processes before any other. macOS enforces no limit of memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable

from . import linux, macos
from .protocol import REPLY, STOPPED, Settings
from .worker import work

LIMITS = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_FSIZE: linux.FOLDER_BYTES,
    resource.RLIMIT_NOFILE: 256,
}
PROCESSES = 64  # threads count, too
HERE = os.path.dirname(__file__)
PARTS_OF_PREFIX = ("bin", "lib", "lib64", "pyvenv.cfg", "Python", "Resources")  # all of it could be a home folder


def keep(settings: Settings) -> None:
    """Start the sandbox that `settings` ask for, and wait until it or standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if settings.isolation == "namespaces":
        linux.enter_pid_namespace()
        child = Child(fork(lambda: init(settings)))
        for end in (settings.requests, settings.replies):
            os.close(end)
        sys.exit(shell_status(outcome(child)))
    import tempfile  # here, because it is slow to import

    folder = tempfile.mkdtemp(prefix="gptoss-mlx-python-")
    if sys.platform == "linux":
        linux.adopt_orphans()
    process = fork(lambda: start_in(folder, settings))
    os.close(settings.requests)
    signal_all = signal_below if sys.platform == "linux" else lambda number: os.killpg(process, number)
    status = outcome(Worker(process, settings.replies, signal_all))
    with contextlib.suppress(ProcessLookupError, PermissionError):
        signal_all(signal.SIGKILL)
    os.spawnlp(os.P_WAIT, "rm", "rm", "-rf", "--", folder)  # shutil's calls itself for each level of folders
    sys.exit(shell_status(status))


class Child:
    """A process, for the one that waits for it."""

    def __init__(self, number: int):
        self.number, self._rests = number, False

    def obey(self, order: int) -> None:
        os.kill(self.number, order)

    def status(self) -> int | None:
        """The wait status once it has ended. Other processes are orphans, whose entries are removed here.

        A child that has stopped itself is continued: nothing else would do it.
        """
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG | os.WUNTRACED))[0]:
                if ended[0] == self.number and not os.WIFSTOPPED(ended[1]):
                    return ended[1]
                if ended[0] == self.number and not self._rests:
                    os.kill(self.number, signal.SIGCONT)
        return None


class Worker(Child):
    """The worker, with all that it has started; `signal_all` reaches all of them."""

    def __init__(self, number: int, replies: int, signal_all: Callable[[int], None]):
        super().__init__(number)
        self._replies, self._signal_all = replies, signal_all

    def obey(self, order: int) -> None:
        if order == signal.SIGINT:
            super().obey(order)
            return
        self._rests = order == signal.SIGUSR1
        with contextlib.suppress(OSError):  # no process is left, or the parent has closed the pipe
            self._signal_all(signal.SIGSTOP if self._rests else signal.SIGCONT)
            if self._rests:
                os.write(self._replies, REPLY.pack(STOPPED))


def signal_below(number: int) -> None:
    """Signal all processes below this one, also those that are started meanwhile."""
    signalled: set[int] = set()
    while new := below(os.getpid()) - signalled:
        for process in new:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, number)
        signalled |= new


def below(process: int) -> set[int]:
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {process}


def outcome(child: Child) -> int:
    """The wait status of a child, which the end of standard input kills; a byte there is an order to it."""
    # Not a thread that waits: after `unshare` of the PID namespace there can be none.
    ended, signalled = os.pipe()
    os.set_blocking(signalled, False)
    signal.set_wakeup_fd(signalled)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while (status := child.status()) is None:
        ready, _, _ = select.select([0, ended], [], [])
        if ended in ready:
            os.read(ended, 1)
        if 0 in ready:
            if order := os.read(0, 1):
                child.obey(order[0])
            else:
                os.kill(child.number, signal.SIGKILL)
                return os.waitpid(child.number, 0)[1]
    return status


def fork(become: Callable[[], None]) -> int:
    """The number of a new process that does what `become` does, and ends."""
    if child := os.fork():
        return child
    status = 1
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # A process that could open the keeper's standard input could hold it open, and the keeper would not end.
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        become()
        status = 0
    except OSError as error:
        print(error_text(error), flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def error_text(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)


def shell_status(status: int) -> int:
    """What a shell makes of a wait status: the exit status, or 128 and the signal."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def init(settings: Settings) -> None:
    """Become the first process of the sandbox, and start its worker."""
    os.setsid()
    linux.isolate(settings.home, interpreter())
    limit(settings.memory)
    resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))  # counted in this user namespace
    linux.filter_system_calls()
    watched = {signal.SIGCHLD, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)  # where they are blocked, they wait: also for the first process
    worker = Worker(fork(lambda: work(settings)), settings.replies, lambda number: os.kill(-1, number))
    os.close(settings.requests)
    while (status := worker.status()) is None:
        if (received := signal.sigwait(watched)) != signal.SIGCHLD:
            worker.obey(received)
    os._exit(shell_status(status))


def start_in(folder: str, settings: Settings) -> None:
    """Become a worker whose files are on the disk: on macOS inside a profile, or with nothing around it."""
    os.setsid()
    os.chdir(folder)
    os.environ["TMPDIR"] = folder
    limit(settings.memory)
    if settings.isolation == "seatbelt":
        for end in (settings.requests, settings.replies):
            os.set_inheritable(end, True)
        os.stat(macos.SANDBOX_EXEC)  # whose error names the missing file; that of `execv` does not
        inside = json.dumps(settings._replace(isolation="inside")._asdict())
        program = [sys.executable, "-I", os.path.join(HERE, "__main__.py"), inside]
        profile = macos.profile(os.path.realpath(folder), settings.home, (*interpreter(), HERE))
        os.execv(macos.SANDBOX_EXEC, [macos.SANDBOX_EXEC, "-p", profile, *program])
    work(settings)


def limit(memory: int) -> None:
    """Limit this process and each that it will start; `memory` in bytes. macOS refuses a limit of memory."""
    for kind, wanted in (LIMITS | {resource.RLIMIT_AS: memory}).items():
        _, hard = resource.getrlimit(kind)
        maximum = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(kind, (maximum, maximum))
        except (ValueError, OSError):
            if sys.platform == "linux":
                raise


def interpreter() -> list[str]:
    """The files and folders of this interpreter and its packages."""
    prefixes = (sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix)
    return [os.path.join(prefix, part) for prefix in prefixes for part in PARTS_OF_PREFIX]
