"""What the convolution kernels read of a correlation: the structures of kernels/correlation.cuh, filled on the host."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.axes import Axis, forward_axes, input_grad_axes, lifted
from fastconv.geometry import ConvGeometry

_INDEX, _INT = np.int64, np.int32

PROBLEM = np.dtype(
    [(name, _INDEX) for name in ("source_plane", "target_plane", "row_step", "channel_step")]
    + [("source", _INDEX, 3), ("target", _INDEX, 3), ("samples", _INDEX)]
    + [(name, _INT) for name in ("groups", "channels", "rows", "kernel_taps", "relu", "padded")],
    align=True,
)
PHASE = np.dtype(
    [("outputs", _INDEX, 3), ("low", _INDEX, 3), ("weights", _INDEX)]
    + [(name, _INT, 3) for name in ("step", "first", "stride", "spacing", "box", "boxes", "extent")]
    + [
        (name, _INT)
        for name in ("samples", "taps", "first_tap", "pitch", "chunk", "steps", "line_taps", "unit", "apart")
    ],
    align=True,
)
TAP = np.dtype([("offset", _INDEX, 3), ("kernel", _INT), ("tile", _INT)], align=True)

Axes = tuple[Axis, Axis, Axis]
Triple = tuple[int, int, int]
Records = npt.NDArray[Any]


@dataclass(frozen=True)
class Correlation:
    """A forward convolution, or an input gradient with a triple of axes for each phase of the strides.

    `channels` and `rows` are those of source and target in each group. `steps` is how far apart rows and channels lie
    in w. The phases write all of the target if it is `whole`. Outside of the source are zeros if it is `padded`:
    what is not finite times one of them is NaN.
    """

    phases: tuple[Axes, ...]
    channels: int
    rows: int
    groups: int
    kernel: tuple[int, ...]
    steps: tuple[int, int]
    whole: bool
    padded: bool

    @property
    def source(self) -> Triple:
        """The sizes of the source."""
        depth, height, width = self.phases[0]
        return depth.size, height.size, width.size

    @property
    def target(self) -> Triple:
        """The sizes of the target."""
        depth, height, width = self.phases[0]
        return depth.target, height.target, width.target

    def problem(self, samples: int, relu: bool = False) -> Records:
        """The `Problem` of a batch."""
        problem = np.zeros((), PROBLEM)
        problem["source"], problem["target"] = self.source, self.target
        problem["source_plane"], problem["target_plane"] = prod(self.source), prod(self.target)
        problem["row_step"], problem["channel_step"] = self.steps
        problem["samples"], problem["relu"], problem["padded"] = samples, relu, self.padded
        problem["groups"], problem["channels"], problem["rows"] = self.groups, self.channels, self.rows
        problem["kernel_taps"] = prod(self.kernel)
        return problem[()]


@lru_cache(maxsize=4096)
def forward(geometry: ConvGeometry) -> Correlation:
    """The correlation of a forward convolution."""
    channels, rows = geometry.in_channels // geometry.groups, geometry.out_channels // geometry.groups
    steps = channels * geometry.taps, geometry.taps
    axes = _triple(forward_axes(geometry))
    return Correlation((axes,), channels, rows, geometry.groups, geometry.kernel, steps, whole=True, padded=True)


@lru_cache(maxsize=4096)
def input_grad(geometry: ConvGeometry) -> Correlation:
    """The correlation of an input gradient."""
    channels, rows = geometry.out_channels // geometry.groups, geometry.in_channels // geometry.groups
    steps = geometry.taps, rows * geometry.taps
    phases = tuple(_triple(axes) for axes in input_grad_axes(geometry) if all(axis.offsets for axis in axes))
    whole = len(phases) == prod(min(stride, size) for stride, size in zip(geometry.stride, geometry.spatial))
    return Correlation(phases, channels, rows, geometry.groups, geometry.kernel, steps, whole, padded=False)


def _triple(axes: list[Axis]) -> Axes:
    depth, height, width = axes
    return depth, height, width


@dataclass(frozen=True)
class Tile:
    """How blocks of threads cut the outputs of a phase into boxes, and what of the source a box reads (tile.cuh)."""

    samples: int
    """Samples in a box."""
    box: Triple
    """Outputs in a box, for each axis."""
    boxes: Triple
    """Boxes that cover the outputs of a sample."""
    spacing: Triple
    """Every how many-th position of the source is kept: no tap reads those between."""
    extent: Triple
    """Positions kept."""

    @property
    def positions(self) -> int:
        """Words of a channel."""
        return self.samples * prod(self.extent)

    @property
    def pitch(self) -> int:
        """Words from channel to channel: the same positions of four channels, of eight pixels each, in 32 banks."""
        return self.positions + (8 - self.positions) % 32


HALO_COST = 0.25
"""Time to bring a position of the source into the tile over the time to compute a pixel, for some dozen channels."""


def tile(axes: Axes, pixels: int) -> Tile:
    """The box of that many outputs (a power of two) that wastes and reads least."""
    sides = [[2**i for i in range(pixels.bit_length()) if 2**i < 2 * axis.outputs] for axis in axes]
    best, least = None, float("inf")
    for box in itertools.product(*sides):
        samples, rest = divmod(pixels, prod(box))
        if samples == 0 or rest:
            continue
        found = cut(axes, samples, box)
        if samples > 1 and prod(found.boxes) > 1:  # several samples only where a box holds each of them whole
            continue
        cost = prod(found.boxes) / samples * (pixels + HALO_COST * found.positions)
        if cost < least:
            best, least = found, cost
    assert best is not None
    return best


def cut(axes: Sequence[Axis], samples: int, box: tuple[int, ...]) -> Tile:
    """The tile of a box of outputs."""
    spacing, extent = [], []
    for axis, side in zip(axes, box):
        low, high = min(axis.offsets), max(axis.offsets)
        apart = gcd(axis.step, *(offset - low for offset in axis.offsets))
        spacing.append(apart)
        extent.append((axis.step * (side - 1) + high - low) // apart + 1)
    boxes = [-(-axis.outputs // side) for axis, side in zip(axes, box)]
    return Tile(samples, *(lifted(tuple(values), 1) for values in (box, boxes, spacing, extent)))


def records(
    correlation: Correlation, tiles: list[Tile] | None = None, line: int | None = None
) -> tuple[Records, Records]:
    """The `Phase`s and their `Tap`s; fields that depend on the tiles stay zero without.

    With `line`, taps along that axis follow one another, in the order of the source.
    """
    phases = np.zeros(len(correlation.phases), PHASE)
    taps: list[tuple[Any, ...]] = []
    strides = lifted(correlation.kernel, 1)
    for i, (phase, axes) in enumerate(zip(phases, correlation.phases)):
        count = prod(len(axis.offsets) for axis in axes)
        phase["taps"], phase["first_tap"] = count, len(taps)
        for name in ("outputs", "step", "first", "stride"):
            phase[name] = [getattr(axis, name) for axis in axes]
        if count:
            phase["low"] = [axis.low for axis in axes]
        if tiles is not None:
            for name in ("samples", "spacing", "box", "boxes", "extent", "pitch"):
                phase[name] = getattr(tiles[i], name)
        for chosen in _order(axes, line):
            offset = tuple(axis.offsets[j] for axis, j in zip(axes, chosen))
            kernel = _flat([axis.taps[j] for axis, j in zip(axes, chosen)], strides)
            where = 0
            if tiles is not None:
                kept = [(o - axis.low) // s for o, axis, s in zip(offset, axes, tiles[i].spacing)]
                where = _flat(kept, tiles[i].extent)
            taps.append((offset, kernel, where))
    return phases, np.array(taps, TAP)


def _order(axes: Axes, line: int | None) -> list[tuple[int, ...]]:
    """The taps of a phase: for each the number of its offset on each axis."""
    chosen = list(itertools.product(*(range(len(axis.offsets)) for axis in axes)))
    if line is not None:
        chosen.sort(key=lambda taps: (taps[:line], taps[line + 1 :], axes[line].offsets[taps[line]]))
    return chosen


def _flat(position: list[int], sizes: Triple) -> int:
    return (position[0] * sizes[1] + position[1]) * sizes[2] + position[2]
