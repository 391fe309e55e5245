"""A thread that does something small again and again while something else is measured."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Self = TypeVar("Self", bound="Background")


class Background:
    """While open, calls `call` every `seconds` on a thread."""

    def __init__(self, call: Callable[[], object], seconds: float):
        self._call, self._seconds = call, seconds
        self._open = threading.Lock()  # held while it is open; an Event takes longer to wait for
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self: Self) -> Self:
        self._open.acquire()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """A call that has begun is waited for."""
        self._open.release()
        self._thread.join()

    def _run(self) -> None:
        while not self._open.acquire(timeout=self._seconds):
            self._call()
