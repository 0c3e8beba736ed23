"""How long a convolution takes, estimated: what decides between boxes, exact columns, rows in lanes, Winograd's tiles.

Each way is a bill, of things done so many times for a sample; each thing has a price, its time (prices.py), fitted by
`python -m bench.estimates` to random convolutions of 1 to 3 axes, steps 1 to 4, 1 to 512 channels and up to 0.4 GFLOP
on one core: by least squares of the relative errors, none negative, and then so that what is chosen takes least.
Nothing depends on the number of samples: many are assumed, or SAMPLES where they share what is done once.

Vectors are counted, not elements, so that prices hold for float64 too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.host import PAGE_BYTES, SECOND_LEVEL_BYTES
from fastconv.backends.cpu.plan import MANY_ROWS, PANEL_STEP, TILE_VECTORS, Correlation
from fastconv.backends.cpu.prices import PRICES
from fastconv.backends.cpu.row_lanes_simd import OUTPUTS

if TYPE_CHECKING:
    from fastconv.backends.cpu.row_lanes import RowLanes

Bill = dict[str, float]

FAR_PAGES = 64
"""Pages whose addresses the first-level TLB of a core can translate, about."""

LONG_ROW_BYTES, LONG_ROWS = 2 * PAGE_BYTES, 32
"""Of a source in place: rows longer than that, and how many, from which on some processors lose by them."""

STEPS, BOX_STEPS = (1, 2, 4), (1, 2, 4, 8, 16)
"""Steps along a row that are gathered by shuffles, anywhere and where a box takes all phases of a row."""

SAMPLES = 3
"""Samples that are assumed to share what is done once, such as transforms of filters."""

WINOGRAD_GAIN = 1.05
"""Gain of Winograd's tiles for which direct sums are left, which round less."""


def cost(bill: Bill, prices: dict[str, float] = PRICES) -> float:
    """The sum of a bill, in nanoseconds; what has no price costs nothing."""
    return sum(count * prices.get(thing, 0.0) for thing, count in bill.items())


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
    return cost(columns_bill(c))


def lanes_time(lanes: RowLanes) -> float:
    """With rows of weights in the lanes (row_lanes.py)."""
    return cost(lanes_bill(lanes))


def boxes_bill(c: Correlation, samples: int = SAMPLES) -> Bill:
    """What boxes do for each of so many samples."""
    plan, lanes = c.plan[0], lanes_of(c.itemsize)
    depth, height, width = c.axes
    vectors = depth.outputs * c.box_vectors()
    tiles = -(-vectors // TILE_VECTORS)
    products = vectors * c.packed_rows * c.count
    bill: Bill = {"box product": products, "box weight": c.packed_rows * c.count / samples}
    if max(height.step, width.step) > 1:
        bill["box product, phases apart"] = products
    if c.channels * int(plan["channel"]) * c.itemsize > SECOND_LEVEL_BYTES:
        bill["box product, far"] = products
    if plan["linear"] or plan["rowwise"]:
        bill["box tile"] = tiles * c.blocks
    else:
        bill["box piece"] = (tiles + depth.outputs * height.outputs * int(plan["boxes_w"])) * c.rows
    if plan["direct"]:
        if c.count >= LONG_ROWS and c.outputs * c.itemsize > LONG_ROW_BYTES:
            bill["box product, long rows"] = products
        if c.count * min(PAGE_BYTES, c.outputs * c.itemsize) > FAR_PAGES * PAGE_BYTES:
            bill["box product, far pages"] = products
            if c.outputs % lanes:  # else tiles begin where vectors do
                bill["box product, across lines"] = products
        return bill
    return bill | gather_bill(c, "box")


def gather_bill(c: Correlation, box: str) -> Bill:
    """What it takes to gather the source of all boxes, things of a `box` of this kind."""
    plan, width = c.plan[0], c.axes[2]
    bill: Bill = {box: c.boxes}
    elements = c.boxes * c.channels * int(plan["channel"])
    some = len(width.phases) < width.step  # else all of a row are taken apart at once
    if width.step in (STEPS if some else BOX_STEPS):
        kind = f"step {width.step}, some phases" if some else f"step {width.step}"
        bill[f"{box} vector, {kind}"] = elements / lanes_of(c.itemsize)
    else:
        bill[f"{box} element"] = elements
    bill[f"{box} row"] = c.boxes * c.channels * int(plan["planes"]) * int(plan["box_rows"]) * int(plan["phases_h"])
    return bill


def columns_bill(c: Correlation, samples: int = SAMPLES) -> Bill:
    """What columns do for each of so many samples; all parts of a correlation share the packed weights."""
    bill: Bill = {"column weight": c.packed_rows * c.count / samples}
    for part in c.parts:
        add(bill, _part_bill(part))
    return bill


def add(bill: Bill, more: Bill) -> None:
    """Put more on a bill."""
    for thing, count in more.items():
        bill[thing] = bill.get(thing, 0.0) + count


def _part_bill(c: Correlation) -> Bill:
    lanes, step = lanes_of(c.itemsize), c.axes[2].step
    vectors, stretches = c.outputs / lanes, c.axes[0].outputs * c.axes[1].outputs
    bill: Bill = {
        "column product": vectors * c.packed_rows * c.count,
        "column tile": vectors / TILE_VECTORS * c.blocks * -(-c.count // PANEL_STEP),
        "moves": stretches * len(c.kernel_taps),
        "panel": c.outputs / c.panel_columns,
        "box piece": c.rows * (1 if c.plan[0]["compact"] else stretches),  # where columns are no neighbours any more
    }
    if step in STEPS:
        bill[f"column vector, step {step}"] = vectors * c.count
        bill["stretch"] = stretches * c.count
    else:
        bill["column element"] = c.outputs * c.count
        bill["stretch of elements"] = stretches * c.count
    return bill


def lanes_bill(lanes: RowLanes, samples: int = SAMPLES) -> Bill:
    """What rows in lanes do for each of so many samples."""
    c, plan = lanes.correlation, lanes.plan[0]
    tiles = lanes.boxes * -(-int(plan["box_h"] * plan["box_w"]) // OUTPUTS)
    products = tiles * OUTPUTS * c.count
    more = lanes.vectors - 2 * lanes.blocks  # vectors, than if each block had two
    ones, threes = max(0, -more), max(0, more)  # blocks of one vector, and of three
    bill: Bill = {
        "lane product": products * (lanes.vectors - 3 * threes),
        "lane product, three": products * 3 * threes,
        "lane product, odd": products * ones,
        "lane tile": tiles * lanes.vectors * lanes.steps,
        "lane output": c.rows * c.outputs / lanes_of(c.itemsize),
        "lane box": lanes.boxes,
        "lane weight": lanes.packed_elements / c.groups / samples,
    }
    if c.outputs * c.itemsize % PAGE_BYTES == 0:  # then all rows of a block are stored to the same sets of the cache
        bill["lane output, crowded"] = bill["lane output"]
    copied = c.channels * lanes.copied
    if copied * c.itemsize > SECOND_LEVEL_BYTES:
        bill["lane product, far"] = products * lanes.vectors
    if copied:
        bill["lane vector"] = lanes.boxes * copied / lanes_of(c.itemsize)
        bill["lane row"] = lanes.boxes * c.channels * int(plan["planes"] * plan["box_rows"])
    return bill
