"""Python programs as real processes, without the second in which each one imports the same.

A zygote has imported `gptoss-mlx` and runs nothing; for each run it forks, and the child becomes that run: its words,
environment, folder and streams, its terminal, its exit status. Only what the interpreter decides when it starts
(locale, PYTHON... variables) cannot be changed so: `Zygote.fits` says where a process of its own is needed. All test
processes share one, which ends when the last of them has.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import hashlib
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
from pathlib import Path
from tempfile import TemporaryDirectory
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
    def __init__(self, environment: Mapping[str, str], within: Sequence[str] = (), address: str = ""):
        """`within` is the beginning of a command line that runs another, such as strace's. At an `address`, a zygote
        that another test process has started there is as good as one of its own."""
        self._environment = dict(environment)
        self._socket = socket.socket(socket.AF_UNIX)
        if address:
            with open(f"{address}.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                try:
                    self._socket.connect(address)
                except OSError:  # there is none, or its users have all ended
                    Path(address).unlink(missing_ok=True)
                    self._start((), address)
        else:
            with TemporaryDirectory() as folder:
                self._start(within, str(Path(folder, "zygote")))

    def _start(self, within: Sequence[str], address: str) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            self._socket.connect(address)
            words = [*within, sys.executable, __file__, str(listener.fileno())]
            self._process = subprocess.Popen(words, env=self._environment, pass_fds=[listener.fileno()])

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Whether a run with this environment can be a fork."""
        return _fixed(environment) == _fixed(self._environment)

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
        """End one that is not shared."""
        self._socket.close()
        self._process.wait()


folder = ""
"""Where the test processes of a run find each other's zygotes."""


_shared: dict[str, Zygote] = {}


def shared(environment: Mapping[str, str] = os.environ) -> Zygote:
    """The zygote of all test processes for what this environment fixes; it ends with the last of them."""
    fixed = hashlib.sha256(json.dumps(sorted(_fixed(environment).items())).encode())
    address = str(Path(folder, fixed.hexdigest()[:8]))
    if address not in _shared:
        plain = {name: value for name, value in environment.items() if not name.startswith(("GPTOSS_", "HF_"))}
        _shared[address] = Zygote(plain, address=address)
    return _shared[address]


def _fixed(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(FIXED)}


def serve(listener: socket.socket) -> None:
    """Fork for each request until all that have connected have closed their ends."""
    import_all()
    gc.freeze()  # a fork copies no page only because what was imported is looked through
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    channels, replies = [listener.accept()[0]], {}
    while channels:
        for ready in select.select([listener, ended, *channels], [], [])[0]:
            if ready is listener:
                channels.append(listener.accept()[0])
            elif ready == ended:
                os.read(ended, 2**16)
                report(replies)
            elif not answer(ready, replies, [listener.fileno(), ended, wake, *(each.fileno() for each in channels)]):
                channels.remove(ready)
                ready.close()


def report(replies: dict[int, int]) -> None:
    """Tell the status of each run that has ended."""
    while replies and (ended := os.waitpid(-1, os.WNOHANG))[0]:
        with suppress(BrokenPipeError):  # nobody waits for it any more
            os.write(replies[ended[0]], ended[1].to_bytes(4, "little"))
        os.close(replies.pop(ended[0]))


def answer(channel: socket.socket, replies: dict[int, int], ours: Sequence[int]) -> bool:
    """Fork a run for a request, and tell its number; False if there is none, for the other end is closed. `ours` are
    descriptors that no run has."""
    length, descriptors, *_ = socket.recv_fds(channel, 4, 4)
    request = b""
    while len(request) < int.from_bytes(length, "little"):
        if not (part := channel.recv(2**16)):
            return False
        request += part
    if not length:
        return False
    reply, *streams = descriptors
    if (pid := os.fork()) == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (*ours, *replies.values(), reply):
            os.close(descriptor)
        become(streams, *json.loads(request))
    replies[pid] = reply
    for descriptor in streams:
        os.close(descriptor)
    with suppress(BrokenPipeError):
        os.write(reply, pid.to_bytes(4, "little"))
    return True


def import_all() -> None:
    """What commands import; nothing that asks for the environment, makes threads or looks for a device."""
    import prompt_toolkit.shortcuts  # noqa: F401
    import tokenizers  # noqa: F401

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
    from gptoss_mlx import kernels

    with suppress(ImportError):
        kernels.compiled()


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
