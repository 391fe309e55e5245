"""Small files that others wrote -> bytes, and values of JSON and TOML, that the rest of the program can handle.

An untrusted file can be anything: a FIFO that never answers, a device that never ends, JSON nested without end, numbers
and strings that Python reads but cannot print or write again. Knows nothing of what the values mean.

Symbolic links are followed, because a snapshot in the hub's cache is made of them; they must lead to regular files.
Only what a person names may be a pipe or a device: a shell puts one in place of a file.
"""

from __future__ import annotations

import errno
import json
import math
import os
import select
import stat
import sys
from collections.abc import Iterable
from io import BufferedIOBase, BufferedReader, FileIO
from pathlib import Path
from typing import Any

from .errors import GptOssError

# Forty times the largest header or index of a gpt-oss checkpoint; parsed, JSON takes up to 30 times its own size.
MAX_JSON = 4 * 2**20
MAX_DEPTH = 32
MAX_DIGITS = 40  # of an integer: parsing and printing take time with their square
WRITER_MILLISECONDS = 2000  # in which whoever writes to a FIFO opens it

READING = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY  # a FIFO would wait for who writes
THROUGH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY  # of a folder on the way, which need not be readable


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. Rejects FIFOs, devices and empty files (/proc reports size 0). Raises OSError, and
    ValueError for a null character in the path."""
    try:
        return _regular(os.open(path, READING))
    except FileNotFoundError:
        if path.is_symlink():
            raise OSError(errno.ELOOP, "a symbolic link that leads nowhere") from None
        raise


def open_beneath(folder: Path, names: Iterable[str]) -> BufferedReader:
    """Open a file below a folder, by the names on the way to it, with the same checks. No symbolic link is followed on
    the way, so that the file is below the folder whatever somebody replaces meanwhile. Raises OSError."""
    return _regular(descriptor_beneath(folder, names))


def descriptor_beneath(folder: Path, names: Iterable[str]) -> int:
    """The descriptor of whatever is below a folder, by the names on the way to it. Raises OSError."""
    descriptor = os.open(folder, THROUGH)
    *folders, last = names or (".",)
    for name, flags in [*((name, THROUGH) for name in folders), (last, READING)]:
        try:
            inner = os.open(name, flags | os.O_NOFOLLOW, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor


def _regular(descriptor: int) -> BufferedReader:
    """The file of a descriptor, checked now that nobody can put another in its place."""
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


def read_up_to(file: BufferedIOBase, max_bytes: int, begun: bytes = b"") -> bytes:
    """The rest of an open file, after what has `begun` already. Raises OSError for more than `max_bytes` in all."""
    data = begun + file.read(max_bytes + 1 - len(begun))
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes:,} bytes")
    return data


def read_regular(path: Path, max_bytes: int) -> bytes:
    """The contents of a regular file. Raises OSError, also for more than `max_bytes`, and ValueError for a null
    character in the path."""
    with open_regular(path) as file:
        return read_up_to(file, max_bytes)


def read_named(path: Path, max_bytes: int) -> bytes:
    """The contents of what a person names: a file, a device, or a pipe into which another program writes, which is
    waited for. Raises OSError, also for a FIFO that nobody opens for writing and for more than `max_bytes`, and
    ValueError for a null character in the path."""
    with open(path, "rb", buffering=0, opener=_without_waiting) as file:
        begun = _begun(path, file, max_bytes + 1)
        os.set_blocking(file.fileno(), True)
        return read_up_to(BufferedReader(file), max_bytes, begun)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _begun(path: Path, file: FileIO, max_bytes: int) -> bytes:
    """The first bytes of a FIFO, if none have come for a while. Raises OSError where nobody writes to it: a pipe has a
    writer, or had one."""
    is_fifo = stat.S_ISFIFO(os.fstat(file.fileno()).st_mode) and os.path.exists(os.path.realpath(path))
    poll = select.poll()
    poll.register(file, select.POLLIN)
    if not is_fifo or poll.poll(WRITER_MILLISECONDS):
        return b""
    begun = file.read(max_bytes)  # None, where the other end is open, and silent
    if begun == b"":
        raise OSError(errno.EPIPE, "a FIFO to which nobody writes")
    return begun or b""


def os_error_text(error: BaseException) -> str:
    """Why a file could not be used, without its name."""
    return getattr(error, "strerror", None) or str(error)


def read_json(path: Path, raises: type[GptOssError] = GptOssError) -> Any:
    """The value of a JSON file of at most MAX_JSON bytes. Raises `raises`, with the file and the reason."""
    try:
        data = read_regular(path, MAX_JSON)
    except (OSError, ValueError) as error:
        raise raises(f"cannot read {path}: {os_error_text(error)}") from None
    return parsed(path, data, raises)


def parsed(path: Path, data: bytes, raises: type[GptOssError] = GptOssError) -> Any:
    """The value of a JSON file whose bytes are at hand. Raises `raises`, with the file and the reason."""
    try:
        return parse_json(data)
    except ValueError as error:
        raise raises(f"cannot read {path}: {os_error_text(error)}") from None


def lexists(path: Path) -> bool:
    """Whether the name exists, perhaps as a link that leads nowhere: a reader will say what is wrong with that."""
    return os.path.lexists(path)


def parse_json(data: bytes) -> Any:
    """The value of JSON in UTF-8: no name twice in an object, nothing that cannot be written again. Raises
    ValueError."""
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
            if type(entry) is not int:  # of which headers of weights have thousands
                _check(entry, depth + 1)


def parse_toml(data: bytes) -> dict[str, Any]:
    """The table of a TOML document in UTF-8. Raises ValueError."""
    # Imported here, because few commands read TOML and each would start later.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(data.decode())
    except RecursionError:
        raise ValueError("nested too deep") from None
