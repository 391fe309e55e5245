"""The events of an answer as a response: one after another as server-sent events, or all of them, for a reply in JSON.

Knows connections: when the headers go out, that a client has gone away, that one loses patience. What is written is a
protocol's business: its `Translator` turns events into frames.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Iterator
from itertools import chain
from typing import Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..chat.request import AnswerEvent
from ..errors import GptOssError
from .errors import RequestError

KEEP_ALIVE = 5.0
"""Seconds without a frame after which a client is told that the answer is still to come."""

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
CLIENT_CLOSED_REQUEST = 499  # as nginx says it, to nobody but the log

log = logging.getLogger(__name__)
Events = AsyncGenerator[AnswerEvent, None]


class Translator(Protocol):
    """Writes one answer in a protocol's frames."""

    def begin(self) -> Iterator[bytes]:
        """The frames before any event: the request is accepted."""

    def translate(self, event: AnswerEvent) -> Iterator[bytes]:
        """The frames of an event, often none; those of `AnswerStats` end the stream."""

    def keep_alive(self) -> Iterator[bytes]:
        """What shows that the answer is still to come: a frame of the protocol, as clients ignore SSE's comments."""

    def fail(self, error: GptOssError) -> Iterator[bytes]:
        """The frames that end the stream instead of the rest of the answer."""


def frame(data: Any, event: str | None = None) -> bytes:
    """One server-sent event. JSON has no line break in it."""
    head = f"event: {event}\n".encode() if event else b""
    return head + b"data: " + (data if isinstance(data, bytes) else msgspec.json.encode(data)) + b"\n\n"


class EventStream(Response):
    """Sends an answer while it arrives.

    An error before the first event is raised, and so can become a reply with a status, unless KEEP_ALIVE seconds have
    passed: then, and with the first event, the headers are sent. An error after that ends the stream as the protocol
    ends one. The generator is closed when the stream ends, and when the client goes away.
    """

    media_type = "text/event-stream"

    def __init__(self, events: Events, translator: Translator):
        self.status_code, self.background = 200, None
        self.init_headers(HEADERS)
        self._events, self._translator = events, translator
        self._body, self._filled = bytearray(), asyncio.Event()
        """What is to be written, and whether there is any."""
        self._begun = self._complete = False
        self._quiet_since = math.inf
        """The time of the last write; infinite while there is something to write."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        now = asyncio.get_running_loop().time
        self._quiet_since = now()
        pump, write = asyncio.create_task(self._pump()), asyncio.create_task(self._write(send))
        gone = asyncio.create_task(_disconnect(receive))
        try:
            while not (write.done() or gone.done() or _failed(pump)):
                left = self._quiet_since + KEEP_ALIVE - now()
                if left <= 0:
                    self._put(self._translator.keep_alive())
                waits = {write, gone} if pump.done() else {pump, write, gone}
                await asyncio.wait(waits, timeout=min(max(left, 0), KEEP_ALIVE), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(pump, write, gone)
            await self._events.aclose()
        for task in (pump, write):
            if not task.cancelled():
                task.result()

    async def _pump(self) -> None:
        try:
            async for event in self._events:
                self._put(self._translator.translate(event))
        except Exception as error:
            if not self._begun:
                raise
            self._put(self._translator.fail(_told(error)))
        self._complete = True
        self._filled.set()

    def _put(self, frames: Iterator[bytes]) -> None:
        """Frames that are written with all others that come at the same time: each write costs more than a frame."""
        body = b"".join(frames if self._begun else chain(self._translator.begin(), frames))
        if self._begun and not body:
            return
        self._begun, self._quiet_since = True, math.inf
        self._body += body
        self._filled.set()

    async def _write(self, send: Send) -> None:
        await self._filled.wait()
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while self._body or not self._complete:
            await self._filled.wait()
            self._filled.clear()
            body = bytes(self._body)
            self._body.clear()
            await send({"type": "http.response.body", "body": body, "more_body": True})
            if not self._body:
                self._quiet_since = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": b""})


async def all_events(request: Request, events: Events) -> list[AnswerEvent]:
    """The whole answer. The generator is closed when the client goes away, which raises a RequestError."""

    async def collect() -> list[AnswerEvent]:
        return [event async for event in events]

    collecting, gone = asyncio.create_task(collect()), asyncio.create_task(_disconnect(request.receive))
    try:
        await asyncio.wait({collecting, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _end(collecting, gone)
        await events.aclose()
    if collecting.cancelled():
        raise RequestError("the client went away", status=CLIENT_CLOSED_REQUEST)
    return collecting.result()


def _failed(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


async def _disconnect(receive: Receive) -> None:
    """Returns when the client has gone away; its request was read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _told(error: Exception) -> GptOssError:
    """The error as a client may read it: one that nobody meant to be read is logged instead."""
    if isinstance(error, GptOssError):
        return error
    log.error("an answer ended in an error", exc_info=error)
    return RequestError("the server made an error; its log says more", status=500, kind="server_error")
