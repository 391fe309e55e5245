"""The built-in tool `python`: the model writes code, another process runs it, the model reads what a notebook shows.

Knows when to start, interrupt, stop and give up a worker, and how much of its output is kept. What the worker does, and
the sandbox around it, `sandbox` knows. What comes from a worker is the model's: it may stop answering, answer anything,
or write without end.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from io import FileIO
from pathlib import Path

from ..errors import GptOssError
from ..process import CHUNK, Output
from .sandbox.protocol import READY, REPLY, REQUEST, STOPPED, Settings

SANDBOX = Path(__file__).parent / "sandbox" / "__main__.py"
ISOLATION = {"linux": "namespaces", "darwin": "seatbelt"}
# Settings of Linux distributions that forbid what the sandbox is made of, and the value that does.
FORBIDDING = {"kernel/apparmor_restrict_unprivileged_userns": "1", "kernel/unprivileged_userns_clone": "0"}
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "USER": "user",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "4",  # a thread takes address space, which is limited
}
START_SECONDS = 20.0
GRACE_SECONDS = 2.0  # for code to stop after an interrupt
END_SECONDS = 5.0
SIGNALS = {number.value: number.name for number in signal.Signals}
MAX_PIPE = 2**20  # bytes that a pipe can hold

FENCED = re.compile(r"\s*```[\w+-]*[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)
NAMES_OF_CODE = ("code", "python", "script", "input")

NOTHING = "(no output)"
KEPT = "(stopped after {seconds:g} s; variables and imports are kept)"
LOST = "(Python {how}; variables, imports and files are lost)"
LOST_BEFORE = "(Python was restarted before this call: earlier variables, imports and files are lost)"


class PythonUnavailable(GptOssError):
    """Nothing here keeps the model's code apart from the rest of the machine, or Python does not start at all."""


class PythonTool:
    """Runs Python in a sandbox: no network, no files but its own, limits of time, memory and output.

    `seconds` are per call, `memory` is in bytes and of each process, `output` in characters: of more, the middle is
    left out. `unsafe` runs the code without the sandbox; the limits stay. Raises PythonUnavailable.
    """

    name = "python"

    def __init__(
        self,
        *,
        unsafe: bool = False,
        seconds: float = 120.0,
        memory: int = 2 * 2**30,
        output: int = 20_000,
        asks: bool = True,
    ):
        self.isolation = "none" if unsafe else ISOLATION.get(sys.platform)
        self.seconds, self.memory, self.output, self.asks = seconds, memory, output, asks
        self._lost = False  # whether what earlier calls left is gone, and the model does not know it yet
        self._worker: _Worker | None = self._start()

    def preview(self, function: str, text: str) -> str:
        return code_of(text)

    def run(self, function: str, text: str) -> str:
        """What the code shows, and what became of it otherwise. Variables persist from call to call; threads and
        processes that the code has left running are stopped until the next one.

        KeyboardInterrupt stops the code and goes on; the next call works.
        """
        output = Output(8 * self.output)  # either half is enough, whatever bytes its characters have
        try:
            worker = self._worker = self._worker or self._start()
            before, self._lost = LOST_BEFORE if self._lost else "", False
            outcome = self._call(worker, code_of(text), output)
        except PythonUnavailable as error:
            return str(error)
        return "\n".join(filter(None, (before, _shown(output, self.output), outcome))) or NOTHING

    def close(self) -> None:
        """End the worker and all that it started; its files are gone, which the result of the next call says."""
        self._lost |= self._worker is not None and self._worker.has_run
        self._end()

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker:
            worker.end()

    def _call(self, worker: _Worker, code: str, output: Output) -> str:
        """Run `code`. Returns what there is to say besides its output."""
        try:
            worker.send(code)
            if worker.wait(output, self.seconds):
                return ""
            if worker.interrupt(output):
                return KEPT.format(seconds=self.seconds)
            how = f"was killed after {self.seconds:g} s"
        except _Ended as error:
            how = str(error)
        except KeyboardInterrupt:
            stopped = False
            with contextlib.suppress(_Ended, KeyboardInterrupt):  # a second Ctrl-C ends the wait
                stopped = worker.interrupt(output)
            if not stopped:
                self.close()
            raise
        self._end()
        return LOST.format(how=how)

    def _start(self) -> _Worker:
        """A worker that has checked its sandbox. Raises PythonUnavailable."""
        if self.isolation is None:
            raise _unavailable(f"there is none for {sys.platform}")
        try:
            worker = _Worker(self.isolation, self.memory)
        except OSError as error:
            raise _unavailable(str(error)) from None
        output = Output(CHUNK)
        try:
            if worker.wait(output, START_SECONDS):
                return worker
            reason = f"no answer in {START_SECONDS:g} s"
        except _Ended as error:
            reason = output.text().strip().rpartition("\n")[2] or str(error)
        except BaseException:
            worker.end()
            raise
        worker.end()
        if self.isolation == "none":
            raise PythonUnavailable(f"Python cannot be started for the model ({reason})")
        raise _unavailable(reason)


