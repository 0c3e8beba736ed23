"""Scratch memory, kept between calls: fresh memory costs a page fault for every 4 KiB of it."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.host import LINE_BYTES

ALIGNED = 16
"""Elements after which a piece of scratch begins on a line of the cache again."""

_MOST_ARRAYS = 256
KEPT_BYTES = 48 * 1024 * 1024
"""A larger buffer is given back after its call. A thread keeps at most this much for the calls that it makes, and as
much for each thread that works on their tasks, shared with the other threads that make calls: all together keep no
more for tasks than this times the callers, or the threads that work for one if these are more."""


def _lines(size: int) -> npt.NDArray[np.uint8]:
    """An uninitialised buffer that begins on a line of the cache: a vector across two lines is loaded twice."""
    buffer = np.empty(size + LINE_BYTES, np.uint8)
    start = -buffer.ctypes.data % LINE_BYTES
    return buffer[start : start + size]


class _Kept:
    """A buffer of one thread, and the arrays that were made of it: the layers of a network ask for the same again."""

    def __init__(self) -> None:
        self.buffer = _lines(1 << 16)
        self.arrays: dict[tuple[tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]] = {}

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike, workers: int) -> npt.NDArray[Any]:
        """An array of this shape in the buffer, or in memory of its own if it takes more bytes than are kept."""
        found = self.arrays.get((shape, dtype))
        if found is not None:
            return found
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > max(1, workers // max(1, len(_callers))) * KEPT_BYTES:
            return _lines(size).view(dtype).reshape(shape)
        if self.buffer.size < size:
            self.buffer = _lines(size)
            self.arrays.clear()
        if len(self.arrays) >= _MOST_ARRAYS:
            self.arrays.clear()
        made = self.arrays[shape, dtype] = self.buffer[:size].view(dtype).reshape(shape)
        return made


_callers: weakref.WeakSet[_Kept] = weakref.WeakSet()
"""Of each living thread that has made a call."""


class _Local(threading.local):
    def __init__(self) -> None:
        self.tasks, self.calls = _Kept(), _Kept()
        _callers.add(self.tasks)


_local = _Local()


@contextmanager
def set_apart() -> Iterator[None]:
    """Memory that no call gets that is made after this: for calls that will be repeated, at any time, in any thread."""
    tasks, calls = _local.tasks, _local.calls
    _local.tasks, _local.calls = _Kept(), _Kept()
    try:
        yield
    finally:
        _local.tasks, _local.calls = tasks, calls


def scratch_rows(threads: int, elements: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialised array (threads, elements) for the tasks of one call: each thread has a row, aligned to a line.

    The calling thread's next call may get the same memory.
    """
    return _local.tasks.array((threads, -(-elements // ALIGNED) * ALIGNED), dtype, threads)


def call_scratch(elements: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialised 1-D array that the tasks of a call share; the thread's next call may get the same memory."""
    return _local.calls.array((elements,), dtype, 1)
