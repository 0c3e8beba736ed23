"""Launch arithmetic: grids from sizes. Plain functions of ints."""

from __future__ import annotations

from typing import Any

THREADS = 256
"""Threads of a block where each works for itself."""

MAX_GRID_X = 2**31 - 1
MAX_GRID_YZ = 65535


def blocks_for(items: int, per_block: int = THREADS) -> tuple[int]:
    """A grid of one axis in which `per_block` items fall to a block; the kernel passes over those behind the end."""
    return (-(-items // per_block),)


def packs(array: Any) -> int:
    """How many packs of 16 bytes (kernels/packs.cuh) an array has, the last one perhaps not full."""
    per_pack = 16 // array.dtype.itemsize
    return -(-int(array.size) // per_pack)
