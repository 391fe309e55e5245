"""The KV cache of one conversation with the token ids that it holds: only what a prompt adds to them is prefilled.

Knows which ids are cached, and at which positions there are snapshots; what the ids mean, and where a snapshot is worth
its memory, its callers know.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import takewhile
from typing import Any

import mlx.core as mx

from ..model.kv_cache import MAX_SNAPSHOTS, Snapshot
from .generate import ContextFull, Model, Steps, finish
from .mlx_errors import mlx_errors


class PromptCache:
    """`ids` are those that `cache` holds; to its `snapshots`, in order, it can rewind."""

    def __init__(self, model: Model):
        self.model = model
        self.clear()

    def clear(self) -> None:
        self.cache = self.model.make_cache()
        self.ids: list[int] = []
        self.snapshots: list[Snapshot] = []

    def adopt(self, ids: Sequence[int], snapshots: Sequence[Snapshot]) -> None:
        """Take over a cache that was loaded, whose full layers hold `ids`, at the position of its last snapshot."""
        self.snapshots = [*snapshots[:1], *snapshots[1:][-(MAX_SNAPSHOTS - 1) :]]
        if snapshots:
            self.cache.rewind(snapshots[-1].offset, snapshots[-1])
        self.ids = list(ids[: self.cache.offset])

    @mlx_errors()
    def fork(self, ids: Sequence[int]) -> PromptCache | None:
        """A copy of what this one holds of `ids` up to its last snapshot in them; None where there is none. Raises
        OutOfMemory."""
        if not (end := self.snapshot_of(ids)):
            return None
        fork = PromptCache(self.model)
        fork.cache.copy_positions(self.cache, end)
        fork.adopt(self.ids, [snapshot for snapshot in self.snapshots if snapshot.offset <= end])
        return fork

    def snapshot_of(self, ids: Sequence[int]) -> int:
        """The position of its last snapshot in `ids`; 0 where there is none."""
        same = common_prefix(self.ids, ids)
        return max((each.offset for each in self.snapshots if each.offset <= same), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of the KV cache and its snapshots."""
        rings = [ring for snapshot in self.snapshots for ring in snapshot.rings.values()]
        return self.cache.nbytes + sum(ring.nbytes for ring in rings)

    def read(self, ids: Sequence[int], on_progress: Callable[[int, int], None] | None = None) -> mx.array:
        """Advance the cache to the end of `ids`, one or more, and return the last logits [1, vocabulary].

        Only uncached tokens are prefilled, and always the last one, for its logits. What `on_progress` raises, as in
        `Model.prefill`, breaks it off; what was read until then stays cached. Raises ContextFull, and GptOssError.
        """
        return finish(self.read_steps(ids), on_progress)

    def read_steps(self, ids: Sequence[int]) -> Steps:
        """As `read`, chunk by chunk; where it is closed between two, what was read until then stays cached."""
        new = ids[self._rewind(ids, len(ids) - 1) :]
        try:
            logits = yield from self.model.prefill_steps(new, self.cache)
        except (GeneratorExit, ContextFull):
            self.ids = list(ids[: self.cache.offset])
            raise
        except BaseException:
            self.clear()  # nothing is certain about a state that an error leaves behind
            raise
        self.ids = list(ids)
        return logits

    def decode(self, logits: mx.array, **options: Any) -> Generator[int, None, None]:
        """Yield the ids that `Model.decode` samples from the logits of a `read`; they are cached too."""
        sampled, whole = [], False
        try:
            for id_ in self.model.decode(logits, self.cache, **options):
                sampled.append(id_)
                whole = True
                yield id_
                whole = False
            whole = True
        finally:
            if whole:
                # The last one was perhaps not fed.
                self.ids = (self.ids + sampled)[: self.cache.offset]
            else:
                self.clear()

    def prepare(self, ids: Sequence[int], limit: int) -> int:
        """Advance towards the end of `ids` by reading `limit` of them; returns how many are left."""
        cached = self._rewind(ids, len(ids))
        end = min(cached + limit, len(ids))
        if end > cached:
            self.read(ids[:end])
        return len(ids) - end

    def holds(self, ids: Sequence[int]) -> bool:
        """Whether the cache begins with `ids`."""
        return common_prefix(self.ids, ids) == len(ids)

    @mlx_errors()
    def snapshot(self) -> None:
        """Remember this position, so that the cache can rewind to it. Raises OutOfMemory."""
        if self.snapshots and self.snapshots[-1].offset == self.cache.offset:
            return
        if snapshot := self.cache.snapshot():
            if len(self.snapshots) == MAX_SNAPSHOTS:
                del self.snapshots[1]
            self.snapshots.append(snapshot)

    def cached_of(self, ids: Sequence[int]) -> int:
        """How many of `ids` need not be read."""
        return self._nearest(ids, len(ids))[0]

    def _nearest(self, ids: Sequence[int], limit: int) -> tuple[int, Snapshot | None]:
        """How many of `ids`, up to `limit`, can be had without reading, and the snapshot that this takes, if any."""
        wanted = min(common_prefix(self.ids, ids), limit)
        states = [(self.cache.reachable(wanted, snapshot), snapshot) for snapshot in (None, *self.snapshots)]
        return max(states, key=lambda state: state[0])

    def _rewind(self, ids: Sequence[int], limit: int) -> int:
        """Rewind to the end of as many of `ids`, up to `limit`, as can be had without reading; returns how many."""
        cached, snapshot = self._nearest(ids, limit)
        if cached:
            self.cache.rewind(cached, snapshot)
            self.snapshots = [each for each in self.snapshots if each.offset <= cached]
            self.ids = list(ids[:cached])
        else:
            self.clear()
        return cached


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids at the beginning are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
