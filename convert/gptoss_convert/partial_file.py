"""A file that arrives in chunks, in any order; beside it is the record of what has arrived, for the next process.

Knows nothing of where the bytes come from, or whether they are right.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from gptoss_mlx.files import lock, replacing

CHUNK = 4 * 2**20  # bytes


class PartialFile:
    """`size` bytes of which some are here. Of each chunk, what has arrived is its beginning. Raises OSError.

    Counts are recorded after their bytes are written, so that a process that is killed leaves a record that is true. A
    file of one chunk needs none: where there is no record, all that the file holds has arrived.
    """

    def __init__(self, path: Path, size: int, *, resume: bool = True):
        """Without `resume`, nothing that is there counts."""
        self.path, self.size = path, size
        path.touch()
        self._file = path.open("r+b", buffering=0)
        if lock(self._file.fileno()) is False:
            self._file.close()
            raise BlockingIOError(errno.EAGAIN, "another process is downloading it", str(path))
        self._arrived = _counts(path, size) if resume else [0 for _ in range(0, size, CHUNK)]
        self._file.truncate(min(path.stat().st_size, size))
        self._record = None
        if len(self._arrived) > 1:
            with replacing(_record_of(path), private=True) as record:
                record.write(struct.pack(f"<{len(self._arrived)}Q", *self._arrived))
            self._record = _record_of(path).open("r+b", buffering=0)

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        if self._record:
            self._record.close()

    @property
    def arrived(self) -> int:
        """Bytes in all."""
        return sum(self._arrived)

    @property
    def prefix(self) -> int:
        """Bytes before the first that lacks."""
        return next((start for start, _ in self._gaps()), self.size)

    def missing(self) -> list[tuple[int, int]]:
        """The start and end of all that lacks."""
        found: list[tuple[int, int]] = []
        for start, end in self._gaps():
            if found and found[-1][1] == start:
                start = found.pop()[0]
            found.append((start, end))
        return found

    def _gaps(self) -> Iterator[tuple[int, int]]:
        """What lacks of each chunk."""
        for index, count in enumerate(self._arrived):
            end = min((index + 1) * CHUNK, self.size)
            if index * CHUNK + count < end:
                yield index * CHUNK + count, end

    def write(self, start: int, data: bytes) -> None:
        """Threads may do so at once, in chunks of their own."""
        written = 0
        while written < len(data):
            written += os.pwrite(self._file.fileno(), data[written:], start + written)
        end = start + len(data)
        for index in range(start // CHUNK, -(-end // CHUNK)):
            first, last = max(start - index * CHUNK, 0), min(end - index * CHUNK, CHUNK)
            if first <= self._arrived[index] < last:
                self._arrived[index] = last
                if self._record:
                    os.pwrite(self._record.fileno(), struct.pack("<Q", last), 8 * index)

    def read(self, start: int, count: int) -> bytes:
        return os.pread(self._file.fileno(), count, start)

    def complete(self, path: Path) -> None:
        """It is whole: give it its name."""
        self.path.replace(path)
        _record_of(self.path).unlink(missing_ok=True)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        _record_of(self.path).unlink(missing_ok=True)


def arrived(path: Path, size: int) -> int:
    """How much of such a file is here."""
    return sum(_counts(path, size)) if path.is_file() else 0


def _counts(path: Path, size: int) -> list[int]:
    """Bytes of each chunk that have arrived; none where the record is another file's."""
    lengths = [min(CHUNK, size - start) for start in range(0, size, CHUNK)]
    try:
        data = _record_of(path).read_bytes()
    except FileNotFoundError:
        counts = lengths
    else:
        counts = [count for (count,) in struct.iter_unpack("<Q", data[: len(data) // 8 * 8])]
        if len(counts) != len(lengths) or any(map(int.__gt__, counts, lengths)):
            return [0 for _ in lengths]
    here = path.stat().st_size
    return [min(count, max(here - index * CHUNK, 0)) for index, count in enumerate(counts)]


def _record_of(path: Path) -> Path:
    return path.with_suffix(".chunks")
