"""Timing a block of calls on cores that several thread pools share.

Before a timed block the thread pools of the others are given time to stop spinning, and calls warm the caches and wake
the cores.
"""

from __future__ import annotations

import time

from bench.case import Call
from bench.timing import WARM_SECONDS


def block(call: Call, count: int, warm: bool) -> float:
    """Mean seconds of `count` calls, after the other pools have come to rest and the cores are awake again.

    Cores that idled while a pool came to rest are slow for some milliseconds; who follows the longest rest would pay.
    """
    _settle()
    if warm:
        awake = time.perf_counter() + WARM_SECONDS
        call()
        while time.perf_counter() < awake:
            call()
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begin) / count


def _settle(quiet: float = 0.012, longest: float = 0.3) -> None:
    """Wait until no thread of this process spins: OpenMP's do for some 5 ms after a call, ONNX Runtime's up to 50.

    Linux adds up the time of a running thread at its ticks, up to 4 ms apart: a spell without any is three of them.
    """
    end = time.perf_counter() + longest
    while time.perf_counter() < end:
        used = time.process_time()
        time.sleep(quiet)
        if time.process_time() - used < quiet / 10:
            return
