"""Correlation by fast Fourier transforms: a long kernel costs as many operations for an output as a short one.

Idea: overlap-save. The outputs are cut into tiles; a tile's source, `step` outputs and a halo of kernel − 1 positions
on each axis, is `size` = 2ⁿ positions long, so that the cyclic correlation that a product of spectra stands for is
right for all outputs of the tile. Lanes are tiles (of any samples), never positions: no step of a transform crosses
lanes, and a tile's bits do not depend on the others.

A real line of 2M positions is transformed as M complex points and untangled; other axes are complex. Stockham's order:
each pass of radix 4 reads one buffer and writes another, and nothing is sorted.

Loop order of a task, `vectors` vectors of tiles and one group: channel → vector → transform; then chunk of rows →
frequency → row → channel (`multiply_spectra`) and row → vector → transform back. A line's passes stay in the
first-level cache, a task's spectra [frequency][channel][re, im][tile] in the second or third; the filters' spectra
[frequency][channel][re, im][row] stream past once for a task. Cost: 5/2 · log2(size) operations for a position of a
channel or row, and 4 multiply-adds for a (frequency, channel, row). Floor: loads and stores of the passes for few
channels, the FMA rate for many.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.fft_simd import SPECTRA, butterflies, multiply_spectra, untangle
from fastconv.backends.cpu.gather import copy_bytes, zero_bytes
from fastconv.backends.cpu.host import pointer, routine
from fastconv.backends.cpu.simd import transpose
from fastconv.backends.cpu.team import shared

LANES = lanes_of(4)
CHUNK_ROWS = 16
"""Rows whose spectra are multiplied before they are transformed back: a cache line of a filter's spectrum."""

_ROWS, _VECTORS = SPECTRA
_POINT = 2 * LANES

_FIELDS = (
    "size_d size_h size_w step_d step_h step_w tiles_d tiles_h tiles_w low_d low_h low_w "
    "source_d source_h source_w outputs_d outputs_h outputs_w taps_d taps_h taps_w channels rows groups half "
    "frequencies all_rows kernel vectors source_pitch target_pitch "
    "at_lines at_line at_points at_work at_grid at_source at_target elements"
).split()
TILES = np.dtype([(name, np.int64) for name in _FIELDS])
"""What the kernels know of a correlation: its tiles, where they lie in the arrays, and the parts of the scratch."""


@routine
def _fourier(
    like: Any, length: int, source: int, source_step: int, source_im: int, target: int, target_step: int,
    target_im: int, work: int, table: int,
) -> None:  # fmt: skip
    """A complex transform of `length` = 2ⁿ > 1 points, in place if target is source; steps in elements."""
    size = like.itemsize
    left, done = length, 1
    at, step, im = source, source_step, source_im
    buffer = 0
    while left > 1:
        radix = 2 if left == 2 else 4
        apart = left // radix
        to, to_step, to_im = work + buffer * length * _POINT * size, _POINT, LANES
        if left == radix:
            to, to_step, to_im = target, target_step, target_im
        if radix == 2:
            butterflies(
                like, 2, False, done, at, step, done * step, im, to, to_step, done * to_step, to_im, table
            )  # fmt: skip
        else:
            butterflies(
                like, 4, False, done, at, step, done * apart * step, im, to, to_step, done * to_step, to_im, table
            )  # fmt: skip
            for p in range(1, apart):
                butterflies(
                    like, 4, True, done, at + p * done * step * size, step, done * apart * step, im,
                    to + 4 * p * done * to_step * size, to_step, done * to_step, to_im,
                    table + (apart - 1 + p) * 6 * size,
                )  # fmt: skip
        at, step, im = to, to_step, to_im
        buffer = 1 - buffer
        left, done = apart, done * radix


