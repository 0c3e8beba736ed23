"""When and how fast Fourier transforms replace a correlation; the kernels and the idea are in fft_kernels.py.

Memory: each thread that takes part holds the spectra of its tiles, at most MOST_BYTES; the spectra of the filters, a
few times the weights (tiles are two to eight kernels long on each axis), are held once a call.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.axes import Axis
from fastconv.backends.cpu.fft_kernels import CHUNK_ROWS, LANES, TILES, fft_correlate, transform_filters
from fastconv.backends.cpu.fft_simd import SPECTRA
from fastconv.backends.cpu.host import flat
from fastconv.backends.cpu.plan import Correlation
from fastconv.backends.cpu.scratch import call_scratch, scratch_rows
from fastconv.backends.threads import get_num_threads, team_for

Array = npt.NDArray[Any]
Sizes = tuple[int, ...]

MOST_BYTES = 16 << 20
"""Scratch of a thread: tiles that need more are not considered."""

_MOST_FILTER_BYTES = 256 << 20
_LEAST_TAPS = 12  # below, direct sums and Winograd are about as fast
_GAIN = 1.2  # an estimate is trusted no further
_MANY_PRODUCTS = 16  # channels times rows from which two vectors of tiles share a filter's spectrum
_SMALLEST_WIDTH = 16  # whole vectors of real positions, two complex points at least
_STAGGER = 16  # elements between frequencies, so that they do not all meet in the same few sets of a cache

# Nanoseconds for a vector of float32, measured on Zen 3 at 3.4 GHz; only their ratios matter. Transforming a line
# costs so much and each of its positions so much more, of a plane or volume again more, one way; a filter's spectrum
# is stored in elements; a product is four multiply-adds. Each doubling of the spectra beyond _CACHE_BYTES adds a part.
_LINE, _POSITION, _GRID_POSITION, _FILTER_POSITION, _PRODUCT, _CALL = 100.0, 10.5, 2.5, 22.0, 0.75, 20_000.0
_CACHE_BYTES, _BEYOND_CACHE = 256 << 10, 0.15
_MULTIPLY_ADD = 0.22  # of direct sums, at three quarters of the roof


def suits(correlation: Correlation) -> bool:
    """One output for each position and taps side by side, enough of them to pay for transforms."""
    axes = correlation.axes
    whole = all(axis.step == axis.stride == 1 and axis.first == 0 and axis.outputs == axis.target for axis in axes)
    return whole and math.prod(len(axis.offsets) for axis in axes) >= _LEAST_TAPS and all(map(_adjacent, axes))


def _adjacent(axis: Axis) -> bool:
    return max(axis.offsets) - min(axis.offsets) == len(axis.offsets) - 1


class Fft:
    """A correlation that `suits` by the tiles that cost least."""

    def __init__(self, correlation: Correlation, sizes: Sizes | None = None) -> None:
        c = self.correlation = correlation
        candidates = itertools.product(*map(_candidates, c.axes, (1, 1, _SMALLEST_WIDTH)))
        self.cost, self.sizes = min((_cost(c, sizes), sizes) for sizes in ([sizes] if sizes else candidates))
        self.pays = _GAIN * self.cost < c.flops / 2 / LANES * _MULTIPLY_ADD
        if math.isinf(self.cost):
            return
        self.plan = _plan(c, self.sizes)
        p = self.plan[0]
        self.tiles = int(p["tiles_d"] * p["tiles_h"] * p["tiles_w"])
        self.elements, self.at_once = int(p["elements"]), int(p["vectors"])
        self.spectra_elements = int(p["frequencies"] * c.channels * 2 * p["all_rows"])
        self.filter_tasks = c.channels * int(p["all_rows"]) // LANES
        by_offset = [np.argsort(axis.offsets) for axis in c.axes]
        numbers = np.arange(len(c.kernel_taps)).reshape([len(axis.offsets) for axis in c.axes])
        self.taps = c.kernel_taps[numbers[np.ix_(*by_offset)].reshape(-1)]
        self.tables = _turns(max(self.sizes)), _untangling(self.sizes[2])
        self.scale = np.float32(1 / (4 * math.prod(self.sizes)))

    def run(
        self, source: Array, w: Array, steps: tuple[int, int], b: Array | None, target: Array, relu: bool
    ) -> npt.NDArray[np.bool_]:
        """Fill `target`; returns for each sample whether one of its results is not finite."""
        c, samples = self.correlation, len(source)
        spectra = call_scratch(self.spectra_elements, source.dtype)
        weights, x, y = flat(w), flat(source), target.reshape(-1)
        start = np.zeros(c.groups * c.rows, source.dtype) if b is None else flat(b)
        not_finite = np.zeros(samples, np.bool_)
        vectors = -(-samples * self.tiles // LANES)
        at_once = self.at_once if vectors * c.groups > self.at_once * get_num_threads() else 1  # no thread is left idle
        team = team_for(self.filter_tasks, self.filter_tasks * math.prod(self.sizes) * _FILTER_POSITION)
        memory = scratch_rows(team.size, self.elements, source.dtype)
        transform_filters(
            weights, spectra, self.plan, *steps, self.taps, memory, *self.tables, self.scale, team.address, 0,
            self.filter_tasks,
        )  # fmt: skip
        tasks = -(-vectors // at_once) * c.groups
        team = team_for(tasks, samples * self.cost)
        memory = scratch_rows(team.size, self.elements, source.dtype)
        fft_correlate(
            x, spectra, start, y, self.plan, memory, *self.tables, not_finite, relu, at_once, team.address, 0, tasks
        )
        return not_finite


def _candidates(axis: Axis, least: int) -> list[int]:
    """Sizes of a tile on an axis: powers of two from the taps up to what one tile for all outputs needs."""
    taps = len(axis.offsets)
    if taps == least == 1:
        return [1]
    whole = max(least, axis.outputs + taps - 1)
    powers = [1 << n for n in range(1, whole.bit_length() + 1)]
    return [size for size in powers if max(taps, least) <= size < 2 * whole]


def _step(axis: Axis, size: int) -> int:
    """Outputs of a tile: the positions that no tap leaves."""
    return min(axis.outputs, size - len(axis.offsets) + 1)


def _cost(c: Correlation, sizes: Sizes) -> float:
    """Estimated nanoseconds for one sample, infinite for tiles too large for a thread."""
    positions, lines = math.prod(sizes), sizes[0] * sizes[1]
    frequencies = lines * (sizes[2] // 2 + 1)
    rows = -(-c.groups * c.rows // LANES)
    held = _spectra_bytes(c, frequencies)
    if held > MOST_BYTES or 8 * frequencies * c.channels * rows * LANES > _MOST_FILTER_BYTES:
        return math.inf
    tiles = math.prod(-(-axis.outputs // _step(axis, size)) for axis, size in zip(c.axes, sizes))
    grid = _GRID_POSITION if lines > 1 else 0.0
    transform = _LINE * lines + (_POSITION + grid) * positions
    filters = c.channels * rows * (_LINE * lines + (_FILTER_POSITION + grid) * positions)
    vector = (c.channels + c.rows) * transform + c.channels * c.rows * frequencies * _PRODUCT
    slower = 1 + _BEYOND_CACHE * math.log2(max(1, held / _CACHE_BYTES))
    return _CALL + (filters + c.groups * -(-tiles // LANES) * vector) * slower


def _pitches(c: Correlation) -> tuple[int, int, int]:
    """Vectors of tiles that a task takes, and elements from frequency to frequency of its source and target."""
    vectors = SPECTRA[1] if c.channels * c.rows >= _MANY_PRODUCTS else 1
    point = 2 * vectors * LANES
    return vectors, c.channels * point + _STAGGER, min(c.rows, CHUNK_ROWS) * point + _STAGGER


def _spectra_bytes(c: Correlation, frequencies: int) -> int:
    _, source, target = _pitches(c)
    return 4 * frequencies * (source + target + 2 * LANES)


def _plan(c: Correlation, sizes: Sizes) -> Array:
    """What the kernels are told; the places in the scratch of a thread are last."""
    plan = np.zeros(1, TILES)
    p = plan[0]
    for name, axis, size in zip("dhw", c.axes, sizes):
        step = _step(axis, size)
        p[f"size_{name}"], p[f"step_{name}"], p[f"tiles_{name}"] = size, step, -(-axis.outputs // step)
        p[f"low_{name}"], p[f"source_{name}"], p[f"outputs_{name}"] = axis.low, axis.size, axis.outputs
        p[f"taps_{name}"] = len(axis.offsets)
    p["channels"], p["rows"], p["groups"], p["kernel"] = c.channels, c.rows, c.groups, c.kernel_size
    lines, half = sizes[0] * sizes[1], sizes[2] // 2
    frequencies = lines * (half + 1)
    p["half"], p["frequencies"] = half, frequencies
    p["all_rows"] = -(-c.groups * c.rows // LANES) * LANES
    p["vectors"], p["source_pitch"], p["target_pitch"] = _pitches(c)
    line, point = sizes[2] * LANES, 2 * LANES
    places = {
        "lines": line + LANES * LANES,
        "line": line,
        "points": line,
        "work": 2 * point * max(sizes[0], sizes[1], half),
        "grid": frequencies * point if lines > 1 else 0,
        "source": frequencies * int(p["source_pitch"]),
        "target": frequencies * int(p["target_pitch"]),
    }
    for name, end in zip(places, itertools.accumulate(places.values())):
        p[f"at_{name}"], p["elements"] = end - places[name], end
    return plan


@lru_cache(maxsize=64)
def _turns(longest: int) -> Array:
    """exp(−2πi·jp/n) for n = 4, 8, … longest, p < n/4, j = 1, 2, 3: what a pass multiplies its results with."""
    lengths = [1 << n for n in range(2, max(3, longest.bit_length()))]
    turns = [np.exp(-2j * np.pi / n * np.outer(np.arange(n // 4), (1, 2, 3))).reshape(-1) for n in lengths]
    return _single(np.concatenate(turns))


@lru_cache(maxsize=64)
def _untangling(size: int) -> Array:
    """The factors of `untangle` for lines of this size, there and back."""
    turns = np.exp(-2j * np.pi / size * np.arange(size // 2 + 1))
    return _single(np.concatenate([turns, -1 / turns]))


def _single(values: npt.NDArray[np.complex128]) -> Array:
    """Real and imaginary parts in turn, in single precision."""
    return np.ascontiguousarray(values.astype(np.complex64)).view(np.float32)
