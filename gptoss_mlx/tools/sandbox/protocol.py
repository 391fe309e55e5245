"""What the parent and the processes of the sandbox agree on.

A request is a number and a length, both four bytes, and that many bytes of UTF-8; the answer to it is the number. An
order is one byte on the keeper's standard input, the number of a signal: SIGINT interrupts the code, SIGUSR1 stops
everything, which is answered, too, and SIGUSR2 continues it. All that a person at a notebook would see goes to file
descriptor 1, whose other end is the parent.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

REQUEST = struct.Struct("<II")
REPLY = struct.Struct("<I")
READY = 0  # the number that a worker sends when its sandbox has been checked
STOPPED = 2**32 - 1  # the number that says that everything has been stopped


class Settings(NamedTuple):
    """What the parent asks for, as JSON on the command line."""

    isolation: str
    """"namespaces", "seatbelt", "none", or "inside" for a worker that is started inside of a sandbox."""
    memory: int
    """Bytes that each process may take."""
    home: str
    """The user's home folder, which is hidden."""
    requests: int
    """File descriptor from which the worker reads."""
    replies: int
    """File descriptor to which it writes."""
