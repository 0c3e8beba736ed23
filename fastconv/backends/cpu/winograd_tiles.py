"""Winograd's tiles from anywhere, for small images and taps far apart; the idea is in winograd_kernels.py.

The tiles of all samples, and of all phases of a dilation, fill the columns of the products, up to 192 at once: rows of
their patches are loaded and transposed, or with taps far apart columns of neighbours loaded together. What a vector of
them writes is stored in runs of neighbours. Tables say all this once for all channels (winograd_tile_tables.py). A
thread takes panels of its own, of any group, where that costs no more than to share one. Those who share one transform
all channels first; then each task takes blocks of output rows and transforms its own filters, so that these never leave
its cache. Tiles of 3×3 outputs cover what those of 4×4 would leave half empty. Of at most four tiles, one small image,
the products have rows in the lanes, and since the filters are nearly all there is to read and write, some channels of
four blocks are transformed and multiplied at a time, within the second level.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.estimates import Bill, cost
from fastconv.backends.cpu.gather import copy_strided, zero_bytes
from fastconv.backends.cpu.host import SECOND_LEVEL_BYTES, VECTOR_BYTES, flat, pointer, routine
from fastconv.backends.cpu.plan import TILE_VECTORS, Correlation, even_part
from fastconv.backends.cpu.scratch import call_scratch, scratch_rows
from fastconv.backends.cpu.simd import ROWS, take_every
from fastconv.backends.cpu.team import shared
from fastconv.backends.cpu.winograd_forms import (
    form_of,
    frequencies_of,
    outputs_of,
    patch_of,
    phases_of,
    products_of,
    spread_of,
)
from fastconv.backends.cpu.winograd_kernels import (
    FILTER_PADDING,
    LANES,
    STAGGER,
    TILE_COLUMNS,
    block_biases,
    filters_of_blocks,
    frequency_phases,
    several_blocks,
    taps_in_order,
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
from fastconv.backends.cpu.winograd_spread import Spread, reversed_taps
from fastconv.backends.cpu.winograd_tile_tables import (
    begins,
    empty_tables,
    fill_tables,
    first_outputs,
    new_tables,
    order_of,
)
from fastconv.backends.threads import get_num_threads, is_little, team_for

_STEP = TILE_VECTORS * LANES
_PANEL_BYTES = 8 << 20  # of transformed tiles, at most: twice TILE_COLUMNS where that fits, and half as many filters
_NEAR_BYTES = SECOND_LEVEL_BYTES * 3 // 4  # of what is read again and again
_MANY = 8  # panels for each thread: one more or less makes no great difference between threads
_NS_PER_FLOP, _NS_PER_INPUT = 0.015, 20.0

Array = npt.NDArray[Any]


class Tiles:
    """A correlation by tiles of `outputs` × `outputs`.

    With taps e apart, outputs e apart depend on positions e apart alone: so lie those of a tile. At step s its
    outputs are neighbours, and each phase has positions s apart; with phases of the outputs all are neighbours.
    """

    def __init__(self, correlation: Correlation, outputs: int, spread: tuple[Spread, Spread] | None = None) -> None:
        """With `spread`: all phases of a strided input gradient in height and width; `correlation` is any of them."""
        _, height, width = correlation.axes
        self.correlation = correlation
        if spread:
            self.form = form_of((spread[0].taps, spread[1].taps), outputs, spread=(spread[0].step, spread[1].step))
            self.rows, self.columns = (begins(axis.tiles, outputs * axis.step) for axis in spread)
            self.apart, self.taps = (1, 1), reversed_taps(correlation)
        else:
            self.form = form_of((len(height.offsets), len(width.offsets)), outputs, (height.step, width.step))
            self.apart, self.taps = (height.spacing, width.spacing), taps_in_order(correlation)
        self.frequencies, self.products = frequencies_of(self.form), math.prod(products_of(self.form))
        self.positions, self.spread = math.prod(patch_of(self.form)), spread_of(self.form)
        self.order = order_of(self.apart[1], patch_of(self.form)[1], len(self.form[1][2]))
        if not spread:
            self.rows = first_outputs(height, outputs, 1)
            self.columns = first_outputs(width, outputs, len(self.order[0]))
        self.channels = phases_of(self.form) * correlation.channels
        """Channels of all phases."""
        most = 4 * self.frequencies * self.channels * 2 * TILE_COLUMNS <= _PANEL_BYTES
        self.panel = TILE_COLUMNS * (2 if most else 1)
        """Columns at once, at most."""
        self.kernel_size = correlation.kernel_size
        self.panel_time, self.vector_time = cost(self._of_panel()), cost(self._of_vector())

    def bill(self, samples: int) -> Bill:
        """What is done for each of so many samples, see estimates.py."""
        tiles = len(self.rows) * len(self.columns)
        panels = max(1 / samples, tiles / self.panel)
        bill = {thing: tiles / LANES * count for thing, count in self._of_vector().items()}
        return bill | {thing: panels * count for thing, count in self._of_panel().items()} | {"tiles call": 1 / samples}

    def _of_vector(self) -> Bill:
        """What is done for a vector of columns."""
        channels, blocks = self.correlation.channels, self.correlation.blocks
        sums = (self.products if self.spread > 1 else self.frequencies) * blocks
        kind = ", strided" if phases_of(self.form) > 1 else ", apart" if self.apart[1] > 1 else ""
        return {
            "tiles product": self.products * blocks * channels * ROWS,
            "tiles tile": sums / TILE_VECTORS,
            f"tiles input{kind}": self.positions * channels,
            "tiles output": sums * ROWS,
        }

    def _of_panel(self) -> Bill:
        """What is done for a panel besides."""
        return {"tiles filter": self.products * self.correlation.channels * self.correlation.blocks}

    def run(
        self, source: Array, w: Array, steps: tuple[int, int], b: Array | None, target: Array, relu: bool
    ) -> npt.NDArray[np.bool_]:
        """Fill `target`; returns for each sample whether one of its results is not finite."""
        c, samples, threads = self.correlation, len(source), get_num_threads()
        total = samples * len(self.rows) * len(self.columns)
        inputs = _NS_PER_INPUT * self.channels * total
        products = 2.0 * self.products * c.channels * c.rows * total * _NS_PER_FLOP
        time = c.groups * (inputs + products)
        panels, longest, each = self._panels(total, threads)
        each = each or is_little(time)
        of_panel = self.frequencies * (self.channels * min(longest, -(-total // LANES) * LANES) + STAGGER)
        few = self.frequencies * (self.channels * FEW + STAGGER) if total <= FEW else 0
        several, part, elements = self._scratch(longest, total)
        not_finite = np.zeros(-(-total // LANES) * LANES, np.bool_)
        arrays = flat(source), flat(w), block_biases(c, b, source.dtype), target.reshape(-1), c.plan, self.taps
        numbers = relu, *self.apart, samples, panels, *steps, self.kernel_size, several, part, elements
        if each:
            tasks = c.groups * panels
            team = team_for(tasks, time)
            memory = scratch_rows(team.size, elements + of_panel + few, source.dtype)
            none = empty_tables(self.form, self.order, 0), memory[0], memory[0]
            what = self.rows, self.columns, *none, memory, not_finite
            winograd_tiles(self.form, self.order, *arrays, *what, *numbers, PANELS, 0, 0, team.address, 0, tasks)
        else:
            for first in range(0, total, longest):
                length = -(-min(longest, total - first) // LANES) * LANES
                tables, memory = empty_tables(self.form, self.order, length), call_scratch(of_panel + few, source.dtype)
                of_all = self.rows, self.columns, tables, memory[:of_panel], memory[of_panel:]
                units = (CHANNELS, c.channels, inputs), (BLOCKS, c.blocks, products)
                for group, (unit, tasks, work) in [(0, (TABLES, 1, 0.0)), *product(range(c.groups), units)]:
                    team = team_for(tasks, work * length / total)
                    own = scratch_rows(team.size, elements, source.dtype)
                    winograd_tiles(
                        self.form, self.order, *arrays, *of_all, own, not_finite, *numbers, unit, group, first,
                        team.address, 0, tasks,
                    )  # fmt: skip
        of_samples: npt.NDArray[np.bool_] = np.logical_or.reduce(not_finite[:total].reshape(samples, -1), axis=1)
        return of_samples

    def _panels(self, total: int, threads: int) -> tuple[int, int, bool]:
        """Panels of a group, columns of the longest, and whether each thread takes panels of its own.

        More panels transform the filters more often, and may be filled less; but of a panel that threads share, each
        reads what the others have transformed, and that is far away.
        """
        groups, vectors, fewest = self.correlation.groups, -(-total // LANES), -(-total // self.panel)
        even = threads // math.gcd(groups, threads)  # panels of a group that give each thread as many
        panels = min(vectors, fewest if groups * fewest >= _MANY * threads else -(-fewest // even) * even)
        more = (panels - fewest) * self.panel_time + (even * -(-vectors // even) - vectors) * self.vector_time
        shared = threads * vectors * self.frequencies * self.channels * VECTOR_BYTES
        if more <= cost({"tiles shared byte": shared}):
            return panels, -(-vectors // panels) * LANES, True
        longest = even_part(-(-total // _STEP), self.panel // _STEP) * _STEP
        return -(-total // longest), longest, False

    def _scratch(self, longest: int, total: int) -> tuple[int, int, int]:
        """Blocks and channels whose filters are transformed at once, and a thread's elements of scratch for products.

        Of at most FEW tiles the filters are all there is to read: those of some channels stay near.
        """
        channels, of_frequencies = self.correlation.channels, self.spread * self.frequencies
        several, part = several_blocks(of_frequencies, max(longest, TILE_COLUMNS)), channels
        tile_bytes = 4 * self.frequencies * self.channels * -(-total // LANES) * LANES
        filter_bytes = 4 * of_frequencies * ROWS * self.channels
        if total <= FEW:
            several = max(FEW_BLOCKS, min(several, _NEAR_BYTES // filter_bytes))
            if self.channels == channels:
                part = even_part(channels, max(2, _NEAR_BYTES * channels // (FEW_BLOCKS * filter_bytes)))
                part += part % 2
        elif tile_bytes <= _NEAR_BYTES:  # they cost little to read again: no more filters than stay in the cache
            several = max(2, min(several, _NEAR_BYTES // filter_bytes))
        of_phase = self.channels // channels * part
        of_block = of_frequencies * (ROWS * (of_phase + longest) + FILTER_PADDING + STAGGER)
        return several, part, several * of_block + longest + (math.prod(outputs_of(self.form)) + 1) * LANES


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


PANELS, TABLES, CHANNELS, BLOCKS = range(4)
"""Units of work: panels of columns, of all groups; the tables of one; channels or blocks of rows of it and a group."""


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
