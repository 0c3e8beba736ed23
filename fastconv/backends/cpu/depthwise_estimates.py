"""How long a depthwise convolution takes in strips and with channels in the lanes: bills, as in estimates.py."""

from __future__ import annotations

import math

import numpy as np

from fastconv.backends.cpu.depthwise import MOST_ROWS
from fastconv.backends.cpu.depthwise_lanes import Lanes
from fastconv.backends.cpu.depthwise_strips import Strips
from fastconv.backends.cpu.depthwise_strips_simd import PIECE
from fastconv.backends.cpu.estimates import Bill, cost
from fastconv.backends.cpu.shift_gemm import direct_time

MOST_READ = 1.5
"""Source rows that strips read, over those that the outputs advance by: each costs as much as if it met all taps."""


def strips_pay(strips: Strips, lanes: Lanes) -> bool:
    """Whether strips are faster than lanes, or where channels fill no lanes than what else there is.

    That is depthwise.py, twice as slow mostly, or for many filters of a channel, which share its source, products.
    """
    if not strips.fits:
        return False
    c = strips.correlation
    if lanes.fits:
        return cost(strips_bill(strips)) <= cost(lanes_bill(lanes))
    if c.rows <= MOST_ROWS:
        return _read_rows(strips) <= MOST_READ
    return cost(strips_bill(strips)) <= c.groups * direct_time(c)  # which is of one group


def _read_rows(strips: Strips) -> float:
    """Source rows that an image has for its outputs, over those that these advance by."""
    height = strips.correlation.axes[1]
    read = (height.outputs - 1) * height.step + max(height.offsets) - height.low + 1
    return min(height.size, read) / (height.outputs * height.step)


def strips_bill(strips: Strips) -> Bill:
    """What strips do (depthwise_strips.py)."""
    c = strips.correlation
    images = c.groups * c.rows
    piece = {name: strips.pieces[:, n] for n, name in enumerate(PIECE)}
    swept = (piece["outputs"] + (strips.side - 1) // strips.step) * strips.step
    first, last = piece["row"], piece["row"] + (swept - 1) * strips.row_apart
    apart = abs(strips.row_apart)
    outside = np.maximum(0, -(np.minimum(first, last) // apart))  # rows before the source, then behind it
    outside += np.maximum(0, (np.maximum(first, last) - piece["inside"]) // apart + 1)
    rows = swept - np.minimum(outside, swept)
    kind = f"side {strips.side}, step {strips.step}"
    masked = float(np.sum(piece["outputs"] - piece["plain"]))
    return {
        f"strip row, {kind}": images * float(np.sum(rows * (1 - piece["narrow"]))),
        f"half strip row, {kind}": images * float(np.sum(rows * piece["narrow"])),
        "strip row, masked": images * masked,
        "strip tap": images * len(strips.pieces) * float(strips.side**2),
        "strip": images * float(len(strips.pieces)),
    }


def lanes_bill(lanes: Lanes) -> Bill:
    """What channels in the lanes do (depthwise_lanes.py); of all phases of an input gradient together."""
    q = lanes.layout[0]
    positions = math.prod(axis.target for axis in lanes.axes)
    images = lanes.blocks * lanes.rows
    taps = int(q["count"]) / (len(lanes.heads) - 1)
    rows = lanes.axes[0].target * lanes.axes[1].target * int(q["boxes_w"])
    source = int(q["image"]) or int(q["channel"]) / lanes.lanes
    return {
        "depthwise lane product": images * positions * taps,
        "depthwise lane tap": images * rows * taps,
        "depthwise lane source": lanes.blocks * lanes.boxes * int(q["channels"]) * source,
        "depthwise lane target": images * float(positions),
        "depthwise lane row": images * float(rows),
        "depthwise lane box": float(lanes.blocks * lanes.boxes),
    }
