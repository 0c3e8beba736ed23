"""Scratch memory, kept between calls: fresh memory costs a page fault for every 4 KiB of it."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

ALIGNED = 16
"""Elements after which a piece of scratch begins on a line of the cache again."""

_LINE_BYTES = 64
KEPT_BYTES = 48 * 1024 * 1024
"""A larger buffer is given back after its call. A thread keeps at most this much for the calls that it makes, and as
much for each thread that works on their tasks."""


def _lines(size: int) -> npt.NDArray[np.uint8]:
    """An uninitialised buffer that begins on a line of the cache: a vector across two lines is loaded twice."""
    buffer = np.empty(size + _LINE_BYTES, np.uint8)
    start = -buffer.ctypes.data % _LINE_BYTES
    return buffer[start : start + size]


class _Kept:
    """A buffer of one thread, and the array that was last asked for in it."""

    def __init__(self) -> None:
        self.buffer = _lines(1 << 16)
        self.last: npt.NDArray[Any] = self.buffer

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike, limit: int) -> npt.NDArray[Any]:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > limit:
            return _lines(size).view(dtype).reshape(shape)
        if self.buffer.size < size:
            self.buffer = _lines(size)
        self.last = self.buffer[:size].view(dtype).reshape(shape)
        return self.last


class _Local(threading.local):
    def __init__(self) -> None:
        self.tasks, self.calls = _Kept(), _Kept()


_local = _Local()


def scratch_rows(threads: int, elements: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialised array (threads, elements) for the tasks of one call: each thread has a row, aligned to a line.

    The calling thread's next call may get the same memory.
    """
    shape = threads, -(-elements // ALIGNED) * ALIGNED
    last = _local.tasks.last
    if last.shape == shape and last.dtype is dtype:  # mostly: the same layer again
        return last
    return _local.tasks.array(shape, dtype, threads * KEPT_BYTES)


def call_scratch(elements: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialised 1-D array that the tasks of a call share; the thread's next call may get the same memory."""
    last = _local.calls.last
    if last.shape == (elements,) and last.dtype is dtype:
        return last
    return _local.calls.array((elements,), dtype, KEPT_BYTES)
