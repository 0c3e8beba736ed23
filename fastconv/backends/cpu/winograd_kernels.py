"""What both ways of Winograd's minimal filtering share: a fraction of the multiplications of a convolution.

Idea: tiles of 4×4 outputs (4 where only one axis has taps) are the columns of small matrix products, one for each
frequency, on the micro-kernel `simd.outer_strided`. Channels and depth taps together are the sum of the products, so
that 3×3 planes of a 3-D kernel do as well. The `form` of a tile and its transforms are in winograd_simd.py.

- Large images go in boxes of tiles, which are gathered and transformed by vectors: winograd_box_kernels.py.
- Small images, and taps far apart, in a few vectors of tiles from anywhere, lane by lane: winograd_tiles.py.

The floor is the FMA rate at the products of the frequencies, for each output of 3×3 taps 36/144 of the direct ones, of
5×5 64/400, of 3, 5 and 7 taps 6/12, 8/20 and 10/28; for tiles of 3×3 outputs and taps 25/81. At a step its phases are
channels of their own (winograd_forms.py): 81/144 for 3×3 taps at step 2, and less for more taps.

Rounding: relative L2 error about 2e-6 (3×3), 6e-6 (5×5) and 1, 1.5, 4e-6 (3, 5, 7 taps of one axis) for 256 channels
of unit variance, at step 2 1.1e-6 (3×3), 3e-6 (5×5) and 5e-6 (7×7); direct sums have 0.5e-6. An overflow, an infinity
or a NaN would spread over its tile: samples with a result that is not finite are computed again directly.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.gather import copy_strided
from fastconv.backends.cpu.host import SECOND_LEVEL_BYTES, flat, inlined, pointer, routine
from fastconv.backends.cpu.plan import Correlation
from fastconv.backends.cpu.simd import ROWS, WIDE, outer_strided
from fastconv.backends.cpu.team import shared
from fastconv.backends.cpu.winograd_filters_simd import filter_transform, filter_transform_pair
from fastconv.backends.cpu.winograd_forms import (
    frequencies_of,
    outputs_of,
    patch_of,
    phase_of,
    phases_of,
    phases_with,
    spread_of,
    values_of,
)
from fastconv.backends.cpu.winograd_simd import FILTER_LANES

LANES = lanes_of(4)
_WIDE = WIDE[ROWS]
STAGGER = LANES  # elements between frequencies, lest all of them fall into one set of the first-level cache
FILTER_PADDING = 16  # elements behind the filters of a frequency: a vector reaches into them, and they stagger the sets
TILE_COLUMNS = 96 // (_WIDE * LANES) * _WIDE * LANES

Array = npt.NDArray[Any]

_BY_PAIRS = LANES == 2 * FILTER_LANES == 2 * ROWS

tile_frequencies, tile_outputs = inlined(frequencies_of), inlined(outputs_of)
tile_patch, values_at, tile_phases = inlined(patch_of), inlined(values_of), inlined(phases_of)
tile_spread = inlined(spread_of)
tile_phase, frequency_phases = inlined(phase_of), inlined(phases_with)


@routine(allocates=True)  # type: ignore[untyped-decorator]
def filters_of_blocks(
    form: Any, w: Any, filters: Any, plan: Any, taps: Any, row_step: int, channel_step: int, kernel_size: int, depth:
    int, c0: int, c1: int, first: int, begin: int, end: int,
) -> None:  # fmt: skip
    """w to [group][block][phase of outputs][frequency][phase of inputs][depth tap][channel][row], zeros at the end.

    `taps` are those of the form for each of `depth`, in the order of their offsets. A frequency is followed by
    FILTER_PADDING elements. Channels c0 ≤ c < c1 of blocks begin ≤ block < end of all groups; block `first` is stored
    first in `filters`.
    """
    p, channels = plan[0], c1 - c0
    apart = channels * depth * ROWS
    step, spread = tile_phases(form) * apart + FILTER_PADDING, tile_spread(form)
    if spread > 1:
        apart = tile_frequencies(form) * step
    plane, frequencies = len(form[0][0]) * len(form[1][0]), tile_frequencies(form)
    padded = np.zeros(plane * ROWS, w.dtype)
    for task in range(begin, end):
        g, block = divmod(task, p.blocks)
        r0 = block * ROWS
        valid = min(ROWS, p.rows - r0)
        source = g * p.rows * p.channels * kernel_size + r0 * row_step + c0 * channel_step
        for d in range(depth):  # the order of the filters: a vector reaches into the next, which is written later
            here = plane * d
            span = taps[here + plane - 1] - taps[here]
            turned = span == 1 - plane < 0
            in_place = valid == ROWS and (turned or span == plane - 1)  # the taps are neighbours
            lowest = source + min(taps[here], taps[here + plane - 1])
            to, done = (task - first) * spread * frequencies * step + d * channels * ROWS, 0
            if in_place and _BY_PAIRS:
                done = channels // 2 * 2
                for c in range(0, done, 2):
                    at, target = pointer(w, lowest + c * channel_step), pointer(filters, to + c * ROWS)
                    if turned:
                        filter_transform_pair(w, form, True, at, row_step, channel_step, target, step, apart)
                    else:
                        filter_transform_pair(w, form, False, at, row_step, channel_step, target, step, apart)
            for c in range(done, channels):
                target = pointer(filters, to + c * ROWS)
                if in_place:
                    at = pointer(w, lowest + c * channel_step)
                    if turned:
                        filter_transform(w, form, True, at, row_step, target, step, apart)
                    else:
                        filter_transform(w, form, False, at, row_step, target, step, apart)
                    continue
                at = source + c * channel_step
                for m in range(np.uintp(valid)):
                    for t in range(np.uintp(plane)):
                        tap = np.uintp(at + taps[np.uintp(here) + t])
                        padded[m * np.uintp(plane) + t] = w[tap + m * np.uintp(row_step)]
                filter_transform(w, form, False, pointer(padded), plane, target, step, apart)


@shared(allocates=True)  # type: ignore[untyped-decorator]
def transform_filters(
    form: Any, w: Any, filters: Any, plan: Any, taps: Any, row_step: int, channel_step: int, kernel_size: int, depth:
    int, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """All filters, as `filters_of_blocks` lays them out; tasks are (group, block of rows)."""
    filters_of_blocks(
        form, w, filters, plan, taps, row_step, channel_step, kernel_size, depth, 0, plan[0].channels, 0, begin, end
    )


@routine
def tile_products(
    like: Any, form: Any, filters: int, tiles: int, count: int, apart: int, columns: int, channels: int, zeros: int,
    results: int, first: int, last: int, here: int, evenly: bool,
) -> None:  # fmt: skip
    """results[number][f][row][column] = Σ_k filters[block][f][k][row] · tiles[f][plane · channels + k][column].

    k counts what there is of each phase of the input, of the phases that have the frequency. Numbers first ≤ number <
    last stand for (block of rows, phase of the outputs, plane of `here`), and those whose phase lacks the frequency are
    left out; the tiles of a frequency, whole vectors of columns, lie `apart` elements behind those of the last. The
    numbers run innermost: what a vector of columns needs is read once for all. Four last vectors go three and one, or
    `evenly`: a narrow tile reads as many filters in a third of the time, which two units wait for if they are far.
    """
    size, frequencies, of_block = like.itemsize, tile_frequencies(form), tile_phases(form) * count * ROWS
    of_block += FILTER_PADDING
    spread = tile_spread(form)
    for f in range(frequencies):
        low, high = frequency_phases(form, f)
        begin, end = 0, 1
        if spread > 1:
            low, high, begin, end = 0, 1, low, high
        q = 0
        while q < columns:
            vectors = min(_WIDE, (columns - q) // LANES)
            if evenly and columns - q == 4 * LANES:
                vectors = 2
            for number in range(first, last):
                if not begin <= number % spread < end:
                    continue
                block, plane = divmod(number, here)
                a = filters + ((block * frequencies + f) * of_block + low * count * ROWS) * size
                b = tiles + (f * apart + (low * count + plane * channels) * columns + q) * size
                k = (high - low) * count
                c = results + (((number - first) * frequencies + f) * (ROWS * columns + STAGGER) + q) * size
                if vectors == _WIDE:
                    outer_strided(like, ROWS, _WIDE, a, 1, ROWS, b, columns, k, zeros, c, columns, 0, 0)
                elif _WIDE == 3 and vectors == 2:  # at once: two narrow tiles would load the filters twice
                    outer_strided(like, ROWS, 2, a, 1, ROWS, b, columns, k, zeros, c, columns, 0, 0)
                else:
                    outer_strided(like, ROWS, 1, a, 1, ROWS, b, columns, k, zeros, c, columns, 0, 0)
            q += vectors * LANES


@inlined
def store_tiles(
    y: Any, to: int, row_step: int, column_step: int, results: Any, first: int, pitch: int, rows: int, columns: int
) -> None:
    """rows × columns outputs of neighbouring tiles, from results[first:], rows `pitch` apart, to y."""
    if column_step == 1:
        _store_rows(y, to, row_step, results, first, pitch, rows, columns)
        return
    for i in range(rows):
        at, target = first + i * pitch, to + i * row_step
        for j in range(np.uintp(columns)):
            y[np.uintp(target) + j * np.uintp(column_step)] = results[np.uintp(at) + j]


@routine
def _store_rows(y: Any, to: int, row_step: int, results: Any, at: int, pitch: int, rows: int, columns: int) -> None:
    """Rows of `columns` outputs side by side, `pitch` apart from results[at] on."""
    for i in range(rows):
        copy_strided(y, to + i * row_step, results, at + i * pitch, 1, columns)


def taps_in_order(correlation: Correlation) -> npt.NDArray[np.int64]:
    """The taps of a correlation in the order of their offsets, in which a tile has them."""
    by_offset = [np.argsort(axis.offsets) for axis in correlation.axes]
    taps = correlation.kernel_taps.reshape([len(axis.offsets) for axis in correlation.axes])
    return taps[np.ix_(*by_offset)].reshape(-1)


def block_biases(correlation: Correlation, b: Array | None, dtype: Any) -> Array:
    """[group][row of whole blocks], zeros where there is no bias. Only for reading."""
    shape = correlation.groups, correlation.blocks * ROWS
    if b is None:
        return _zeros(shape, dtype)
    if correlation.rows == shape[1]:
        return flat(b).reshape(shape)
    start = np.zeros(shape, dtype)
    start[:, : correlation.rows] = b.reshape(correlation.groups, correlation.rows)
    return start


@lru_cache(maxsize=64)
def _zeros(shape: tuple[int, int], dtype: Any) -> Array:
    return np.zeros(shape, dtype)


def several_blocks(frequencies: int, columns: int) -> int:
    """Blocks of rows whose products of so many columns take half the second level: they read the tiles together."""
    return max(1, SECOND_LEVEL_BYTES // 2 // (4 * frequencies * ROWS * columns))
