"""The messages of earlier chats, in a file that only their author may read.

A file that cannot be used costs the history, never the chat.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from ..errors import printable
from ..untrusted import os_error_text

MAX_BYTES = 4 * 2**20
KEPT_BYTES = 2 * 2**20  # the end that is kept of a file that has grown beyond MAX_BYTES
MAX_MESSAGE = 100_000  # characters: what is longer was pasted from where it still is


def open_history(path: Path) -> History:
    """The history in a file, which is created if there is none; only this chat's if the file cannot be used."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without O_NONBLOCK a FIFO would wait for its other end; a link could lead to any file of this user's.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "rb+", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            os.fchmod(descriptor, 0o600)
            if file.seek(0, os.SEEK_END) > MAX_BYTES:
                file.seek(-KEPT_BYTES, os.SEEK_END)
                end = file.read(KEPT_BYTES)
                file.seek(0)
                file.write(end[end.find(b"\n#") + 1 :])
                file.truncate()
    except OSError as error:
        print(printable(f"the history of messages is not saved: {path}: {os_error_text(error)}"), file=sys.stderr)
        return InMemoryHistory()
    return MessageHistory(path)


class MessageHistory(FileHistory):
    """A history that works on without its file: that may vanish, or its disk be full, at any time."""

    def load_history_strings(self) -> Iterable[str]:
        try:
            return super().load_history_strings()
        except OSError:
            return ()

    def store_string(self, string: str) -> None:
        if len(string) <= MAX_MESSAGE:
            with suppress(OSError):
                super().store_string(string)
