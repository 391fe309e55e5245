"""SIGBUS: what a process gets that reads a mapped file behind its end, or from a disk that is gone.

The compiled module has a handler that is safe in any thread, and names the file. Where it is not built, only NumPy
reads maps, in threads of Python, between no locks: there a handler in Python can run.
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
# Nothing below the cursor, which is shown; no colours, no bracketed paste.
UNDRAWN = b"\x1b[J\x1b[0m\x1b[?25h\x1b[?2004l"


@cache
def end_in_order() -> None:
    """To be called before a file is mapped: then SIGBUS ends the process with an error line, the exit status 1, and the
    terminal as it is now."""
    try:
        kernels.compiled().end_in_order_on_bus_error()
    except ImportError:
        if not faulthandler.is_enabled():
            ctypes.CDLL(None).signal(signal.SIGBUS, _handler())


@cache  # so that it stays
def _handler() -> ctypes._FuncPointer:
    """One of `signal.signal` would run between two instructions of Python, and the first of them never ends."""
    terminal = next(filter(os.isatty, (0, 1, 2)), None)
    settings = terminal is not None and termios.tcgetattr(terminal)
    drawn = b"" if os.environ.get("TERM", "dumb") in ("dumb", "unknown") else UNDRAWN

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handle(_: int) -> None:
        with suppress(OSError, termios.error):
            if terminal is not None and os.tcgetpgrp(terminal) == os.getpgrp():
                termios.tcsetattr(terminal, termios.TCSANOW, settings)
                os.write(1 if os.isatty(1) else 2, drawn + b"\n")
        os.write(2, LOST)
        os._exit(1)

    return handle
