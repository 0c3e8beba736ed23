"""How long the ways of a weight gradient take, as bills with the prices of estimates.py, and which is taken.

Nothing depends on the number of samples; what is paid once for all of them is shared by as many as are assumed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv.backends.cpu import weight_grad_outer, weight_grad_winograd
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.estimates import SAMPLES, STEPS, WINOGRAD_GAIN, Bill, cost
from fastconv.backends.cpu.plan import Correlation, weight_grad_plan
from fastconv.backends.cpu.simd import INNER_TILE, INNER_TILE_ONE_ROW, ROWS
from fastconv.backends.cpu.weight_grad import COLUMN_VECTORS
from fastconv.backends.cpu.weight_grad_outer_kernels import WIDE_VECTORS
from fastconv.backends.cpu.winograd_forms import axes_of
from fastconv.backends.cpu.winograd_kernels import LANES
from fastconv.geometry import ConvGeometry

OUTER, COLUMNS, BOXES = "outer-product", "inner-product columns", "inner-product boxes"


def direct_way(geometry: ConvGeometry, itemsize: int) -> tuple[str, float]:
    """The fastest way of direct sums, and its time."""
    times = {name: cost(bill) for name, bill in direct_bills(geometry, itemsize, SAMPLES).items()}
    return min(times.items(), key=lambda way: way[1])


def pays(tiles: weight_grad_winograd.Tiles, direct_time: float) -> bool:
    """Whether Winograd's tiles are faster than direct sums, which round less."""
    return WINOGRAD_GAIN * cost(tiles_bill(tiles, SAMPLES)) < direct_time


def direct_bills(geometry: ConvGeometry, itemsize: int, samples: int) -> dict[str, Bill]:
    """What each way of direct sums does for one of so many samples."""
    correlation = weight_grad_plan(geometry, itemsize)
    bills = {BOXES: boxes_bill(correlation, samples)}
    if correlation.small:
        bills[COLUMNS] = columns_bill(correlation, samples)
    if outer := weight_grad_outer.outer_products(geometry, itemsize):
        bills[OUTER] = outer_bill(outer, samples)
    return bills


def boxes_bill(c: Correlation, samples: int) -> Bill:
    """Inner products over boxes (weight_grad.py)."""
    plan, lanes, depth, height = c.plan[0], lanes_of(c.itemsize), c.axes[0], c.axes[1]
    row_tiles, tap_tiles, products = _inner_tiles(c)
    length = (int(plan["box_h"]) - 1) * int(plan["pitch"]) + int(plan["box_w"])
    return {
        "inner box product": c.boxes * -(-length // lanes) * products,
        "inner box tile": c.boxes * row_tiles * tap_tiles,
        "inner box streamed": c.boxes * row_tiles * c.channels * int(plan["channel"]) / lanes,
        "inner box gradient row": depth.outputs * height.outputs * int(plan["boxes_w"]) * c.rows,
        "inner box gradient vector": c.outputs * c.rows / lanes,
        "inner box weight": c.rows * c.count / samples,
        "inner box call": 1 / samples,
        **_gathered("inner box", c),
    }


def columns_bill(c: Correlation, samples: int) -> Bill:
    """Inner products over exact columns (weight_grad.py)."""
    lanes, step = lanes_of(c.itemsize), c.axes[2].step
    row_tiles, tap_tiles, products = _inner_tiles(c)
    vectors, stretches = c.outputs / lanes, c.axes[0].outputs * c.axes[1].outputs
    units = max(1 / samples, vectors / COLUMN_VECTORS)
    bill: Bill = {
        "inner column product": vectors * products,
        "inner column tile": units * row_tiles * tap_tiles,
        "inner column unit": units,
        "inner column moves": stretches * len(c.kernel_taps),
        "inner column gradient row": stretches * c.rows,
        "inner column row": stretches * c.count,
        "inner column weight": c.rows * c.count / samples,
    }
    gathered = f"inner column vector, step {step}" if step in STEPS else "inner column element"
    bill[gathered] = c.outputs * c.count / (lanes if step in STEPS else 1)
    return bill


def outer_bill(outer: weight_grad_outer.Outer, samples: int) -> Bill:
    """Outer products (weight_grad_outer_kernels.py)."""
    c, q = outer.correlation, outer.layout[0]
    rows, vectors = -(-c.rows // ROWS) * ROWS, -(-c.channels // lanes_of(c.itemsize))
    narrow = vectors % WIDE_VECTORS
    products = rows * math.prod(sum(last - first for first, last in pairs) for pairs in outer.inside)
    units = outer.units(samples) / samples
    runs = int(q["box_d"]) * float(np.sum(outer.taps[:, 5] - outer.taps[:, 4]))
    stretches = c.axes[0].outputs * c.axes[1].outputs * int(q["boxes_w"] + q["parts"] - 1)
    bill: Bill = {
        "outer product": products * (vectors - narrow),
        "outer product, narrow": products * narrow,
        "outer tile": units * runs * rows / ROWS * vectors,
        "outer box": units,
        "outer gradient vector": c.outputs * rows / lanes_of(c.itemsize),
        "outer gradient row": stretches * c.rows,
        "outer transposed": outer.boxes * outer.positions * vectors,
        "outer weight": rows * vectors * lanes_of(c.itemsize) * len(c.kernel_taps) / samples,
    }
    return {thing: outer.shares * count for thing, count in bill.items()}  # of the group that has the shares


def tiles_bill(tiles: weight_grad_winograd.Tiles, samples: int) -> Bill:
    """Winograd's tiles (weight_grad_winograd.py)."""
    source = tiles.source
    plan, boxes, frequencies = source.plan[0], source.boxes, tiles.frequencies
    blocks, vectors, axes = -(-tiles.rows // ROWS), -(-tiles.channels // LANES), axes_of(tiles.form)
    return {
        "tiled gradient product": frequencies * source.outputs * blocks * ROWS * vectors,
        f"tiled gradient input, axes {axes}": frequencies * source.outputs * vectors,
        f"tiled gradient output, axes {axes}": frequencies * source.outputs * blocks,
        "tiled gradient transposed": vectors * boxes * int(plan["channel"]),
        "tiled gradient box": boxes * (vectors + blocks),
        "tiled gradient piece": boxes * (tiles.channels + tiles.rows) * _pieces(plan),
        "tiled gradient weight": frequencies * tiles.rows * vectors / samples,
        "tiled gradient call": 1 / samples,
    }


def _inner_tiles(c: Correlation) -> tuple[int, int, int]:
    """Tiles of rows and of taps, and the vectors that they multiply for a vector of outputs."""
    rows, taps = INNER_TILE_ONE_ROW if c.rows == 1 else INNER_TILE
    row_tiles, tap_tiles = -(-c.rows // rows), -(-c.count // taps)
    return row_tiles, tap_tiles, row_tiles * rows * tap_tiles * taps


def _gathered(way: str, c: Correlation) -> Bill:
    """The boxes of the source."""
    plan, step = c.plan[0], c.axes[2].step
    elements = c.boxes * c.channels * int(plan["channel"])
    pieces = c.boxes * c.channels * int(plan["planes"]) * _pieces(plan)
    vectors = f"{way} vector, step {step}" if step in STEPS else f"{way} element"
    return {vectors: elements / (lanes_of(c.itemsize) if step in STEPS else 1), f"{way} piece": pieces}


def _pieces(plan: Any) -> int:
    """The rows of a gathered box, each with its phases."""
    return int(plan["box_rows"]) * int(plan["phases_h"]) * (1 + int(plan["phases_w"]))
