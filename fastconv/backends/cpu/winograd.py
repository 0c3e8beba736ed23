"""When Winograd's tiles replace a correlation, and which; the idea and the kernels are in winograd_kernels.py."""

from __future__ import annotations

import math

from fastconv.backends.cpu.estimates import SAMPLES, WINOGRAD_GAIN, cost
from fastconv.backends.cpu.plan import Correlation
from fastconv.backends.cpu.shift_gemm import direct_time
from fastconv.backends.cpu.winograd_boxes import Boxes
from fastconv.backends.cpu.winograd_matrices import MAX_CHANNELS
from fastconv.backends.cpu.winograd_tiles import Tiles

_MIN_CHANNELS, _MIN_ROWS = 8, 6

_PHASE_OUTPUTS = 64  # of a phase of the dilation: with fewer, tiles from anywhere or direct sums are faster than boxes

_TILE_OUTPUTS = {(3, 3): (4, 3), (5, 5): (4,)}
"""By the taps: along an axis of tiles from anywhere."""

_SMALLER, _SMALLER_GAIN = "tiles of 3×3", 1.05
"""Gain of smaller tiles for which larger ones are left: more samples than are assumed favour these."""


def ways(correlation: Correlation) -> dict[str, Boxes | Tiles]:
    """How tiles can compute a correlation that they suit."""
    depth, height, width = correlation.axes
    found: dict[str, Boxes | Tiles] = {}
    phases = math.prod(max(1, min(axis.spacing, axis.outputs)) for axis in (height, width))
    if phases == 1 or height.outputs * width.outputs >= _PHASE_OUTPUTS * phases:
        found["boxes"] = Boxes(correlation)
    if len(depth.offsets) == depth.outputs == 1:
        for outputs in _TILE_OUTPUTS.get((len(height.offsets), len(width.offsets)), ()):
            found[f"tiles of {outputs}×{outputs}"] = Tiles(correlation, outputs)
    return found


def fastest(correlation: Correlation) -> tuple[str, Boxes | Tiles] | None:
    """The way that pays, if one does: direct sums round less."""
    if not suits(correlation):
        return None
    found = ways(correlation)
    times = {name: cost(way.bill(SAMPLES)) for name, way in found.items()}
    name = min(times, key=lambda name: times[name] * (_SMALLER_GAIN if name == _SMALLER else 1), default="")
    return (name, found[name]) if name and WINOGRAD_GAIN * times[name] < direct_time(correlation) else None


def suits(correlation: Correlation) -> bool:
    """Taps of one of the forms on the last two axes at step 1, and channels enough to pay for the transforms.

    Dilated taps of one axis do not pay: to take their phases apart, and to store them, costs more than is saved.
    """
    depth, height, width = correlation.axes
    at_step_one = all(axis.step == axis.stride == 1 for axis in (height, width))
    tapped = [axis for axis in (height, width) if len(axis.offsets) > 1]
    apart = all(axis.spacing for axis in tapped) if len(tapped) == 2 else [axis.spacing for axis in tapped] == [1]
    form = tuple(len(axis.offsets) for axis in tapped)
    channels = correlation.channels * len(depth.offsets)
    enough = _MIN_CHANNELS <= channels <= MAX_CHANNELS.get(form, 0) and correlation.rows >= _MIN_ROWS
    return at_step_one and apart and enough
