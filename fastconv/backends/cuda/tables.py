"""Small tables of the host that kernels read: copied to each device once, at the first use there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cuda import platform

_used: ContextVar[list[Table] | None] = ContextVar("tables used since `collected` was entered", default=None)


@contextmanager
def collected() -> Iterator[list[Table]]:
    """The tables that are used inside: who launches the same work again later has to keep them alive."""
    tables: list[Table] = []
    before = _used.set(tables)
    try:
        yield tables
    finally:
        _used.reset(before)


class Table:
    """Records of a structured dtype, or numbers, and their copies on the devices."""

    def __init__(self, records: npt.NDArray[Any]) -> None:
        kind = np.uint8 if records.dtype.names else records.dtype
        # No empty array: it has no address.
        self._elements = np.frombuffer(records.tobytes() or bytes(records.itemsize), kind)
        self._copies: dict[Any, Any] = {}

    def on_device(self) -> Any:
        """The copy on the current device: an array of numbers, of bytes for records."""
        on = platform.current()
        key = on.xp, on.current_device()
        if key not in self._copies:
            # Waited for, because other streams will find the copy here.
            self._copies[key] = on.xp.asarray(self._elements, blocking=True)
        used = _used.get()
        if used is not None:
            used.append(self)
        return self._copies[key]