def _unavailable(reason: str) -> PythonUnavailable:
    for setting, value in FORBIDDING.items():
        with contextlib.suppress(OSError):
            if Path("/proc/sys", setting).read_text().strip() == value:
                reason += f"; the system setting {setting.replace('/', '.')} is {value}"
    return PythonUnavailable(f"no sandbox for Python here ({reason}): --unsafe-python runs it without one")


def code_of(text: str) -> str:
    """The code in what the model wrote, which may have wrapped it in an object of JSON, or in Markdown's fences."""
    with contextlib.suppress(ValueError, RecursionError):
        data = json.loads(text)
        if isinstance(data, dict) and len(data) == 1:
            (name, value), *_ = data.items()
            text = value if name in NAMES_OF_CODE and isinstance(value, str) else text
    fenced = FENCED.fullmatch(text)
    return fenced[1] if fenced else text


class _Ended(Exception):
    """There is no worker any more; the message says how it ended."""


class _Worker:
    """The parent's end of the sandbox: pipes that never block, whatever the code inside does to them."""

    def __init__(self, isolation: str, memory: int):
        requests, self._requests = _pipe()
        self._replies, replies = _pipe()
        self._output, output = _pipe()
        home = os.path.expanduser("~")
        settings = Settings(isolation, memory, home, requests=requests.fileno(), replies=replies.fileno())
        with requests, replies, output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", SANDBOX, json.dumps(settings._asdict())],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                bufsize=0,
                cwd="/",
                env=ENVIRONMENT,
                pass_fds=(requests.fileno(), replies.fileno()),
                start_new_session=True,  # Ctrl-C in a terminal is not for it
            )
        assert self._process.stdin
        self._orders = self._process.stdin
        os.set_blocking(self._requests.fileno(), False)
        os.set_blocking(self._output.fileno(), False)
        self._number, self._unsent = READY, b""
        self._expected: int | None = READY

    @property
    def has_run(self) -> bool:
        """Whether there may be variables and files of the model's."""
        return self._number != READY

    def send(self, code: str) -> None:
        """Ask for `code` to be run; `wait` sends it and waits for the answer."""
        data = code.encode(errors="surrogatepass")
        self._order(signal.SIGUSR2)
        self._expected = self._number = self._number + 1
        self._unsent = REQUEST.pack(self._number, len(data)) + data

    def wait(self, output: Output, seconds: float) -> bool:
        """Collect output until the answer comes and everything has been stopped; False if that takes too long. Raises
        _Ended."""
        deadline = time.monotonic() + seconds
        while self._expected is not None:
            if (left := deadline - time.monotonic()) <= 0:
                return False
            poll = select.poll()
            poll.register(self._output, select.POLLIN)
            poll.register(self._replies, select.POLLIN)
            if self._unsent:
                poll.register(self._requests, select.POLLOUT)
            ready = [descriptor for descriptor, _ in poll.poll(left * 1000)]
            if self._replies.fileno() in ready:
                self._receive(output)
            elif self._output.fileno() in ready and not self._read_into(output):
                raise _Ended(self._how())
            elif self._requests.fileno() in ready:
                self._send_more()
        return True

    def _send_more(self) -> None:
        try:
            self._unsent = self._unsent[self._requests.write(self._unsent) :]
        except BrokenPipeError:
            raise _Ended(self._how()) from None

    def _receive(self, output: Output) -> None:
        """An answer, after the output that came before it."""
        reply = self._replies.read(CHUNK)
        for _ in range(MAX_PIPE // CHUNK):  # what the pipe can have held; the code may write without end
            if not self._read_into(output):
                break
        if not reply:
            raise _Ended(self._how())
        if reply != REPLY.pack(self._expected):
            raise _Ended("broke the protocol of its notebook")
        if self._expected == STOPPED:
            self._expected = None
        else:
            self._expected = STOPPED
            self._order(signal.SIGUSR1)

    def _read_into(self, output: Output) -> bool:
        """Whether there was anything to read."""
        data = self._output.read(CHUNK)
        output.add(data or b"")
        return bool(data)

    def _order(self, number: signal.Signals) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._orders.write(bytes([number]))

    def _how(self) -> str:
        try:
            status = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "fell silent"
        number = status - 128 if status > 128 else -status
        if number == signal.SIGKILL:
            return "was killed, perhaps for want of memory"
        return f"was ended by {SIGNALS[number]}" if number in SIGNALS else f"ended with status {status}"

    def interrupt(self, output: Output) -> bool:
        """Interrupt the code; whether it then stopped, and the worker is as good as before. Raises _Ended."""
        self._order(signal.SIGINT)
        return self.wait(output, GRACE_SECONDS)

    def end(self) -> None:
        """Kill all that there is, and wait for it."""
        for pipe in (self._orders, self._requests, self._replies, self._output):
            pipe.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _pipe() -> tuple[FileIO, FileIO]:
    reading, writing = os.pipe()
    return open(reading, "rb", buffering=0), open(writing, "wb", buffering=0)


def _shown(output: Output, limit: int) -> str:
    """What the model reads of it: the first and the last of more than `limit` characters."""
    text = output.text().rstrip("\n")
    if (more := len(text) + output.left_out - limit) <= 0:
        return text
    half = limit // 2
    return f"{text[:half]}\n... ({more:,} characters left out) ...\n{text[-half:]}"
