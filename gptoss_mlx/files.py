"""The program's own files: written whole or not at all, locked, in folders that nobody else has prepared; and the small
files of the system, which hold a line or a number each.

Files that others wrote are `untrusted`'s. Knows nothing of what is in a file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import GptOssError
from .untrusted import open_regular, os_error_text

BUFFER = 4 * 2**20  # bytes that are read at a time


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when the block has succeeded and the data is on the disk: at
    every moment `path` is whole, the old file or the new one. A `private` file only its owner can read.

    Raises OSError, also where `path` is not a regular file.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file")
    descriptor, partial = tempfile.mkstemp(".partial", ".", path.parent)
    try:
        with open(descriptor, "wb") as file:
            lock(descriptor)  # `sweep` leaves it alone
            if not private:
                os.fchmod(descriptor, 0o666 & ~_umask())
            yield file
            file.flush()
            sync(descriptor)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


def sync(descriptor: int) -> None:
    """Wait until an open file or folder is on the disk. Raises OSError."""
    os.fsync(descriptor)
    if sys.platform == "darwin":  # where that leaves it in the drive's own memory
        with suppress(OSError):  # a network's file system
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)


def replace_file(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Write a file as `replacing` does; text is UTF-8. Raises GptOssError."""
    try:
        with replacing(path, private=private) as file:
            file.write(content.encode(errors="replace") if isinstance(content, str) else content)
    except (OSError, ValueError) as error:
        raise GptOssError(f"cannot write {path}: {os_error_text(error)}") from None


def sweep(folder: Path) -> None:
    """Remove the unfinished files of `replacing` that killed processes have left in a folder; what cannot be removed
    stays."""
    for partial in folder.glob(".????????.partial"):
        with suppress(OSError), open(partial, "rb", opener=unlinked) as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode) and lock(file.fileno()):
                partial.unlink()


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it. Raises OSError.

    On a disk without extended attributes macOS keeps those of a file in another one, `._` and its name, which goes with
    it: what was listed may be gone.
    """
    while folder.exists():
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)


def lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Lock an open file or folder until it is closed: True if that succeeded, False where another process holds the
    lock, None on a file system without locks. A `shared` lock keeps off only one that is not."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def unlinked(path: str, flags: int) -> int:
    """An `opener` for the program's own files: does not follow a symbolic link in the place of one, or wait for the
    other end of a FIFO."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def open_own_folder(path: Path, mode: int = 0o777) -> int:
    """The descriptor of a folder in which the program may replace and delete files; made if there is none. Raises
    OSError, also for a symbolic link, and for the folder of another user, who could put links into it."""
    with suppress(FileExistsError):
        path.mkdir(mode, parents=True)
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed: remove it", str(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    # On a file system without owners everything has the same one.
    if os.fstat(descriptor).st_uid not in (os.geteuid(), path.parent.stat().st_uid):
        os.close(descriptor)
        raise OSError(errno.EPERM, "it belongs to another user: remove it", str(path))
    return descriptor


def _umask() -> int:
    """The permissions that the user's new files lack. To read the mask is to set it: not for several threads."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def utf8_path(path: Path) -> str:
    """A path for a library that takes text and no bytes: in UTF-8, whatever the locale is. Raises GptOssError."""
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError:
        raise GptOssError(f"cannot open {path}: its name is not UTF-8: rename it") from None


def sha256(path: Path, on_read: Callable[[int], None] = lambda count: None) -> str:
    """The SHA-256 of a whole regular file, in hexadecimal; `on_read` gets the number of bytes of each read. Raises
    OSError."""
    digest, buffer = hashlib.sha256(), bytearray(BUFFER)
    with open_regular(path) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            on_read(count)
    return digest.hexdigest()


def free_disk(path: Path) -> int:
    """Free bytes on the disk of `path`, which need not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def read_text(path: Path) -> str | None:
    """The contents of a file in /proc or /sys, without blanks and null characters at its ends; None where it cannot be
    read."""
    try:
        return path.read_text(errors="replace").strip(" \n\0")
    except OSError:
        return None


def read_number(path: Path) -> int | None:
    """The whole number in such a file; None where there is none."""
    try:
        return int(read_text(path) or "")
    except ValueError:
        return None
