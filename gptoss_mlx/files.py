"""Files as wholes: written so that they are never half there, in folders that nobody else has prepared; and the
system's small ones, of a line or a number each.

Files that others wrote are `foreign`'s.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .errors import GptOssError
from .untrusted import open_regular, os_error_text


def replace_file(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Write a file so that it is whole at every moment: the old one, or the new one. Text is UTF-8; a `private` file
    only its owner can read. Raises GptOssError, also for what is there and is no file."""
    data = content.encode(errors="replace") if isinstance(content, str) else content
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no regular file")
        descriptor, partial = tempfile.mkstemp(".partial", ".", path.parent)
        try:
            with open(descriptor, "wb") as file:
                _lock(descriptor)
                if not private:
                    os.fchmod(descriptor, 0o666 & ~_umask())
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise
    except (OSError, ValueError) as error:
        raise GptOssError(f"cannot write {path}: {os_error_text(error)}") from None


def sweep(folder: Path) -> None:
    """Remove what `replace_file` had begun in a folder when it was killed; what cannot be removed stays."""
    for partial in folder.glob(".????????.partial"):
        with suppress(OSError), open(partial, "rb", opener=unlinked) as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode) and _lock(file.fileno()):  # nobody is writing it
                partial.unlink()


def _lock(descriptor: int) -> bool:
    """Whether no other process has locked this; on a file system without locks, nobody knows."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def open_own_folder(path: Path, mode: int = 0o777) -> int:
    """A descriptor of a folder whose files the program may replace and delete, made if there is none. Raises OSError
    also for a symbolic link, and for a folder of another user's, which could lead anywhere."""
    with suppress(FileExistsError):
        path.mkdir(mode, parents=True)
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed: remove it", str(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    # On a disk that knows no owners, all is of the same one.
    if os.fstat(descriptor).st_uid not in (os.geteuid(), path.parent.stat().st_uid):
        os.close(descriptor)
        raise OSError(errno.EPERM, "it belongs to another user: remove it", str(path))
    return descriptor


def unlinked(path: str, flags: int) -> int:
    """An `opener` for a file of the program's own: a symbolic link in its place is not followed, a FIFO not waited
    for."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def utf8_path(path: Path) -> str:
    """A path for a library that takes text and no bytes: in UTF-8, whatever the locale is. Raises GptOssError."""
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError:
        raise GptOssError(f"cannot open {path}: its name is not UTF-8: rename it") from None


def _umask() -> int:
    """What the user wants no new file to allow: it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def read_text(path: Path) -> str | None:
    """What a file in /proc or /sys says; None where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip(" \n\0")
    except OSError:
        return None


def read_number(path: Path) -> int | None:
    """The whole number that such a file holds, if it does."""
    try:
        return int(read_text(path) or "")
    except ValueError:
        return None


def free_disk(path: Path) -> int:
    """Bytes that are free where `path` is, or would be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


BUFFER = 4 * 2**20


def sha256(path: Path, on_read: Callable[[int], None] = lambda count: None) -> str:
    """Of a whole file; `on_read` hears how many bytes were read just now."""
    digest, buffer = hashlib.sha256(), bytearray(BUFFER)
    with open_regular(path) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            on_read(count)
    return digest.hexdigest()
