"""Weight gradient by outer products: how outputs are cut into boxes, and the call (weight_grad_outer_kernels.py)."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.axes import Axis
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.host import SECOND_LEVEL_BYTES, flat
from fastconv.backends.cpu.plan import Correlation, weight_grad_plan
from fastconv.backends.cpu.scratch import call_scratch, scratch_rows
from fastconv.backends.cpu.simd import ROWS
from fastconv.backends.cpu.weight_grad import slice_count
from fastconv.backends.cpu.weight_grad_outer_kernels import LAYOUT, WIDE_VECTORS, add_slices, weight_grad_outer
from fastconv.backends.threads import get_num_threads, share, team_for
from fastconv.geometry import ConvGeometry

Array = npt.NDArray[Any]

_UNITS_PER_SLICE = 4  # at least, so that adding the partials costs little
_UNIT_OUTPUTS = 256  # of several images in a unit, about: enough to pay for the loads and stores of a tile
_TILE_BYTES = SECOND_LEVEL_BYTES // 2  # of a unit's source in a tile of channels: all taps and blocks of rows read it
_UNIT_BYTES = 4 * SECOND_LEVEL_BYTES  # of its source in all channels: each thread has memory for it
_NEAR_UNIT_BYTES = SECOND_LEVEL_BYTES // 2  # the same where boxes share nothing: what is transposed is near when read
_NEAR_OUTPUTS = 512  # of such a unit, at least
_PACKED_BYTES = SECOND_LEVEL_BYTES // 4  # of gy that all tiles of channels meet before the next blocks of rows do
_MOST_PARTS = 8  # of the columns: more of them are short runs
_SHARES = (1, 2, 4, 8)  # of the channels of a group; the output gradient is packed for each
_NS_PER_FLOP = 0.01


class Outer:
    """How a correlation is cut into boxes, and which outputs a tap finds a source for."""

    def __init__(self, correlation: Correlation, shares: int = 1) -> None:
        """So many groups of the correlation have part of the channels of one, and all of its rows."""
        self.correlation, self.shares = correlation, shares
        c = correlation
        lanes = lanes_of(c.itemsize)
        self.tile, self.pitch = WIDE_VECTORS * lanes, -(-c.channels // lanes) * lanes
        position = self.pitch * c.itemsize
        of_unit = _UNIT_BYTES // position
        if all(_reach(axis) <= axis.step for axis in c.axes):
            of_unit = min(of_unit, max(_NEAR_UNIT_BYTES // position, _NEAR_OUTPUTS))
        most = min(_TILE_BYTES // (self.tile * c.itemsize), of_unit)
        box = _box(c.axes, most)
        self.inside = [[axis.inside(offset) for offset in axis.offsets] for axis in c.axes]
        edges = sorted({0, c.axes[2].outputs, *itertools.chain(*self.inside[2])})
        # Channels fill a vector and rows a block, but for a quarter.
        self.fits = 4 * c.channels >= 3 * lanes and 4 * c.rows >= 3 * ROWS
        self.fits = self.fits and min(box) > 0 and len(edges) <= _MOST_PARTS + 1
        if not self.fits:
            return
        self.cuts = np.array(edges, np.int64)
        self._lay_out(box)
        q = self.layout[0]
        self.boxes, self.outputs = int(q["boxes_d"] * q["boxes_h"] * q["boxes_w"]), math.prod(box)
        self.positions = int(q["planes"] * q["area"])
        if self.boxes == 1:
            q["together"] = max(1, min(most // self.positions, -(-_UNIT_OUTPUTS // c.outputs)))
        # Of each tap: planes, rows and parts of columns of the outputs inside, and how far behind an output it reads.
        self.taps = np.array(
            [
                (*d, *h, *(edges.index(edge) for edge in w), od * q["area"] + oh * q["columns"] + ow)
                for d, od in zip(self.inside[0], c.axes[0].offsets)
                for h, oh in zip(self.inside[1], c.axes[1].offsets)
                for w, ow in zip(self.inside[2], c.axes[2].offsets)
            ],
            np.int64,
        )

    def _lay_out(self, box: list[int]) -> None:
        """What the kernel is told, with one image to a unit."""
        c, self.layout = self.correlation, np.zeros(1, LAYOUT)
        q = self.layout[0]
        q["groups"], q["channels"], q["rows"], q["taps"] = c.groups, c.channels, c.rows, len(c.kernel_taps)
        q["parts"], q["together"], q["shares"] = len(self.cuts) - 1, 1, self.shares
        q["depth"], q["height"], q["width"] = (axis.size for axis in c.axes)
        for name, axis, outputs in zip("dhw", c.axes, box):
            q[f"outputs_{name}"], q[f"step_{name}"], q[f"low_{name}"] = axis.outputs, axis.step, axis.low
            q[f"reach_{name}"], q[f"box_{name}"] = _reach(axis), outputs
            q[f"boxes_{name}"] = -(-axis.outputs // outputs)
        q["skips"] = any(pair != (0, axis.outputs) for axis, pairs in zip(c.axes, self.inside) for pair in pairs)
        q["planes"], rows, q["columns"] = (_read(axis, outputs) for axis, outputs in zip(c.axes, box))
        q["area"] = rows * q["columns"]

    def units(self, samples: int) -> int:
        """Boxes of all images, or groups of images."""
        return -(-samples // int(self.layout[0]["together"])) * self.boxes

    def run(self, gy: Array, x: Array, geometry: ConvGeometry) -> Array:
        """The whole weight gradient."""
        c, q, lanes, samples = self.correlation, self.layout[0], lanes_of(x.itemsize), len(x)
        pitch, rows, taps = self.pitch, -(-c.rows // ROWS) * ROWS, len(c.kernel_taps)
        one = c.groups * rows * taps * pitch
        slices = slice_count(-(-self.units(samples) // _UNITS_PER_SLICE), one * x.itemsize)
        # A single partial in the order of the weight is the gradient itself, with the padded rows behind its end.
        whole = 1 == slices == c.groups == taps == geometry.taps and pitch == c.channels
        memory = np.empty(one, x.dtype) if whole else call_scratch(slices * one, x.dtype)
        partial = memory.reshape(slices, c.groups, rows, taps, pitch)
        # Each chunk of rows transposes x anew: no more of them than keep the threads busy. They change no sum.
        chunks = max(1, min(rows // ROWS, -(-get_num_threads() // (slices * c.groups))))
        images = min(samples, int(q["together"]))
        stride = (-(-images * self.outputs // lanes) + 1) * lanes
        together = min(rows // ROWS, max(1, _PACKED_BYTES // (ROWS * stride * x.itemsize)))
        panel = (images * self.positions + lanes) * pitch + self.tile * lanes
        line = max(int(q["area"]), self.outputs) + lanes
        elements = panel + together * ROWS * stride + max(lanes, 2 * ROWS) * line
        tasks = slices * c.groups * chunks
        team = team_for(tasks, samples * c.flops * _NS_PER_FLOP)
        weight_grad_outer(
            flat(gy), flat(x), partial, self.layout, self.cuts, self.taps, scratch_rows(team.size, elements, x.dtype),
            panel, stride, together, line, chunks, team.address, 0, tasks,
        )  # fmt: skip
        if whole:
            return memory[: c.rows * pitch].reshape(geometry.weight_shape)
        gw: Array = (np.empty if taps == geometry.taps else np.zeros)(geometry.weight_shape, x.dtype)
        arguments = partial, gw.reshape(-1), c.kernel_taps, geometry.taps, c.rows, c.channels, self.shares
        share(add_slices, arguments, c.groups * c.rows, partial.size)
        return gw


def _reach(axis: Axis) -> int:
    return max(axis.offsets) - axis.low + 1


def _read(axis: Axis, outputs: int) -> int:
    """Positions of the source that neighbouring outputs read, at most."""
    return min(axis.size, (outputs - 1) * axis.step + _reach(axis))


def _box(axes: list[Axis], most: int) -> list[int]:
    """Outputs of a box along each axis, whose source has no more than so many positions: whole rows if these fit.

    0 where a single output reads too much.
    """
    box = [1, 1, 1]
    for n in (2, 1, 0):
        others = 1
        for m in {0, 1, 2} - {n}:
            others *= _read(axes[m], box[m])
        box[n] = _outputs_within(axes[n], most // others)
        if box[n] < axes[n].outputs:
            break
    return box


def _outputs_within(axis: Axis, most: int) -> int:
    """Neighbouring outputs that read no more than so many positions, in even parts; 0 if a single one reads more."""
    if _read(axis, axis.outputs) <= most:
        return axis.outputs
    fit = (most - _reach(axis)) // axis.step + 1
    return -(-axis.outputs // -(-axis.outputs // fit)) if fit > 0 else 0


@lru_cache(maxsize=1024)
def outer_products(geometry: ConvGeometry, itemsize: int) -> Outer | None:
    """Those of a geometry, if they are a way for it: with parts of the channels where all would not fit."""
    channels = geometry.in_channels // geometry.groups
    for shares in _SHARES:
        if channels % shares or (shares > 1 and channels < shares * lanes_of(itemsize)):
            break
        shared = replace(geometry, groups=geometry.groups * shares, out_channels=geometry.out_channels * shares)
        found = Outer(weight_grad_plan(shared, itemsize), shares)
        if found.fits:
            return found
    return None


def weight_gradient(gy: Array, x: Array, geometry: ConvGeometry) -> Array:
    """The whole weight gradient of a geometry with `outer_products`; see contract.Backend.conv_weight_grad."""
    found = outer_products(geometry, x.itemsize)
    assert found
    return found.run(gy, x, geometry)
