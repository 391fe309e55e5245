"""What is known of each request while it is answered: its line in the log, its part in the metrics, errors that nobody
expected. No content of a request is in any of these.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..chat.request import AnswerStats
from ..chat.turn import OnPrefill, Prefill
from ..errors import printable
from .errors import RequestError, error_response
from .metrics import Metrics
from .service import Service

MAX_PATH = 80  # characters in the log

log = logging.getLogger(__name__)
E = TypeVar("E")


@dataclass
class Record:
    """One request."""

    method: str
    path: str
    began: float = field(default_factory=time.monotonic)
    status: int = 0
    """0 until a response begins."""
    complete: bool = False
    """Whether the whole response was sent."""
    first_event: float | None = None
    last_event: float = 0
    prompt: int = 0
    cached: int = 0
    sampled: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """None where there are not two tokens to measure it by."""
        if self.first_event is None or self.sampled < 2 or self.last_event <= self.first_event:
            return None
        return (self.sampled - 1) / (self.last_event - self.first_event)

    def line(self) -> str:
        path = printable(self.path)
        parts = [f"{self.method} {path[:MAX_PATH] + '...' * (len(path) > MAX_PATH)} {self.status or 'unanswered'}"]
        if not self.complete:
            parts.append("the client left")
        if self.sampled:
            parts.append(f"{self.prompt:,} tokens read ({self.cached:,} cached), {self.sampled:,} written")
        if speed := self.tokens_per_second:
            parts.append(f"{speed:.1f} tokens/s")
        return ", ".join(parts)


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
    """A service whose answers are noted in the records of their requests. All else is the service's own."""

    def __init__(self, service: Service, metrics: Metrics, on_prefill: OnPrefill | None = None):
        self._service, self._metrics, self._on_prefill = service, metrics, on_prefill

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    def answer(self, *arguments: Any) -> AsyncGenerator[Any, None]:
        return self._observed(self._service.answer(*arguments))

    def complete(self, *arguments: Any) -> AsyncGenerator[Any, None]:
        return self._observed(self._service.complete(*arguments))

    async def _observed(self, events: AsyncGenerator[E, None]) -> AsyncGenerator[E, None]:
        record, metrics = CURRENT.get(), self._metrics
        metrics.waiting += 1
        begun = False
        try:
            async with aclosing(events):
                async for event in events:
                    if not begun:
                        begun = True
                        metrics.waiting -= 1
                        metrics.running += 1
                    self._note(record, event)
                    yield event
        finally:
            if begun:
                metrics.running -= 1
            else:
                metrics.waiting -= 1

    def _note(self, record: Record, event: object) -> None:
        if isinstance(event, Prefill):
            if self._on_prefill:
                self._on_prefill(event.done, event.total)
            return
        record.last_event = time.monotonic()
        record.first_event = record.first_event or record.last_event
        if isinstance(event, AnswerStats):
            record.prompt, record.cached, record.sampled = event.prompt, event.cached, event.sampled
            first = record.first_event - record.began
            self._metrics.count_answer(event.prompt, event.cached, event.sampled, first, record.tokens_per_second)
