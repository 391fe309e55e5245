"""Libraries in Rust that read what others wrote: where one panics, that becomes an error of one line.

Rust reports a panic on standard error before anybody can catch it, and what Python then gets is no Exception.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

from ..errors import GptOssError
from ..untrusted import os_error_text

STDERR = 2
MAX_REPORT = 2**16  # bytes of it that are kept
_one_at_a_time = RLock()


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Whatever a library raises, an Exception or a panic, becomes a GptOssError that begins with `what`."""
    try:
        with _one_at_a_time, _reports_held_back():
            yield
    except (GptOssError, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # a panic is no Exception
        raise GptOssError(f"{what}: {os_error_text(error)}") from None


@contextmanager
def _reports_held_back() -> Iterator[None]:
    """Keep what comes to standard error until the end. After a panic that is its report, and dropped."""
    try:
        real = os.dup(STDERR)
    except OSError:  # it is closed: nothing is reported
        yield
        return
    readable, writable = os.pipe()
    for end in (readable, writable):
        os.set_blocking(end, False)  # rather lose a part of a report than wait for a reader
    os.dup2(writable, STDERR)
    os.close(writable)
    panicked = False
    try:
        yield
    except BaseException as error:
        panicked = not isinstance(error, (Exception, KeyboardInterrupt))
        raise
    finally:
        os.dup2(real, STDERR)
        os.close(real)
        with open(readable, "rb", buffering=0) as held:
            if (text := held.read(MAX_REPORT)) and not panicked:
                os.write(STDERR, text)
