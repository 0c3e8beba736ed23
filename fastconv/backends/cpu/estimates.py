"""How long a convolution takes, estimated: what decides between boxes, exact columns, rows in lanes, Winograd's tiles.

Each way is a bill, of things done so many times for a sample; each thing has a price, its time. The prices were fitted
(`python -m bench.estimates`: least squares of the relative errors, none negative) to random convolutions of 1 to 3
axes, steps 1 to 4, 1 to 512 channels and up to 0.4 GFLOP on one core. Nothing depends on the number of samples: many
are assumed.

Prices are nanoseconds of that core; only their ratios matter. Vectors are counted, not elements, so that they hold for
float64 too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.host import REGISTERS, SECOND_LEVEL_BYTES
from fastconv.backends.cpu.plan import FAR_ROWS, MANY_ROWS, PANEL_STEP, TILE_VECTORS, Correlation
from fastconv.backends.cpu.row_lanes_simd import OUTPUTS, VECTORS

if TYPE_CHECKING:
    from fastconv.backends.cpu.row_lanes import RowLanes

Bill = dict[str, float]

# Zen 3, 12,855 convolutions: half of the estimates lie between 0.8 and 1.1 of the time taken, and the way with the
# least estimate took on average 2 % longer than the fastest.
WITH_16_REGISTERS = {
    # A product is a vector multiplied and added: more where the phases of a step lie apart, or where the gathered
    # source of a box does not fit into the second level, or where many rows in place fall into a few sets of the cache.
    "box product": 0.2,
    "box product, phases apart": 0.01,
    "box product, far": 0.067,
    "box product, rows far apart": 0.02,
    "box": 715.0,
    "box row": 20.0,  # of the source
    "box vector, step 2": 0.8,  # gathered: phases of a step are taken apart by shuffles
    "box vector, step 4": 5.4,
    "box element": 1.05,  # where the step has no shuffle
    "box tile": 9.9,  # stored as it is
    "box piece": 4.35,  # a row of a piece of a tile that reaches over rows' ends
    "column product": 0.2,
    "column tile": 36.0,
    "panel": 1000.0,
    "column vector, step 1": 2.4,
    "column vector, step 2": 3.2,
    "column vector, step 4": 6.9,
    "column element": 2.6,
    "stretch": 3.2,  # a row of outputs of one tap of one channel, by vectors
    "stretch of elements": 19.0,
    "moves": 29.0,  # of a stretch: what the channels share
    "lane product": 0.2,
    "lane product, odd": 0.067,  # in a block of one vector of rows
    "lane product, far": 0.067,
    "lane tile": 13.7,
    "lane box": 350.0,
    "lane row": 6.0,
    "lane vector": 2.1,  # copied with its padding
    # Winograd's tiles (winograd.py) of small images, fitted to 2,330 convolutions: a product as above, a tile of them,
    # and a vector of a frequency of what is transformed.
    "tiles product": 0.172,
    "tiles tile": 92.0,
    "tiles input": 11.3,
    "tiles filter": 1.98,
    "tiles call": 8700.0,
    # The same in boxes, by the axes that are transformed. Not fitted on Zen 3: its prices on Zen 4 by vectors of 256
    # bits, times the 1.3 that direct sums there take longer by the prices above.
    "tiled box product": 0.25,
    "tiled box product, planes": 0.06,
    "tiled box input, axes 1": 1.5,
    "tiled box input, axes 2": 3.8,
    "tiled box input, planes": 1.6,
    "tiled box output, axes 1": 1.8,
    "tiled box output, axes 2": 2.35,
    "tiled box filter": 2.6,
    "tiled box": 3200.0,
    "tiled box, planes": 1300.0,
}

# Zen 4, 6,600 convolutions (2,400 more for Winograd's tiles) by vectors of 512 bits: 2 % longer than the fastest.
WITH_32_REGISTERS = {
    "box product": 0.3,
    "box product, phases apart": 0.026,
    "box product, far": 0.0552,
    "box product, rows far apart": 0.0332,
    "box": 101,
    "box row": 11.4,
    "box vector, step 1": 0.885,
    "box vector, step 2": 2.39,
    "box vector, step 4": 5.97,
    "box element": 0.597,
    "box tile": 29.7,
    "box piece": 3.38,
    "column product": 0.353,
    "column tile": 35.9,
    "panel": 1060.0,
    "column vector, step 2": 1.45,
    "column vector, step 4": 6.16,
    "column element": 1.21,
    "stretch": 3.82,
    "stretch of elements": 25.4,
    "moves": 12.1,
    "lane product": 0.314,
    "lane tile": 20.5,
    "lane box": 8.95,
    "lane row": 2.53,
    "lane vector": 1.94,
    "tiles product": 0.141,
    "tiles input": 15.9,
    "tiles output": 11.0,
    "tiles filter": 3.93,
    "tiles call": 11400.0,
    "tiled box product": 0.376,
    "tiled box product, planes": 0.005,
    "tiled box input, axes 1": 2.73,
    "tiled box input, axes 2": 8.9,
    "tiled box input, planes": 4.6,
    "tiled box output, axes 1": 2.56,
    "tiled box output, axes 2": 3.69,
    "tiled box filter": 2.33,
    "tiled box": 2740.0,
}

PRICES: dict[str, float] = WITH_32_REGISTERS if REGISTERS == 32 else WITH_16_REGISTERS
"""Nanoseconds of each thing on a bill; what is not named costs nothing."""

_STEPS = (1, 2, 4)  # that are gathered by shuffles


def cost(bill: Bill) -> float:
    """The sum of a bill, in nanoseconds."""
    return sum(count * PRICES.get(thing, 0.0) for thing, count in bill.items())


def takes_columns(c: Correlation) -> bool:
    """Whether a correlation gathers exact columns, not boxes."""
    return c.rows >= MANY_ROWS and columns_time(c) < boxes_time(c)


def time_without_lanes(c: Correlation) -> float:
    """By columns or boxes, whichever is taken."""
    return columns_time(c) if takes_columns(c) else boxes_time(c)


def boxes_time(c: Correlation) -> float:
    """By gathered boxes, or of a source in place (correlate.py)."""
    return cost(boxes_bill(c))


def columns_time(c: Correlation) -> float:
    """By exact columns, in parts that read less padding (columns.py)."""
    return sum(cost(columns_bill(part)) for part in c.parts)


def lanes_time(lanes: RowLanes) -> float:
    """With rows of weights in the lanes (row_lanes.py)."""
    return cost(lanes_bill(lanes))


def boxes_bill(c: Correlation) -> Bill:
    """What boxes do."""
    plan, lanes = c.plan[0], lanes_of(c.itemsize)
    depth, height, width = c.axes
    vectors = depth.outputs * c.box_vectors()
    tiles = -(-vectors // TILE_VECTORS)
    products = vectors * c.packed_rows * c.count
    bill: Bill = {"box product": products}
    if max(height.step, width.step) > 1:
        bill["box product, phases apart"] = products
    if c.channels * int(plan["channel"]) * c.itemsize > SECOND_LEVEL_BYTES:
        bill["box product, far"] = products
    if plan["linear"] or plan["rowwise"]:
        bill["box tile"] = tiles * c.blocks
    else:
        bill["box piece"] = (tiles + depth.outputs * height.outputs * int(plan["boxes_w"])) * c.rows
    if plan["direct"]:
        if c.count >= FAR_ROWS:
            bill["box product, rows far apart"] = products
        return bill
    elements = c.boxes * c.channels * int(plan["channel"])
    if width.step in _STEPS:
        bill[f"box vector, step {width.step}"] = elements / lanes
    else:
        bill["box element"] = elements
    bill["box row"] = c.boxes * c.channels * int(plan["planes"]) * int(plan["box_rows"]) * int(plan["phases_h"])
    bill["box"] = c.boxes
    return bill


def columns_bill(c: Correlation) -> Bill:
    """What columns do for one of the parts of a correlation."""
    lanes, step = lanes_of(c.itemsize), c.axes[2].step
    vectors, stretches = c.outputs / lanes, c.axes[0].outputs * c.axes[1].outputs
    bill: Bill = {
        "column product": vectors * c.packed_rows * c.count,
        "column tile": vectors / TILE_VECTORS * c.blocks * -(-c.count // PANEL_STEP),
        "moves": stretches * len(c.kernel_taps),
        "panel": c.outputs / c.panel_columns,
    }
    if step in _STEPS:
        bill[f"column vector, step {step}"] = vectors * c.count
        bill["stretch"] = stretches * c.count
    else:
        bill["column element"] = c.outputs * c.count
        bill["stretch of elements"] = stretches * c.count
    return bill


def lanes_bill(lanes: RowLanes) -> Bill:
    """What rows in lanes do."""
    c, plan = lanes.correlation, lanes.plan[0]
    tiles = lanes.boxes * -(-int(plan["box_h"] * plan["box_w"]) // OUTPUTS)
    products = tiles * OUTPUTS * c.count
    bill: Bill = {
        "lane product": products * lanes.vectors,
        "lane product, odd": products * (lanes.vectors % VECTORS),
        "lane tile": tiles * lanes.vectors * lanes.steps,
        "lane box": lanes.boxes,
    }
    copied = c.channels * lanes.copied
    if copied * c.itemsize > SECOND_LEVEL_BYTES:
        bill["lane product, far"] = products * lanes.vectors
    if copied:
        bill["lane vector"] = lanes.boxes * copied / lanes_of(c.itemsize)
        bill["lane row"] = lanes.boxes * c.channels * int(plan["planes"] * plan["box_rows"])
    return bill
