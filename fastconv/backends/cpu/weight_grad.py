"""Weight gradient: dw[m, k] = Σ over outputs of gy[m, output] · x[output + off[k]].

Idea: the same gathered box of x as in correlate.py, and the same box of gy at the same pitch with zeros between its
rows; then both operands are contiguous in the flat position and `simd.inner` takes their products, 4 rows × 6 taps in
registers, their lanes summed once a box. Loop order: unit (box) → 4 rows → 6 taps → position. The first-level cache
holds the 4 rows of gy and a channel of x, whose taps are shifts of it; x streams from the second. Cost: one FMA for
each lane of (row, tap, output). Floor: the FMA rate.

The units of a batch are cut into a fixed number of slices, each summed in order into its own partial gradient, and the
partials are added in order: the cut depends on the shapes alone, so the threads cannot change a bit. A partial gradient
lies in tiles [row block][tap block][row of tile, tap of tile], as `inner` leaves them.

Zeros of gy between rows multiply positions of x that belong to other outputs, harmless unless x is infinite or NaN
there. A result that is not finite is therefore computed again by plain loops over the outputs alone (`exact`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.column_gather import gather_columns
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.finite import all_finite
from fastconv.backends.cpu.gather import copy_strided, gather_box, place_of_box, zero_bytes
from fastconv.backends.cpu.host import flat, pointer, routine
from fastconv.backends.cpu.plan import PLAN_NUMBERS, Correlation, even_part, plan_at
from fastconv.backends.cpu.scratch import call_scratch, scratch_rows
from fastconv.backends.cpu.simd import INNER_TILE, INNER_TILE_ONE_ROW, inner, inner_tile_size
from fastconv.backends.cpu.team import shared
from fastconv.backends.threads import get_num_threads, is_little, share, team_for
from fastconv.geometry import ConvGeometry

Array = npt.NDArray[Any]

_LANES4, _LANES8 = lanes_of(4), lanes_of(8)
_ROWS, _TAPS = INNER_TILE
_TAPS_ONE_ROW = INNER_TILE_ONE_ROW[1]
COLUMN_VECTORS = 40  # of a unit, at most: long enough to pay for the sums over lanes, short enough for the caches
_PANEL_TILES = 2  # tiles of taps that share a visit to the output gradient: their rows of the panel do not overlap
_PANEL_BYTES = 1 << 20
_PARTIAL_BYTES = 4 << 20
_MAX_SLICES = 16
_MIN_TASKS = 16
_NS_PER_FLOP = 0.012


@routine
def _products(
    like: Any, rows: int, taps: int, a: int, a_stride: int, b: int, off: int, vectors: int, c: int, tile: int,
    row_tiles: int, group: int,
) -> None:  # fmt: skip
    """Tiles of C (`tile` elements each, `row_tiles` to a block of rows) += A · B over `vectors` vectors of positions.

    A row block meets `group` tiles of taps before the next does: as many as the first-level cache holds.
    """
    size = like.itemsize
    if rows == 1:
        for k in range(-(-taps // _TAPS_ONE_ROW)):
            inner(like, 1, _TAPS_ONE_ROW, a, a_stride, b, off + 8 * k * _TAPS_ONE_ROW, vectors, c + k * tile * size)
        return
    tiles = -(-taps // _TAPS)
    for first in range(0, tiles, group):
        for m in range(-(-rows // _ROWS)):
            row = a + m * _ROWS * a_stride * size
            for k in range(first, min(first + group, tiles)):
                place = c + (m * row_tiles + k) * tile * size
                inner(like, _ROWS, _TAPS, row, a_stride, b, off + 8 * k * _TAPS, vectors, place)


@routine
def _exact_products(
    gathered: Any, gy_at: int, gy_stride: int, off: Any, partial: Any, to: int, tile: int, row_tiles: int, plan:
    Any, m_count: int, rows: int, columns: int,
) -> None:  # fmt: skip
    """The products of one box over its outputs alone, so that nothing between the rows is ever multiplied."""
    p = plan[0]
    tile_rows, tile_taps = (1, _TAPS_ONE_ROW) if p.rows == 1 else (_ROWS, _TAPS)
    for m in range(m_count):
        block, in_block = divmod(m, tile_rows)
        for k in range(p.count):
            place = to + (block * row_tiles + k // tile_taps) * tile + in_block * tile_taps + k % tile_taps
            total = partial[place]
            for r in range(rows):
                for column in range(columns):
                    at = r * p.pitch + column
                    total += gathered[gy_at + m * gy_stride + at] * gathered[off[k] + at]
            partial[place] = total


@routine
def _gather_gy(
    gy: Any,
    base: int,
    row_step: int,
    scratch: Any,
    to: int,
    stride: int,
    m_count: int,
    rows: int,
    columns: int,
    plan: Any,
) -> None:
    """Rows of outputs of `m_count` channels, at the pitch of the box of x with zeros between them and behind."""
    p = plan[0]
    size = gy.itemsize
    for m in range(m_count):
        at = to + m * stride
        for r in range(rows):
            copy_strided(scratch, at, gy, base + m * row_step + r * p.outputs_w, 1, columns)
            at += columns
            zero = p.pitch - columns if r < rows - 1 else to + (m + 1) * stride - at
            zero_bytes(pointer(scratch) + at * size, zero * size)
            at += zero


@routine
def _add_slices(
    partial: Any, gw: Any, taps: Any, slices: int, groups: int, rows: int, channels: int, kernel_size: int, tile: int,
    row_tiles: int, begin: int, end: int,
) -> bool:  # fmt: skip
    """gw[group][row][channel][tap] from the tiles of all slices, added in order; tasks are (group, row block).

    Returns whether all of it is finite.
    """
    finite = True
    tile_rows, tile_taps = (1, _TAPS_ONE_ROW) if rows == 1 else (_ROWS, _TAPS)
    row_blocks = -(-rows // tile_rows)
    one = np.uintp(groups * row_blocks * row_tiles * tile)
    for task in range(begin, end):
        g, block = divmod(task, row_blocks)
        for in_block in range(min(tile_rows, rows - block * tile_rows)):
            target = np.uintp((g * rows + block * tile_rows + in_block) * channels * kernel_size)
            c, t = 0, 0
            for k in range(row_tiles):
                source = np.uintp((task * row_tiles + k) * tile + in_block * tile_taps)
                for j in range(np.uintp(min(tile_taps, channels * taps.size - k * tile_taps))):
                    total = partial[source + j]
                    for s in range(np.uintp(1), np.uintp(slices)):
                        total += partial[source + j + s * one]
                    gw[target + np.uintp(c * kernel_size + taps[t])] = total
                    finite &= total - total == 0
                    t += 1
                    if t == taps.size:
                        t = 0
                        c += 1
    return finite


@shared
def add_slices(
    partial: Any, gw: Any, taps: Any, slices: int, groups: int, rows: int, channels: int, kernel_size: int, tile: int,
    row_tiles: int, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """`_add_slices` for callers in Python."""
    _add_slices(partial, gw, taps, slices, groups, rows, channels, kernel_size, tile, row_tiles, begin, end)


@shared
def weight_grad_boxes(
    gy: Any, x: Any, partial: Any, gw: Any, numbers: Any, memory: Any, exact: bool, who: int, begin: int, end: int
) -> None:
    """Tasks begin ≤ task < end of (slice of units, group, chunk of row blocks); partial is [slice][group][tiles].

    `numbers` as of `_Boxes`. Who does all tasks adds the slices as well, as in `weight_grad_columns`, and says behind
    them in `partial` whether the result is finite (1) or not (0).
    """
    gy_stride, chunks, slices, tile, row_tiles, kernel_size = numbers[:6]
    plan, tables = plan_at(numbers, 6), numbers[6 + PLAN_NUMBERS :]
    p = plan[0]
    taps, entries = tables[: p.taps], p.taps + p.planes + p.phases_h + p.phases_w
    of_box, off = tables[p.taps : entries], tables[entries:]
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    volume = p.depth * p.height * p.width
    outputs = p.outputs_d * p.outputs_h * p.outputs_w
    boxes = p.outputs_d * p.boxes_h * p.boxes_w
    units = x.size // (p.groups * p.channels * volume) * boxes
    blocks = -(-p.rows // _ROWS)
    x_size = p.channels * p.channel
    gy_to, scratch = x_size + lanes, memory[who]
    for task in range(begin, end):
        rest, chunk = divmod(task, chunks)
        s, g = divmod(rest, p.groups)
        m0, m1 = blocks * chunk // chunks * _ROWS, min(p.rows, blocks * (chunk + 1) // chunks * _ROWS)
        padded = 1 if p.rows == 1 else -(-(m1 - m0) // _ROWS) * _ROWS
        to = ((s * p.groups + g) * blocks + m0 // _ROWS) * row_tiles * tile
        zero_bytes(pointer(partial, to), -(-(m1 - m0) // _ROWS) * row_tiles * tile * size)
        for unit in range(units * s // slices, units * (s + 1) // slices):
            n, d, h0, w0 = place_of_box(p, unit)
            rows, columns = min(p.box_h, p.outputs_h - h0), min(p.box_w, p.outputs_w - w0)
            image = n * p.groups + g
            gather_box(x, image * p.channels * volume, scratch, 0, plan, of_box, d, h0, w0)
            zero_bytes(pointer(scratch) + x_size * size, lanes * size)
            base = (image * p.rows + m0) * outputs + (d * p.outputs_h + h0) * p.outputs_w + w0
            _gather_gy(gy, base, outputs, scratch, gy_to, gy_stride, m1 - m0, rows, columns, plan)
            zero_bytes(
                pointer(scratch) + (gy_to + (m1 - m0) * gy_stride) * size, (padded - (m1 - m0)) * gy_stride * size
            )
            if exact:
                _exact_products(
                    scratch, gy_to, gy_stride, off, partial, to, tile, row_tiles, plan, m1 - m0, rows, columns
                )
            else:
                vectors = -(-((rows - 1) * p.pitch + columns) // lanes)
                a, c = pointer(scratch) + gy_to * size, pointer(partial) + to * size
                b = pointer(scratch)
                _products(x, padded, p.count, a, gy_stride, b, pointer(off), vectors, c, tile, row_tiles, row_tiles)
    if begin == 0 and end == slices * p.groups * chunks:
        partial[partial.size - 1] = _add_slices(
            partial, gw, taps, slices, p.groups, p.rows, p.channels, kernel_size, tile, row_tiles, 0, p.groups * blocks
        )


@shared(allocates=True)  # type: ignore[untyped-decorator]
def weight_grad_columns(
    gy: Any, x: Any, partial: Any, gw: Any, numbers: Any, memory: Any, who: int, begin: int, end: int
) -> None:
    """Tasks begin ≤ task < end of (slice of units, group, chunk of channels); a unit is a panel of exact columns.

    `numbers` as of `_Columns`: one array for all, because every argument of a call costs time. Who does all tasks adds
    the slices as well, which saves a small gradient a second call.
    """
    span, chunk_channels, chunks = numbers[0], numbers[1], numbers[2]
    slices, tile, row_tiles, kernel_size = numbers[3], numbers[4], numbers[5], numbers[6]
    plan, gy_plan, tables = plan_at(numbers, 7), plan_at(numbers, 7 + PLAN_NUMBERS), numbers[7 + 2 * PLAN_NUMBERS :]
    p = plan[0]
    origin, positions = tables[:3].reshape(1, 3), tables[3 : 3 + 3 * p.taps].reshape(p.taps, 3)
    taps, off = tables[3 + 3 * p.taps : 3 + 4 * p.taps], tables[3 + 4 * p.taps :]
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    total = gy.size // (p.groups * p.rows)
    units = -(-total // span)
    rows, tile_rows, tile_taps = (1, 1, _TAPS_ONE_ROW) if p.rows == 1 else (-(-p.rows // _ROWS) * _ROWS, _ROWS, _TAPS)
    line = row_tiles * tile
    gy_to, scratch = (chunk_channels * p.taps + tile_taps) * span, memory[who]
    for task in range(begin, end):
        rest, chunk = divmod(task, chunks)
        s, g = divmod(rest, p.groups)
        c0, c1 = chunk * chunk_channels, min((chunk + 1) * chunk_channels, p.channels)
        columns = (c1 - c0) * p.taps
        a, b = pointer(scratch, gy_to), pointer(scratch)
        c = pointer(partial, (s * p.groups + g) * (rows // tile_rows) * line + c0 * p.taps // tile_taps * tile)
        for block in range(rows // tile_rows):
            zero_bytes(c + block * line * size, -(-columns // tile_taps) * tile * size)
        for unit in range(units * s // slices, units * (s + 1) // slices):
            count = min(span, total - unit * span)
            gather_columns(x, g, scratch, 0, span, 0, plan, positions, unit * span, count, 0, p.taps, c0, c1, 1, p.taps)
            gather_columns(gy, g, scratch, gy_to, span, 0, gy_plan, origin, unit * span, count, 0, 1, 0, p.rows, 1, 1)
            zero_bytes(pointer(scratch, gy_to + p.rows * span), (rows - p.rows) * span * size)
            _products(x, rows, columns, a, span, b, pointer(off), -(-count // lanes), c, tile, row_tiles, _PANEL_TILES)
    if begin == 0 and end == slices * p.groups * chunks:
        blocks = p.groups * (rows // tile_rows)
        _add_slices(partial, gw, taps, slices, p.groups, p.rows, p.channels, kernel_size, tile, row_tiles, 0, blocks)


def by_columns(correlation: Correlation, gy: Array, x: Array, geometry: ConvGeometry) -> Array:
    """The whole weight gradient of a correlation whose outputs are few; see contract.Backend.conv_weight_grad."""
    little = is_little(len(x) * correlation.flops * _NS_PER_FLOP)
    return _columns(correlation, len(x), 1 if little else get_num_threads()).run(gy, x, geometry)


def by_boxes(correlation: Correlation, gy: Array, x: Array, geometry: ConvGeometry) -> Array:
    """The whole weight gradient of any other; see contract.Backend.conv_weight_grad."""
    boxes = _boxes(correlation, len(x))
    gw, finite = boxes.run(gy, x, geometry, exact=False)
    return gw if finite else boxes.run(gy, x, geometry, exact=True)[0]


def slice_count(units: int, size: int) -> int:
    """Into how many slices to cut the units of a batch, with a partial gradient of `size` bytes each.

    A power of two, so that as many threads have equal work. A matter of the shapes alone: the cut is part of the sum.
    """
    most = max(1, min(units, _MAX_SLICES, _PARTIAL_BYTES // size))
    return 1 << (most.bit_length() - 1)


class _Partial:
    """Partial gradients [slice][group][row block][tap block][tile], with as many slices as memory allows."""

    def __init__(self, correlation: Correlation, units: int) -> None:
        self.correlation = correlation
        self.tile_rows, self.tile_taps = INNER_TILE_ONE_ROW if correlation.rows == 1 else INNER_TILE
        self.tile = inner_tile_size(self.tile_rows, self.tile_taps, correlation.itemsize)
        self.row_blocks = -(-correlation.rows // self.tile_rows)
        self.row_tiles = -(-correlation.count // self.tile_taps)
        one = correlation.groups * self.row_blocks * self.row_tiles * self.tile
        self.slices = slice_count(units, one * correlation.itemsize)
        self.elements = self.slices * one
        self.fresh = np.zeros if len(correlation.kernel_taps) < correlation.kernel_size else np.empty

    def gradient(self, geometry: ConvGeometry, dtype: npt.DTypeLike) -> Array:
        """Where the gradient goes, in the shape of the weight; 0 for taps that meet only padding."""
        return self.fresh(geometry.weight_shape, dtype)

    def add(self, memory: Array, gw: Array, geometry: ConvGeometry) -> None:
        """The partials added one after the other."""
        c = self.correlation
        sizes = self.slices, c.groups, c.rows, geometry.in_channels // c.groups, geometry.taps, self.tile
        arguments = memory, gw.reshape(-1), c.kernel_taps, *sizes, self.row_tiles
        share(add_slices, arguments, c.groups * self.row_blocks, self.elements)

    def padded_offsets(self, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Offsets for whole tiles of taps; the taps of the padding read tap 0 and are never looked at."""
        off = np.zeros(self.row_tiles * self.tile_taps, np.int64)
        off[: len(offsets)] = offsets
        return off


