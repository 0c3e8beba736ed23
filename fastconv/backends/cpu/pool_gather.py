"""Pooling of small planes: every output gathers its taps through a table of places.

A block is a few planes, some hundred outputs, for which a table lists the taps: `table[t, o]` is where tap t of output
o lies in the block, the same for every block. So all windows (strided, dilated, padded, adaptive, of any rank) are one
loop over taps around one loop over outputs, long enough to vectorise however small a plane is. The gradient of an
average is the same sum with the table turned round: the outputs that read an input. Cost: one gather for each tap of an
output, 0.5 to 1 ns; rows (max_pool.py, avg_pool.py) are faster only where long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.elementary import maximum
from fastconv.backends.cpu.host import routine
from fastconv.backends.cpu.team import shared
from fastconv.geometry import PoolGeometry

Array = npt.NDArray[Any]

_BLOCK = 512
"""Results of a block, about: what a tap loop works on then stays in the first-level cache."""

_MAX_ENTRIES = 1 << 16
"""Entries of a table for one plane; a quarter of a megabyte stays in the second-level cache."""

_MAX_INPUTS = 128
"""Of a plane whose gradient is gathered; rows of a larger one are worth vectors."""

_MAX_TAPS = 28
"""A longer window is worth vectors of its own."""


@dataclass(frozen=True, eq=False)
class Table:
    """Places of the taps of a block's results; -1 for a tap that counts nothing."""

    places: Array  # int32 (taps · results of a block)
    planes: int  # of a block
    results: int  # of a plane
    sources: int  # elements of a plane that are read

    @property
    def taps(self) -> int:
        return len(self.places) // (self.planes * self.results)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Taps, results of a block, sources of a block, planes of a block: what a kernel needs to know."""
        return self.taps, self.planes * self.results, self.planes * self.sources, self.planes


@lru_cache(maxsize=64)
def max_table(geometry: PoolGeometry) -> Table | None:
    """Taps of each output in the order of the plane, the last ones repeated where a window is cut off.

    A repeated tap changes neither the winner nor, because whole rows are repeated, the last of several NaNs. None where
    a table would be too large.
    """
    if not _fits(geometry):
        return None
    return _block(_taps(geometry)[0], math.prod(geometry.spatial))


@lru_cache(maxsize=64)
def sum_table(geometry: PoolGeometry) -> Table | None:
    """Taps of each output, each once. None where a table would be too large."""
    if not _fits(geometry):
        return None
    places, counted = _taps(geometry)
    return _block(np.where(counted, places, -1), math.prod(geometry.spatial))


@lru_cache(maxsize=64)
def spread_table(geometry: PoolGeometry) -> Table | None:
    """The outputs that read each input, in their order. None where a table would be too large."""
    inputs = math.prod(geometry.spatial)
    if not _fits(geometry) or inputs > _MAX_INPUTS:
        return None
    places, counted = _taps(geometry)
    tap, output = np.nonzero(counted)
    read = places[tap, output]
    order = np.lexsort((output, read))
    read, output = read[order], output[order]
    readers = np.bincount(read, minlength=inputs)
    if readers.max() > _MAX_TAPS:
        return None
    table = np.full((readers.max(), inputs), -1)
    table[np.arange(len(read)) - (np.cumsum(readers) - readers)[read], read] = output
    return _block(table, math.prod(geometry.out_spatial))


def _fits(geometry: PoolGeometry) -> bool:
    taps = math.prod(geometry.kernel)
    return taps <= _MAX_TAPS and taps * math.prod(geometry.out_spatial) <= _MAX_ENTRIES


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


