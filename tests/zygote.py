"""`gptoss-mlx` as real processes, without the half second in which each one imports the same.

A zygote has imported the program and nothing else; for each run it forks, and the child becomes that run: its
arguments, environment, folder and streams, its exit status. Only what the interpreter decides when it starts (locale,
PYTHON... variables) cannot be changed so: `Zygote.fits` says where a process of its own is needed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

# Read when Python starts, or when a library is imported.
FIXED = ("PYTHON", "LC_", "LANG", "MLX_", "OMP_", "OPENBLAS_", "LD_")


class Zygote:
    def __init__(self, environment: Mapping[str, str]):
        self._environment = dict(environment)
        self._socket, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())], env=environment, pass_fds=[theirs.fileno()]
        )
        theirs.close()

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Whether a run with this environment can be a fork."""

        def fixed(variables: Mapping[str, str]) -> dict[str, str]:
            return {name: value for name, value in variables.items() if name.startswith(FIXED)}

        return fixed(environment) == fixed(self._environment)

    def run(
        self, arguments: Sequence[str], stdin: str, environment: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` does, with text captured."""
        pipes = [os.pipe() for _ in range(3)]
        (give, stdin_end), *outputs = (pipes[0], *pipes[1:])
        request = json.dumps(
            [list(arguments), {name: os.fspath(value) for name, value in environment.items()}, os.getcwd()]
        ).encode()
        socket.send_fds(self._socket, [len(request).to_bytes(4, "little")], [give, *(end for _, end in outputs)])
        self._socket.sendall(request)
        for end in (give, *(end for _, end in outputs)):
            os.close(end)
        pid = int.from_bytes(self._socket.recv(4), "little")
        texts: list[str] = ["", ""]

        def read(index: int) -> None:
            with open(outputs[index][0], encoding="utf-8", errors="surrogateescape") as file:
                texts[index] = file.read()

        readers = [threading.Thread(target=read, args=[index]) for index in range(2)]
        killer = threading.Timer(timeout, os.kill, [pid, signal.SIGKILL])
        for thread in (*readers, killer):
            thread.start()
        try:
            with open(stdin_end, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(stdin)
        except BrokenPipeError:
            pass
        status = os.waitstatus_to_exitcode(int.from_bytes(self._socket.recv(4), "little"))
        killer.cancel()
        for thread in readers:
            thread.join()
        return subprocess.CompletedProcess(list(arguments), status, *texts)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


def serve(channel: socket.socket) -> None:
    """Fork for each request until the other end is closed."""
    import_all()
    while True:
        length, streams, *_ = socket.recv_fds(channel, 4, 3)
        if not length:
            return
        request = b""
        while len(request) < int.from_bytes(length, "little"):
            request += channel.recv(2**16)
        if (pid := os.fork()) == 0:
            channel.close()
            become(streams, *json.loads(request))
        for descriptor in streams:
            os.close(descriptor)
        channel.sendall(pid.to_bytes(4, "little"))
        channel.sendall(os.waitpid(pid, 0)[1].to_bytes(4, "little"))


def import_all() -> None:
    """What commands import; nothing that asks for the environment, makes threads or looks for a device."""
    import gptoss_mlx.chat.store
    import gptoss_mlx.cli
    import gptoss_mlx.engine.generate
    import gptoss_mlx.memory.plan
    import gptoss_mlx.terminal.loop
    import gptoss_mlx.terminal.progress_bars  # noqa: F401


def become(streams: list[int], arguments: list[str], environment: dict[str, str], folder: str) -> None:
    from gptoss_mlx.cli import main

    for target, descriptor in enumerate(streams):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["gptoss-mlx", *arguments]
    status = 1
    try:
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            status = 120  # as Python's own end does
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.path[0] = str(Path.cwd())
    serve(socket.socket(fileno=int(sys.argv[1])))
