"""Short rows side by side: blocks of them turned into columns, so that loops vectorise across rows, and back.

A row of some dozen elements takes a loop along it longer to begin and to end than to run: every reduction ends with
its lanes summed up. As columns of a block of ROWS rows its elements lie ROWS apart, and no lane meets another one.
Cost: two shuffles for an element in each direction, a few tenths of a cycle.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu.depthwise_lanes_simd import to_lanes
from fastconv.backends.cpu.host import LANES, VECTOR_BYTES, inlined, pointer, routine
from fastconv.backends.cpu.simd import transpose

ROWS = 64
"""Rows of a block: a round of a loop that LLVM has unrolled."""

LONGEST = 256
"""Elements of a row up to which blocks are faster; one then stays in the second-level cache."""


@routine(allocates=True)  # type: ignore[untyped-decorator]
def places(length: int) -> Any:
    """Where the elements of a row go in a block, for `to_columns`."""
    found = np.empty(length + ROWS, np.int64)
    for i in range(found.size):
        found[i] = i * ROWS
    return found


@inlined
def block_elements(length: int) -> int:
    """Elements of a block of such rows, with room for a vector behind them."""
    return (length + LANES) * ROWS


@routine
def to_columns(x: Any, row: int, rows: int, length: int, places: Any, block: Any) -> None:
    """block[k · ROWS + r] = x[(row + r) · length + k] for r < rows; what other columns hold is of no interest."""
    lanes = VECTOR_BYTES // x.itemsize
    for r in range(0, rows, lanes):
        to_lanes(
            x, pointer(block, r), 0, pointer(places), 0, length, pointer(x, (row + r) * length), length,
            min(lanes, rows - r), 0, 1, length,
        )  # fmt: skip


@routine
def to_rows(block: Any, y: Any, row: int, rows: int, length: int) -> None:
    """y[(row + r) · length + k] = block[k · ROWS + r] for r < rows."""
    lanes = VECTOR_BYTES // y.itemsize
    whole = rows // lanes * lanes if length >= lanes else 0
    for r in range(0, whole, lanes):
        target = pointer(y, (row + r) * length)
        for k in range(0, length, lanes):
            first = min(k, length - lanes)
            transpose(y, pointer(block, first * ROWS + r), ROWS, 1, target + first * y.itemsize, length)
    for r in range(whole, rows):
        for k in range(length):
            y[(row + r) * length + k] = block[np.uintp(k * ROWS + r)]
