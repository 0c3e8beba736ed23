"""Dense layers: y[n, m] = b[m] + Σ_k x[n, k] · w[m, k].

Idea: both factors lie along k, so their products are vector × vector (`simd.inner`) and nothing is packed; the weights,
mostly much more than the samples, are read once from where they lie. Loop order: task (a tile's rows of weights) → step
of k → tile's samples → k. Registers hold the tile, the first level the step of its rows of weights; the samples stream
past. Cost: an FMA for each lane of (sample, row, k). Floor: the weights at the speed of memory for few samples, the FMA
rate for many.

The sum over k is cut by its length alone, into steps and at the end into what fills no vector: a sample has the same
bits in any batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.host import flat, pointer
from fastconv.backends.cpu.memory import empty
from fastconv.backends.cpu.simd import INNER_TILE, inner, inner_tile_size
from fastconv.backends.cpu.team import shared
from fastconv.backends.threads import share

Array = npt.NDArray[Any]

_ROWS, _SAMPLES = INNER_TILE
_TILE4, _TILE8 = (inner_tile_size(_ROWS, _SAMPLES, size) for size in (4, 8))
_LANES4, _LANES8 = lanes_of(4), lanes_of(8)
_STEP = 1024  # elements of k: the rows of a tile take 24 or 16 KiB in float32
_NS_PER_PRODUCT, _NS_PER_WEIGHT = 0.025, 0.3


def linear(x: Array, w: Array, b: Array | None) -> Array:
    """See contract.Backend.linear."""
    (samples, k), rows = x.shape, len(w)
    y = empty((samples, rows), x.dtype)
    if not y.size:
        return y
    bias = np.zeros(rows, x.dtype) if b is None else b
    if rows < _ROWS:  # a tile reads as many
        w = np.concatenate([w, np.zeros((_ROWS - rows, k), w.dtype)])
    arrays = flat(x), flat(w), flat(bias), y.reshape(-1)
    cost = x.size * rows * _NS_PER_PRODUCT + w.size * _NS_PER_WEIGHT
    share(_dense, (*arrays, samples, k, rows), -(-rows // _ROWS), cost)
    return y


@shared(allocates=True)  # type: ignore[untyped-decorator]
def _dense(x: Any, w: Any, b: Any, y: Any, samples: int, k: int, rows: int, who: int, begin: int, end: int) -> None:
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
        for i in range(sums.size):
            sums[i] = 0
        for k0 in range(0, whole, _STEP):
            vectors = min(_STEP, whole - k0) // lanes
            for t in range(len(places) // _SAMPLES):
                a, off = pointer(w, m0 * k + k0), pointer(places, t * _SAMPLES)
                inner(x, _ROWS, _SAMPLES, a, k, pointer(x, k0), off, vectors, pointer(sums, t * tile))
        for n in range(np.uintp(samples)):
            first, to = n // _SAMPLES * tile + n % _SAMPLES, n * np.uintp(rows) + np.uintp(m0)
            for r in range(np.uintp(min(_ROWS, rows))):
                total = sums[first + r * _SAMPLES]
                for i in range(np.uintp(whole), np.uintp(k)):
                    total += x[n * np.uintp(k) + i] * w[(np.uintp(m0) + r) * np.uintp(k) + i]
                y[to + r] = total + b[np.uintp(m0) + r]
