"""Small files that others wrote -> values that the rest of the program can handle, or a GptOssError.

A foreign file can be anything: a FIFO that never answers, a device that never ends, JSON nested without end, numbers
and strings that Python reads but cannot print or write again. Knows nothing about what the values mean.

Symbolic links are followed, because a snapshot in the hub's cache is made of them; what is at the end of one must be a
regular file. Only what a person names may be a pipe or a device: a shell puts one in place of a file.
"""

from __future__ import annotations

import errno
import json
import math
import os
import select
import stat
from collections.abc import Iterable
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, BinaryIO

from .errors import GptOssError

# Forty times the largest header or index of a gpt-oss checkpoint; parsed, JSON takes up to 30 times its own size.
MAX_JSON = 4 * 2**20
MAX_DEPTH = 32
MAX_DIGITS = 40  # of an integer: parsing and printing take time with their square
WRITER_MILLISECONDS = 2000  # in which whoever writes to a FIFO opens it

READING = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY  # a FIFO would wait for who writes
THROUGH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY  # of a folder on the way, which need not be readable


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises OSError also for what might never answer or end: what is not a regular file, and
    what claims to be one without any bytes, as the system's own do."""
    try:
        return _regular(os.open(path, READING))
    except FileNotFoundError:
        if path.is_symlink():
            raise OSError(errno.ELOOP, "a symbolic link that leads nowhere") from None
        raise


def open_beneath(folder: Path, names: Iterable[str]) -> BinaryIO:
    """The same of a file below a folder, by the names on the way to it. No symbolic link is followed there, so that it
    is below the folder whatever somebody replaces meanwhile."""
    return _regular(descriptor_beneath(folder, names))


def descriptor_beneath(folder: Path, names: Iterable[str]) -> int:
    """Open whatever is there. Raises OSError."""
    descriptor = os.open(folder, THROUGH)
    *folders, last = names or (".",)
    for name, flags in [*((name, THROUGH) for name in folders), (last, READING)]:
        try:
            inner = os.open(name, flags | os.O_NOFOLLOW, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor


def _regular(descriptor: int) -> BinaryIO:
    """The file of a descriptor, checked when nobody can put another in its place any more."""
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if not status.st_size:
            raise OSError(errno.EINVAL, "it is empty: truncated?")
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_named(path: Path, most: int) -> bytes:
    """All of what a person names: a file, a device, or a pipe into which another program writes, which is waited for.
    Raises OSError, also for a FIFO whose other end nobody opens, and ValueError for more than `most` bytes."""
    with open(path, "rb", buffering=0, opener=_without_waiting) as file:
        begun = _begun(path, file, most + 1)
        os.set_blocking(file.fileno(), True)
        data = begun + BufferedReader(file).read(most + 1 - len(begun))
    if len(data) > most:
        raise ValueError(f"more than {most:,} bytes")
    return data


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _begun(path: Path, file: FileIO, most: int) -> bytes:
    """What is in a FIFO, if nothing has come for a while. Raises OSError where it has no other end; a pipe has one, or
    had."""
    is_fifo = stat.S_ISFIFO(os.fstat(file.fileno()).st_mode) and os.path.exists(os.path.realpath(path))
    poll = select.poll()
    poll.register(file, select.POLLIN)
    if not is_fifo or poll.poll(WRITER_MILLISECONDS):
        return b""
    begun = file.read(most)  # None, where the other end is open, and silent
    if begun == b"":
        raise OSError(errno.EPIPE, "a FIFO to which nobody writes")
    return begun or b""


def os_error_text(error: BaseException) -> str:
    """Why a file could not be read, without its name."""
    return getattr(error, "strerror", None) or str(error)


def read_json(path: Path, raises: type[GptOssError] = GptOssError) -> Any:
    """What a JSON file of at most MAX_JSON bytes says. Raises `raises`, with the file and the reason."""
    try:
        with open_regular(path) as file:
            data = file.read(MAX_JSON + 1)
    except (OSError, ValueError) as error:
        raise raises(f"cannot read {path}: {os_error_text(error)}") from None
    return parsed(path, data, raises)


def parsed(path: Path, data: bytes, raises: type[GptOssError] = GptOssError) -> Any:
    """The same of a file whose bytes are at hand."""
    try:
        return parse_json(data)
    except ValueError as error:
        raise raises(f"cannot read {path}: {os_error_text(error)}") from None


def lexists(path: Path) -> bool:
    """Whether the name exists, as a link that leads nowhere perhaps: a reader will say what is wrong with that."""
    return os.path.lexists(path)


def parse_json(data: bytes) -> Any:
    """JSON in UTF-8, strictly: no name twice in an object, nothing that JSON could not say again. Raises ValueError."""
    if len(data) > MAX_JSON:
        raise ValueError(f"more than {MAX_JSON:,} bytes of JSON")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_int=_integer)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from None
    _check(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a name occurs twice")
    return entries


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _check(value: Any, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if isinstance(value, str):
        value.encode()  # raises UnicodeEncodeError, a ValueError, for a lone surrogate
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"the number {value}")
    elif isinstance(value, dict):
        for name, entry in value.items():
            name.encode()
            _check(entry, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            _check(entry, depth + 1)
