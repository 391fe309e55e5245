"""The session of a running chat and its entry in the store, which follows it.

The transcript is written when a question is asked and when it is answered, the KV state after an answer, each in one
step: a process that is killed loses at most the answer that it was writing.
"""

from __future__ import annotations

import fcntl
import os

from ..errors import GptOssError
from .session import Session
from .state_files import StateFiles
from .store import Kept, Store
from .transcript import Transcript

USUAL_KV_LIMIT = 4 * 10**9  # bytes of all KV states: 160,000 tokens of gpt-oss-20b


class Keeper:
    """Keeps the session that it is given, as one entry of a store, which no other process may use meanwhile."""

    def __init__(self, store: Store, kept: Kept | None = None, *, kv_limit: int | None = USUAL_KV_LIMIT):
        """`kept`: the entry of a session that is resumed; `kv_limit` None: no KV states. Raises GptOssError where the
        entry is in use."""
        self._store, self._kept, self._kv_limit = store, kept, kv_limit
        self._state: StateFiles | None = None
        self._lock: int | None = None
        if kept:
            self._lock = _lock(kept)

    @property
    def name(self) -> str | None:
        return self._kept and self._kept.name

    @property
    def has_state(self) -> bool:
        """Whether there is a KV state on disk, of whatever model."""
        return self._kept is not None and self._kept.state_bytes > 0

    def resume(self, session: Session) -> int:
        """Restore what was kept; returns how many positions of the KV state could be used. Raises GptOssError."""
        session.restore(Transcript.read(self._kept.transcript))
        if self._kv_limit is None:
            return 0
        self._state = StateFiles(self._kept.state, session.model)
        return self._state.load(session.timeline)

    def keep(self, session: Session, *, kv: bool) -> None:
        """Write the transcript, and the KV state if `kv`. Raises GptOssError."""
        if not session.messages:
            return
        if self._kept is None:
            self._kept = self._store.new(session.transcript.title)
            self._lock = _lock(self._kept)
        session.transcript.write(self._kept.transcript)
        if kv and self._kv_limit is not None:
            if self._state is None or self._state.model is not session.model:
                self._state = StateFiles(self._kept.state, session.model)
            self._state.save(session.timeline)
            self._store.bound_states(self._kv_limit, self._kept)

    def leave(self) -> None:
        """What is kept stays; the next session is a new entry."""
        if self._lock is not None:
            os.close(self._lock)
        self._kept, self._state, self._lock = None, None, None

    def rename(self, name: str) -> None:
        """Raises GptOssError."""
        if self._kept is None:
            raise GptOssError("nothing has been said yet that could be kept")
        self._kept = self._store.rename(self._kept, name)
        if self._state:
            self._state.folder = self._kept.state


def _lock(kept: Kept) -> int:
    """Make the folder of the KV state, and hold it for as long as the returned descriptor is open."""
    try:
        kept.state.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(kept.state, os.O_RDONLY)
    except OSError as error:
        raise GptOssError(f"cannot use {kept.state}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise GptOssError(f"the session {kept.name!r} is in use by another gptoss-mlx") from None
    return descriptor
