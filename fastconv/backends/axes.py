"""The axes of a correlation: which positions of the source the outputs of an axis read, and where they are written.

Forward convolution and input gradient are one thing here: output j of an axis reads the source at j · step + offset for
each of a few taps, and is written to the target at first + j · stride. The forward pass has step = the convolution's
stride and stride 1. The input gradient has step 1 and is one correlation for each phase of the convolution's stride,
with the taps that reach this phase. Taps that only ever meet padding are dropped. Lower ranks get leading axes of
size 1.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from fastconv.geometry import ConvGeometry

_SPLIT_WORK = 0.97  # an axis is split where no more than this part of its work is left
_SPLIT_TAPS = 64  # more of them cut an axis into too many pieces, and to choose among these takes long
_PART_OUTPUTS = 8  # what a part costs beyond its own: its weights come from afar, its last tile is not full


@dataclass(frozen=True)
class Axis:
    """One axis of a correlation; see the head of this file."""

    size: int
    outputs: int
    step: int
    offsets: tuple[int, ...]
    taps: tuple[int, ...]
    first: int
    stride: int
    target: int

    def reaching(self) -> Axis:
        """The same axis without the taps that read nothing but padding."""
        kept = [i for i, offset in enumerate(self.offsets) if self._reaches(offset)]
        offsets, taps = (tuple(values[i] for i in kept) for values in (self.offsets, self.taps))
        return Axis(self.size, self.outputs, self.step, offsets, taps, self.first, self.stride, self.target)

    def _reaches(self, offset: int) -> bool:
        first, last = self.inside(offset)
        return first < last

    def inside(self, offset: int) -> tuple[int, int]:
        """The outputs, first ≤ output < last, whose position at this offset lies inside the source."""
        return max(0, -(offset // self.step)), min(self.outputs, -((offset - self.size) // self.step))

    def split(self, overhead: int) -> list[Axis]:
        """The axis in parts whose taps read little padding, if that saves work; else the axis alone.

        Each part costs as much as `overhead` outputs beyond its own.
        """
        inside = [self.inside(offset) for offset in self.offsets]
        most = _SPLIT_WORK * (self.outputs + overhead) * len(inside)
        if sum(last - first for first, last in inside) > most or len(inside) > _SPLIT_TAPS:
            return [self]
        firsts, lasts = (sorted(ends) for ends in zip(*inside))
        edges = sorted({0, self.outputs, *(edge for pair in inside for edge in pair if 0 < edge < self.outputs)})
        best = [(0.0, 0)]  # up to each edge, by the cheapest parts: their work, and where the last of them begins
        for j, end in enumerate(edges[1:], 1):
            taps = [bisect_left(firsts, end) - bisect_right(lasts, begin) for begin in edges[:j]]
            works = [
                best[i][0] + (end - edges[i] + overhead) * count if count else math.inf  # no part is without taps
                for i, count in enumerate(taps)
            ]
            work = min(works)
            best.append((work, works.index(work)))
        if best[-1][0] > most:
            return [self]
        cuts = [len(edges) - 1]
        while cuts[0]:
            cuts.insert(0, best[cuts[0]][1])
        return [self._part(edges[i], edges[j]).reaching() for i, j in itertools.pairwise(cuts)]

    def _part(self, first: int, last: int) -> Axis:
        """Outputs first ≤ output < last."""
        offsets = tuple(offset + first * self.step for offset in self.offsets)
        start = self.first + first * self.stride
        return Axis(self.size, last - first, self.step, offsets, self.taps, start, self.stride, self.target)

    @cached_property
    def low(self) -> int:
        return min(self.offsets)

    @cached_property
    def phases(self) -> tuple[int, ...]:
        """Residues of the taps modulo the step: each is gathered as an image of its own, read at step 1."""
        return tuple(sorted({(offset - self.low) % self.step for offset in self.offsets}))

    @cached_property
    def halo(self) -> int:
        """Positions that a row of outputs reads in a phase beyond its own number."""
        return max((offset - self.low) // self.step for offset in self.offsets)

    @cached_property
    def spacing(self) -> int:
        """How far apart the taps lie, 0 if not at equal distances."""
        distances = {b - a for a, b in itertools.pairwise(sorted(self.offsets))}
        return distances.pop() if len(distances) == 1 else 0

    @property
    def identity(self) -> bool:
        """Whether each output reads the position of the same number, and is written there."""
        alone = self.step == self.stride == 1 and self.offsets == self.taps == (0,) and self.first == 0
        return alone and self.outputs == self.size == self.target


def lifted(values: tuple[int, ...], fill: int) -> tuple[int, int, int]:
    """Three axes from one to three, by leading ones."""
    full = (fill,) * (3 - len(values)) + tuple(values)
    return full[0], full[1], full[2]


def _by_axis(geometry: ConvGeometry) -> Iterator[tuple[int, int, int, int, tuple[int, int], int]]:
    """(size, kernel, stride, dilation, padding, output size) of each spatial axis."""
    g = geometry
    return zip(g.spatial, g.kernel, g.stride, g.dilation, g.padding, g.out_spatial, strict=True)


def forward_axes(geometry: ConvGeometry) -> list[Axis]:
    """The three axes of the forward convolution."""
    axes = []
    for size, kernel, stride, dilation, (before, _), out in _by_axis(geometry):
        offsets = tuple(tap * dilation - before for tap in range(kernel))
        axes.append(Axis(size, out, stride, offsets, tuple(range(kernel)), 0, 1, out))
    return _lift(axes)


def input_grad_axes(geometry: ConvGeometry) -> list[list[Axis]]:
    """The three axes of the input gradient, one triple for each phase of the strides that a tap reaches."""
    per_axis = []
    for size, kernel, stride, dilation, (before, _), out in _by_axis(geometry):
        phases = []
        for phase in sorted({(tap * dilation - before) % stride for tap in range(kernel)}):
            if phase >= size:
                continue
            taps = tuple(t for t in range(kernel) if (phase + before - t * dilation) % stride == 0)
            offsets = tuple((phase + before - t * dilation) // stride for t in taps)
            phases.append(Axis(out, -(-(size - phase) // stride), 1, offsets, taps, phase, stride, size))
        per_axis.append(phases)
    return [_lift(list(triple)) for triple in itertools.product(*per_axis)]


def _lift(axes: list[Axis]) -> list[Axis]:
    """Three axes, where neighbours in which nothing happens are one: a 1×1 convolution sees one long row."""
    one = Axis(1, 1, 1, (0,), (0,), 0, 1, 1)
    merged: list[Axis] = []
    for axis in axes:
        if axis.identity and merged and merged[-1].identity:
            size = merged.pop().size * axis.size
            merged.append(Axis(size, size, 1, (0,), (0,), 0, 1, size))
        else:
            merged.append(axis)
    return [one] * (3 - len(merged)) + [axis.reaching() for axis in merged]


def parts(axes: list[Axis]) -> list[list[Axis]]:
    """The same correlation in parts with fewer taps, where padding is much of what the taps read."""
    outputs = math.prod(axis.outputs for axis in axes)
    split = (axis.split(max(2, _PART_OUTPUTS * axis.outputs // outputs)) if axis.offsets else [axis] for axis in axes)
    return [list(triple) for triple in itertools.product(*split)]
