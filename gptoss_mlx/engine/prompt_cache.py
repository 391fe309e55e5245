"""The KV state of one conversation as a timeline of token ids: it goes on behind the longest prefix that it holds.

Knows which ids the cache holds and where it was marked; what the ids mean, and where a mark is worth its memory, its
callers know.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import takewhile
from typing import Any

import mlx.core as mx

from ..model.kv_cache import MAX_SNAPSHOTS, Snapshot
from .generate import ContextFull, Model
from .interrupts import Interrupted


class PromptCache:
    """`ids` are those that `cache` holds; `marks` are where it can go back to, in order."""

    def __init__(self, model: Model):
        self.model = model
        self.clear()

    def clear(self) -> None:
        self.cache, self.ids, self.snapshots = self.model.make_cache(), [], []

    def adopt(self, ids: Sequence[int], snapshots: Sequence[Snapshot]) -> None:
        """Be the state of the last of `marks`, whose full layers hold `ids`: one that was kept."""
        self.snapshots = [*snapshots[:1], *snapshots[1:][-(MAX_SNAPSHOTS - 1) :]]
        if snapshots:
            self.cache.rewind(snapshots[-1].offset, snapshots[-1])
        self.ids = list(ids[: self.cache.offset])

    def read(self, ids: Sequence[int], on_progress: Callable[[int, int], None] | None = None) -> mx.array:
        """Be the state behind `ids`, one at least, and return their last logits [1, vocabulary]. Of `ids`, only those
        are prefilled that are not held; the last one always is, for its logits. Raises ContextFull, and GptOssError.

        `on_progress`, as in `Model.prefill`, may raise Interrupted: what was read until then is held.
        """
        new = ids[self._rewind(ids, len(ids) - 1) :]
        try:
            logits = self.model.prefill(new, self.cache, on_progress=on_progress)
        except (Interrupted, ContextFull):
            self.ids = list(ids[: self.cache.offset])
            raise
        except BaseException:
            self.clear()  # nothing is certain about a state that an error leaves behind
            raise
        self.ids = list(ids)
        return logits

    def decode(self, logits: mx.array, **options: Any) -> Generator[int, None, None]:
        """Yield the ids that `Model.decode` samples from the logits of a `read`; they join the timeline."""
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

    def prepare(self, ids: Sequence[int], most: int) -> int:
        """Come nearer to the state behind `ids`, by reading `most` of them; returns how many are left."""
        kept = self._rewind(ids, len(ids))
        end = min(kept + most, len(ids))
        if end > kept:
            self.read(ids[:end])
        return len(ids) - end

    def holds(self, ids: Sequence[int]) -> bool:
        """Whether `ids` are the first of those that the state has read."""
        return common_prefix(self.ids, ids) == len(ids)

    def snapshot(self) -> None:
        """Remember this state, so that the timeline can go back to it."""
        if self.snapshots and self.snapshots[-1].offset == self.cache.offset:
            return
        if snapshot := self.cache.snapshot():
            if len(self.snapshots) == MAX_SNAPSHOTS:
                del self.snapshots[1]
            self.snapshots.append(snapshot)

    def cached_of(self, ids: Sequence[int]) -> int:
        """How many of `ids` need not be read."""
        return self._nearest(ids, len(ids))[0]

    def _nearest(self, ids: Sequence[int], most: int) -> tuple[int, Snapshot | None]:
        """How many of `ids`, at `most`, can be had without reading, and the mark that it takes, if it takes one."""
        wanted = min(common_prefix(self.ids, ids), most)
        states = [(self.cache.reachable(wanted, snapshot), snapshot) for snapshot in (None, *self.snapshots)]
        return max(states, key=lambda state: state[0])

    def _rewind(self, ids: Sequence[int], most: int) -> int:
        """Be the state behind as many of `ids`, at `most`, as can be had without reading, and tell how many."""
        kept, snapshot = self._nearest(ids, most)
        if kept:
            self.cache.rewind(kept, snapshot)
            self.snapshots = [each for each in self.snapshots if each.offset <= kept]
            self.ids = list(ids[:kept])
        else:
            self.clear()
        return kept


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids at the beginning are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
