"""Small planes side by side in the lanes of vectors: groups of them transposed into scratch and back.

A position of all planes of a group is a vector, whatever lies around it: what is done to positions needs neither rows
nor columns to be long. Cost: a load, some shuffles and a store for each vector of each plane, in both directions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.depthwise_lanes_simd import from_lanes, to_lanes
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.host import VECTOR_BYTES, pointer, routine
from fastconv.backends.cpu.simd import transpose


def fills_lanes(x: npt.NDArray[Any]) -> bool:
    """Whether an array (N, C, *S) has as many planes as a vector has lanes: fewer would leave some of them empty."""
    return bool(x.shape[0] * x.shape[1] >= lanes_of(x.itemsize))


def places_of(positions: int, itemsize: int) -> npt.NDArray[np.int64]:
    """Where in scratch the positions of a plane go, in elements, and at least as many as a vector has lanes."""
    lanes = lanes_of(itemsize)
    return np.arange(max(positions, lanes), dtype=np.int64) * lanes


@routine
def planes_to_lanes(x: Any, group: int, positions: int, places: Any, to: int) -> int:
    """A group of the planes of x to scratch at address `to`, a vector for each position; returns how many they are.

    If these are fewer than lanes, the others repeat the last one. Scratch may be written to the end of `places`.
    """
    size = x.itemsize
    lanes = VECTOR_BYTES // size
    first = group * lanes
    valid: int = min(lanes, x.size // positions - first)
    source = pointer(x, first * positions)
    if valid < lanes or positions < lanes:
        to_lanes(x, to, 0, pointer(places), 0, positions, source, positions, valid, 0, 1, positions)
        return valid
    transpose(x, source, positions, positions // lanes, to, lanes)
    if positions % lanes > 0:  # the last vectors overlap those before
        last = positions - lanes
        transpose(x, source + last * size, positions, 1, to + last * VECTOR_BYTES, lanes)
    return valid


@routine
def lanes_to_planes(source: int, y: Any, group: int, positions: int, valid: int) -> None:
    """The other way round: from scratch at address `source` to a group of so many planes of y."""
    size = y.itemsize
    lanes = VECTOR_BYTES // size
    target = pointer(y, group * lanes * positions)
    if valid < lanes or positions < lanes:
        from_lanes(y, target, positions, valid, source, positions)
        return
    for position in range(0, positions, lanes):
        first = min(position, positions - lanes)
        transpose(y, source + first * VECTOR_BYTES, lanes, 1, target + first * size, positions)
