"""The prompt caches of many conversations, within the memory that the plan has for one that is as long as the context.

A conversation leases the cache that holds most of its prompt. Where that belongs to a conversation that went another
way, it gets a copy of what both begin with. Those that nobody leases are what a later prompt may begin with: the one
that was used least lately is written to disk where memory is short, and read back when a prompt continues it.

All of it happens on the model's thread.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from ..chat.state_files import StateFiles
from ..chat.turn import Waiting
from ..engine.generate import Model
from ..engine.prompt_cache import PromptCache
from ..errors import GptOssError
from ..model.kv_cache import MAX_SNAPSHOTS, FullKV
from .errors import RequestError

MAX_WAITING = 1_000  # conversations; a client that is refused tries again at once, and one that waits does not
ROOM_TO_BEGIN = 256  # tokens of an answer that there has to be memory for, before it begins
WORTH_SAVING = 512  # tokens that are sooner read from a disk than prefilled


@dataclass(eq=False)
class Lease:
    """A prompt cache in the hands of one conversation."""

    cache: PromptCache
    saved: Saved | None = None
    """Where it was read from, or written to."""
    gives_way: bool = True
    """Whether its conversation can go on later, with another cache."""
    revoked: bool = False
    """Whether the conversation is to give it back, because the memory is short."""


@dataclass(eq=False)
class Saved:
    """A prompt cache on disk."""

    files: StateFiles
    bytes: int = 0

    def remove(self) -> None:
        shutil.rmtree(self.files.folder, ignore_errors=True)


@dataclass(eq=False)
class _Ticket:
    """A conversation that waits, and the bytes that it needs to begin."""

    bytes: int
    admitted: Future[None] = field(default_factory=Future)


class Pool:
    def __init__(self, model: Model, places: int, folder: Path | None = None, disk_limit: int = 0):
        """`places`: conversations at a time; `folder`, with at most `disk_limit` bytes: for what memory has no room."""
        self._empty, self._model, self._places = model.make_cache(), model, places
        self.budget = self._largest(model.context)
        self._leased: list[Lease] = []
        self._idle: list[Lease] = []  # the one that was used last at the end
        self._saved: list[Saved] = []
        self._waiting: deque[_Ticket] = deque()
        self._admitted: list[_Ticket] = []  # those that have not taken their cache yet
        self._folder, self._disk_limit, self._count = folder, disk_limit, 0

    @property
    def leased(self) -> int:
        return len(self._leased)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def resting(self) -> int:
        """Conversations in memory that nobody leases; for all threads, as `nbytes`."""
        return len(self._idle)

    @property
    def nbytes(self) -> int:
        """Bytes of all caches in memory."""
        return sum(lease.cache.nbytes for lease in (*self._leased, *self._idle))

    def lease(
        self, ids: Sequence[int], *, gives_way: bool, own: StateFiles | None = None
    ) -> Generator[Waiting, None, Lease]:
        """Wait for a place and for memory, and return the cache that holds most of `ids`; `own` is what is saved with
        the conversation itself, and only read. Raises RequestError where too many wait already."""
        if len(self._waiting) >= MAX_WAITING:
            text = f"{MAX_WAITING:,} requests are waiting already: try again later"
            raise RequestError(text, status=429, kind="rate_limit_error", code="rate_limit_exceeded")
        ticket = _Ticket(self._empty.bytes_for(min(len(ids) + ROOM_TO_BEGIN, self._model.context)))
        self._waiting.append(ticket)
        self._admit()
        try:
            if not ticket.admitted.done():
                yield Waiting(ticket.admitted)
        except GeneratorExit:
            (self._admitted if ticket in self._admitted else self._waiting).remove(ticket)
            self._admit()
            raise
        self._admitted.remove(ticket)
        lease = self._best(ids, own)
        lease.gives_way = gives_way
        self._leased.append(lease)
        self._make_room(max(ticket.bytes - lease.cache.nbytes, 0))
        return lease

    def give_back(self, lease: Lease) -> None:
        """The conversation rests: its cache stays as long as there is room."""
        self._leased.remove(lease)
        lease.revoked = False
        if lease.cache.ids:
            self._rest(lease)
        self.trim()
        self._admit()

    def remember(self, lease: Lease) -> None:
        """A conversation that rests can be gone on with from where it stands."""
        lease.cache.snapshot()
        self._idle.remove(lease)
        self._rest(lease)
        self.trim()

    def rests(self, lease: Lease) -> bool:
        """Whether a cache is in memory and in nobody's hands."""
        return lease in self._idle

    def trim(self) -> None:
        """Keep to the memory: resting conversations go to the disk; where that is not enough, the one that began last
        gives way to the others."""
        self._make_room(0)
        if self.nbytes > self.budget and not any(lease.revoked for lease in self._leased):
            for lease in self._leased[:0:-1]:
                if lease.gives_way:
                    lease.revoked = True
                    return

    def close(self) -> None:
        """Remove what is on the disk."""
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _admit(self) -> None:
        """Let those that wait begin, in their order, as long as there is a place and memory for them."""
        while self._waiting:
            active = len(self._leased) + len(self._admitted)
            used = sum(lease.cache.nbytes for lease in self._leased) + sum(each.bytes for each in self._admitted)
            if active >= self._places or (active and used + self._waiting[0].bytes > self.budget):
                return
            ticket = self._waiting.popleft()
            self._admitted.append(ticket)
            ticket.admitted.set_result(None)

    def _largest(self, positions: int) -> int:
        """Bytes of a cache with so many positions and all its snapshots."""
        return self._empty.bytes_for(positions) + MAX_SNAPSHOTS * self._empty.bytes_for(0)

    def _best(self, ids: Sequence[int], own: StateFiles | None) -> Lease:
        """The cache that holds most of `ids`: one that rests, one from the disk, a copy of the beginning of one, or an
        empty one."""
        held = [(lease.cache.cached_of(ids), lease) for lease in self._idle]
        cached = max((tokens for tokens, _ in held), default=0)
        goes_on = (lease for tokens, lease in held if tokens == cached > 0 and _continues(lease.cache, cached))
        continued = next(goes_on, None)
        saved = max(self._saved, key=lambda saved: saved.files.cached_of(ids), default=None)
        on_disk = saved.files.cached_of(ids) if saved else 0
        if own and own.cached_of(ids) > max(cached, on_disk):
            cache = self._loaded(own, ids)
            if cache and continued in self._idle:
                self._drop(continued)
            return Lease(cache) if cache else self._best(ids, None)
        if continued:
            self._idle.remove(continued)
            return continued
        if saved and on_disk > cached + WORTH_SAVING and (read := self._read(saved, ids)):
            return read
        nearest = max((*self._idle, *self._leased), key=lambda lease: lease.cache.snapshot_of(ids), default=None)
        return Lease((nearest and nearest.cache.fork(ids)) or PromptCache(self._model))

    def _rest(self, lease: Lease) -> None:
        """Keep it as the one that was used last, and none that is no more than a place to which it can rewind."""
        for other in list(self._idle):
            if lease.cache.cached_of(other.cache.ids) == len(other.cache.ids):
                self._drop(other)
        self._idle.append(lease)

    def _make_room(self, more: int) -> None:
        """Until `more` bytes fit, remove what was used least lately of what rests."""
        while self._idle and self.nbytes + more > self.budget:
            lease = self._idle[0]
            try:
                if self._folder and len(lease.cache.ids) >= WORTH_SAVING:
                    self._save(lease, self._folder)
            except (GptOssError, OSError):  # such as a full disk: it is prefilled again
                pass
            self._drop(lease)

    def _drop(self, lease: Lease) -> None:
        """Remove one that rests, with what is on the disk of it and not to be read again."""
        self._idle.remove(lease)
        if lease.saved and lease.saved not in self._saved:
            lease.saved.remove()

    def _save(self, lease: Lease, folder: Path) -> None:
        """Write a cache to the disk. Raises GptOssError and OSError."""
        lease.cache.snapshot()
        saved = lease.saved = lease.saved or Saved(self._new_files(folder))
        saved.files.save(lease.cache)
        saved.bytes = sum(path.stat().st_size for path in saved.files.folder.iterdir())
        self._saved.append(saved)
        while sum(each.bytes for each in self._saved) > self._disk_limit:
            self._saved.pop(0).remove()

    def _new_files(self, folder: Path) -> StateFiles:
        self._count += 1
        own = folder / str(self._count)
        own.mkdir(mode=0o700)
        return StateFiles(own, self._model)

    def _read(self, saved: Saved, ids: Sequence[int]) -> Lease | None:
        """A cache from the disk; None where that cannot be read."""
        self._saved.remove(saved)
        if cache := self._loaded(saved.files, ids):
            return Lease(cache, saved)
        saved.remove()
        return None

    def _loaded(self, files: StateFiles, ids: Sequence[int]) -> PromptCache | None:
        """What is saved of `ids`, after making room for it; None where it cannot be read."""
        self._make_room(self._largest(FullKV.capacity(files.cached_of(ids), self._model.context)))
        cache = PromptCache(self._model)
        return cache if files.load(cache, ids) else None


def _continues(cache: PromptCache, cached: int) -> bool:
    """Whether a prompt of which so much is cached goes on where the conversation is, and not from an earlier place."""
    return not cache.snapshots or cached >= cache.snapshots[-1].offset
