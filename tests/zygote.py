"""Python programs as real processes, without the second in which each one imports the same.

A zygote has imported `gptoss-mlx` and runs nothing; for each run it forks, and the child becomes that run: its words,
environment, folder and streams, its terminal, its exit status. Only what the interpreter decides when it starts
(locale, PYTHON... variables) cannot be changed so: `Zygote.fits` says where a process of its own is needed.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NoReturn, TextIO

# Read when Python starts, or when a library is imported.
FIXED = ("PYTHON", "LC_", "LANG", "MLX_", "OMP_", "OPENBLAS_", "LD_")


class Run:
    """A process that a zygote has forked."""

    def __init__(self, reply: int):
        self._reply = open(reply, "rb", buffering=0)  # noqa: SIM115
        self._status: int | None = None
        self.pid = self._number()

    def wait(self, timeout: float | None = None) -> int | None:
        """The status as `os.waitpid` gives it; None if the process still runs after so many seconds."""
        if self._status is None and select.select([self._reply], [], [], timeout)[0]:
            self._status = self._number()
            self._reply.close()
        return self._status

    def _number(self) -> int:
        data = self._reply.read(4)
        assert data, "the zygote has ended"
        return int.from_bytes(data, "little")


class Piped:
    """A run whose standard streams are pipes of text, as those of `subprocess.Popen`."""

    def __init__(self, run: Run, stdin: int, stdout: int, stderr: int):
        self._run, self.pid = run, run.pid
        self.stdin = open(stdin, "w", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        self.stdout, self.stderr = (
            open(end, encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
            for end in (stdout, stderr)
        )

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return None if (status := self._run.wait(0)) is None else os.waitstatus_to_exitcode(status)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(self._run.wait())

    def send_signal(self, number: int) -> None:
        """Nothing happens where it has ended."""
        with suppress(ProcessLookupError):
            if self.returncode is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, stdin: str = "") -> tuple[str, str]:
        """Write `stdin`, and read all that it still writes, to its end."""
        texts = ["", ""]

        def read(index: int, stream: TextIO) -> None:
            with stream:
                texts[index] = stream.read()

        readers = [threading.Thread(target=read, args=each) for each in enumerate((self.stdout, self.stderr))]
        for reader in readers:
            reader.start()
        if not self.stdin.closed:
            with suppress(BrokenPipeError), self.stdin:
                self.stdin.write(stdin)
        self.wait()
        for reader in readers:
            reader.join()
        return texts[0], texts[1]


class Zygote:
    def __init__(self, environment: Mapping[str, str], within: Sequence[str] = ()):
        """`within` is the beginning of a command line that runs another, such as strace's."""
        self._environment = dict(environment)
        self._socket, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [*within, sys.executable, __file__, str(theirs.fileno())], env=environment, pass_fds=[theirs.fileno()]
        )
        theirs.close()

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Whether a run with this environment can be a fork."""

        def fixed(variables: Mapping[str, str]) -> dict[str, str]:
            return {name: value for name, value in variables.items() if name.startswith(FIXED)}

        return fixed(environment) == fixed(self._environment)

    def start(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        streams: Sequence[int],
        folder: str | None = None,
        *,
        terminal: bool = False,
    ) -> Run:
        """Run `python WORDS` with these three streams; `terminal`: they are the terminal of a session that it leads."""
        ours, theirs = os.pipe()
        variables = {name: os.fspath(value) for name, value in environment.items()}
        request = json.dumps([list(words), variables, folder or os.getcwd(), terminal]).encode()
        socket.send_fds(self._socket, [len(request).to_bytes(4, "little")], [theirs, *streams])
        self._socket.sendall(request)
        os.close(theirs)
        return Run(ours)

    def open(self, words: Sequence[str], environment: Mapping[str, str]) -> Piped:
        """Start `python WORDS` with pipes of text."""
        (give, stdin), (stdout, take), (stderr, complain) = (os.pipe() for _ in range(3))
        run = self.start(words, environment, [give, take, complain])
        for end in (give, take, complain):
            os.close(end)
        return Piped(run, stdin, stdout, stderr)

    def run(
        self, words: Sequence[str], stdin: str, environment: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run `python WORDS` as `subprocess.run` does, with text captured."""
        process = self.open(words, environment)
        killer = threading.Timer(timeout, process.kill)
        killer.start()
        output, errors = process.communicate(stdin)
        killer.cancel()
        return subprocess.CompletedProcess(list(words), process.wait(), output, errors)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@cache
