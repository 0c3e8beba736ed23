"""Timing on a GPU, by two events around many calls, on operands that are not in the L2 cache.

The events are CuPy's, on the stream on which fastconv and PyTorch work, the legacy default stream. JAX has streams of
its own: the second event is recorded when its last result is there.

In a network the operands of a layer come from memory, unless they are small: they were written long ago. A benchmark
that calls a function on the same arrays again and again would find them in a cache of 50 MB instead. So each call meets
other arrays, in turn, of which there are enough to fill the cache several times over, and its results are kept until
the turn comes round, so that they too are written elsewhere than the last ones. Calls whose arrays are so small that
`MOST_COPIES` of them do not fill it (some 5 MB) cost their launches, wherever their operands are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

from bench.case import Call

WARM_SECONDS = 0.005
CACHES = 3  # how often the arrays of one round fill the L2 cache
MOST_COPIES = 32


def copies(traffic: int, cache: int) -> int:
    """How many times the operands of a call that moves `traffic` bytes are there."""
    return min(MOST_COPIES, ceil(CACHES * cache / max(traffic, 1)))


class Rotation:
    """Calls that do the same work on different memory, one after the other; the results of one round are kept."""

    def __init__(self, calls: Sequence[Call], wait: Callable[[Any], None]) -> None:
        self._calls, self._wait = calls, wait
        self._results: list[Any] = [None] * len(calls)
        self._turn, self._made = -1, 0

    def fill(self) -> None:
        """Make the first round, which takes new memory."""
        while self._made < len(self._calls):
            self()

    def __call__(self) -> Any:
        self._turn = (self._turn + 1) % len(self._calls)
        self._made += 1
        self._results[self._turn] = None  # its memory is free for what comes
        result = self._results[self._turn] = self._calls[self._turn]()
        return result

    def wait(self) -> None:
        """Until the last result is there, as far as the stream of the events does not see to that."""
        self._wait(self._results[self._turn])


class Clock:
    """Two events on a stream: `event()` makes one with `record` and `synchronize`, as CuPy's have."""

    def __init__(
        self, event: Callable[[], Any], elapsed_ms: Callable[[Any, Any], float], synchronise: Callable[[], None]
    ) -> None:
        self._event, self._elapsed_ms, self._synchronise = event, elapsed_ms, synchronise

    @classmethod
    def of_cupy(cls, cupy: Any) -> Clock:
        """On CuPy's current stream; `synchronise` waits for all streams of the device."""
        return cls(cupy.cuda.Event, cupy.cuda.get_elapsed_time, cupy.cuda.Device().synchronize)

    def block(self, call: Rotation, count: int, warm: bool) -> float:
        """Mean seconds of `count` calls, from an idle device to the end of the last one."""
        call.fill()
        if warm:
            self._warm(call)
        begin, end = self._event(), self._event()
        self._synchronise()
        begin.record()
        for _ in range(count):
            call()
        call.wait()
        end.record()
        end.synchronize()
        return self._elapsed_ms(begin, end) / 1e3 / count

    def _warm(self, call: Rotation) -> None:
        """Call it for a while, but never far ahead of the device, on which a call may take much longer."""
        awake = time.perf_counter() + WARM_SECONDS
        while True:
            call()
            call.wait()
            self._synchronise()
            if time.perf_counter() >= awake:
                return
