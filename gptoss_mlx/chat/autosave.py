"""The session of a running chat and its entry in the store, which follows it.

The transcript is written when a question is asked and when it is answered, the KV state after an answer, each in one
step: a process that is killed loses at most the answer that it was writing.
"""

from __future__ import annotations

from ..errors import GptOssError
from .session import Session
from .state_files import StateFiles
from .store import SessionEntry, SessionLock, Store
from .transcript import Transcript

DEFAULT_KV_LIMIT = 4 * 10**9  # bytes of all KV states: 160,000 tokens of gpt-oss-20b
NOT_KEPT = "no KV states are kept"


class SessionAutosave:
    """Keeps the session that it is given, as one entry of a store. It holds the entry: every other gptoss-mlx refuses
    to use, rename or delete it meanwhile, where the file system knows locks."""

    def __init__(self, store: Store, kept: SessionEntry | None = None, *, kv_limit: int | None = DEFAULT_KV_LIMIT):
        """`kept`: the entry of a session that is resumed; `kv_limit`, in bytes of all KV states, None for none. Raises
        GptOssError where the entry is in use."""
        self._store, self._kv_limit = store, kv_limit
        self._held: SessionLock | None = store.hold(kept) if kept else None
        self._state: StateFiles | None = None
        self.reading_again: str | None = None
        """Why nothing of what was resumed is in the KV state, in words."""

    @property
    def name(self) -> str | None:
        return self._held and self._held.kept.name

    def resume(self, session: Session) -> int:
        """Restore what was kept; returns how many positions of the KV state could be used. Raises GptOssError."""
        kept = self._held.kept
        session.restore(Transcript.read(kept.transcript))
        if self._kv_limit is None:
            self.reading_again = NOT_KEPT
            return 0
        self._state = StateFiles(kept.state, session.model)
        positions = self._state.load(session.prompt_cache)
        self.reading_again = self._state.missing
        return positions

    def keep(self, session: Session, *, kv: bool) -> None:
        """Write the transcript, and the KV state if `kv`; of a session in which nothing is said any more, nothing
        stays. Raises GptOssError."""
        if not session.messages:
            if self._held:
                self._held.delete()
                self.leave()
            return
        if self._held is None:
            self._held = self._store.new(session.transcript.title)
        session.transcript.write(self._held.kept.transcript)
        if kv and self._kv_limit is not None:
            if self._state is None or self._state.model is not session.model:
                self._state = StateFiles(self._held.kept.state, session.model)
            self._state.save(session.prompt_cache)
            self._store.bound_states(self._kv_limit, self._held)

    def leave(self) -> None:
        """What is kept stays; the next session is a new entry."""
        if self._held:
            self._held.release()
        self._held, self._state, self.reading_again = None, None, None

    def rename(self, name: str) -> None:
        """Raises GptOssError."""
        if self._held is None:
            raise GptOssError("nothing has been said yet that could be kept")
        self._held.rename(name)
        if self._state:
            self._state.folder = self._held.kept.state
