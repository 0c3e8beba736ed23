"""Where Winograd's tiles from anywhere lie in the lanes, what they read and what they write (winograd_tiles.py)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.axes import Axis
from fastconv.backends.cpu.host import inlined, routine
from fastconv.backends.cpu.winograd_forms import Form, outputs_of, patch_of
from fastconv.backends.cpu.winograd_kernels import LANES, tile_outputs, tile_patch

Array = npt.NDArray[np.int64]


def order_of(apart: int, columns: int, step: int) -> tuple[tuple[int, ...], ...]:
    """How tiles whose columns lie `apart`, as many to a patch, lie in the lanes, as lengths of tuples of zeros.

    So many lanes are a run of neighbours; so many are stored in turns, so that the outputs of neighbours lie side by
    side; and 1 if runs are loaded by rows of their patches, which those of up to two are, 0 if column by column.
    """
    run = math.gcd(apart, LANES)
    whole = run == apart <= 2 and run * columns <= LANES and (run == 1 or step == 1)
    return (0,) * run, (0,) * (run if run == apart else LANES), (0,) * whole


def table_shapes(tiles: int, whole: int, patch: tuple[int, int], outputs: int) -> Any:
    """Of the tables for so many tiles, whole vectors: see `fill_tables`. Compiled into kernels too.

    Are runs loaded by `whole` rows (`order_of`)? A tile has so many `outputs` in a row.
    """
    vectors, (down, across) = tiles // LANES, patch
    masks = (tiles, down) if whole else (vectors, down * across)
    return (tiles,), masks, (tiles * outputs, 6), (vectors,)


_shapes = inlined(table_shapes)


def empty_tables(form: Form, order: tuple[tuple[int, ...], ...], tiles: int) -> tuple[Array, Array, Array, Array]:
    """Tables for so many tiles."""
    shapes = table_shapes(tiles, len(order[2]), patch_of(form), outputs_of(form)[1])
    index, masks, segments, ends = (np.empty(shape, np.int64) for shape in shapes)
    return index, masks, segments, ends


def first_outputs(axis: Axis, outputs: int, run: int) -> Array:
    """The outputs that the tiles of an axis begin with, and the positions.

    Of the last phases there are as many as fill a `run` of lanes; those that have no outputs are left empty.
    """
    apart = axis.spacing
    firsts: list[int] = []
    for first in range(0, axis.outputs, outputs * apart):
        left = axis.outputs - first
        firsts += range(first, first + min(apart, -(-left // run) * run))
    return np.array([(first, first * axis.step + axis.low) for first in firsts], dtype=np.int64)


def begins(tiles: Axis, outputs: int) -> Array:
    """The same where tiles of so many outputs are the outputs of an axis."""
    found = [(tiles.first + i * outputs, tiles.low + i * tiles.step) for i in range(tiles.outputs)]
    return np.array(found, dtype=np.int64)


@routine
def _tile_tables(
    form: Any, order: Any, plan: Any, rows: Any, columns: Any, apart_h: int, apart_w: int, samples: int, first: int,
    index: Any, masks: Any, outputs: Any,
) -> None:  # fmt: skip
    """Of the tiles from number `first` on: where lane t reads in its channel, inside masks, and what it writes.

    Tiles are numbered by sample, by `rows` and by `columns`, the outputs and positions that they begin with. index
    [lanes], masks [vectors][positions of a patch] of bits for the lanes, or if runs are loaded by rows [lanes][rows of
    a patch] of bits for those of a run, with its first lane, outputs [lanes][where in its row of weights, rows,
    columns, first row and column of the tile that are inside]; all are zeros before, and lanes behind the last tile
    read and write nothing.
    """
    p = plan[0]
    (down, across), (tile_rows, tile_columns) = tile_patch(form), tile_outputs(form)
    per_sample, run = len(rows) * len(columns), len(order[0])
    for lane in range(min(index.size, samples * per_sample - first)):
        n, rest = divmod(first + lane, per_sample)
        ty, tx = divmod(rest, len(columns))
        to_y, to_x, y, x = rows[ty, 0], columns[tx, 0], rows[ty, 1], columns[tx, 1]
        outside_y, outside_x = max(0, -to_y), max(0, -to_x)
        index[lane] = n * p.groups * p.channels * p.height * p.width + y * p.width + x
        outputs[lane, 0] = (n * p.groups * p.rows * p.target_h + to_y + outside_y) * p.target_w + to_x + outside_x
        outputs[lane, 1] = min(tile_rows, -((to_y - p.target_h) // apart_h)) - outside_y
        outputs[lane, 2] = min(tile_columns, -((to_x - p.target_w) // apart_w)) - outside_x
        outputs[lane, 3], outputs[lane, 4] = outside_y, outside_x
        for i in range(down if outputs[lane, 2] > 0 else 0):
            for j in range(across):
                if 0 <= y + i * apart_h < p.height and 0 <= x + j * apart_w < p.width:
                    if len(order[2]):
                        masks[lane - lane % run, i] |= 1 << (j * run + lane % run)
                    else:
                        masks[lane // LANES, across * i + j] |= 1 << (lane % LANES)


@routine(allocates=True)  # type: ignore[untyped-decorator]
def _segment_tables(form: Any, order: Any, outputs: Any, apart_w: int, segments: Any, ends: Any) -> None:
    """What a vector of tiles writes, by segments: [segment][where, outputs, rows, first row, place, left].

    The outputs of one are neighbours in a row of the target, and from `place` on in one of `output_transform`; so many
    are `left` with it until others than neighbours follow in the target. `outputs` are those of `_tile_tables`. ends
    [vectors]: behind their last segments.
    """
    across, unit = tile_outputs(form)[1], len(order[1])
    count = 0
    for v in range(len(ends)):
        begin, behind, lane = count, 0, v * LANES
        while lane < (v + 1) * LANES and outputs[lane, 1] > 0:
            last = lane + 1  # behind the tiles that begin side by side: with taps apart their outputs lie in turns
            while apart_w > 1 and last % LANES > 0 and outputs[last, 1] == outputs[lane, 1] and (
                outputs[last, 0] == outputs[lane, 0] + last - lane
            ):  # fmt: skip
                last += 1
            for j in range(across):
                for tile in range(lane, last):
                    if j >= outputs[tile, 2]:
                        continue
                    at, rows, outside = outputs[tile, 0] + j * apart_w, outputs[tile, 1], outputs[tile, 3]
                    place = (tile % LANES // unit * across + j + outputs[tile, 4]) * unit + tile % unit
                    follows = count > begin and at == segments[count - 1, 0] + segments[count - 1, 1]
                    follows = follows and place == behind
                    if not follows or rows != segments[count - 1, 2] or outside != segments[count - 1, 3]:
                        segments[count, 0], segments[count, 1], segments[count, 2] = at, 0, rows
                        segments[count, 3], segments[count, 4] = outside, place
                        count += 1
                    segments[count - 1, 1] += 1
                    behind = place + 1
            lane = last
        ends[v] = count
        for number in range(count - 1, begin - 1, -1):
            one, left = segments[number], segments[number, 1]
            if number + 1 < count:
                other = segments[number + 1]
                if one[0] + one[1] == other[0] and one[2] == other[2] and one[3] == other[3]:
                    left += other[5]
            one[5] = left


@routine(allocates=True)  # type: ignore[untyped-decorator]
def new_tables(form: Any, order: Any, tiles: int) -> Any:
    """As `empty_tables`."""
    of_index, of_masks, of_segments, of_ends = _shapes(tiles, len(order[2]), tile_patch(form), tile_outputs(form)[1])
    index, masks = np.empty(of_index, np.int64), np.empty(of_masks, np.int64)
    return index, masks, np.empty(of_segments, np.int64), np.empty(of_ends, np.int64)


@routine(allocates=True)  # type: ignore[untyped-decorator]
def fill_tables(
    form: Any, order: Any, plan: Any, rows: Any, columns: Any, apart_h: int, apart_w: int, samples: int, first: int,
    tables: Any,
) -> None:  # fmt: skip
    """What the tiles from number `first` on read and write, to tables for so many: index, masks, segments and ends."""
    index, masks, segments, ends = tables
    outputs = np.zeros((index.size, 5), np.int64)
    index[:] = 0
    masks[:] = 0
    _tile_tables(form, order, plan, rows, columns, apart_h, apart_w, samples, first, index, masks, outputs)
    _segment_tables(form, order, outputs, apart_w, segments, ends)
