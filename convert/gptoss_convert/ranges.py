"""Ranges of a file that an HTTP server has: one into memory, or all that lacks of a file on the disk, several at once.

Over the session of huggingface_hub, which knows the user's token, proxies and offline mode, and takes the token to no
other host. Knows which failures are worth another try; its errors are those of the library, and ChangedError.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from huggingface_hub import constants, errors, get_session

# Exported, but without the mark that a type checker looks for.
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from gptoss_mlx.files import BUFFER

from .partial_file import CHUNK, PartialFile

PAUSES = (1, 2, 4, 8)  # seconds before each new try of a transfer that gave no byte
MAX_PAUSE = 300  # seconds that a server may ask for: the hub counts requests in 5 minutes
CONNECTIONS = 8
MAX_RANGE = 32 * 2**20  # bytes of a request: the hub's answer to each takes a few tenths of a second
TICK = 0.1  # seconds between two reports


class ChangedError(Exception):
    """The server has another file than the one that was asked for."""


class _NoRangesError(Exception):
    """The server answers with the whole file."""


@dataclass
class Resource:
    """A file of `size` bytes. `checked`: the caller will know by a checksum whether all bytes are of one file; where
    not, the server's ETag has to stay the same."""

    url: str
    size: int
    checked: bool
    _etag: str = field(default="", init=False)

    def read(self, start: int, end: int) -> bytes:
        """Into memory."""
        data, tries = bytearray(), _Tries()
        while start < end:
            begun = start
            start, problem = self.receive(begun, end, lambda position, more: data.extend(more))
            if start < end:
                tries.after(problem, progressed=start > begun)
        return bytes(data)

    def receive(
        self, start: int, end: int, write: Callable[[int, bytes], None], *, partly: bool = False
    ) -> tuple[int, Exception | None]:
        """Ask once for the bytes start..end, and `write` them as they come, with their position. Returns how far that
        came, and what ended it, if anything did. `partly`: the whole file is not wanted instead."""
        headers = build_hf_headers() | {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        reached = start
        try:
            with get_session().stream(
                "GET", self.url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ) as response:
                if response.is_error:
                    response.read()
                position = self._first(response, start)
                if partly and response.status_code != 206 and (start, end) != (0, self.size):
                    raise _NoRangesError
                for data in response.iter_bytes():
                    if wanted := data[max(start - position, 0) : max(end - position, 0)]:
                        write(reached, wanted)
                        reached += len(wanted)
                    position += len(data)
                    if position >= end:
                        break
        except Exception as error:
            return reached, error
        return reached, None

    def _first(self, response: Any, start: int) -> int:
        """The position of the first byte of a response. Raises what the server says, and ChangedError."""
        if response.status_code == 416:
            raise ChangedError
        hf_raise_for_status(response)
        etag = response.headers.get("ETag", "").removeprefix("W/")
        self._etag = self._etag or etag
        if not self.checked and etag not in ("", self._etag):
            raise ChangedError
        if response.status_code != 206:
            return 0  # a server that ignores ranges begins at the beginning
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not found or int(found[1]) > start or found[2] not in ("*", str(self.size)):
            raise ChangedError
        return int(found[1])


class _Tries:
    """When to ask again after a request that did not give all: at once where it gave something, else after a pause,
    and in the end not."""

    def __init__(self, stopped: threading.Event | None = None):
        self._stopped = stopped or threading.Event()
        self._failures = self._in_vain = 0

    def after(self, problem: Exception | None, *, progressed: bool, elsewhere: bool = False) -> None:
        """Returns when it is time to ask again, and raises `problem` when that is not worth it. With progress
        `elsewhere` it is: the server is there, and takes fewer requests at once."""
        if problem and _is_final(problem):
            raise problem
        if progressed:
            self._failures = self._in_vain = 0
            return
        self._in_vain = 0 if elsewhere else self._in_vain + 1
        if self._in_vain > len(PAUSES):
            raise problem or ConnectionError("no data")
        self._stopped.wait(max(PAUSES[min(self._failures, len(PAUSES) - 1)], _retry_after(problem)))
        self._failures += 1


def _is_final(problem: Exception) -> bool:
    """Whether the same request would fail again: refusals of the hub, not its overload or a connection's end."""
    if isinstance(problem, errors.HfHubHTTPError):
        return problem.response.status_code < 500 and problem.response.status_code not in (408, 429)
    return isinstance(problem, ChangedError | _NoRangesError | errors.OfflineModeIsEnabled) or of_the_disk(problem)


def of_the_disk(problem: BaseException) -> bool:
    """Whether it is a failure of this machine's files: the HTTP library has errors of its own for the network."""
    return (
        isinstance(problem, OSError)
        and problem.errno is not None
        and not isinstance(problem, ConnectionError | TimeoutError)
    )


def _retry_after(problem: Exception | None) -> float:
    """The seconds for which a server wants to be left alone, which it gives in number, or by their end."""
    if not isinstance(problem, errors.HfHubHTTPError):
        return 0
    asked = problem.response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,9}", asked):
        return min(int(asked), MAX_PAUSE)
    try:
        left = parsedate_to_datetime(asked) - datetime.now(timezone.utc)
    except (TypeError, ValueError):
        return 0
    return min(left.total_seconds(), MAX_PAUSE)


