"""Ctrl-C between two batches, not in the middle of an optimiser's step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class Interrupts:
    """Within its `with` block, Ctrl-C raises KeyboardInterrupt at the next `check()` and not before.

    Pressed a second time it raises at once, unless inside `protected()`, whose block always runs to its end. Where
    Python's own handler is not in charge (other threads, a program with its own handler) nothing is changed.
    """

    def __init__(self) -> None:
        self._pending = self._protected = False
        self._previous: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            current = signal.getsignal(signal.SIGINT)
            if current is signal.default_int_handler:
                self._previous = current
                signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def checked(self, items: Iterable[T]) -> Iterator[T]:
        """The items, with a check before each."""
        for item in items:
            self.check()
            yield item

    @contextmanager
    def protected(self) -> Iterator[None]:
        """A block that Ctrl-C does not cut in two."""
        self._protected = True
        try:
            yield
        finally:
            self._protected = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._pending and not self._protected:
            self._pending = False
            raise KeyboardInterrupt
        self._pending = True
