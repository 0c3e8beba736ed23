"""The adjoint of indexing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def scatter_add(shape: tuple[int, ...], key: Any, gy: Array) -> Array:
    """See contract.Backend.scatter_add."""
    gx = np.zeros(shape, gy.dtype)
    np.add.at(gx, key, gy)
    return gx
