"""Where a task of a pooling lies: helpers that the kernels of max_pool.py and avg_pool.py share."""

from __future__ import annotations

from typing import Any

from fastconv.backends.cpu.host import kernel

COLUMNS = 1024
"""Outputs of a row that are computed together at most; what they need stays in the first-level cache."""

LONG_WINDOW = 16
"""Neighbouring taps from which on a window is worth vectors of its own."""


@kernel
def locate(task: int, depth: Any, height: Any, width: Any) -> tuple[int, int, int, int, int]:
    """Plane, depth and height index of a task's row, first column and end."""
    columns = width.shape[1]
    blocks = (columns + COLUMNS - 1) // COLUMNS
    row, first = task // blocks, task % blocks * COLUMNS
    h = row % height.shape[1]
    row = row // height.shape[1]
    return row // depth.shape[1], row % depth.shape[1], h, first, min(first + COLUMNS, columns)


@kernel
def clip(interior: Any, first: int, last: int) -> tuple[int, int]:
    """The part of the interior columns inside [first, last)."""
    low = min(max(interior[0], first), last)
    return low, max(min(interior[1], last), low)
