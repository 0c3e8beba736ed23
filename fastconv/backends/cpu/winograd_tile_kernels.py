"""Winograd's tiles from anywhere: the kernel that transforms, multiplies and stores them (winograd_tiles.py)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu.gather import copy_strided, zero_bytes
from fastconv.backends.cpu.host import pointer, routine
from fastconv.backends.cpu.simd import ROWS, take_every
from fastconv.backends.cpu.team import shared
from fastconv.backends.cpu.winograd_kernels import (
    FILTER_PADDING,
    LANES,
    STAGGER,
    filters_of_blocks,
    frequency_phases,
    tile_frequencies,
    tile_outputs,
    tile_patch,
    tile_phase,
    tile_phases,
    tile_products,
    tile_spread,
)
from fastconv.backends.cpu.winograd_patches_simd import input_transform_gathered
from fastconv.backends.cpu.winograd_simd import FEW, FEW_BLOCKS, few_columns, output_transform
from fastconv.backends.cpu.winograd_tile_tables import fill_tables, new_tables

PANELS, TABLES, CHANNELS, BLOCKS = range(4)
"""Units of work: panels of columns, of all groups; the tables of one; channels or blocks of rows of it and a group."""


@routine
def _transform(
    form: Any, order: Any, x: Any, tiles: Any, few: Any, plan: Any, apart_h: int, apart_w: int, index: Any, masks: Any,
    group: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Channels begin ≤ c < end of the group to tiles[frequency][phase][channel][column].

    If few[frequency][phase][channel][FEW] is not empty, it gets the first columns.
    """
    p = plan[0]
    size, columns, phases, (down, across) = x.itemsize, index.size, tile_phases(form), tile_patch(form)
    row, column, stride = apart_h * p.step_h * p.width, apart_w * p.step_w, phases * p.channels * columns + STAGGER
    down_step, across_step, few_apart = across * p.step_h, p.step_w, phases * p.channels * FEW + STAGGER
    if len(order[2]):
        down_step, across_step = p.step_h, down
    for c in range(begin, end):
        ahead = p.height * p.width if c + 1 < p.channels else 0
        source = pointer(x) + (group * p.channels + c) * p.height * p.width * size
        for q in range(0, columns, LANES):
            lanes = pointer(index) + 8 * q
            for phase in range(phases):
                h, w, kind = tile_phase(form, phase) if phases > 1 else (0, 0, 0)
                at = source + (h * p.width + w) * size
                to = pointer(tiles) + ((phase * p.channels + c) * columns + q) * size
                inside = pointer(masks) + (q // LANES * down * across + h * across + w) * 8
                if len(order[2]):
                    inside, column = pointer(masks) + (q * down + h) * 8, w
                if kind == 0:
                    input_transform_gathered(
                        x, form, 0, order, at, lanes, inside, down_step, across_step, row, column, to, stride, ahead
                    )
                elif kind == 1:
                    input_transform_gathered(
                        x, form, 1, order, at, lanes, inside, down_step, across_step, row, column, to, stride, ahead
                    )
                elif kind == 2:
                    input_transform_gathered(
                        x, form, 2, order, at, lanes, inside, down_step, across_step, row, column, to, stride, ahead
                    )
                else:
                    input_transform_gathered(
                        x, form, 3, order, at, lanes, inside, down_step, across_step, row, column, to, stride, ahead
                    )
        if few.size:
            for f in range(tile_frequencies(form)):
                for phase in range(phases):
                    place = phase * p.channels + c
                    copy_strided(few, f * few_apart + place * FEW, tiles, f * stride + place * columns, 1, FEW)


@routine
def _products_of_few(
    like: Any, form: Any, filters: int, few: int, count: int, apart: int, columns: int, results: int, blocks: int,
    before: int, after: int,
) -> None:  # fmt: skip
    """As `tile_products` of `blocks` numbers for at most FEW tiles: a vector of tiles would be empty mostly.

    So would be the lines of the cache: the tiles lie side by side, `apart` from frequency to frequency, and leave its
    second level to the filters. With `before` ≠ 0 sums go on from the channels before, with `after` ≠ 0 others follow.
    """
    size, frequencies = like.itemsize, tile_frequencies(form)
    a_step, c_step = tile_phases(form) * count * ROWS + FILTER_PADDING, ROWS * columns + STAGGER
    for f in range(frequencies):
        low, high = frequency_phases(form, f) if tile_spread(form) == 1 else (0, 1)
        b = few + (f * apart + low * count * FEW) * size
        for block in range(0, blocks, FEW_BLOCKS):
            place = (block * frequencies + f) * size
            a, c = filters + place * a_step + low * count * ROWS * size, results + place * c_step
            few_columns(
                like, blocks - block - 1, a, frequencies * a_step, b, FEW, (high - low) * count, c,
                frequencies * c_step, columns, before, after,
            )  # fmt: skip


@routine
def _store_segment(y: Any, to: int, row_step: int, results: Any, pitch: int, segments: Any, number: int) -> None:
    """Segment `number` of a panel to y[to:]."""
    to, count, left = to + segments[number, 0], segments[number, 1], segments[number, 5]
    source = segments[number, 3] * pitch + segments[number, 4]
    for i in range(segments[number, 2]):
        if count < LANES <= left:  # what follows is overwritten by those that are left
            take_every(y, 1, 0, pointer(y, to + i * row_step), pointer(results, source + i * pitch))
        else:
            copy_strided(y, to + i * row_step, results, source + i * pitch, 1, count)


@routine(allocates=True)  # type: ignore[untyped-decorator]
def _multiply(
    form: Any, order: Any, w: Any, tiles: Any, few: Any, start: Any, y: Any, plan: Any, taps: Any, segments: Any, ends:
    Any, filters: Any, not_finite: Any, relu: int, apart_h: int, group: int, row_step: int, channel_step: int,
    kernel_size: int, several: int, part: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Blocks of rows begin ≤ block < end of the group, for a panel; of at most FEW tiles `few` has the columns.

    Its tables say what is written; `not_finite` becomes True for lanes with a result that is not.
    Scratch: transformed filters of `several` blocks and `part` of the channels, products, checks, outputs.
    """
    p, length = plan[0], len(ends) * LANES
    size, spread = w.itemsize, tile_spread(form)
    frequencies, across = tile_frequencies(form), tile_outputs(form)[1]
    of_block = spread * frequencies * (tile_phases(form) * part * ROWS + FILTER_PADDING)
    step = ROWS * length + STAGGER
    checks = filters[several * (of_block + spread * frequencies * step) :][:length]
    results = filters[several * (of_block + spread * frequencies * step) + length :]
    zero_bytes(pointer(checks), length * size)
    address = pointer(filters)
    c = address + several * of_block * size
    channels = tile_phases(form) * p.channels
    zeros = np.zeros(ROWS, w.dtype)
    for low in range(begin, end, several):
        last, number = min(low + several, end), group * p.blocks + low
        for c0 in range(0, p.channels, part):
            c1 = min(c0 + part, p.channels)
            count = c1 - c0
            filters_of_blocks(
                form, w, filters, plan, taps, row_step, channel_step, kernel_size, 1, c0, c1, number, number,
                number + last - low,
            )  # fmt: skip
            if few.size:
                _products_of_few(
                    w, form, address, pointer(few, c0 * FEW), count, channels * FEW + STAGGER, length, c,
                    (last - low) * spread, c0, p.channels - c1,
                )  # fmt: skip
            else:
                tile_products(
                    w, form, address, pointer(tiles, c0 * length), count, channels * length + STAGGER, length, count,
                    pointer(zeros), c, 0, (last - low) * spread, 1, False,
                )  # fmt: skip
        for m in range(min((last - low) * ROWS, p.rows - low * ROWS)):
            target = (group * p.rows + low * ROWS + m) * p.target_h * p.target_w
            bias = pointer(start) + (number * ROWS + m) * size
            of_row = c + (m // ROWS * spread * frequencies * step + m % ROWS * length) * size
            for q in range(0, length, LANES):
                output_transform(
                    w, form, order[1], of_row + q * size, step, frequencies * step, bias, relu, pointer(results),
                    across * LANES, pointer(checks, q),
                )  # fmt: skip
                for segment in range(ends[q // LANES - 1] if q > 0 else 0, ends[q // LANES]):
                    _store_segment(y, target, apart_h * p.target_w, results, across * LANES, segments, segment)
    for tile in range(length):
        if checks[tile] != 0:
            not_finite[tile] = True


@shared(allocates=True)  # type: ignore[untyped-decorator]
def winograd_tiles(
    form: Any, order: Any, x: Any, w: Any, start: Any, y: Any, plan: Any, taps: Any, rows: Any, columns: Any, tables:
    Any, tiles: Any, few: Any, memory: Any, not_finite: Any, relu: int, apart_h: int, apart_w: int, samples: int,
    panels: int, row_step: int, channel_step: int, kernel_size: int, several: int, part: int, elements: int, unit:
    int, group: int, first: int, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Tasks are panels, which their threads do whole, one of each group in turn, or a step of the one from `first` on.

    Of such a step threads share `tables`, `tiles` and `few`. A thread's scratch has `elements` for the products, then
    the same for panels of its own.
    """
    p, own = plan[0], memory[who]
    if unit == TABLES:
        fill_tables(form, order, plan, rows, columns, apart_h, apart_w, samples, first, tables)
        return
    if unit == CHANNELS:
        _transform(form, order, x, tiles, few, plan, apart_h, apart_w, tables[0], tables[1], group, begin, end)
        return
    if unit == BLOCKS:
        _multiply(
            form, order, w, tiles, few, start, y, plan, taps, tables[2], tables[3], own, not_finite[first:], relu,
            apart_h, group, row_step, channel_step, kernel_size, several, part, begin, end,
        )  # fmt: skip
        return
    total, length, filled, own_tables = samples * len(rows) * len(columns), 0, -1, new_tables(form, order, 0)
    vectors = -(-total // LANES)
    for task in range(begin, end):
        number, g = divmod(task, p.groups)  # of a panel all groups have the same tables
        at = vectors * number // panels * LANES
        if number != filled:
            filled, length = number, vectors * (number + 1) // panels * LANES - at
            own_tables = new_tables(form, order, length)
            fill_tables(form, order, plan, rows, columns, apart_h, apart_w, samples, at, own_tables)
        index, masks, segments, ends = own_tables
        own_tiles = own[elements:]
        behind = tile_frequencies(form) * (tile_phases(form) * p.channels * length + STAGGER)
        own_few = own_tiles[behind if total <= FEW else own_tiles.size :]
        _transform(form, order, x, own_tiles, own_few, plan, apart_h, apart_w, index, masks, g, 0, p.channels)
        _multiply(
            form, order, w, own_tiles, own_few, start, y, plan, taps, segments, ends, own, not_finite[at:], relu,
            apart_h, g, row_step, channel_step, kernel_size, several, part, 0, p.blocks,
        )  # fmt: skip
