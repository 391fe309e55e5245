"""SIGBUS: the signal for reading a mapped file past its end, or from a disk that is gone.

The compiled module has a handler that is safe in any thread, and names the file. Where it is not built, only NumPy
reads maps, in Python's threads and without locks: there a handler in Python can run.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import termios
from contextlib import suppress
from functools import cache

from .. import kernels

LOST = b"error: a file of the model can no longer be read: it was cut short, or its disk is gone; `gptoss-mlx verify`"
LOST += b" on its folder tells more\n"
# Clears everything below the cursor, shows the cursor, and ends colours and bracketed paste.
CLEARED = b"\x1b[J\x1b[0m\x1b[?25h\x1b[?2004l"


@cache
def end_in_order() -> None:
    """Call this before a file is mapped: SIGBUS then ends the process with one error line, exit status 1, and the
    terminal settings of this moment."""
    try:
        kernels.compiled().end_in_order_on_bus_error()
    except ImportError:
        if not faulthandler.is_enabled():
            ctypes.CDLL(None).signal(signal.SIGBUS, _handler())


@cache  # so that it is never freed
def _handler() -> ctypes._FuncPointer:
    """A C function: a handler of `signal.signal` would run after the current instruction of Python, which would not
    end."""
    terminal = next(filter(os.isatty, (0, 1, 2)), None)
    settings = None if terminal is None else termios.tcgetattr(terminal)
    cleared = b"" if os.environ.get("TERM", "dumb") in ("dumb", "unknown") else CLEARED

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handle(_: int) -> None:
        with suppress(OSError, termios.error):
            if terminal is not None and settings is not None and os.tcgetpgrp(terminal) == os.getpgrp():
                termios.tcsetattr(terminal, termios.TCSANOW, settings)
                os.write(1 if os.isatty(1) else 2, cleared + b"\n")
        os.write(2, LOST)
        os._exit(1)

    return handle
