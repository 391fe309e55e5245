"""A thread that does something small again and again while something else is measured."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Calls `call` every `seconds`, until `close`."""

    def __init__(self, call: Callable[[], object], seconds: float):
        self._call = call
        self._seconds = seconds
        self._open = threading.Lock()  # held until it is closed; an Event takes longer to wait for
        self._open.acquire()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """A call that has begun is waited for."""
        self._open.release()
        self._thread.join()

    def _run(self) -> None:
        while not self._open.acquire(timeout=self._seconds):
            self._call()
