"""How long the ways of a weight gradient take, as bills with the prices of estimates.py, and which is taken.

Nothing depends on the number of samples; what is paid once for all of them is shared by as many as are assumed.
"""

from __future__ import annotations

from fastconv.backends.cpu import weight_grad_outer, weight_grad_winograd
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.estimates import SAMPLES, STEPS, WINOGRAD_GAIN, Bill, cost
from fastconv.backends.cpu.plan import UNIT_OUTPUTS, Correlation, weight_grad_outer_plan, weight_grad_plan
from fastconv.backends.cpu.simd import INNER_TILE, INNER_TILE_ONE_ROW, ROWS
from fastconv.backends.cpu.weight_grad import COLUMN_VECTORS
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
    if weight_grad_outer.suits(correlation):
        bills[OUTER] = outer_bill(weight_grad_outer_plan(geometry, itemsize), samples)
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


def outer_bill(c: Correlation, samples: int) -> Bill:
    """Outer products (weight_grad_outer.py), of a plan with its small boxes."""
    plan, lanes, depth, height = c.plan[0], lanes_of(c.itemsize), c.axes[0], c.axes[1]
    taps, rows = len(c.kernel_taps), -(-c.rows // ROWS) * ROWS
    vectors = -(-c.channels // lanes)
    narrow = vectors % weight_grad_outer.WIDE_VECTORS
    together = max(1, min(UNIT_OUTPUTS // int(plan["box_h"] * plan["box_w"]), samples * c.boxes))
    units = -(-samples * c.boxes // together) / samples
    bill: Bill = {
        "outer product": c.outputs * rows * taps * (vectors - narrow),
        "outer product, narrow": c.outputs * rows * taps * narrow,
        "outer tile": units * rows / ROWS * taps * vectors,
        "outer box": c.boxes,
        "outer gradient vector": c.outputs * rows / lanes,
        "outer gradient row": depth.outputs * height.outputs * int(plan["boxes_w"]) * c.rows,
        "outer transposed": c.boxes * int(plan["channel"]) * vectors,
        "outer weight": rows * vectors * lanes * taps / samples,
    }
    return bill if plan["direct"] else {**bill, **_gathered("outer", c)}


def tiles_bill(tiles: weight_grad_winograd.Tiles, samples: int) -> Bill:
    """Winograd's tiles (weight_grad_winograd.py)."""
    source = tiles.source
    plan, boxes, frequencies = source.plan[0], source.boxes, tiles.frequencies
    blocks, vectors, axes = -(-tiles.rows // ROWS), -(-tiles.channels // LANES), sum(len(t) > 1 for t in tiles.form)
    rows = int(plan["box_rows"]) * int(plan["phases_h"])
    return {
        "tiled gradient product": frequencies * source.outputs * blocks * ROWS * vectors,
        f"tiled gradient input, axes {axes}": frequencies * source.outputs * vectors,
        f"tiled gradient output, axes {axes}": frequencies * source.outputs * blocks,
        "tiled gradient transposed": vectors * boxes * int(plan["channel"]),
        "tiled gradient box": boxes * (vectors + blocks),
        "tiled gradient row": boxes * (tiles.channels + tiles.rows) * rows,
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
    rows = c.boxes * c.channels * int(plan["planes"]) * int(plan["box_rows"]) * int(plan["phases_h"])
    vectors = f"{way} vector, step {step}" if step in STEPS else f"{way} element"
    return {vectors: elements / (lanes_of(c.itemsize) if step in STEPS else 1), f"{way} row": rows}
