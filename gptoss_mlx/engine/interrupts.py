"""Ctrl-C while a model works: between two layers of a network it would leave a KV state half written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, at a moment at which nothing is half done."""


class Interrupts:
    """Inside `with`, the first Ctrl-C waits for the next `check`; a second one is raised where it falls."""

    def __init__(self) -> None:
        self._pressed = False
        self._before: Any = None  # the handler that there was

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For work that may be broken off anywhere."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def check(self) -> None:
        """Raise Interrupted if Ctrl-C was pressed."""
        if self._pressed:
            self._pressed = False
            raise Interrupted

    def _press(self, *signal_and_frame: object) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = True
