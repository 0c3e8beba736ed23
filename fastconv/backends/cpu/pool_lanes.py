"""Pooling of small planes: as many of them as a vector has lanes, side by side in the lanes.

A group of planes is transposed into scratch, a vector for each position, so that a tap of an output is a load, whatever
the window: strided, dilated, padded or adaptive, of any rank. A table says where the taps of each output lie. The
results are transposed back. The gradient of an average is the same sum by the table turned round: the outputs that read
an input. Cost: for each input and output of a plane some shuffles, 0.1 ns, and for each tap of a vector a load and an
add, or five operations of a maximum with its index; where rows are short, vectors along them (pool_windows.py) cost
several times that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu import pool_simd
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.host import VECTOR_BYTES, pointer, routine
from fastconv.backends.cpu.plane_lanes import lanes_to_planes, places_of, planes_to_lanes
from fastconv.backends.cpu.pool_windows import axis_divisors
from fastconv.backends.cpu.simd import clear, transpose
from fastconv.backends.cpu.team import shared
from fastconv.geometry import PoolGeometry

Array = npt.NDArray[Any]

_LANES4, _LANES8 = lanes_of(4), lanes_of(8)

_MOST_POSITIONS = 8192
"""Inputs and outputs of a plane: a vector for each stays in the second-level cache."""

_FEW_TAPS, _WIDE_OF_FEW, _WIDE = 4, 1.75, 4.0
"""Vectors of outputs that a row of regular windows has, of few taps or of more, from which on vectors along rows are as
good."""

_MAX_TAPS = 28
"""A longer window is worth vectors of its own."""

_NS_PER_POSITION, _NS_PER_VECTOR = 1.5, 0.5


@dataclass(frozen=True, eq=False)
class Table:
    """The taps of each result of a plane: as many for each, some again or of a zero behind the plane."""

    taps: Array  # int64 (results · taps of one): where in the plane
    offsets: Array  # int64: where in scratch
    factors: Array  # float64: ones for a vector, then what `averages` takes the sum of each result by
    shares: Array  # float64: what it takes the inputs by before; empty if by nothing
    places: Array  # int64: where in scratch each input goes
    sizes: Array  # int64: inputs and results of a plane, taps of a result
    scratch: int  # elements for a thread: inputs, then results
    cost: float  # nanoseconds for a group of planes


@lru_cache(maxsize=64)
def max_table(geometry: PoolGeometry, itemsize: int) -> Table | None:
    """Taps of each output in the order of the plane, the last ones repeated where a window is cut off.

    A repeated tap changes neither the winner nor, because whole rows are repeated, the last of several NaNs. None where
    planes are not small.
    """
    if not _is_small(geometry, itemsize):
        return None
    return _table(_taps(geometry)[0].T, math.prod(geometry.spatial), itemsize)


@lru_cache(maxsize=64)
def sum_table(geometry: PoolGeometry, itemsize: int) -> Table | None:
    """Taps of each output, each once. None where planes are not small."""
    if not _is_small(geometry, itemsize):
        return None
    inputs = math.prod(geometry.spatial)
    places, counted = _taps(geometry)
    return _table(np.where(counted, places, inputs).T, inputs, itemsize, factors(geometry, itemsize))


@lru_cache(maxsize=64)
def spread_table(geometry: PoolGeometry, itemsize: int) -> Table | None:
    """The outputs that read each input, in their order. None where planes are not small."""
    if not _is_small(geometry, itemsize):
        return None
    inputs, outputs = math.prod(geometry.spatial), math.prod(geometry.out_spatial)
    places, counted = _taps(geometry)
    tap, output = np.nonzero(counted)
    read = places[tap, output]
    order = np.lexsort((output, read))
    read, output = read[order], output[order]
    readers = np.bincount(read, minlength=inputs)
    if readers.max() > _MAX_TAPS:
        return None
    table = np.full((inputs, readers.max()), outputs)
    table[read, np.arange(len(read)) - (np.cumsum(readers) - readers)[read]] = output
    return _table(table, outputs, itemsize, shares=factors(geometry, itemsize))


def _is_small(geometry: PoolGeometry, itemsize: int) -> bool:
    """Whether planes fit into the lanes, and rows are no better."""
    positions, taps = math.prod(geometry.spatial) + math.prod(geometry.out_spatial), math.prod(geometry.kernel)
    wide = lanes_of(itemsize) * (_WIDE_OF_FEW if taps <= _FEW_TAPS else _WIDE)
    rows = not geometry.is_adaptive and geometry.out_spatial[-1] >= wide
    return positions <= _MOST_POSITIONS and taps <= _MAX_TAPS and not rows


def _taps(geometry: PoolGeometry) -> tuple[Array, Array]:
    """Place in the plane of tap t of output o, clipped to its window, and whether it lies in it: (taps, outputs)."""
    places, inside = [], []
    for (starts, stops, step), taps in zip(geometry.windows(), geometry.kernel):
        first, end = np.array(starts), np.array(stops)
        tap = first + step * np.arange(taps)[:, None]
        last = first + (end - 1 - first) // step * step
        places.append(np.minimum(tap, last))
        inside.append(tap < end)
    flat, counted = places[0], inside[0]
    for size, place, lies in zip(geometry.spatial[1:], places[1:], inside[1:]):
        flat = _combine(np.add, flat * size, place)
        counted = _combine(np.logical_and, counted, lies)
    return flat, counted


def _combine(operation: np.ufunc, outer: Array, inner: Array) -> Array:
    """operation(outer[s, o], inner[t, p]) for all taps (s, t) and outputs (o, p)."""
    result: Array = operation(outer[:, None, :, None], inner[None, :, None, :])
    return result.reshape(outer.shape[0] * inner.shape[0], -1)


def _table(taps: Array, inputs: int, itemsize: int, factors: Array | None = None, shares: Array | None = None) -> Table:
    """Of (results, taps); `factors` of the results, or `shares`, those of the inputs."""
    lanes, results = lanes_of(itemsize), len(taps)
    places = places_of(inputs + 1, itemsize)
    flat = taps.astype(np.int64).reshape(-1)
    by = np.concatenate([np.ones(_LANES4), np.ones(results) if factors is None else factors])
    before = np.empty(0) if shares is None else shares
    sizes = np.array([inputs, results, taps.shape[1]], dtype=np.int64)
    cost = (inputs + results) * _NS_PER_POSITION + taps.size * _NS_PER_VECTOR
    return Table(flat, flat * lanes, by, before, places, sizes, (len(places) + results) * lanes, cost)


@lru_cache(maxsize=64)
def divisors(geometry: PoolGeometry) -> Array:
    """What the outputs of a plane are divided by, float64."""
    return _products([np.ones(1), *axis_divisors(geometry)])


@lru_cache(maxsize=64)
def factors(geometry: PoolGeometry, itemsize: int) -> Array:
    """What `averages` takes the outputs of a plane by, rounded as in pool_windows.py."""
    *outer, last = axis_divisors(geometry)
    if itemsize == 4:
        outer, last = [1 / divisors for divisors in outer], 1 / last
    return _products([_products([np.ones(1), *outer]), last])


def _products(numbers: list[Array]) -> Array:
    """Of one number of each, the last one fastest."""
    found = numbers[0]
    for more in numbers[1:]:
        found = np.multiply.outer(found, more).reshape(-1)
    return found


@shared
def averages(
    x: Any, y: Any, offsets: Any, factors: Any, shares: Any, places: Any, sizes: Any, memory: Any, who: int, begin:
    int, end: int,
) -> None:  # fmt: skip
    """Groups [begin, end) of planes of y: sums of the taps of each result, taken by its factor."""
    inputs, results, taps = sizes
    given, ones = pointer(memory[who]), pointer(factors)
    found = given + places.size * VECTOR_BYTES
    for group in range(begin, end):
        valid = planes_to_lanes(x, group, inputs, places, given)
        clear(x, given + inputs * VECTOR_BYTES)
        for i in range(shares.size):
            at = given + i * VECTOR_BYTES
            pool_simd.averages(x, 1, 1, at, 1, pointer(places), 1, at, ones, shares[i])
        for o in range(results):
            offset, factor = pointer(offsets, o * taps), factors[_LANES4 + o]
            pool_simd.averages(x, 1, 1, given, 1, offset, taps, found + o * VECTOR_BYTES, ones, factor)
        lanes_to_planes(found, y, group, results, valid)


@shared(allocates=True)  # type: ignore[untyped-decorator]
def largest(
    x: Any, y: Any, indices: Any, taps: Any, offsets: Any, places: Any, sizes: Any, memory: Any, who: int, begin: int,
    end: int,
) -> None:  # fmt: skip
    """Groups [begin, end) of planes of y and, unless that is None, of indices."""
    lanes, results, count = VECTOR_BYTES // x.itemsize, sizes[1], sizes[2]
    given = pointer(memory[who])
    found = given + places.size * VECTOR_BYTES
    winners, zeros = np.empty(0 if indices is None else results * lanes, np.int64), np.zeros(lanes, np.int64)
    for group in range(begin, end):
        valid = planes_to_lanes(x, group, sizes[0], places, given)
        for o in range(results):
            tap, to = o * count, found + o * VECTOR_BYTES
            pool_simd.largest(
                x, indices, 1, 1, given, 0, pointer(offsets, tap), count, to, pointer(taps, tap), pointer(zeros),
                taps[tap], 0, 0 if indices is None else pointer(winners, o * lanes),
            )  # fmt: skip
        lanes_to_planes(found, y, group, results, valid)
        if indices is not None:
            first = group * lanes * results
            _planes_of(winners, indices[first : first + valid * results], valid, lanes)


@routine
def _planes_of(winners: Any, indices: Any, valid: int, lanes: int) -> None:
    """The numbers of all results (result, lane) as (plane, result)."""
    results, zero = winners.size // lanes, np.float64(0)  # whose lanes are as wide as an index
    if valid == lanes and results >= _LANES8:
        for o in range(0, results, _LANES8):
            at = min(o, results - _LANES8)
            for lane in range(0, lanes, _LANES8):
                source, target = pointer(winners, at * lanes + lane), pointer(indices, lane * results + at)
                transpose(zero, source, lanes, 1, target, results)
    else:
        for lane in range(valid):
            for o in range(results):
                indices[lane * results + o] = winners[o * lanes + lane]
