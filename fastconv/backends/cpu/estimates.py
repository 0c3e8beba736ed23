"""How long the ways of direct sums take, estimated: what decides between boxes, exact columns and rows in lanes.

Each way is a list of things done, so many times for a sample, which take their time each. The times were fitted (least
squares of the relative errors, none negative) to 12,855 random convolutions of 1 to 3 axes, steps 1 to 4, 1 to 256
channels and up to 0.3 GFLOP on one core of Zen 3: half of the estimates lie between 0.8 and 1.1 of the time taken, and
the way with the least estimate took on average 2 % longer than the fastest.

Times are nanoseconds of that core; only their ratios matter. Vectors are counted, not elements, so that they hold for
float64 too. Nothing depends on the number of samples: many are assumed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.host import REGISTERS, SECOND_LEVEL_BYTES
from fastconv.backends.cpu.plan import FAR_ROWS, MANY_ROWS, PANEL_STEP, TILE_VECTORS, Correlation
from fastconv.backends.cpu.row_lanes_simd import OUTPUTS, VECTORS

if TYPE_CHECKING:
    from fastconv.backends.cpu.row_lanes import RowLanes

_PRODUCT = 0.2  # a vector multiplied and added
_THIRD_LEVEL = 4 / 3  # times as long if the gathered source of a box does not fit into the second level

_APART = 1.05  # times as long where the phases of a step lie apart
_BOX, _BOX_ROW = 715, 20  # to begin a box, and a row of its source
_BOX_VECTOR = {1: 0.0, 2: 0.8, 4: 5.4}  # of gathered source, by the step: phases are taken apart by shuffles
_BOX_ELEMENT = 1.05  # where the step has none
_BOX_TILE, _BOX_PIECE = 9.9, 4.35  # a tile stored as it is, or a row of a piece of one that reaches over rows' ends

_COLUMNS_TILE, _PANEL = 36, 1000
_COLUMNS_VECTOR = {1: 2.4, 2: 3.2, 4: 6.9}  # gathered, by the step
_COLUMNS_ELEMENT = 2.6
_STRETCH, _STRETCH_ELEMENTS = 3.2, 19  # a row of outputs of one tap of one channel: by vectors, by elements
_STRETCH_MOVES = 29  # what the channels share of it

_LANES_TILE, _LANES_BOX, _LANES_ROW = 13.7, 350, 6
_LANES_VECTOR = 2.1  # copied with its padding
_LANES_ODD = 4 / 3  # a block of one vector of rows, in vectors
_LANES_UNTIMED = 1.1  # with 32 registers the tile has not been timed: only where something is saved


def takes_columns(c: Correlation) -> bool:
    """Whether a correlation gathers exact columns, not boxes."""
    if c.rows < MANY_ROWS:
        return False
    plan = c.plan[0]
    if len(c.parts) == 1 and (plan["linear"] or plan["taps"] == 1):  # a box has no waste
        if c.count >= FAR_ROWS:
            return True  # rows far apart fall into a few sets of the cache
        if c.count >= FAR_ROWS // 2 and c.axes[1].step > 1 and c.axes[2].step in _COLUMNS_VECTOR:
            return True  # most rows of a box would never be read
        if plan["linear"] or plan["direct"]:
            return c.outputs <= lanes_of(c.itemsize)  # a tile across samples is fuller
    return columns_time(c) < boxes_time(c)


def time_without_lanes(c: Correlation) -> float:
    """By columns or boxes, whichever is taken."""
    return columns_time(c) if takes_columns(c) else boxes_time(c)


def boxes_time(c: Correlation) -> float:
    """By gathered boxes, or of a source in place (correlate.py)."""
    plan, lanes, rows = c.plan[0], lanes_of(c.itemsize), c.packed_rows
    depth, height, width = c.axes
    vectors = depth.outputs * c.box_vectors()
    tiles, box_rows = -(-vectors // TILE_VECTORS), int(plan["box_rows"]) * int(plan["phases_h"])
    products = vectors * rows * c.count * _PRODUCT * (_APART if max(height.step, width.step) > 1 else 1)
    if c.channels * int(plan["channel"]) * c.itemsize > SECOND_LEVEL_BYTES:
        products *= _THIRD_LEVEL
    if plan["linear"] or plan["rowwise"]:
        stored = tiles * c.blocks * _BOX_TILE
    else:
        pieces = tiles + depth.outputs * height.outputs * int(plan["boxes_w"])
        stored = pieces * c.rows * _BOX_PIECE
    if plan["direct"]:
        return products + stored
    elements = c.channels * int(plan["channel"])
    gathered = elements / lanes * _BOX_VECTOR[width.step] if width.step in _BOX_VECTOR else elements * _BOX_ELEMENT
    gathered += c.channels * int(plan["planes"]) * box_rows * _BOX_ROW
    return products + stored + c.boxes * (gathered + _BOX)


def columns_time(c: Correlation) -> float:
    """By exact columns, in parts that read less padding (columns.py)."""
    return sum(_part_time(part) for part in c.parts)


def _part_time(c: Correlation) -> float:
    lanes, step = lanes_of(c.itemsize), c.axes[2].step
    tiles, steps = c.outputs / lanes / TILE_VECTORS, -(-c.count // PANEL_STEP)
    products = c.outputs / lanes * c.packed_rows * c.count * _PRODUCT
    stretches, taps = c.axes[0].outputs * c.axes[1].outputs, len(c.kernel_taps)
    elements = c.outputs * c.count
    if step in _COLUMNS_VECTOR:
        gathered = elements / lanes * _COLUMNS_VECTOR[step] + stretches * c.count * _STRETCH
    else:
        gathered = elements * _COLUMNS_ELEMENT + stretches * c.count * _STRETCH_ELEMENTS
    gathered += stretches * taps * _STRETCH_MOVES + c.outputs / c.panel_columns * _PANEL
    return products + tiles * c.blocks * steps * _COLUMNS_TILE + gathered


def lanes_time(lanes: RowLanes) -> float:
    """With rows of weights in the lanes (row_lanes.py)."""
    c, plan = lanes.correlation, lanes.plan[0]
    tiles = lanes.boxes * -(-int(plan["box_h"] * plan["box_w"]) // OUTPUTS)
    vectors = lanes.vectors // VECTORS * VECTORS + lanes.vectors % VECTORS * _LANES_ODD
    products = tiles * OUTPUTS * vectors * c.count * _PRODUCT
    copied = c.channels * lanes.copied
    if copied * c.itemsize > SECOND_LEVEL_BYTES:
        products *= _THIRD_LEVEL
    time = products + tiles * lanes.vectors * lanes.steps * _LANES_TILE
    if copied:
        rows = c.channels * int(plan["planes"] * plan["box_rows"])
        time += lanes.boxes * (copied / lanes_of(c.itemsize) * _LANES_VECTOR + rows * _LANES_ROW)
    time += lanes.boxes * _LANES_BOX
    return time * _LANES_UNTIMED if REGISTERS == 32 else time