class _Boxes:
    """How the boxes of a batch are cut: all that a call need not work out anew."""

    def __init__(self, correlation: Correlation, samples: int) -> None:
        c, p, lanes = correlation, correlation.plan[0], lanes_of(correlation.itemsize)
        self.partial = partial = _Partial(c, samples * c.boxes)
        pieces = partial.slices * c.groups
        chunks = max(1, min(partial.row_blocks, _MIN_TASKS // pieces))
        gy_stride = -(-int((p["box_h"] - 1) * p["pitch"] + p["box_w"]) // lanes) * lanes
        self.elements = c.box_elements + lanes + partial.row_blocks * partial.tile_rows * gy_stride
        sizes = gy_stride, chunks, partial.slices, partial.tile, partial.row_tiles, c.kernel_size
        tables = c.kernel_taps, c.tables, partial.padded_offsets(c.box_offsets)
        self.numbers = np.concatenate([sizes, c.plan.view(np.int64), *tables])
        self.tasks, self.cost = pieces * chunks, samples * c.flops * _NS_PER_FLOP

    def run(self, gy: Array, x: Array, geometry: ConvGeometry, *, exact: bool) -> tuple[Array, bool]:
        """The gradient, and whether it is finite."""
        dtype, partial = x.dtype, self.partial
        gw, memory = partial.gradient(geometry, dtype), call_scratch(partial.elements + 1, dtype)
        arrays = flat(gy), flat(x), memory, gw.ravel(), self.numbers
        team = team_for(self.tasks, self.cost)
        weight_grad_boxes(*arrays, scratch_rows(team.size, self.elements, dtype), exact, team.address, 0, self.tasks)
        if team.size == 1:
            return gw, bool(memory[-1])
        partial.add(memory, gw, geometry)
        return gw, all_finite(gw)


_boxes = lru_cache(maxsize=1024)(_Boxes)


class _Columns:
    """How the exact columns of a batch are cut: all that a call need not work out anew."""

    def __init__(self, correlation: Correlation, samples: int, threads: int) -> None:
        lanes = lanes_of(correlation.itemsize)
        columns = samples * correlation.outputs
        self.span = span = even_part(-(-columns // lanes), COLUMN_VECTORS) * lanes
        self.partial = partial = _Partial(correlation, -(-columns // span))
        taps = len(correlation.kernel_taps)
        channels = correlation.count // taps
        # Chunks of channels that fit and keep the threads busy (they change no sum): whole tiles of taps, so that the
        # padding of one is never inside the next.
        share = -(-channels * partial.slices * correlation.groups // threads)
        fit = min(share + partial.tile_taps - 1, _PANEL_BYTES // (taps * span * correlation.itemsize))
        self.chunk_channels = min(channels, max(1, fit // partial.tile_taps) * partial.tile_taps)
        self.chunks = -(-channels // self.chunk_channels)
        rows = partial.row_blocks * partial.tile_rows
        self.elements = (self.chunk_channels * taps + partial.tile_taps + rows + 1) * span
        sizes = span, self.chunk_channels, self.chunks, partial.slices, partial.tile, partial.row_tiles
        plans = correlation.plan.view(np.int64), _identity_plan(correlation)
        tables = np.zeros(3, np.int64), correlation.positions.reshape(-1), correlation.kernel_taps
        off = partial.padded_offsets(np.arange(correlation.count, dtype=np.int64) * span)
        self.numbers = np.concatenate([[*sizes, correlation.kernel_size], *plans, *tables, off])
        self.tasks = partial.slices * correlation.groups * self.chunks
        self.cost = samples * correlation.flops * _NS_PER_FLOP

    def run(self, gy: Array, x: Array, geometry: ConvGeometry) -> Array:
        dtype, partial = x.dtype, self.partial
        gw, memory = partial.gradient(geometry, dtype), call_scratch(partial.elements, dtype)
        arrays = flat(gy), flat(x), memory, gw.ravel(), self.numbers
        team = team_for(self.tasks, self.cost)
        weight_grad_columns(*arrays, scratch_rows(team.size, self.elements, dtype), team.address, 0, self.tasks)
        if team.size > 1:
            partial.add(memory, gw, geometry)
        return gw


_columns = lru_cache(maxsize=1024)(_Columns)


def _identity_plan(correlation: Correlation) -> npt.NDArray[np.int64]:
    """The plan that gathers columns of the output gradient itself, as numbers: one tap, no padding."""
    plan: Array = correlation.plan.copy()
    p = plan[0]
    p["channels"], p["taps"] = p["rows"], 1
    for size, name in (("depth", "d"), ("height", "h"), ("width", "w")):
        p[size], p[f"step_{name}"] = p[f"outputs_{name}"], 1
    return plan.view(np.int64)
