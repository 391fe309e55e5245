"""Connections: how many, how long each may take to send a request or take an answer, how they end with the server.

uvicorn limits none of these times. Knows uvicorn and sockets; what a request asks for, others know.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h11
from starlette.types import ASGIApp
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEAD = 64 * 2**10  # bytes of a request's head, or of a chunk's, that is not complete yet
TOO_SLOW = b"the request took too long to arrive"
FULL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 5\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True)
class Limits:
    """Seconds, and connections."""

    head: float = 10
    """Seconds from the first byte of a request, or the beginning of a connection, to the end of the headers."""
    body: float = 60
    """Seconds from there to the end of the body."""
    stall: float = 60
    """Seconds in which a client takes nothing of an answer that waits to be sent."""
    idle: int = 75
    """Seconds between two requests: longer than clients keep a connection, so that they are who ends it."""
    connections: int = 256
    grace: float = 5
    """Seconds that running answers have to end by themselves when the server is told to end."""


class LimitedProtocol(H11Protocol):
    """One connection, with deadlines."""

    def __init__(self, *arguments: Any, limits: Limits, **named: Any):
        super().__init__(*arguments, **named)
        self._limits = limits
        self._receiving: str | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            transport.write(FULL)
            transport.close()
        else:
            self._expect("head", self._limits.head)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._follow("head")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._follow("head" if self.conn.trailing_data[0] else None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        self._cancel_stalled()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(self._limits.stall, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_stalled()

    def _cancel_stalled(self) -> None:
        if self._stalled:
            self._stalled.cancel()
            self._stalled = None

    def _follow(self, when_idle: str | None) -> None:
        """Expect what the client has to send next. Between two requests that is nothing, and uvicorn's own limit
        counts."""
        their_state = self.conn.their_state
        if their_state is h11.SEND_BODY:
            self._expect("body", self._limits.body)
        else:
            self._expect(when_idle if their_state is h11.IDLE else None, self._limits.head)

    def _expect(self, what: str | None, seconds: float = 0) -> None:
        """A deadline for a part of the request, which stays as it is while the same part arrives."""
        if what == self._receiving:
            return
        if self._deadline:
            self._deadline.cancel()
        self._receiving = what
        self._deadline = self.loop.call_later(seconds, self._end_slow) if what else None

    def _end_slow(self) -> None:
        """Say so where no answer has begun, and close."""
        silent = self._receiving == "head" and not self.conn.trailing_data[0]  # such as a browser that connects ahead
        if self.transport.is_closing() or silent or self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        if self.cycle:
            self.cycle.disconnected = True  # the application, which waits for the body, learns of it and writes nothing
            self.cycle.message_event.set()
        length = str(len(TOO_SLOW)).encode()
        headers = [(b"content-type", b"text/plain"), (b"content-length", length), (b"connection", b"close")]
        for event in (h11.Response(status_code=408, headers=headers), h11.Data(data=TOO_SLOW), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class GracefulServer(Server):
    """A server that ends running answers, some time after it has been told to end, in the way of their protocols."""

    def __init__(
        self,
        app: ASGIApp,
        end_answers: Callable[[], None],
        *,
        limits: Limits = Limits(),
        certificate: Path | None = None,
        private_key: Path | None = None,
    ):
        super().__init__(
            Config(
                app,
                http=partial(LimitedProtocol, limits=limits),  # type: ignore[arg-type]  # it is only called
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level=logging.CRITICAL,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=limits.idle,
                timeout_graceful_shutdown=math.ceil(2 * limits.grace),
                h11_max_incomplete_event_size=MAX_HEAD,
                ssl_certfile=certificate,
                ssl_keyfile=private_key,
            )
        )
        self._grace, self._end_answers = limits.grace, end_answers
        self.ended_by: int | None = None
        """The signal that told it to end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Until the loop is closed: none of them, however many come, interrupts what is done at the end."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, self._told_to_end, number)
        yield

    def _told_to_end(self, number: int) -> None:
        """A second Ctrl-C waits for no answer."""
        self.force_exit = self.should_exit and number == signal.SIGINT
        self.should_exit, self.ended_by = True, number

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.get_running_loop().call_later(self._grace, self._end_answers)
        await super().shutdown(sockets)
        ending.cancel()
