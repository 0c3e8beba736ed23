"""Scratch memory, kept between calls: fresh memory costs a page fault for every 4 KiB of it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

KEPT_BYTES = 48 * 1024 * 1024
"""A larger buffer is given back after its call; a thread keeps at most this much for tasks and as much for calls."""


class _Kept:
    """A buffer of one thread, and the array that was last asked for in it."""

    def __init__(self) -> None:
        self.buffer = np.empty(1 << 16, np.uint8)
        self.last: npt.NDArray[Any] = self.buffer

    def array(self, elements: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        size = elements * np.dtype(dtype).itemsize
        if size > KEPT_BYTES:
            return np.empty(elements, dtype)
        if self.buffer.size < size:
            self.buffer = np.empty(size, np.uint8)
        self.last = self.buffer[:size].view(dtype)
        return self.last


class _Local(threading.local):
    def __init__(self) -> None:
        self.tasks, self.calls = _Kept(), _Kept()


_local = _Local()


def scratch(elements: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialised 1-D array for one task; the thread's next task may get the same memory."""
    last = _local.tasks.last
    if last.size == elements and last.dtype is dtype:  # mostly: the same layer again
        return last
    return _local.tasks.array(elements, dtype)


def call_scratch(elements: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialised 1-D array that the tasks of a call share; the thread's next call may get the same memory."""
    return _local.calls.array(elements, dtype)
