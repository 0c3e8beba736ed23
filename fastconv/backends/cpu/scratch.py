"""Scratch memory, one buffer a thread, kept between calls."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

KEPT_BYTES = 32 * 1024 * 1024
"""A larger buffer is given back after its call; a thread keeps at most this much."""

_local = threading.local()


def scratch(elements: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialised 1-D array for the calling thread; its next call of `scratch` may hand out the same memory."""
    size = elements * np.dtype(dtype).itemsize
    if size > KEPT_BYTES:
        return np.empty(elements, dtype)
    buffer: npt.NDArray[np.uint8] | None = getattr(_local, "buffer", None)
    if buffer is None or buffer.size < size:
        buffer = _local.buffer = np.empty(max(size, 1 << 16), np.uint8)
    return buffer[:size].view(dtype)
