"""Launch arithmetic: grids from sizes. Plain functions of ints."""

from __future__ import annotations

from typing import Any

THREADS = 256
"""Threads of a block where each works for itself."""

MAX_GRID_YZ = 65535

ELEMENTS_PER_THREAD = 4
"""Of elementwise work: enough loads in flight, and still many blocks."""

ELEMENTS_PER_PART, MAX_PARTS = 8192, 64
"""Of a channel's sum: a part keeps a block busy, and merging so many takes no time."""

MANY_TERMS = 64
"""From here on a warp gathers them faster than a thread: its loads are neighbours in memory."""


def shared_limit(capability: int) -> int:
    """What a block may take of shared memory: every architecture from that one on has it."""
    return (99 if capability >= 80 else 64) << 10


def blocks_for(items: int, per_block: int = THREADS) -> tuple[int]:
    """A grid of one axis in which `per_block` items fall to a block; the kernel passes over those behind the end."""
    return (-(-items // per_block),)


def tiles_grid(rows: int, columns: int, side: int) -> tuple[int]:
    """A grid for the tiles of a matrix, row of tiles after row; of one axis, because only that is long enough."""
    return (-(-rows // side) * -(-columns // side),)


def packs(array: Any) -> int:
    """How many packs of 16 bytes (kernels/packs.cuh) an array has, the last one perhaps not full."""
    elements, per_pack = int(array.size), 16 // int(array.dtype.itemsize)
    return -(-elements // per_pack)


def lanes_for(terms: int) -> int:
    """How many threads share a sum or a maximum: one, or a warp where there are many terms."""
    return 1 if terms <= MANY_TERMS else 32


def columns_for(plane: int) -> int:
    """Threads of a block along a plane of so many elements, a power of two; the others go along the planes."""
    return min(THREADS, 1 << max(plane - 1, 0).bit_length())


def channels_across(plane: int) -> int:
    """Threads of a block along the channels, of which each has so many elements in a row: where those are single."""
    return 32 if plane == 1 else 1


def channel_parts(rows: int, plane: int) -> int:
    """Into how many parts the rows of a channel are cut for a sum: from the shape alone, as the bits depend on it."""
    across = channels_across(plane)
    rows_of_block = THREADS // across // columns_for(plane)
    return max(1, min(-(-rows // rows_of_block), rows * plane * across // ELEMENTS_PER_PART, MAX_PARTS))


def row_parts(length: int) -> int:
    """Into how many parts a row is cut, likewise."""
    return max(1, min(length // ELEMENTS_PER_PART, MAX_PARTS))


def planes_grid(planes: int, plane: int) -> tuple[int, int]:
    """A grid for elementwise work plane by plane: (blocks across planes, blocks within one)."""
    columns = columns_for(plane)
    if not plane:
        return 0, 0
    return -(-planes // (THREADS // columns)), min(-(-plane // (columns * ELEMENTS_PER_THREAD)), MAX_GRID_YZ)
