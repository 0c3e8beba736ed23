"""Dense layers: y[n, m] = b[m] + Σ_k x[n, k] · w[m, k].

Idea, for many features: both factors lie along k, so their products are vector × vector (`simd.inner`) and nothing is
packed; the weights, mostly much more than the samples, are read once from where they lie. Loop order: task (a tile's
rows of weights) → step of k → tile's samples → k. Registers hold the tile, the first level the step of its rows of
weights; the samples stream past. Cost: an FMA for each lane of (sample, row, k), and for each output what its lanes
cost to sum.

For few features that sum would cost most. Then the weights of two vectors of rows are transposed into the first level,
and each k is a broadcast of the sample times a vector of rows (`gathered_outer`), which stands where it belongs when
it is done. Loop order: task (some samples, which stay in the second level, × rows) → tile's samples → k. Cost: an FMA
for each (sample, vector of rows, k), and for each task its weights transposed: one sample alone waits for that.

Floor of both: the weights at the speed of memory for few samples, the FMA rate for many. The way is chosen and the sum
over k is cut by the features alone: a sample has the same bits in any batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.host import flat, pointer, routine
from fastconv.backends.cpu.memory import empty
from fastconv.backends.cpu.row_lanes_simd import OUTPUTS, VECTORS, gathered_outer
from fastconv.backends.cpu.scratch import scratch_rows
from fastconv.backends.cpu.simd import INNER_TILE, inner, inner_tile_size, transpose
from fastconv.backends.cpu.team import shared
from fastconv.backends.threads import share, team_for

Array = npt.NDArray[Any]

FEW_FEATURES = 128

_ROWS, _SAMPLES = INNER_TILE
_TILE4, _TILE8 = (inner_tile_size(_ROWS, _SAMPLES, size) for size in (4, 8))
_ROWS_OF_ONE = 8
"""Rows of a tile of one sample: as many chains of additions as two units with a latency of four cycles keep going."""
_LANES4, _LANES8 = lanes_of(4), lanes_of(8)
_STEP = 1024  # elements of k: the rows of a tile take 24 or 16 KiB in float32
_CHUNK = 192  # samples of a task, whole tiles, for which its weights are transposed once
_NS_PER_PRODUCT, _NS_PER_WEIGHT = 0.025, 0.3


def linear(x: Array, w: Array, b: Array | None) -> Array:
    """See contract.Backend.linear."""
    (samples, k), rows = x.shape, len(w)
    y = empty((samples, rows), x.dtype)
    if not y.size:
        return y
    bias = np.zeros(rows, x.dtype) if b is None else b
    cost = x.size * rows * _NS_PER_PRODUCT + w.size * _NS_PER_WEIGHT
    if 0 < k <= FEW_FEATURES and rows >= lanes_of(x.itemsize):
        width = VECTORS * lanes_of(x.itemsize)
        panels, chunks = -(-rows // width), -(-samples // _CHUNK)
        team = team_for(panels * chunks, cost)
        memory = scratch_rows(team.size, (1 + k + OUTPUTS) * width, x.dtype)
        arrays = flat(x), flat(w), flat(bias), y.reshape(-1)
        _few_features(*arrays, memory, samples, k, rows, panels, team.address, 0, panels * chunks)
        return y
    if not reads_in_place(w):
        w = np.concatenate([w, np.zeros((_ROWS - rows, k), w.dtype)])
    arrays = flat(x), flat(w), flat(bias), y.reshape(-1)
    if samples == 1 and rows >= _ROWS_OF_ONE:
        share(_one_sample, (*arrays, k, rows), -(-rows // _ROWS_OF_ONE), cost)
    else:
        share(_many_features, (*arrays, samples, k, rows), -(-rows // _ROWS), cost)
    return y


def reads_in_place(w: Array) -> bool:
    """Whether there are as many rows as a tile reads: fewer are copied."""
    return len(w) >= _ROWS


@shared(allocates=True)  # type: ignore[untyped-decorator]
def _many_features(
    x: Any, w: Any, b: Any, y: Any, samples: int, k: int, rows: int, who: int, begin: int, end: int
) -> None:
    """Tasks begin ≤ task < end of _ROWS rows of w; the last one begins earlier and computes some rows again."""
    size = x.itemsize
    lanes, tile = (_LANES4, _TILE4) if size == 4 else (_LANES8, _TILE8)
    whole = k // lanes * lanes
    places = np.empty(-(-samples // _SAMPLES) * _SAMPLES, np.int64)  # a sample that fills the last tile is no other's
    for n in range(len(places)):
        places[n] = min(n, samples - 1) * k
    sums = np.empty(len(places) // _SAMPLES * tile, x.dtype)
    for task in range(begin, end):
        m0 = max(0, min(task * _ROWS, rows - _ROWS))
        sums[:] = 0
        for k0 in range(0, whole, _STEP):
            vectors = min(_STEP, whole - k0) // lanes
            for t in range(len(places) // _SAMPLES):
                a, off = pointer(w, m0 * k + k0), pointer(places, t * _SAMPLES)
                inner(x, _ROWS, _SAMPLES, a, k, pointer(x, k0), off, vectors, pointer(sums, t * tile))
                if k0 + _STEP >= whole == k:
                    _finish(y, sums, t, tile, b, m0, rows, samples)
        if whole < k or k == 0:
            for t in range(len(places) // _SAMPLES):
                _add_rest(x, w, k, whole, m0, sums, t, tile, samples)
                _finish(y, sums, t, tile, b, m0, rows, samples)


@shared(allocates=True)  # type: ignore[untyped-decorator]
def _one_sample(x: Any, w: Any, b: Any, y: Any, k: int, rows: int, who: int, begin: int, end: int) -> None:
    """As `_many_features`, with the same sums, for tasks of _ROWS_OF_ONE rows and one sample."""
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    whole = k // lanes * lanes
    place, sums = np.zeros(1, np.int64), np.empty(max(_ROWS_OF_ONE, lanes), x.dtype)
    for task in range(begin, end):
        m0 = min(task * _ROWS_OF_ONE, rows - _ROWS_OF_ONE)
        sums[:] = 0
        for k0 in range(0, whole, _STEP):
            vectors = min(_STEP, whole - k0) // lanes
            a = pointer(w, m0 * k + k0)
            inner(x, _ROWS_OF_ONE, 1, a, k, pointer(x, k0), pointer(place), vectors, pointer(sums))
        for r in range(np.uintp(_ROWS_OF_ONE)):
            total, row = sums[r], (np.uintp(m0) + r) * np.uintp(k)
            for i in range(np.uintp(whole), np.uintp(k)):
                total += x[i] * w[row + i]
            y[np.uintp(m0) + r] = total + b[np.uintp(m0) + r]


@routine
def _add_rest(x: Any, w: Any, k: int, whole: int, m0: int, sums: Any, t: int, tile: int, samples: int) -> None:
    """What the elements of a sample that fill no vector add to the sums of a tile."""
    for s in range(np.uintp(min(_SAMPLES, samples - t * _SAMPLES))):
        row = np.uintp(t * _SAMPLES + s) * np.uintp(k)
        for r in range(np.uintp(_ROWS)):
            total = sums[np.uintp(t * tile) + r * np.uintp(_SAMPLES) + s]
            for i in range(np.uintp(whole), np.uintp(k)):
                total += x[row + i] * w[(np.uintp(m0) + r) * np.uintp(k) + i]
            sums[np.uintp(t * tile) + r * np.uintp(_SAMPLES) + s] = total


@routine
def _finish(y: Any, sums: Any, t: int, tile: int, b: Any, m0: int, rows: int, samples: int) -> None:
    """The sums of a tile and the biases to y."""
    for s in range(np.uintp(min(_SAMPLES, samples - t * _SAMPLES))):
        to = np.uintp((t * _SAMPLES + s) * rows + m0)
        for r in range(np.uintp(min(_ROWS, rows))):
            y[to + r] = sums[np.uintp(t * tile) + r * np.uintp(_SAMPLES) + s] + b[np.uintp(m0) + r]


@shared(allocates=True)  # type: ignore[untyped-decorator]
def _few_features(
    x: Any, w: Any, b: Any, y: Any, memory: Any, samples: int, k: int, rows: int, panels: int, who: int, begin: int,
    end: int,
) -> None:  # fmt: skip
    """Tasks begin ≤ task < end of (chunk of samples, panel of vectors of rows).

    A last vector or tile that is not full begins earlier, and computes some outputs again; fewer samples than a tile
    has are computed in scratch, behind the weights.
    """
    zero = x.dtype.type(0)
    lanes = _LANES4 if x.itemsize == 4 else _LANES8
    tables, own = np.empty(k + OUTPUTS, np.int64), memory[who]
    for i in range(k):
        tables[i] = i
    for n in range(OUTPUTS):
        tables[k + n] = min(n, samples - 1) * k
    off, places, start = pointer(tables, 0), pointer(tables, k), pointer(own, 0)
    for task in range(begin, end):
        chunk, panel = divmod(task, panels)
        vectors = min(VECTORS, -(-rows // lanes) - panel * VECTORS)
        width = vectors * lanes
        r0 = min(panel * VECTORS * lanes, rows - lanes)
        apart = min(r0 + lanes, rows - lanes) - r0
        for v in range(vectors):
            _turn(w, b, r0 + v * apart, k, own[v * lanes :], width)
        a, aside = pointer(own, width), (1 + k) * width
        for n in range(chunk * _CHUNK, min(samples, (chunk + 1) * _CHUNK), OUTPUTS):
            n0 = max(0, min(n, samples - OUTPUTS))
            source, c, c_apart, c_step = pointer(x, n0 * k), pointer(y, n0 * rows + r0), apart, rows
            if samples < OUTPUTS:
                c, c_apart, c_step = pointer(own, aside), lanes, width
            if vectors == VECTORS:
                gathered_outer(zero, VECTORS, a, source, off, places, k, start, lanes, 0, c, c_apart, c_step, 0)
            else:
                gathered_outer(zero, 1, a, source, off, places, k, start, lanes, 0, c, c_apart, c_step, 0)
        if samples < OUTPUTS:
            for n in range(samples):
                for v in range(vectors):
                    for lane in range(lanes):
                        y[n * rows + r0 + v * apart + lane] = own[aside + (n * vectors + v) * lanes + lane]


@routine
def _turn(w: Any, b: Any, row: int, k: int, target: Any, width: int) -> None:
    """The biases of a vector of rows from `row` on, then its weights of each k, `width` apart."""
    lanes = _LANES4 if w.itemsize == 4 else _LANES8
    whole = k // lanes * lanes
    for lane in range(lanes):
        target[lane] = b[row + lane]
    if whole:
        transpose(w, pointer(w, row * k), k, whole // lanes, pointer(target, width), width)
    for i in range(whole, k):
        for lane in range(lanes):
            target[(1 + i) * width + lane] = w[(row + lane) * k + i]
