"""Programs: how they are started and ended, and how what they write is collected.

`start` puts a `supervisor` above a program, which ends all that the program has started.
"""

from __future__ import annotations

import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

SUPERVISOR = Path(__file__).with_name("supervisor.py")
END_SECONDS = 5.0
CHUNK = 2**16  # bytes
POLL = 0.05  # seconds between two looks at whether a program that writes nothing has ended


def start(words: Sequence[str], **streams: Any) -> subprocess.Popen[bytes]:
    """Run a program in a session of its own, without a terminal. The process returned is its supervisor, which ends as
    the program does and passes signals on.

    `streams` are `subprocess.Popen`'s. Raises OSError where there is no such program, ValueError for null characters.
    """
    reading, writing = os.pipe()
    with open(reading, "rb") as failure:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", SUPERVISOR, str(writing), *words],
                pass_fds=[writing],
                start_new_session=True,
                **streams,
            )
        finally:
            os.close(writing)
        try:
            number = failure.read()  # empty, and at its end, as soon as the program runs
        except BaseException:
            end(process)
            raise
    if number:
        process.communicate()
        raise OSError(int(number), os.strerror(int(number)))
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program and whatever it has started; on macOS, processes that have left its group stay."""
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal the process group of a program that has no supervisor."""
    with suppress(ProcessLookupError, PermissionError):  # nobody is left; macOS reports zombies by the latter
        os.killpg(process.pid, number)


class Output:
    """The beginning and the end of what a program writes, at most `limit` bytes; the middle of more is not kept."""

    def __init__(self, limit: int):
        self.limit = limit
        self.size = 0
        """Bytes written so far."""
        self.kept = bytearray()

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.kept += chunk
        if (excess := len(self.kept) - self.limit) > 0:
            half = self.limit // 2
            del self.kept[half : half + excess]

    @property
    def left_out(self) -> int:
        """Bytes that are not kept."""
        return self.size - len(self.kept)

    def text(self, gap: str = "") -> str:
        """What is kept. Where bytes are left out, `gap` says so, with their number in the place of {}."""
        half = self.limit // 2
        middle = gap.format(self.left_out).encode() if self.left_out else b""
        return (self.kept[:half] + middle + self.kept[half:]).decode(errors="replace")


class Stop(Enum):
    """Why a program has to be stopped."""

    TOO_MUCH = "it wrote too much"
    TOO_LONG = "it took too long"


def collect(
    process: subprocess.Popen[bytes],
    outputs: Sequence[Output],
    *,
    max_bytes: int,
    seconds: float = math.inf,
    check: Callable[[], None] = lambda: None,
) -> Stop | None:
    """Read what a program writes, standard output and then standard error, until it ends. Returns why it has to be
    stopped before, which is left to the caller.

    `max_bytes` counts all outputs together. `check` is called at least every POLL seconds, and may raise.
    """
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for stream, output in zip((process.stdout, process.stderr), outputs, strict=False):
            assert stream
            selector.register(stream, selectors.EVENT_READ, output)
        while selector.get_map():
            check()
            ended = process.poll() is not None  # asked first: all that it has written can be read now
            ready = selector.select(0 if ended else POLL)
            for key, _ in ready:
                if chunk := os.read(key.fd, CHUNK):
                    key.data.add(chunk)
                else:
                    selector.unregister(key.fileobj)
            if sum(output.size for output in outputs) > max_bytes:
                return Stop.TOO_MUCH
            if time.monotonic() > deadline:
                return Stop.TOO_LONG
            if ended and not ready:
                return None  # only what it has left running could still write
    while process.poll() is None:
        check()
        if (left := deadline - time.monotonic()) <= 0:
            return Stop.TOO_LONG
        with suppress(subprocess.TimeoutExpired):
            process.wait(min(left, POLL))
    return None
