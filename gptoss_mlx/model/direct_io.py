"""Reads of parts of files that leave nothing in the page cache."""

from __future__ import annotations

import errno
import os
import sys
import threading
from mmap import mmap
from pathlib import Path

import numpy as np

from .checkpoint import CheckpointError


class DirectFiles:
    """Reads of parts of files that leave nothing in the page cache, where the system offers that."""

    # O_DIRECT wants offset, length and memory to be multiples of the disk's block: 512 bytes mostly, 4096 at most.
    BLOCK, PAGE = 512, 4096
    DIRECT = getattr(os, "O_DIRECT", 0)
    F_NOCACHE = 48  # of macOS

    def __init__(self) -> None:
        self._open: dict[Path, tuple[int, bool]] = {}
        self._lock, self._own = threading.Lock(), threading.local()
        self._in_blocks = True

    def read(self, path: Path, start: int, into: np.ndarray) -> None:
        """Fill `into` from byte `start` on. Raises CheckpointError."""
        target = into.reshape(-1).view(np.uint8)
        try:
            descriptor, direct = self._descriptor(path)
            if not direct:
                count = os.preadv(descriptor, [target], start)
            elif (count := self._straight(descriptor, start, target)) is None:
                count = self._by_way_of_pages(descriptor, start, target)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
        if count < target.size:
            raise CheckpointError(f"{path} has become shorter while it was in use")

    def _straight(self, descriptor: int, start: int, target: np.ndarray) -> int | None:
        """Read into `target` itself; None where blocks do not allow it."""
        if not self._in_blocks or (start | target.size | target.ctypes.data) % self.BLOCK:
            return None
        try:
            return os.preadv(descriptor, [target], start)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._in_blocks = False  # this disk's blocks are larger
            return None

    def _by_way_of_pages(self, descriptor: int, start: int, target: np.ndarray) -> int:
        before = start % self.PAGE
        length = -(-(before + target.size) // self.PAGE) * self.PAGE
        pages = self._pages(length)
        count = min(os.preadv(descriptor, [memoryview(pages)[:length]], start - before) - before, target.size)
        if count == target.size:
            target[:] = np.frombuffer(pages, np.uint8, count, before)
        return count

    def _pages(self, length: int) -> mmap:
        """This thread's own memory to read into: pages, which are aligned."""
        if getattr(self._own, "size", 0) < length:
            self._own.size, self._own.pages = length, mmap(-1, length)
        return self._own.pages

    def _descriptor(self, path: Path) -> tuple[int, bool]:
        with self._lock:
            if path not in self._open:
                self._open[path] = self._opened(path)
            return self._open[path]

    def _opened(self, path: Path) -> tuple[int, bool]:
        """A descriptor, and whether it wants whole blocks."""
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
