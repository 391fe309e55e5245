"""The one thread on which a model works, and generators that take turns on it.

MLX's streams belong to a thread, and a network is half done between two of its layers: so all that touches a model is
done here, one step of a generator after the other. Knows nothing of what they do.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from ..chat.turn import Waiting

T = TypeVar("T")

AT_ONCE = 8  # arrivals that are not kept waiting: the first words
PACE = 0.03  # seconds between later ones, at least: words that come thirty times a second are seen to flow


class ModelThread:
    """All methods are for the thread of one event loop."""

    def __init__(self) -> None:
        self.spare_time: Callable[[], bool] | None = None
        """What is done, a little of it at a time, while no generator can be stepped; returns whether more is left."""
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._ready: deque[_Work[Any]] = deque()
        self._parked: set[_Work[Any]] = set()
        self._closed: Exception | None = None
        self._thread = threading.Thread(target=self._take_turns, name="model", daemon=True)
        self._thread.start()

    async def run(self, make: Callable[[], Generator[T | Waiting, None, None]]) -> AsyncGenerator[T, None]:
        """The values of a generator, which is made and stepped on the thread. A `Waiting` is not passed on: the
        generator is stepped again when its future is done. Closing this closes the generator before its next step."""
        if self._closed:
            raise self._closed
        work: _Work[T] = _Work(make)
        self._inbox.put(partial(self._ready.append, work))
        try:
            while not work.ended or work.values:
                await work.arrived()
                while work.values:
                    yield work.values.popleft()
            if work.error:
                raise work.error
        finally:
            work.cancelled = True
            self._inbox.put(partial(self._wake, work))

    async def call(self, function: Callable[[], T]) -> T:
        """What the function returns, on the thread."""

        def once() -> Generator[T, None, None]:
            yield function()

        async with aclosing(self.run(once)) as values:
            return await anext(values)

    def close(self, reason: Exception) -> None:
        """End all generators, and the thread: who waits for one of them gets `reason`."""
        self._closed = reason
        self._inbox.put(lambda: None)
        self._thread.join()
        for work in (*self._ready, *self._parked):
            work.end(reason)

    def _take_turns(self) -> None:
        while not self._closed:
            while not self._closed and not (self._ready and self._inbox.empty()):
                if not (self._inbox.empty() and self.spare_time and self.spare_time()):
                    self._inbox.get()()
            if self._ready and not self._closed:
                self._step(self._ready.popleft())
        for work in (*self._ready, *self._parked):
            work.generator.close()

    def _step(self, work: _Work[Any]) -> None:
        if work.cancelled:
            work.generator.close()
            return
        try:
            value = next(work.generator)
        except StopIteration:
            work.end()
        except Exception as error:  # whoever asked for it knows what it means
            work.end(error)
        else:
            if isinstance(value, Waiting) and value.future:
                self._parked.add(work)
                value.future.add_done_callback(lambda _: self._inbox.put(partial(self._wake, work)))
                return
            if not isinstance(value, Waiting):
                work.put(value)
            self._ready.append(work)

    def _wake(self, work: _Work[Any]) -> None:
        if work in self._parked:
            self._parked.remove(work)
            self._ready.append(work)


class _Work(Generic[T]):
    """A generator on the model's thread, and its values on their way to a coroutine."""

    def __init__(self, make: Callable[[], Generator[T | Waiting, None, None]]):
        self.cancelled = self.ended = False
        self.error: Exception | None = None
        self.values: deque[T] = deque()
        self.generator = _made(make)
        self._loop, self._arrival, self._end = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        self._told, self._arrivals, self._last_arrival = False, 0, 0.0

    def put(self, value: T) -> None:
        self.values.append(value)
        if not self._told:
            self._told = True
            self._tell(self._arrival)

    def end(self, error: Exception | None = None) -> None:
        self.error, self.ended = error, True
        self._tell(self._arrival)
        self._tell(self._end)

    def _tell(self, event: asyncio.Event) -> None:
        with suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(event.set)

    async def arrived(self) -> None:
        """Wait for what is new, and later a little longer unless it is the end: each time that a thread wakes another
        costs both of them some of a token's time."""
        await self._arrival.wait()
        self._arrivals += 1
        early = self._last_arrival + PACE - self._loop.time()
        if self._arrivals > AT_ONCE and early > 0:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._end.wait(), early)
        self._last_arrival = self._loop.time()
        self._arrival.clear()
        self._told = False  # what arrives from here on is told again


def _made(make: Callable[[], Generator[T | Waiting, None, None]]) -> Generator[T | Waiting, None, None]:
    """The generator, not made before its first step."""
    yield from make()
