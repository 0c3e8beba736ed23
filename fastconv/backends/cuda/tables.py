"""Small tables of the host that kernels read: copied to each device once, at the first use there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cuda import platform


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
            self._copies[key] = on.xp.asarray(self._elements)
        return self._copies[key]
