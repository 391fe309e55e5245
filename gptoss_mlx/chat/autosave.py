"""Saves a running chat, as one entry of the store.

The transcript is written when a question is asked and when it is answered, the KV cache after an answer, each in one
step: a process that is killed loses at most the answer that it was writing.
"""

from __future__ import annotations

from ..engine.interrupts import Interrupts
from ..errors import GptOssError
from .session import Session
from .state_files import StateFiles
from .store import SessionEntry, SessionLock, Store
from .transcript import Transcript

DEFAULT_KV_LIMIT = 4 * 10**9  # bytes of all saved KV caches: 160,000 tokens of gpt-oss-20b
NOT_SAVED = "KV caches are not saved"


class SessionAutosave:
    """Saves a session, and locks its entry: every other gptoss-mlx refuses to use, rename or delete that meanwhile,
    where the file system has locks."""

    def __init__(self, store: Store, entry: SessionEntry | None = None, *, kv_limit: int | None = DEFAULT_KV_LIMIT):
        """`entry`: that of a session to resume; `kv_limit`, in bytes of all saved KV caches, None to save none. Raises
        GptOssError where the entry is in use."""
        self.store, self._kv_limit = store, kv_limit
        self._lock: SessionLock | None = store.lock(entry) if entry else None
        self.state: StateFiles | None = None
        """What is saved of the KV cache; None where nothing is known of it."""
        self.reread_reason: str | None = None
        """The reason, in words, why a resumed session is prefilled from its beginning."""

    @property
    def name(self) -> str | None:
        return self._lock.entry.name if self._lock else None

    def resume(self, session: Session) -> int:
        """Restore the entry that this was made with; returns how many saved positions of the KV cache could be used.
        Raises GptOssError."""
        self.restore(session)
        if self.state is None:
            self.reread_reason = NOT_SAVED
            return 0
        positions = self.state.load(session.prompt_cache)
        self.reread_reason = self.state.missing
        return positions

    def restore(self, session: Session) -> None:
        """Restore the conversation alone: what is saved of its KV cache can be loaded from `state`, where others have
        not more of it in memory. Raises GptOssError."""
        assert self._lock is not None
        entry = self._lock.entry
        session.restore(Transcript.read(entry.transcript))
        if self._kv_limit is not None:
            self.state = StateFiles(entry.state, session.model)
            self.state.scan()

    def resumed_text(self, session: Session) -> str:
        """What has been resumed, and how much of it has to be read again."""
        turns = session.transcript.turns
        line = f"Resuming {self.name} ({turns} turn{'s' * (turns != 1)})."
        instructions, _ = session.token_counts
        why = self.reread_reason
        if why is None and session.unread > session.prompt_tokens - instructions:
            why = "the prompt changed"
        if why:
            line += f" {why[0].upper()}{why[1:]}; re-reading {session.unread:,} tokens."
        return line

    def switch(self, session: Session, entry: SessionEntry) -> None:
        """Save the session, and continue with that of another entry. Raises GptOssError, and then the conversation is
        what it was."""
        self.save(session, kv=True)
        transcript, before, state = session.transcript, self._lock, self.state
        self._lock = lock = self.store.lock(entry)
        try:
            with Interrupts():  # half a KV cache is none
                self.resume(session)
        except GptOssError:
            session.restore(transcript)
            self._lock, self.state = before, state
            lock.release()
            raise
        if before:
            before.release()

    def save(self, session: Session, *, kv: bool) -> None:
        """Write the transcript, and the KV cache if `kv`. A session whose questions were all removed is deleted. Raises
        GptOssError."""
        if not session.messages:
            if self._lock:
                self._lock.delete()
                self.leave()
            return
        if self._lock is None:
            self._lock = self.store.new(session.transcript.title)
        session.transcript.write(self._lock.entry.transcript)
        if kv and self._kv_limit is not None:
            if self.state is None or self.state.model is not session.model:
                self.state = StateFiles(self._lock.entry.state, session.model)
            self.state.save(session.prompt_cache)
            self.store.limit_states(self._kv_limit, self._lock)

    def leave(self) -> None:
        """Unlock the entry, which stays; the next session is a new one."""
        if self._lock:
            self._lock.release()
        self._lock, self.state, self.reread_reason = None, None, None

    def rename(self, name: str) -> None:
        """Raises GptOssError."""
        if self._lock is None:
            raise GptOssError("nothing has been said yet: there is no session to name")
        self._lock.rename(name)
        if self.state:
            self.state.folder = self._lock.entry.state