def download(resource: Resource, partial: PartialFile, on_read: Callable[[int], None]) -> str:
    """Have all of a file on the disk; returns its SHA-256. `on_read` is called from this thread, a few times a second,
    with the bytes that have arrived since then, also when these are none; what it raises ends the download."""
    return _Download(resource, partial, on_read).run()


class _Download:
    """Threads get what lacks, from the front; this one hashes what has arrived in order."""

    def __init__(self, resource: Resource, partial: PartialFile, on_read: Callable[[int], None]):
        self._resource, self._partial, self._on_read = resource, partial, on_read
        self._reported = partial.arrived
        self._digest, self._hashed = hashlib.sha256(), 0

    def run(self) -> str:
        self._on_read(0)  # before anything arrives, for whoever measures the speed
        try:
            self._fetch(self._partial.missing(), partly=True)
        except _NoRangesError:
            self._fetch([(self._partial.prefix, self._resource.size)], partly=False)
        self._report()
        while self._hash():
            self._on_read(0)
        return self._digest.hexdigest()

    def _fetch(self, missing: list[tuple[int, int]], partly: bool) -> None:
        work = _Ranges(self._resource, self._partial, missing, partly)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            try:
                running = {pool.submit(work.run) for _ in range(CONNECTIONS if partly else 1)}
                while running:
                    self._report()
                    timeout = 0 if self._hash() else TICK
                    done, running = wait(running, timeout, FIRST_EXCEPTION)
                    for future in done:
                        future.result()
            finally:
                work.stopped.set()

    def _report(self) -> None:
        arrived = self._partial.arrived
        count, self._reported = arrived - self._reported, arrived
        self._on_read(count)

    def _hash(self) -> bool:
        """Some of what has arrived in order. Returns whether there is more."""
        data = self._partial.read(self._hashed, min(BUFFER, self._partial.prefix - self._hashed))
        self._digest.update(data)
        self._hashed += len(data)
        return len(data) == BUFFER


class _Ranges:
    """What lacks of a file, for several threads, of which each gets a range after the other. Without `partly`, one
    thread gets all of it in one."""

    def __init__(self, resource: Resource, partial: PartialFile, missing: list[tuple[int, int]], partly: bool):
        self._resource, self._partial, self._partly = resource, partial, partly
        self._missing = deque(missing)
        self._lock = threading.Lock()
        self.stopped = threading.Event()

    def run(self) -> None:
        """Until there is nothing that no other thread is getting, or it is stopped."""
        tries, seen = _Tries(self.stopped), self._partial.arrived
        while found := self._next():
            start, end = found
            reached, problem = self._resource.receive(start, end, self._write, partly=self._partly)
            if reached < end:
                # For whoever is first: another thread, while this one waits.
                with self._lock:
                    self._missing.appendleft((reached, end))
                if self.stopped.is_set():
                    return
                arrived = self._partial.arrived
                tries.after(problem, progressed=reached > start, elsewhere=arrived > seen)
                seen = arrived

    def _next(self) -> tuple[int, int] | None:
        """The less is left, the shorter, so that all connections are in use to the end. No two share a chunk."""
        with self._lock:
            if self.stopped.is_set() or not self._missing:
                return None
            start, end = self._missing.popleft()
            left = end - start + sum(last - first for first, last in self._missing)
            length = max(min(left // (2 * CONNECTIONS), MAX_RANGE), CHUNK)
            stop = -(-(start + length) // CHUNK) * CHUNK
            if self._partly and stop < end:
                self._missing.appendleft((stop, end))
                end = stop
            return start, end

    def _write(self, position: int, data: bytes) -> None:
        if self.stopped.is_set():
            raise CancelledError
        self._partial.write(position, data)
