"""What is known of each request while it is answered: its line in the log, its part in the metrics, errors that nobody
expected. So also of each turn of the page, which goes on after the request that began it. No content of a request is in
any of these.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..chat.request import AnswerStats
from ..chat.turn import Dropped, OnPrefill, Prefill, TurnStats, Waiting
from ..errors import printable
from .errors import RequestError, error_response
from .live_turn import Named
from .metrics import Metrics
from .service import Service

MAX_PATH = 80  # characters in the log
CONVERSATION = re.compile("(?<=^/page/conversations/)[^/]+")  # its name is the beginning of a question
NOT_WRITTEN = (Prefill, Named, Dropped)  # events that can come before the first token

log = logging.getLogger(__name__)
E = TypeVar("E")


@dataclass
class Tokens:
    """The tokens of an answer, or of a turn."""

    began: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float = 0
    stats: AnswerStats | TurnStats | None = None

    def note(self, event: object) -> None:
        if isinstance(event, NOT_WRITTEN):
            return
        self.last = time.monotonic()
        self.first = self.first or self.last
        if isinstance(event, AnswerStats | TurnStats):
            self.stats = event

    @property
    def first_seconds(self) -> float:
        return (self.first or self.began) - self.began

    @property
    def per_second(self) -> float | None:
        """None where there are not two tokens to measure it by."""
        if isinstance(self.stats, TurnStats):  # of which tools and people have a part
            return self.stats.tokens_per_second or None
        if self.stats is None or self.first is None or self.stats.sampled < 2 or self.last <= self.first:
            return None
        return (self.stats.sampled - 1) / (self.last - self.first)

    def parts(self) -> Iterator[str]:
        """The end of a line in the log."""
        if self.stats and self.stats.sampled:
            yield f"{self.stats.prompt:,} tokens read ({self.stats.cached:,} cached), {self.stats.sampled:,} written"
        if speed := self.per_second:
            yield f"{speed:.1f} tokens/s"


@dataclass
class Record:
    """One request."""

    method: str
    path: str
    status: int = 0
    """0 until a response begins."""
    complete: bool = False
    """Whether the whole response was sent."""
    tokens: Tokens = field(default_factory=Tokens)

    def line(self) -> str:
        path = CONVERSATION.sub("...", printable(self.path))
        parts = [f"{self.method} {path[:MAX_PATH] + '...' * (len(path) > MAX_PATH)} {self.status or 'unanswered'}"]
        if not self.complete:
            parts.append("the client left")
        return ", ".join([*parts, *self.tokens.parts()])


CURRENT: ContextVar[Record] = ContextVar("CURRENT")


class RequestLog:
    """Around all else: keeps a record of each request, and answers for errors that nothing below expects."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(scope["method"], scope["path"])
        reset = CURRENT.set(record)

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)
            record.complete = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            log.error("%s %s ended in an error", record.method, printable(record.path), exc_info=error)
            if record.status:
                raise
            told = RequestError("the server made an error; its log says more", status=500, kind="server_error")
            await error_response(told, record.path)(scope, receive, noted)
        finally:
            CURRENT.reset(reset)
            self._metrics.count_request(record.path, record.status)
            log.info("%s", record.line())


class ObservedService:
    """A service whose answers are noted in the records of their requests; its turns have lines of their own in the log.
    All else is the service's own."""

    def __init__(self, service: Service, metrics: Metrics, on_prefill: OnPrefill | None = None):
        self._service, self._metrics, self._on_prefill = service, metrics, on_prefill

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    def answer(self, *arguments: Any) -> AsyncGenerator[Any, None]:
        return self._observed(self._service.answer(*arguments), CURRENT.get().tokens)

    def complete(self, *arguments: Any) -> AsyncGenerator[Any, None]:
        return self._observed(self._service.complete(*arguments), CURRENT.get().tokens)

    async def run(self, make: Callable[[], Generator[E | Waiting, None, None]]) -> AsyncGenerator[E, None]:
        """The events of a turn."""
        tokens = Tokens()
        try:
            async with aclosing(self._observed(self._service.run(make), tokens)) as events:
                async for event in events:
                    yield event
        finally:
            log.info("%s", ", ".join(["a turn of the page", *(tokens.parts() if tokens.stats else ["not finished"])]))

    async def _observed(self, events: AsyncGenerator[E, None], tokens: Tokens) -> AsyncGenerator[E, None]:
        metrics = self._metrics
        metrics.waiting += 1
        begun = False
        try:
            async with aclosing(events):
                async for event in events:
                    if not begun:
                        begun = True
                        metrics.waiting -= 1
                        metrics.running += 1
                    self._note(tokens, event)
                    yield event
        finally:
            if begun:
                metrics.running -= 1
            else:
                metrics.waiting -= 1

    def _note(self, tokens: Tokens, event: object) -> None:
        tokens.note(event)
        if isinstance(event, Prefill) and self._on_prefill:
            self._on_prefill(event.done, event.total)
        if isinstance(event, AnswerStats | TurnStats):
            first, speed = tokens.first_seconds, tokens.per_second
            self._metrics.count_answer(event.prompt, event.cached, event.sampled, first, speed)
