"""When Winograd's tiles replace a correlation, and which; the idea and the kernels are in winograd_kernels.py."""

from __future__ import annotations

import math

from fastconv.backends.axes import Axis
from fastconv.backends.cpu.estimates import SAMPLES, WINOGRAD_GAIN, cost
from fastconv.backends.cpu.plan import Correlation
from fastconv.backends.cpu.shift_gemm import direct_time
from fastconv.backends.cpu.winograd_boxes import Boxes
from fastconv.backends.cpu.winograd_forms import phase_taps
from fastconv.backends.cpu.winograd_matrices import MAX_CHANNELS, OUTPUTS
from fastconv.backends.cpu.winograd_spread import spread_axes
from fastconv.backends.cpu.winograd_tiles import Tiles

_MIN_CHANNELS, _MIN_ROWS = 8, 6

_PHASE_OUTPUTS = 64  # of a phase of the dilation: with fewer, tiles from anywhere or direct sums are faster than boxes

_TILE_OUTPUTS: dict[tuple[int, ...], tuple[int, ...]] = {(2, 2): (4, 3, 2), (3, 3): (4, 3), (4, 4): (4,), (5, 5): (4,)}
"""By the taps of a phase of the step: along an axis of tiles from anywhere."""

_BOX_STEPS = {1, 2, 4}
"""Steps of boxes: the rows of a patch are taken apart by shuffles."""

_WORTH_NS = 30_000
"""Direct sums of a sample that take less are not worth code of its own for a step, which takes seconds to compile."""

_MAX_SPREAD = 4  # phases of an axis of outputs: more of them seldom have several taps

_SMALLER, _SMALLER_GAIN = "tiles of 3×3", 1.05
"""Gain of smaller tiles for which larger ones are left: more samples than are assumed favour these."""


def ways(correlation: Correlation) -> dict[str, Boxes | Tiles]:
    """How tiles can compute a correlation that they suit."""
    depth, height, width = correlation.axes
    found: dict[str, Boxes | Tiles] = {}
    phases = math.prod(max(1, min(axis.spacing, axis.outputs)) for axis in (height, width))
    large = phases == 1 or height.outputs * width.outputs >= _PHASE_OUTPUTS * phases
    if large and {height.step, width.step} <= _BOX_STEPS:
        found["boxes"] = Boxes(correlation)
    if _flat(depth):
        for outputs in _TILE_OUTPUTS.get(_taps_of(height, width), ()):
            found[f"tiles of {outputs}×{outputs}"] = Tiles(correlation, outputs)
    return found


def fastest(correlation: Correlation) -> tuple[str, Boxes | Tiles] | None:
    """The way that pays, if one does: direct sums round less."""
    if not suits(correlation):
        return None
    direct = direct_time(correlation)
    strided = max(axis.step for axis in correlation.axes[1:]) > 1
    return None if strided and direct < _WORTH_NS else _fastest(ways(correlation), direct)


def _fastest(found: dict[str, Boxes | Tiles], direct: float) -> tuple[str, Boxes | Tiles] | None:
    """The way with the least estimate, if that is less than the time of direct sums."""
    times = {name: cost(way.bill(SAMPLES)) for name, way in found.items()}
    name = min(times, key=lambda name: times[name] * (_SMALLER_GAIN if name == _SMALLER else 1), default="")
    return (name, found[name]) if name and WINOGRAD_GAIN * times[name] < direct else None


def spread_ways(correlations: list[Correlation]) -> dict[str, Boxes | Tiles]:
    """How tiles can compute the phases of a strided input gradient, in height and width, that share a depth."""
    one, depth = correlations[0], correlations[0].axes[0]
    axes = [list(dict.fromkeys(c.axes[n] for c in correlations)) for n in (1, 2)]
    if len(correlations) == 1 or max(map(len, axes)) > _MAX_SPREAD:
        return {}
    spread = spread_axes(axes, one.kernel, OUTPUTS)
    if spread is None:
        return {}
    taps = tuple(phase_taps(axis.taps, axis.step) for axis in spread)
    most = MAX_CHANNELS.get(tuple(count for count in taps if count > 1), 0)
    if not _MIN_CHANNELS <= one.channels * len(depth.offsets) <= most:
        return {}
    found: dict[str, Boxes | Tiles] = {"boxes": Boxes(one, spread)}
    if _flat(depth):
        for outputs in _TILE_OUTPUTS.get(taps, ()):
            found[f"tiles of {outputs}×{outputs}"] = Tiles(one, outputs, spread_axes(axes, one.kernel, outputs))
    return found


def fastest_spread(correlations: list[Correlation]) -> tuple[str, Boxes | Tiles] | None:
    """The way that pays for the phases of an input gradient, if one does."""
    if any(correlation.empty for correlation in correlations):
        return None
    direct = sum(map(direct_time, correlations))
    return None if direct < _WORTH_NS else _fastest(spread_ways(correlations), direct)


def suits(correlation: Correlation) -> bool:
    """Taps of one of the forms on the last two axes, neighbours or at step 1, and enough channels for the transforms.

    Dilated taps of one axis do not pay: to take their phases apart, and to store them, costs more than is saved.
    """
    depth, height, width = correlation.axes
    tapped = [axis for axis in (height, width) if len(axis.offsets) > 1]
    apart = all(axis.spacing for axis in tapped) if len(tapped) == 2 else [axis.spacing for axis in tapped] == [1]
    near = all(axis.stride == 1 and (axis.step == 1 or axis.spacing == 1) for axis in (height, width))
    summed = correlation.channels * len(depth.offsets) * height.step * width.step
    enough = _MIN_CHANNELS <= summed <= MAX_CHANNELS.get(_taps_of(*tapped), 0) and correlation.rows >= _MIN_ROWS
    return apart and near and enough


def _flat(depth: Axis) -> bool:
    """Whether source and target are planes, one plane to each channel: tiles from anywhere know no others."""
    return depth.size == depth.target == 1 and depth.offsets == (0,)


def _taps_of(*axes: Axis) -> tuple[int, ...]:
    """Taps of the first phase of the steps."""
    return tuple(phase_taps(len(axis.offsets), axis.step) for axis in axes)
