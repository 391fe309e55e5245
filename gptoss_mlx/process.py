"""Programs and how they end: those of a chat have a `supervisor` above them, which ends all that they have started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

SUPERVISOR = Path(__file__).with_name("supervisor.py")
END_SECONDS = 5.0


def start(words: Sequence[str], **streams: Any) -> subprocess.Popen[bytes]:
    """Run a program in a session of its own; what is returned ends as it does, gets its signals, and has no terminal.

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
            number = failure.read()  # which ends when the program begins
        except BaseException:
            end(process)
            raise
    if number:
        process.communicate()
        raise OSError(int(number), os.strerror(int(number)))
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program, and whatever it has started; on macOS, what has left its process group stays."""
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a program without a supervisor and all that it started, as far as that has stayed in its group."""
    with suppress(ProcessLookupError, PermissionError):  # nobody is left; macOS says the latter of zombies
        os.killpg(process.pid, number)
