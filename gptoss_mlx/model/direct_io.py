"""Reads of parts of files that bypass the page cache, but for small ones. Knows nothing of their contents."""

from __future__ import annotations

import errno
import os
import sys
import threading
from mmap import mmap
from pathlib import Path

import numpy as np

from .safetensors import CheckpointError


class DirectFiles:
    """Files that are read around the page cache, where the system and the file system allow it."""

    # O_DIRECT wants offset, length and memory to be multiples of the disk's block: 512 bytes as a rule, 4096 at most.
    BLOCK, PAGE = 512, 4096
    SMALL = 8192  # bytes of a part that takes its disk longer to find than to read, and the page cache little room
    DIRECT = getattr(os, "O_DIRECT", 0)
    F_NOCACHE = 48  # of macOS

    def __init__(self) -> None:
        self._open: dict[tuple[Path, bool], tuple[int, bool]] = {}
        self._lock, self._own = threading.Lock(), threading.local()
        self._in_blocks = True

    def read(self, path: Path, start: int, into: np.ndarray) -> None:
        """Fill a contiguous array from byte `start` of a file on. Raises CheckpointError."""
        target = into.reshape(-1).view(np.uint8)
        try:
            descriptor, direct = self._descriptor(path, target.size < self.SMALL)
            count = self._directly(descriptor, start, target) if direct else os.preadv(descriptor, [target.data], start)
            if count is None:
                count = self._through_pages(descriptor, start, target)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
        if count < target.size:
            raise CheckpointError(f"{path} has become shorter while it was in use")

    def _directly(self, descriptor: int, start: int, target: np.ndarray) -> int | None:
        """Read into `target` itself, and return the number of bytes; None where the disk's blocks do not allow it."""
        if not self._in_blocks or (start | target.size | target.ctypes.data) % self.BLOCK:
            return None
        try:
            return os.preadv(descriptor, [target.data], start)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._in_blocks = False  # this disk's blocks are larger
            return None

    def _through_pages(self, descriptor: int, start: int, target: np.ndarray) -> int:
        """Read whole pages, and copy the bytes of `target` out of them; returns their number."""
        before = start % self.PAGE
        length = -(-(before + target.size) // self.PAGE) * self.PAGE
        pages = self._pages(length)
        count = min(os.preadv(descriptor, [memoryview(pages)[:length]], start - before) - before, target.size)
        if count == target.size:
            target[:] = np.frombuffer(pages, np.uint8, count, before)
        return count

    def _pages(self, length: int) -> mmap:
        """Memory of this thread to read into, in whole pages and so aligned."""
        if getattr(self._own, "size", 0) < length:
            self._own.size, self._own.pages = length, mmap(-1, length)
        return self._own.pages

    def _descriptor(self, path: Path, cached: bool) -> tuple[int, bool]:
        with self._lock:
            if (path, cached) not in self._open:
                self._open[path, cached] = self._opened(path, cached)
            return self._open[path, cached]

    def _opened(self, path: Path, cached: bool) -> tuple[int, bool]:
        """A descriptor, and whether it needs whole blocks."""
        if cached:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
        if self.DIRECT:
            try:
                descriptor = os.open(path, os.O_RDONLY | self.DIRECT | os.O_CLOEXEC)
                os.preadv(descriptor, [memoryview(self._pages(self.PAGE))[: self.PAGE]], 0)
                return descriptor, True
            except OSError:  # a file system without it, as tmpfs is
                pass
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(descriptor, self.F_NOCACHE, 1)
        return descriptor, False

    def __del__(self) -> None:
        for descriptor, _ in self._open.values():
            os.close(descriptor)
