"""The one model of a server, which answers many requests: each protocol asks it, and none of them knows how.

Joins the model's thread, the pool of prompt caches and the answers; knows no HTTP.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

from ..chat.raw_answer import RawAnswer
from ..chat.replay import Replay
from ..chat.request import AnswerEvent, AnswerRequest
from ..chat.request_answer import RequestAnswer, prompt_tokens
from ..chat.session import Session
from ..chat.state_files import StateFiles
from ..chat.turn import Prefill, TurnEvent, TurnEvents, Waiting
from ..engine.generate import ContextFull, Model
from ..engine.prompt_cache import PromptCache
from ..engine.sampling import Sampling
from ..engine.together import Together
from ..errors import GptOssError
from .errors import RequestError
from .model_thread import ModelThread
from .pool import Lease, Pool

T = TypeVar("T")
Answering = RequestAnswer | RawAnswer

TRIM_EVERY = 32  # events of an answer
READ_AHEAD = 64  # tokens at a time, while nobody asks for anything


class Service:
    """`model_name` is what clients call the model, `context` its tokens, `created` seconds since 1970."""

    sampling = Sampling()
    """What holds where a request does not say otherwise."""

    def __init__(self, model: Model, name: str, pool: Pool, thread: ModelThread):
        """`open_service` makes one."""
        self.model, self.pool, self.thread = model, pool, thread
        self.model_name, self.context, self.created = name, model.context, int(time.time())
        self._replay = Replay(model.tokenizer)
        self._next_prompts: WeakKeyDictionary[Lease, list[int]] = WeakKeyDictionary()
        thread.spare_time = self._read_ahead

    def answer(self, request: AnswerRequest) -> AsyncGenerator[AnswerEvent, None]:
        """The events of an answer, `AnswerStats` last. Closing the generator (`aclose`) frees its place.

        Before its first event it raises RequestError for what cannot be answered, such as a prompt that is too long
        (code "context_length_exceeded"); later it raises GptOssError where something goes wrong.
        """
        return self.run(lambda: self._answer(self._begin(request)))

    def complete(self, prompt: str | Sequence[int], request: AnswerRequest) -> AsyncGenerator[AnswerEvent, None]:
        """As `answer`, of a bare text or token ids, with what the model writes after it as `Content`; the request's
        conversation, tools and reasoning mean nothing."""

        def begin() -> RawAnswer:
            ids = self.model.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
            return _begun(lambda: RawAnswer(ids, request, self.model))

        return self.run(lambda: self._answer(begin()))

    async def count(self, request: AnswerRequest) -> int:
        """Tokens of the prompt, even of one that is too long."""
        return await self.thread.call(lambda: prompt_tokens(request, self.model, self._replay))

    def reasoning_before(self, call_id: str) -> str | None:
        """What the model thought before it made a call, for clients that return the call alone."""
        return self._replay.reasoning_before(call_id)

    def run(self, make: Callable[[], Generator[T | Waiting, None, None]]) -> AsyncGenerator[T, None]:
        """As `ModelThread.run`."""
        return self.thread.run(make)

    def turn(
        self, session: Session, events: TurnEvents, saved: StateFiles | None
    ) -> Generator[TurnEvent | Waiting, None, None]:
        """The events of a session's turn, on the model's thread: with a prompt cache of the pool, or what is `saved` of
        the session where that is more; others can have it while a tool runs or a person is asked."""
        lease: Lease | None = None
        try:
            with closing(events):
                lease = yield from self._lease(session, saved)
                for event in events:
                    if isinstance(event, Waiting) and event.future:
                        self._give_back(session, lease)
                        lease = None
                        yield event
                        lease = yield from self._lease(session, saved)
                    else:
                        yield event
        finally:
            if lease:
                self._give_back(session, lease)

    def close(self, reason: str) -> None:
        """End all answers with a RequestError, and the thread."""
        self.thread.close(RequestError(reason, status=503, kind="server_error", code="shutting_down"))
        self.pool.close()

    def _read_ahead(self) -> bool:
        """Read, of a conversation that rests, what its next prompt will begin with: an answer stands there without the
        reasoning after which it was sampled. Returns whether there is more to read."""
        while self._next_prompts:
            lease, ids = next(iter(self._next_prompts.items()))
            if self.pool.rests(lease) and lease.cache.prepare(ids, READ_AHEAD):
                return True
            if self.pool.rests(lease):
                self.pool.remember(lease)
            del self._next_prompts[lease]
        return False

    def _lease(self, session: Session, saved: StateFiles | None) -> Generator[Waiting, None, Lease]:
        lease = yield from self._leased(session.ids, gives_way=False, own=saved)
        session.prompt_cache = lease.cache
        return lease

    def _give_back(self, session: Session, lease: Lease) -> None:
        """The cache of a session, which has none from now on."""
        session.prompt_cache = PromptCache(self.model)
        self.pool.give_back(lease)

    def _leased(
        self, ids: Sequence[int], *, gives_way: bool, own: StateFiles | None = None
    ) -> Generator[Waiting, None, Lease]:
        """A prompt cache, of which nothing is read ahead any more: it goes on."""
        lease = yield from self.pool.lease(ids, gives_way=gives_way, own=own)
        self._next_prompts.pop(lease, None)
        return lease

    def _begin(self, request: AnswerRequest) -> RequestAnswer:
        return _begun(lambda: RequestAnswer(request, self.model, self._replay))

    def _answer(self, answer: Answering) -> Generator[AnswerEvent | Waiting, None, None]:
        """Write an answer, in turns with others; where memory is short it gives its cache back, and goes on later."""
        while not answer.finished:
            lease = yield from self._leased(answer.ids, gives_way=True)
            try:
                with closing(answer.write(lease.cache)) as events:
                    for count, event in enumerate(events):
                        yield event
                        if count % TRIM_EVERY == 0:
                            self.pool.trim()
                        if lease.revoked and isinstance(event, Prefill | Waiting):
                            break
            finally:
                self.pool.give_back(lease)
        if ids := answer.next_prompt():
            self._next_prompts[lease] = ids


def _begun(make: Callable[[], T]) -> T:
    """An answer that can begin. What is wrong with its request is a RequestError."""
    try:
        return make()
    except ContextFull as error:
        raise RequestError(str(error), code="context_length_exceeded", param="messages") from None
    except GptOssError as error:
        raise RequestError(str(error)) from None


async def open_service(
    load: Callable[[], Model], name: str, *, places: int, folder: Path | None = None, disk_limit: int = 0
) -> Service:
    """Load a model on a thread of its own, for `places` conversations at a time; in `folder`, with at most `disk_limit`
    bytes, there is what memory has no room for. Raises what `load` raises."""
    thread = ModelThread()

    def opened() -> Service:
        model = load()
        if places > 1 and model.network.at_once > 1:
            model.together = Together(model.network)
        return Service(model, name, Pool(model, places, folder, disk_limit), thread)

    try:
        return await thread.call(opened)
    except BaseException:
        thread.close(RequestError("there is no model"))
        raise