@routine
def _line_forward(like: Any, p: Any, base: int, to: int, step: int, im: int, table: int, untangling: int) -> None:
    """The half + 1 frequencies of the lines in scratch, one to a lane, at `to`."""
    size = like.itemsize
    line, points = base + p.at_line * size, base + p.at_points * size
    transpose(like, base + p.at_lines * size, p.size_w, p.size_w // LANES, line, LANES)
    _fourier(like, p.half, line, _POINT, LANES, points, _POINT, LANES, base + p.at_work * size, table)
    untangle(like, 1, points, 0, points, 0, LANES, to, 0, to + p.half * step * size, 0, im, untangling)
    point = _POINT * size
    untangle(
        like, p.half // 2, points + point, _POINT, points + (p.half - 1) * point, -_POINT, LANES, to + step * size,
        step, to + (p.half - 1) * step * size, -step, im, untangling + 2 * size,
    )  # fmt: skip


@routine
def _line_backward(like: Any, p: Any, base: int, source: int, step: int, im: int, table: int, entangling: int) -> None:
    """The first step_w positions (and up to LANES more) of the lines of these frequencies, to the lines in scratch."""
    size = like.itemsize
    line, points = base + p.at_line * size, base + p.at_points * size
    untangle(
        like, 1, source, 0, source + p.half * step * size, 0, im, points, 0, points, 0, LANES, entangling
    )  # fmt: skip
    point = _POINT * size
    untangle(
        like, p.half // 2, source + step * size, step, source + (p.half - 1) * step * size, -step, im, points + point,
        _POINT, points + (p.half - 1) * point, -_POINT, LANES, entangling + 2 * size,
    )  # fmt: skip
    swapped = LANES * size
    _fourier(
        like, p.half, points + swapped, _POINT, -LANES, line + swapped, _POINT, -LANES, base + p.at_work * size, table
    )  # fmt: skip
    for first in range(0, p.step_w, LANES):
        transpose(like, line + first * swapped, LANES, 1, base + (p.at_lines + first) * size, p.size_w)


@routine
def _grid_forward(like: Any, p: Any, base: int, used_d: int, to: int, step: int, im: int, table: int) -> None:
    """Transforms along height, for planes below `used_d`, and along depth; the last of them writes `to`."""
    size, width = like.itemsize, p.half + 1
    work, grid = base + p.at_work * size, base + p.at_grid * size
    if p.size_h > 1:
        for d in range(used_d):
            for f in range(width):
                place = d * p.size_h * width + f
                at, at_step, at_im = grid + place * _POINT * size, _POINT, LANES
                if p.size_d == 1:
                    at, at_step, at_im = to + place * step * size, step, im
                _fourier(
                    like, p.size_h, grid + place * _POINT * size, width * _POINT, LANES, at, width * at_step, at_im,
                    work, table,
                )  # fmt: skip
    if p.size_d > 1:
        plane = p.size_h * width
        for f in range(plane):
            _fourier(
                like, p.size_d, grid + f * _POINT * size, plane * _POINT, LANES, to + f * step * size, plane * step, im,
                work, table,
            )  # fmt: skip


@routine
def _grid_backward(like: Any, p: Any, base: int, source: int, step: int, im: int, used_d: int, table: int) -> None:
    """The way back along depth, then along height for planes below `used_d`, to the grid in scratch."""
    size, width = like.itemsize, p.half + 1
    work, grid = base + p.at_work * size, base + p.at_grid * size + LANES * size
    at, at_step, at_im = source + im * size, step, -im
    if p.size_d > 1:
        plane = p.size_h * width
        for f in range(plane):
            _fourier(
                like, p.size_d, at + f * at_step * size, plane * at_step, at_im, grid + f * _POINT * size,
                plane * _POINT, -LANES, work, table,
            )  # fmt: skip
        at, at_step, at_im = grid, _POINT, -LANES
    if p.size_h > 1:
        for d in range(used_d):
            for f in range(width):
                place = d * p.size_h * width + f
                _fourier(
                    like, p.size_h, at + place * at_step * size, width * at_step, at_im, grid + place * _POINT * size,
                    width * _POINT, -LANES, work, table,
                )  # fmt: skip


@routine
def _places(p: Any, samples: int, first: int, places: Any) -> None:
    """Sample and corner (first output on each axis) of LANES tiles from `first` on; sample −1 where there is none."""
    for lane in range(LANES):
        rest, w = divmod(first + lane, p.tiles_w)
        rest, h = divmod(rest, p.tiles_h)
        n, d = divmod(rest, p.tiles_d)
        places[lane, 0] = n if n < samples else -1
        places[lane, 1], places[lane, 2], places[lane, 3] = d * p.step_d, h * p.step_h, w * p.step_w


@routine
def _gather_line(
    source: Any, image: int, d: int, h: int, w: int, sizes: tuple[int, int, int], target: int, count: int, length: int
) -> None:
    """`count` positions of a line of the source from (d, h, w) on, zeros outside of it and behind up to `length`."""
    size = source.itemsize
    first, last = min(count, max(0, -w)), max(0, min(count, sizes[2] - w))
    if d < 0 or d >= sizes[0] or h < 0 or h >= sizes[1] or first >= last:
        zero_bytes(target, length * size)
        return
    zero_bytes(target, first * size)
    at = ((image * sizes[0] + d) * sizes[1] + h) * sizes[2] + w + first
    copy_bytes(target + first * size, pointer(source, at), (last - first) * size)
    zero_bytes(target + last * size, (length - last) * size)


@routine
def _transform_source(
    x: Any, channel: int, p: Any, places: Any, base: int, to: int, step: int, im: int, table: int, untangling: int
) -> None:
    """Spectra of the tiles at `places` of one channel of x."""
    size, width = x.itemsize, p.half + 1
    alone = p.size_d * p.size_h == 1
    sizes = p.source_d, p.source_h, p.source_w
    lines, grid = base + p.at_lines * size, base + p.at_grid * size
    for d in range(p.size_d):
        for h in range(p.size_h):
            for lane in range(LANES):
                n, target = places[lane, 0], lines + lane * p.size_w * size
                if n < 0:
                    zero_bytes(target, p.size_w * size)
                    continue
                image = n * p.groups * p.channels + channel
                z, r, c = places[lane, 1] + p.low_d + d, places[lane, 2] + p.low_h + h, places[lane, 3] + p.low_w
                _gather_line(x, image, z, r, c, sizes, target, p.size_w, p.size_w)
            if alone:
                _line_forward(x, p, base, to, step, im, table, untangling)
            else:
                row = grid + (d * p.size_h + h) * width * _POINT * size
                _line_forward(x, p, base, row, _POINT, LANES, table, untangling)
    _grid_forward(x, p, base, p.size_d, to, step, im, table)


@shared
def transform_filters(
    w: Any, spectra: Any, plan: Any, row_step: int, channel_step: int, taps: Any, memory: Any, table: Any, untangling:
    Any, scale: float, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Spectra of the filters, times `scale`; a task is LANES rows (of all groups) of one channel.

    Rows (of a group) and channels lie `row_step` and `channel_step` apart in w.
    """
    p = plan[0]
    size, width = w.itemsize, p.half + 1
    scratch, to_step = memory[who], p.channels * 2 * p.all_rows
    base = pointer(scratch)
    alone = p.size_d * p.size_h == 1
    lines, grid = base + p.at_lines * size, base + p.at_grid * size
    tables, untangling_at = pointer(table), pointer(untangling)
    for task in range(begin, end):
        block, c = divmod(task, p.channels)
        to = pointer(spectra, c * 2 * p.all_rows + block * LANES)
        if not alone:
            zero_bytes(grid, p.frequencies * _POINT * size)
        zero_bytes(lines, LANES * p.size_w * size)
        for d in range(p.taps_d):
            for h in range(p.taps_h):
                first = (d * p.taps_h + h) * p.taps_w
                for lane in range(LANES):
                    row = block * LANES + lane
                    if row < p.groups * p.rows:
                        g, m = divmod(row, p.rows)
                        at = g * p.rows * p.channels * p.kernel + m * row_step + c * channel_step
                        for j in range(p.taps_w):
                            scratch[p.at_lines + lane * p.size_w + j] = w[at + taps[first + j]] * scale
                if alone:
                    _line_forward(w, p, base, to, to_step, p.all_rows, tables, untangling_at)
                else:
                    row_at = grid + (d * p.size_h + h) * width * _POINT * size
                    _line_forward(w, p, base, row_at, _POINT, LANES, tables, untangling_at)
        _grid_forward(w, p, base, p.taps_d, to, to_step, p.all_rows, tables)


@routine
def _multiply(x: Any, p: Any, base: int, filters: int, vectors: int, first: int, last: int) -> None:
    """Spectra of rows first ≤ row < last of a group; `filters` is where those of its row 0 begin."""
    size = x.itemsize
    im = p.vectors * LANES
    step, w_step = 2 * im, 2 * p.all_rows
    for f in range(p.frequencies):
        source = base + (p.at_source + f * p.source_pitch) * size
        target = base + (p.at_target + f * p.target_pitch) * size
        w = filters + f * p.channels * w_step * size
        for m in range(first, last, _ROWS):
            a, to = w + m * size, target + (m - first) * step * size
            count = min(_ROWS, last - m)
            if vectors == _VECTORS and count == _ROWS:
                multiply_spectra(x, _ROWS, _VECTORS, p.channels, a, w_step, p.all_rows, source, step, im, to, step)
            elif vectors == _VECTORS:
                for r in range(count):
                    at, row = a + r * size, to + r * step * size
                    multiply_spectra(x, 1, _VECTORS, p.channels, at, w_step, p.all_rows, source, step, im, row, step)
            else:
                for r in range(count):
                    at, row = a + r * size, to + r * step * size
                    multiply_spectra(x, 1, 1, p.channels, at, w_step, p.all_rows, source, step, im, row, step)


@routine(fastmath={"reassoc", "contract"})  # type: ignore[untyped-decorator]
def _store_line(line: Any, at: int, y: Any, to: int, count: int, bias: float, relu: int) -> Any:
    """y[to + j] = line[at + j] + bias for j < count; returns whether all are finite."""
    zero = y.dtype.type(0)
    total = zero
    for j in range(np.uintp(count)):
        value = line[np.uintp(at) + j] + bias
        total += value * zero
        if relu and value < zero:
            value = zero
        y[np.uintp(to) + j] = value
    return total == zero


@routine
def _store_tiles(
    y: Any, row: int, p: Any, places: Any, base: int, memory: Any, source: int, step: int, im: int, bias: float,
    relu: int, not_finite: Any, table: int, entangling: int,
) -> None:  # fmt: skip
    """The outputs of the tiles at `places` of one row from their spectra."""
    size, width = y.itemsize, p.half + 1
    alone = p.size_d * p.size_h == 1
    _grid_backward(y, p, base, source, step, im, p.step_d, table)
    for d in range(p.step_d):
        for h in range(p.step_h):
            if alone:
                _line_backward(y, p, base, source, step, im, table, entangling)
            else:
                grid = base + (p.at_grid + (d * p.size_h + h) * width * _POINT) * size
                _line_backward(y, p, base, grid, _POINT, LANES, table, entangling)
            for lane in range(LANES):
                n, z, r, c = places[lane, 0], places[lane, 1] + d, places[lane, 2] + h, places[lane, 3]
                if n < 0 or z >= p.outputs_d or r >= p.outputs_h:
                    continue
                image = n * p.groups * p.rows + row
                to = ((image * p.outputs_d + z) * p.outputs_h + r) * p.outputs_w + c
                count = min(p.step_w, p.outputs_w - c)
                if not _store_line(memory, p.at_lines + lane * p.size_w, y, to, count, bias, relu):
                    not_finite[n] = True


@shared(allocates=True)  # type: ignore[untyped-decorator]
def fft_correlate(
    x: Any, spectra: Any, start: Any, y: Any, plan: Any, memory: Any, table: Any, untangling: Any, not_finite: Any,
    relu: int, at_once: int, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Tasks begin ≤ task < end of (`at_once` vectors of tiles, group), the group fastest."""
    p = plan[0]
    size = x.itemsize
    scratch, tables, untangling_at = memory[who], pointer(table), pointer(untangling)
    base = pointer(scratch)
    entangling = untangling_at + 2 * (p.half + 1) * size
    samples = len(not_finite)
    tiles = samples * p.tiles_d * p.tiles_h * p.tiles_w
    im = p.vectors * LANES
    places = np.empty((_VECTORS, LANES, 4), np.int64)
    for task in range(begin, end):
        block, g = divmod(task, p.groups)
        first = block * at_once * LANES
        vectors = min(at_once, -(-(tiles - first) // LANES))
        for v in range(vectors):
            _places(p, samples, first + v * LANES, places[v])
            for c in range(p.channels):
                to = base + (p.at_source + c * 2 * im + v * LANES) * size
                _transform_source(
                    x, g * p.channels + c, p, places[v], base, to, p.source_pitch, im, tables, untangling_at
                )  # fmt: skip
        for m0 in range(0, p.rows, CHUNK_ROWS):
            m1 = min(p.rows, m0 + CHUNK_ROWS)
            _multiply(x, p, base, pointer(spectra, g * p.rows), vectors, m0, m1)
            for m in range(m0, m1):
                row = g * p.rows + m
                for v in range(vectors):
                    source = base + (p.at_target + (m - m0) * 2 * im + v * LANES) * size
                    _store_tiles(
                        y, row, p, places[v], base, scratch, source, p.target_pitch, im, start[row], relu, not_finite,
                        tables, entangling,
                    )  # fmt: skip
