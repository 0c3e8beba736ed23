"""Small tables of the host that kernels read: copied to each device once, at the first use there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cuda import platform


class Table:
    """Records of a structured dtype, and their copies on the devices."""

    def __init__(self, records: npt.NDArray[Any]) -> None:
        self._bytes = np.frombuffer(records.tobytes() or bytes(1), np.uint8)  # no empty array: it has no address
        self._copies: dict[Any, Any] = {}

    def on_device(self) -> Any:
        """The copy on the current device: an array of bytes."""
        on = platform.current()
        key = on.xp, on.current_device()
        if key not in self._copies:
            self._copies[key] = on.xp.asarray(self._bytes)
        return self._copies[key]
