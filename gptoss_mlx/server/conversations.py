"""The conversations of the page: the sessions that the terminal saves, one at a time in one hand.

A turn locks its session, restores it, runs, saves it with its KV cache and unlocks it, so that terminal and page can
alternate: between two turns nothing is remembered of the files, which others may have changed. Names come from requests
and are only compared with those that are there. What touches the model runs on its thread; locks, tools and the person
who is asked have threads of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any

from ..chat.autosave import SessionAutosave
from ..chat.session import Session
from ..chat.store import InUse, SessionEntry, SessionLock, Store
from ..chat.transcript import Transcript
from ..chat.turn import Asked, TurnEvents, Waiting
from ..engine.generate import Model
from ..engine.sampling import Sampling
from ..errors import GptOssError
from ..harmony.parse import ToolCall
from ..tools.toolbox import error_result
from .errors import RequestError
from .live_turn import LiveTurn, Named
from .service import Service

MAX_TURNS = 64  # that run, or have ended lately
MAX_TOOLS = 8  # that run at the same time


@dataclass(frozen=True)
class TurnRequest:
    """What a turn is to do: `ask`, `retry` or `resume`."""

    action: str
    name: str | None
    """The conversation; None begins a new one."""
    text: str = ""
    """The question, with the files that belong to it."""
    keep: int | None = None
    """Messages before the question, where it is asked in place of a later part of the conversation."""
    sampling: Sampling | None = None
    reasoning_effort: str | None = None
    max_tokens: int | None = None
    instructions: str | None = None
    """Those of a new conversation."""
    response_schema: Any = None


class Conversations:
    def __init__(
        self, service: Service, store: Store, new_session: Callable[[Model], Session], *, kv_limit: int | None
    ):
        """`new_session` makes one with tools of its own: they are closed with the turn. `kv_limit` is the one of
        `SessionAutosave`."""
        self.service, self._store, self._new_session, self._kv_limit = service, store, new_session, kv_limit
        self._turns: dict[str, LiveTurn] = {}
        self._allowed: dict[str, set[str]] = {}  # conversation -> tools that may always run
        self._tools = ThreadPoolExecutor(MAX_TOOLS, "tool")

    def names(self) -> list[dict[str, Any]]:
        """The latest first."""
        return [{"name": entry.name, "changed": entry.changed} for entry in self._store]

    def transcript(self, name: str) -> Transcript:
        return Transcript.read(self._entry(name).transcript)

    def rename(self, name: str, new: str) -> None:
        with self._locked(name) as lock:
            lock.rename(new)
        self._allowed[new] = self._allowed.pop(name, set())

    def delete(self, name: str) -> None:
        with self._locked(name) as lock:
            lock.delete()
        self._allowed.pop(name, None)

    def undo(self, name: str) -> str:
        """Remove the last question and what follows; returns it. A conversation without questions is deleted."""
        with self._locked(name) as lock:
            transcript = Transcript.read(lock.entry.transcript)
            asked = [index for index, message in enumerate(transcript.messages) if message.role == "user"]
            if not asked:
                raise RequestError("nothing has been asked yet")
            if shorter := until(transcript, asked[-1]):
                shorter.write(lock.entry.transcript)
            else:
                lock.delete()
            return transcript.messages[asked[-1]].content

    def turn(self, id_: str) -> LiveTurn:
        if id_ not in self._turns:
            raise RequestError("this turn is over", status=404, code="not_found")
        return self._turns[id_]

    def running(self, name: str) -> LiveTurn | None:
        """The turn of a conversation that is not over."""
        return next((turn for turn in self._turns.values() if turn.name == name and not turn.ended), None)

    async def begin(self, request: TurnRequest, service: Service) -> LiveTurn:
        """`service` is the one that runs the turn, perhaps observed. Raises RequestError where the conversation is in
        use, or not there."""
        while len(self._turns) >= MAX_TURNS:
            ended = next((id_ for id_, turn in self._turns.items() if turn.ended), None)
            if ended is None:
                raise RequestError(f"{MAX_TURNS} turns are running: try again later", status=429, code="busy")
            del self._turns[ended]
        turn = LiveTurn(self.service.context)
        self._turns[turn.id] = turn
        try:
            autosave = await asyncio.to_thread(self._autosave, request.name)
        except BaseException:
            del self._turns[turn.id]
            raise
        turn.name = request.name
        running = _Running(self, turn, request, autosave, self._new_session, self._tools, asyncio.get_running_loop())
        turn.begin(service.run(running.events), running.release)
        return turn

    async def close(self) -> None:
        """Stop all turns, and save them."""
        await asyncio.gather(*(turn.stop() for turn in self._turns.values()))
        self._tools.shutdown(wait=False, cancel_futures=True)

    def allowed(self, name: str | None) -> set[str]:
        """Tools that may run unasked in a conversation."""
        return self._allowed.setdefault(name, set()) if name else set()

    def _autosave(self, name: str | None) -> SessionAutosave:
        try:
            entry = self._entry(name) if name is not None else None
            return SessionAutosave(self._store, entry, kv_limit=self._kv_limit)
        except InUse as error:
            raise in_use(error) from None

    def _locked(self, name: str) -> SessionLock:
        try:
            return self._store.lock(self._entry(name))
        except InUse as error:
            raise in_use(error) from None

    def _entry(self, name: str) -> SessionEntry:
        """The entry of exactly this name."""
        for entry in self._store:
            if entry.name == name:
                return entry
        raise RequestError(f"there is no conversation {name!r}", status=404, code="not_found")


def in_use(error: InUse) -> RequestError:
    return RequestError(str(error), status=409, code="in_use")


def until(transcript: Transcript, count: int) -> Transcript | None:
    """The first `count` messages, or None where there are none."""
    if count == 0:
        return None
    return replace(transcript, messages=transcript.messages[:count], ids=transcript.ids[:count], unfinished=False)


@dataclass
class _Running:
    """One turn on the model's thread."""

    conversations: Conversations
    turn: LiveTurn
    request: TurnRequest
    autosave: SessionAutosave
    new_session: Callable[[Model], Session]
    tools: ThreadPoolExecutor
    loop: asyncio.AbstractEventLoop
    session: Session | None = None
    trouble: str | None = None
    """The reason, in words, why the conversation could not be saved."""

    def events(self) -> Generator[Any, None, None]:
        """The turn's events, with `Named` when the conversation has its name. Raises GptOssError."""
        session = self.session = self.new_session(self.conversations.service.model)
        self._prepare(session)
        events = self._saved(session, self._start(session))
        return self.conversations.service.turn(session, events, self.autosave.state)

    def _prepare(self, session: Session) -> None:
        request = self.request
        session.yields_steps, session.outputs = True, self._output
        if self.autosave.name:
            self.autosave.restore(session)
            if request.keep is not None:
                self._cut(session, request.keep)
        elif request.instructions:
            session.instructions = request.instructions
        if request.reasoning_effort:
            session.set_reasoning_effort(request.reasoning_effort)
        if request.sampling:
            session.sampling = request.sampling
        if request.max_tokens:
            session.max_tokens = request.max_tokens
        if request.response_schema is not None:
            session.set_response_schema(request.response_schema)

    def _cut(self, session: Session, keep: int) -> None:
        while session.messages[keep:]:
            session.undo()
        if len(session.messages) != keep:
            raise RequestError("there is no question at this place", param="keep")

    def _start(self, session: Session) -> TurnEvents:
        match self.request.action:
            case "retry":
                return session.retry()
            case "resume":
                return session.resume()
        return session.send(self.request.text)

    def _saved(self, session: Session, events: TurnEvents) -> Generator[Any, None, None]:
        """Save the question as soon as the turn begins, and the answer when it ends, however it ends, with the KV
        cache: where the session has none just then, because a tool runs, what was saved stays."""
        accepted = False
        try:
            with closing(events):
                for event in events:
                    if not (accepted or isinstance(event, Waiting)):
                        accepted = True
                        self._save(session, kv=False)
                        yield Named(self.autosave.name or "")
                    yield event
        finally:
            if accepted:
                self._save(session, kv=True)

    def _save(self, session: Session, *, kv: bool) -> None:
        try:
            self.autosave.save(session, kv=kv)
            self.trouble = None
        except GptOssError as error:
            self.trouble = str(error)

    def _output(self, call: ToolCall) -> Generator[Asked | Waiting, None, str]:
        """Run a tool in a thread of its own, after asking the person if it wants that."""
        assert self.session is not None
        toolbox, allowed = self.session.toolbox, self.conversations.allowed(self.autosave.name)
        if toolbox.asks(call) and call.name not in allowed:
            answer: Future[str] = Future()
            self.turn.approval = answer
            yield Asked(call.name, toolbox.preview(call))
            yield Waiting(answer)
            if answer.result() == "no":
                return error_result("the user did not allow this call")
            if answer.result() == "always":
                allowed.add(call.name)
        output = self.tools.submit(toolbox.run, call)
        yield Waiting(output)
        return output.result()

    async def release(self) -> str | None:
        """Unlock the conversation, after the last step on the model's thread; returns why it could not be saved."""
        with suppress(GptOssError):  # the server ends, and has waited for all steps
            await self.conversations.service.thread.call(lambda: None)
        await asyncio.to_thread(self._close)
        return self.trouble

    def _close(self) -> None:
        if self.session:
            self.session.close()
        self.autosave.leave()
