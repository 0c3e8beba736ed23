"""Scratch memory, kept between calls: fresh memory costs a page fault for every 4 KiB of it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

KEPT_BYTES = 48 * 1024 * 1024
"""A larger buffer is given back after its call; a thread keeps at most this much for tasks and as much for calls."""

_local = threading.local()


def scratch(elements: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialised 1-D array for one task; the thread's next task may get the same memory."""
    return _buffer("tasks", elements, dtype)


def call_scratch(elements: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialised 1-D array that the tasks of a call share; the thread's next call may get the same memory."""
    return _buffer("calls", elements, dtype)


def _buffer(name: str, elements: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    size = elements * np.dtype(dtype).itemsize
    if size > KEPT_BYTES:
        return np.empty(elements, dtype)
    buffer: npt.NDArray[np.uint8] | None = getattr(_local, name, None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(max(size, 1 << 16), np.uint8)
        setattr(_local, name, buffer)
    return buffer[:size].view(dtype)