def _block(table: Array, sources: int) -> Table:
    """The table of as many planes as make a block."""
    results = table.shape[1]
    planes = max(1, _BLOCK // results)
    origins = np.arange(planes)[:, None] * sources
    places = np.where(table[:, None] < 0, -1, table[:, None] + origins).astype(np.int32)
    return Table(places.reshape(-1), planes, results, sources)


@lru_cache(maxsize=64)
def block_divisors(geometry: PoolGeometry, planes: int) -> Array:
    """What the outputs of a block are divided by, float64."""
    counts = geometry.divisors()
    if counts is None:
        return np.full(planes * math.prod(geometry.out_spatial), float(geometry.divisor_override or 1))
    divisors = np.ones(1)
    for count in counts:
        divisors = np.multiply.outer(divisors, np.array(count, np.float64)).reshape(-1)
    return np.tile(divisors, planes)


@shared
def largest(x: Any, y: Any, places: Any, shape: Any, who: int, begin: int, end: int) -> None:
    """Blocks [begin, end) of y."""
    taps, outputs, inputs, _ = shape
    for block in range(begin, end):
        source, best = x[block * inputs :], y[block * outputs : (block + 1) * outputs]
        best[:] = -np.inf
        for t in range(taps):
            tap = places[t * outputs : t * outputs + best.size]
            for i in range(tap.size):
                best[i] = maximum(best[i], source[np.uint32(tap[i])])


@shared(allocates=True)  # type: ignore[untyped-decorator]
def largest_and_indices(x: Any, y: Any, indices: Any, places: Any, shape: Any, who: int, begin: int, end: int) -> None:
    """Blocks [begin, end) of y and indices."""
    best, winner = np.empty(shape[1], x.dtype), np.empty(shape[1], np.int32)
    for block in range(begin, end):
        _winners(x, y, indices, places, shape, best, winner, block)


@routine
def _winners(x: Any, y: Any, indices: Any, places: Any, shape: Any, best: Any, winner: Any, block: int) -> None:
    """A block of y and indices."""
    taps, outputs, inputs, planes = shape
    source = x[block * inputs :]
    count = min(outputs, y.size - block * outputs)
    best[:] = -np.inf
    for i in range(outputs):
        winner[i] = places[i]
    for t in range(taps):
        tap = places[t * outputs : t * outputs + count]
        for i in range(tap.size):
            challenger = source[np.uint32(tap[i])]
            wins = (challenger > best[i]) | (challenger != challenger)
            best[i] = challenger if wins else best[i]
            winner[i] = tap[i] if wins else winner[i]
    results, sources = outputs // planes, inputs // planes
    for plane in range(count // results):
        first = plane * results
        at = block * outputs + first
        values, found = y[at : at + results], indices[at : at + results]
        for i in range(values.size):
            values[i] = best[first + i]
            found[i] = winner[first + i] - plane * sources


@shared(allocates=True)  # type: ignore[untyped-decorator]
def averages(x: Any, y: Any, places: Any, shape: Any, divisors: Any, who: int, begin: int, end: int) -> None:
    """Blocks [begin, end) of y: window sums over divisors."""
    accumulator = np.empty(shape[1])
    for block in range(begin, end):
        _averages(x, y, places, shape, divisors, accumulator, block)


@routine
def _averages(x: Any, y: Any, places: Any, shape: Any, divisors: Any, accumulator: Any, block: int) -> None:
    taps, outputs, inputs, _ = shape
    target = y[block * outputs : (block + 1) * outputs]
    total = accumulator[: target.size]
    _gather_sums(x[block * inputs :], places, taps, outputs, total)
    for i in range(total.size):
        target[i] = total[i] / divisors[i]


@shared(allocates=True)  # type: ignore[untyped-decorator]
def spread(gy: Any, gx: Any, places: Any, shape: Any, divisors: Any, who: int, begin: int, end: int) -> None:
    """Blocks [begin, end) of gx: each input gathers gy / divisor of the outputs that read it."""
    _, inputs, outputs, _ = shape
    accumulator, shares = np.empty(inputs), np.empty(outputs, gy.dtype)
    for block in range(begin, end):
        _spread(gy, gx, places, shape, divisors, accumulator, shares, block)


@routine
def _spread(
    gy: Any, gx: Any, places: Any, shape: Any, divisors: Any, accumulator: Any, shares: Any, block: int
) -> None:
    taps, inputs, outputs, _ = shape
    given = gy[block * outputs : (block + 1) * outputs]
    for i in range(given.size):
        shares[i] = given[i] / divisors[i]
    target = gx[block * inputs : (block + 1) * inputs]
    total = accumulator[: target.size]
    _gather_sums(shares, places, taps, inputs, total)
    for i in range(total.size):
        target[i] = total[i]


@routine
def _gather_sums(source: Any, places: Any, taps: int, stride: int, total: Any) -> None:
    total[:] = 0.0
    for t in range(taps):
        tap = places[t * stride : t * stride + total.size]
        for i in range(tap.size):
            value = source[np.uint32(max(tap[i], np.int32(0)))]
            total[i] += np.float64(value) if tap[i] >= 0 else 0.0
