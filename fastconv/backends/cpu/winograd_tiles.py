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
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.estimates import Bill, cost
from fastconv.backends.cpu.host import SECOND_LEVEL_BYTES, VECTOR_BYTES, flat
from fastconv.backends.cpu.plan import TILE_VECTORS, Correlation, even_part
from fastconv.backends.cpu.scratch import call_scratch, scratch_rows
from fastconv.backends.cpu.simd import ROWS
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
    several_blocks,
    taps_in_order,
)
from fastconv.backends.cpu.winograd_simd import FEW, FEW_BLOCKS, FILTER_LANES
from fastconv.backends.cpu.winograd_spread import Spread, reversed_taps
from fastconv.backends.cpu.winograd_tile_kernels import BLOCKS, CHANNELS, PANELS, TABLES, winograd_tiles
from fastconv.backends.cpu.winograd_tile_tables import begins, empty_tables, first_outputs, order_of
from fastconv.backends.threads import get_num_threads, is_little, team_for

_STEP = TILE_VECTORS * LANES
_PANEL_BYTES = 8 << 20  # of transformed tiles, at most: twice TILE_COLUMNS where that fits, and half as many filters
_NEAR_BYTES = SECOND_LEVEL_BYTES * 3 // 4  # of what is read again and again
_MANY = 8  # panels for each thread: one more or less makes no great difference between threads
_KEPT_COLUMNS = 4 * LANES  # of tables that are kept for the next call: a few KiB

Array = npt.NDArray[Any]


@dataclass(slots=True)
class Division:
    """How the tiles of some samples are divided among some threads."""

    tiles: int
    padded: int
    """Tiles, filled up to whole vectors."""
    panels: int
    """Of a group."""
    longest: int
    """Columns of the longest panel."""
    each: bool
    """Whether a thread does whole panels."""
    several: int
    """Blocks of rows whose filters are transformed at once."""
    part: int
    """Channels of these."""
    elements: int
    """Of a thread's scratch for the products."""
    of_panel: int
    """Elements of the transformed tiles of the longest panel."""
    few: int
    """Elements of the same side by side, of at most FEW tiles."""
    inputs: float
    """Nanoseconds of the transforms of the input, of all groups."""
    products: float
    """Nanoseconds of all the rest."""
    tables: tuple[Array, ...] | None
    """Those of a small panel that threads share, once they are filled: they depend on nothing else."""


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
        of_vector = self._of_vector()
        self.panel_time, self.vector_time = cost(self._of_panel()), cost(of_vector)
        self.input_time = cost({thing: count for thing, count in of_vector.items() if "input" in thing})
        self.no_tables = empty_tables(self.form, self.order, 0)

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
        c, samples = self.correlation, len(source)
        d = _division(self, samples, get_num_threads())
        not_finite = np.zeros(d.padded, np.bool_)
        arrays = flat(source), flat(w), block_biases(c, b, source.dtype), target.reshape(-1), c.plan, self.taps
        numbers = relu, *self.apart, samples, d.panels, *steps, self.kernel_size, d.several, d.part, d.elements
        if d.each or is_little(d.inputs + d.products):
            tasks = c.groups * d.panels
            team = team_for(tasks, d.inputs + d.products)
            memory = scratch_rows(team.size, d.elements + d.of_panel + d.few, source.dtype)
            what = self.rows, self.columns, self.no_tables, memory[0], memory[0], memory, not_finite
            winograd_tiles(self.form, self.order, *arrays, *what, *numbers, PANELS, 0, 0, team.address, 0, tasks)
        else:
            self._in_steps(d, arrays, not_finite, numbers)
        if np.count_nonzero(not_finite) == 0:  # a tenth of the time of the sum
            return _all_finite(samples)
        of_samples: npt.NDArray[np.bool_] = np.logical_or.reduce(not_finite[: d.tiles].reshape(samples, -1), axis=1)
        return of_samples

    def _in_steps(
        self, d: Division, arrays: tuple[Array, ...], not_finite: npt.NDArray[np.bool_], numbers: tuple[int, ...]
    ) -> None:
        """All threads share each panel."""
        c, dtype = self.correlation, arrays[0].dtype
        memory = call_scratch(d.of_panel + d.few, dtype)
        for first in range(0, d.tiles, d.longest):
            length = -(-min(d.longest, d.tiles - first) // LANES) * LANES
            kept = d.tables  # read once: another thread may be here as well
            tables = empty_tables(self.form, self.order, length) if kept is None else kept
            of_all = self.rows, self.columns, tables, memory[: d.of_panel], memory[d.of_panel :]
            units = (CHANNELS, c.channels, d.inputs), (BLOCKS, c.blocks, d.products)
            to_fill = [(0, (TABLES, 1, 0.0))] if kept is None else []
            for group, (unit, tasks, work) in [*to_fill, *product(range(c.groups), units)]:
                team = team_for(tasks, work / c.groups * length / d.padded)
                own = scratch_rows(team.size, d.elements, dtype)
                winograd_tiles(
                    self.form, self.order, *arrays, *of_all, own, not_finite, *numbers, unit, group, first,
                    team.address, 0, tasks,
                )  # fmt: skip
            if length == d.padded <= _KEPT_COLUMNS:
                d.tables = tables

    def division(self, samples: int, threads: int) -> Division:
        """How the tiles of so many samples are divided among threads."""
        total = samples * len(self.rows) * len(self.columns)
        panels, longest, each = self._panels(total, threads)
        few = self.frequencies * (self.channels * FEW + STAGGER) if total <= FEW else 0
        padded = -(-total // LANES) * LANES
        of_panel = self.frequencies * (self.channels * min(longest, padded) + STAGGER)
        groups, vectors = self.correlation.groups, padded // LANES
        inputs = groups * vectors * self.input_time
        products = groups * (vectors * (self.vector_time - self.input_time) + panels * self.panel_time)
        several, part, elements = self._scratch(longest, total)
        return Division(
            total, padded, panels, longest, each, several, part, elements, of_panel, few, inputs, products, None
        )

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
            if self.channels == channels and LANES >= FILTER_LANES:  # else no room for sums that go on
                part = even_part(channels, max(2, _NEAR_BYTES * channels // (FEW_BLOCKS * filter_bytes)))
                part += part % 2
        elif tile_bytes <= _NEAR_BYTES:  # they cost little to read again: no more filters than stay in the cache
            several = max(2, min(several, _NEAR_BYTES // filter_bytes))
        of_phase = self.channels // channels * part
        of_block = of_frequencies * (ROWS * (of_phase + longest) + FILTER_PADDING + STAGGER)
        return several, part, several * of_block + longest + (math.prod(outputs_of(self.form)) + 1) * LANES


@lru_cache(maxsize=1024)
def _division(tiles: Tiles, samples: int, threads: int) -> Division:
    return tiles.division(samples, threads)


@lru_cache(maxsize=64)
def _all_finite(samples: int) -> npt.NDArray[np.bool_]:
    return np.zeros(samples, np.bool_)