def shared() -> Zygote:
    """The zygote of this test process, which ends with it."""
    zygote = Zygote({name: value for name, value in os.environ.items() if not name.startswith(("GPTOSS_", "HF_"))})
    atexit.register(zygote.close)
    return zygote


def serve(channel: socket.socket) -> None:
    """Fork for each request until the other end is closed."""
    import_all()
    gc.freeze()  # a fork copies no page only because what was imported is looked through
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while True:
        length, descriptors, *_ = socket.recv_fds(channel, 4, 4)
        if not length:
            return
        request = b""
        while len(request) < int.from_bytes(length, "little"):
            request += channel.recv(2**16)
        if os.fork() == 0:
            channel.close()
            keep(*descriptors, request=json.loads(request))
        for descriptor in descriptors:
            os.close(descriptor)


def import_all() -> None:
    """What commands import; nothing that asks for the environment, makes threads or looks for a device."""
    import prompt_toolkit.shortcuts  # noqa: F401

    import gptoss_convert.reports  # noqa: F401
    import gptoss_mlx.chat.store
    import gptoss_mlx.cli
    import gptoss_mlx.engine.generate
    import gptoss_mlx.memory.plan
    import gptoss_mlx.terminal.completion
    import gptoss_mlx.terminal.history
    import gptoss_mlx.terminal.loop
    import gptoss_mlx.terminal.markdown
    import gptoss_mlx.terminal.progress_bars
    import gptoss_mlx.terminal.rich_screen  # noqa: F401


def keep(reply: int, *streams: int, request: list) -> NoReturn:
    """Fork a run, and report its number, and its status when it has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if (pid := os.fork()) == 0:
        os.close(reply)
        become(streams, *request)
    for descriptor in streams:
        os.close(descriptor)
    with suppress(BrokenPipeError):  # nobody waits for it any more
        os.write(reply, pid.to_bytes(4, "little"))
        os.write(reply, os.waitpid(pid, 0)[1].to_bytes(4, "little"))
    os._exit(0)


def become(
    streams: Sequence[int], words: list[str], environment: dict[str, str], folder: str, terminal: bool
) -> NoReturn:
    if terminal:
        os.setsid()
        fcntl.ioctl(streams[0], termios.TIOCSCTTY, 0)
    for target, descriptor in enumerate(streams):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update({name: _as_here(value) for name, value in environment.items()})
    os.chdir(_as_here(folder))
    run_python([_as_here(word) for word in words])


def _as_here(text: str) -> str:
    """As Python reads these bytes in the locale that the zygote has."""
    return os.fsdecode(text.encode(errors="surrogateescape"))


def run_python(words: Sequence[str]) -> NoReturn:
    """Be `python WORDS`, in a process that was forked for it."""
    sys.stdin = open(0, encoding=sys.stdin.encoding, errors=sys.stdin.errors, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding=sys.stderr.encoding, errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    status = 1
    try:
        _execute(*words)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        try:
            sys.stdout.flush()
        except OSError:
            status = 120  # as Python's own end does
        sys.stderr.flush()
        os._exit(status)


def _execute(what: str, *arguments: str) -> None:
    """A module (-m), a program (-c) or a file."""
    if what == "-m":
        sys.argv = list(arguments)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif what == "-c":
        sys.argv = ["-c", *arguments[1:]]
        sys.path[0] = ""
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(arguments[0], "<string>", "exec"), vars(main))
    else:
        sys.argv = [what, *arguments]
        sys.path[0] = str(Path(what).parent)
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    sys.path[0] = str(Path.cwd())
    sys.modules["zygote"] = sys.modules["__main__"]  # for programs that fork on
    serve(socket.socket(fileno=int(sys.argv[1])))
