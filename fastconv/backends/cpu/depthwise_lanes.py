"""Depthwise convolution with channels in the lanes: forward and input gradient.

Idea: a box of the source of as many channels as a vector has lanes is transposed to [position][channel]. Then a tap is
a shift by whole vectors and has a vector of its own: nothing is unaligned, no lane is wasted at the end of a row, and
stride, dilation, small images and the number of axes only say where a position lies. The phases of a strided input
gradient share one gathered box and write one target.

Loop order: lanes of channels of a sample → box → output channel of the group → plane → row → phase of the column → tile
of outputs → tap. Registers hold the tile, the first-level cache the taps, the rows read and the finished rows, the
second level the box. Cost: one FMA and little more than one load for each tap and vector of outputs, and three shuffles
for each vector of source and target. An image that is one box says where the next one lies: with each row of outputs
a part of it is asked for, and of the lines to be written, which a dozen planes side by side would wait for one by one
(1.2 times as fast, twice where others use the last cache). Floor: the traffic for 3×3, the FMA rate for 7×7.

Each output is one chain of FMAs, as in the shift-GEMM: results agree bit by bit.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.axes import Axis
from fastconv.backends.cpu.depthwise_lanes_simd import WIDEST, from_lanes, lane_tiles, to_lanes
from fastconv.backends.cpu.depthwise_simd import prefetch_lines, prefetch_targets
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.gather import zero_bytes
from fastconv.backends.cpu.host import LINE_BYTES, VECTOR_BYTES, pointer, routine
from fastconv.backends.cpu.plan import Correlation, even_part
from fastconv.backends.cpu.scratch import call_scratch, scratch_rows
from fastconv.backends.cpu.team import shared
from fastconv.backends.threads import share, team_for

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

_LANES4, _LANES8 = lanes_of(4), lanes_of(8)

MOST_SHARED = 4
"""Source or target channels of a group, the other being one, up to which the sharing between them matters little."""

BOX_BYTES = 192 * 1024
"""Gathered source of a box: a second-level cache holds it with what passes through."""

LONGEST_ROW = 512
"""Targets of a row in a box, unless the kernel reaches further: what a row reads and writes fits the first level."""

IMAGE = 1024
"""Positions of an image up to which it has a table of places of its own, which the first-level cache holds, too."""

FINISHED = 256
"""Targets that are computed before they are transposed back, about: few enough for the first-level cache."""

MOST_BYTES = 1 << 20
"""Of scratch; kernels that reach further are left to others."""

_NS_PER_FLOP = 0.015
_NS_PER_ELEMENT = 0.3

_AXIS_FIELDS = "size target step stride low halo box boxes".split()
_FIELDS = "groups channels rows count blocks row plane channel finished kernel image image_at asked claimed".split()
LAYOUT = np.dtype([(f"{n}_{a}", np.int64) for a in "dhw" for n in _AXIS_FIELDS] + [(n, np.int64) for n in _FIELDS])


def fills_lanes(groups: int, lanes: int) -> bool:
    """Whether at most a quarter of the lanes has nothing to do."""
    return 4 * groups >= 3 * -(-groups // lanes) * lanes


class PhasedAxis:
    """An axis of all phases of a target: position t, of phase t mod stride, reads from (t // stride) · step on."""

    def __init__(self, phases: list[Axis]) -> None:
        one = phases[0]
        self.phases, self.size, self.target, self.step, self.stride = phases, one.size, one.target, one.step, one.stride
        self.low = min(axis.low for axis in phases)
        self.halo = max(max(axis.offsets) for axis in phases) - self.low

    def extent(self, targets: int) -> int:
        """Source positions that as many targets from a multiple of the stride on read."""
        return (-(-targets // self.stride) - 1) * self.step + self.halo + 1

    def part(self, limit: int) -> int:
        """The length of even parts of the targets, about `limit`, in whole strides."""
        return min(self.target, -(-even_part(self.target, limit) // self.stride) * self.stride)


class LaneBoxes:
    """How targets are cut into boxes, and where in a gathered box [plane][row][place][lane] a source position lies.

    Columns with the same remainder modulo `phases` lie side by side in a row: the phases of the step, which makes all
    taps shifts by neighbouring places, or those of the dilation, which makes the taps neighbours.
    """

    def __init__(self, axes: list[PhasedAxis], groups: int, channels: int, rows: int, phases: int, itemsize: int):
        self.axes, self.lanes = axes, lanes_of(itemsize)
        self.layout = np.zeros(1, LAYOUT)
        depth, height, width = axes
        layout = self.layout[0]
        box_w = width.part(max(LONGEST_ROW, 2 * width.halo))
        columns = np.arange(width.extent(box_w))
        pitch = -(-len(columns) // phases)
        row = phases * pitch * self.lanes
        box_d, box_h = self._box(BOX_BYTES // (row * itemsize * channels))
        for name, axis, box in zip("dhw", axes, (box_d, box_h, box_w)):
            values = (axis.size, axis.target, axis.step, axis.stride, axis.low, axis.halo, box, -(-axis.target // box))
            for field, value in zip(_AXIS_FIELDS, values):
                layout[f"{field}_{name}"] = value
        layout["row"], layout["plane"] = row, row * height.extent(box_h)
        layout["channel"] = layout["plane"] * depth.extent(box_d)
        layout["groups"], layout["channels"], layout["rows"] = groups, channels, rows
        layout["blocks"] = -(-groups // self.lanes)
        # Zeros that are written behind the places of a row go to the beginning of the next one, written later.
        self.places = np.full(len(columns) + self.lanes, row, np.int64)
        self.places[: len(columns)] = (columns % phases * pitch + columns // phases) * self.lanes
        self.elements = channels * int(layout["channel"]) + self.lanes
        self.boxes = math.prod(int(layout[f"boxes_{name}"]) for name in "dhw")
        positions = math.prod(axis.size for axis in axes)
        if self.boxes == channels == 1 and positions <= IMAGE:
            layout["image"], layout["image_at"] = positions, len(self.places)
            self.places = np.concatenate([self.places, self._image(positions)])
        if self.boxes == 1:  # lines of the next source and of the target that are asked for with each row of outputs
            line = LINE_BYTES // itemsize
            layout["asked"] = -(-self.lanes * channels * positions // (line * rows * depth.target * height.target))
            layout["claimed"] = -(-self.lanes * width.target // line)

    def _image(self, positions: int) -> Ints:
        """The places of a whole image in one run: no padding to write again; what no tap reads goes behind the box."""
        q = self.layout[0]
        table = np.full(positions + self.lanes, q["channel"], np.int64)
        places = table[:positions].reshape([axis.size for axis in self.axes])
        starts = [np.arange(axis.size) - axis.low for axis in self.axes]
        d, h, w = (start[(start >= 0) & (start < axis.extent(axis.target))] for start, axis in zip(starts, self.axes))
        inside = np.ix_(*(index + axis.low for index, axis in zip((d, h, w), self.axes)))
        places[inside] = d[:, None, None] * q["plane"] + h[:, None] * q["row"] + self.places[w]
        return table

    def _box(self, available: int) -> tuple[int, int]:
        """Planes and rows of targets whose source of `available` rows is gathered with the least repeated."""
        depth, height, _ = self.axes
        best = depth.part(1), height.part(1)
        least = math.inf
        for planes in sorted({depth.part(n) for n in range(1, depth.target + 1)}, reverse=True):
            fitting = available // depth.extent(planes)
            if fitting < height.extent(1):
                continue
            rows = height.part(((fitting - height.halo - 1) // height.step + 1) * height.stride)
            gathered = depth.extent(planes) * height.extent(rows) / (planes * rows)
            if gathered < least:
                best, least = (planes, rows), gathered
        return best


class Lanes:
    """What is walked over: boxes of targets, where in a gathered box each tap of each phase reads, tiles of outputs."""

    def __init__(self, correlations: tuple[Correlation, ...]) -> None:
        one = correlations[0]
        self.groups, self.channels, self.rows = one.groups, one.channels, one.rows
        self.itemsize, self.lanes = one.itemsize, lanes_of(one.itemsize)
        shared = min(one.channels, one.rows) == 1 and max(one.channels, one.rows) <= MOST_SHARED
        self.fits = shared and fills_lanes(one.groups, self.lanes) and not any(c.empty for c in correlations)
        phases = math.prod(min(axis.stride, axis.target) for axis in one.axes)
        self.fits = self.fits and len(correlations) == phases  # else a part of the target is reached by no tap
        if not self.fits:
            return
        self.axes = [PhasedAxis(list(dict.fromkeys(c.axes[n] for c in correlations))) for n in range(3)]
        self.flops = sum(c.flops for c in correlations)
        width = self.axes[2]
        boxes = LaneBoxes(self.axes, self.groups, self.channels, self.rows, width.step, self.itemsize)
        self.layout, self.places, self.finished_at = boxes.layout, boxes.places, boxes.elements
        self.boxes, self.blocks = boxes.boxes, -(-self.groups // self.lanes)
        self.sample = self.groups * self.channels * math.prod(axis.size for axis in self.axes)
        q = self.layout[0]
        box_h, box_w = int(q["box_h"]), int(q["box_w"])
        q["finished"] = min(box_h, max(1, FINISHED // box_w)) if box_w == width.target else 1
        self.elements = self.finished_at + int(q["finished"]) * box_w * self.lanes + self.lanes
        self.fits = self.elements * self.itemsize <= MOST_BYTES
        if self.fits:
            self._taps(correlations)
            self._tiles()

    def _taps(self, correlations: tuple[Correlation, ...]) -> None:
        """Of each phase, d before h before w: where its taps read and which they are; `heads`: where a phase begins."""
        depth, height, width = self.axes
        layout = self.layout[0]
        offsets: list[int] = []
        taps: list[int] = []
        heads = [0]
        for c in correlations:
            for channel in range(self.channels):
                for d, h, w in itertools.product(*(axis.offsets for axis in c.axes)):
                    place = (d - depth.low) * layout["plane"] + (h - height.low) * layout["row"]
                    offsets.append(int(channel * layout["channel"] + place + self.places[w - width.low]))
                taps.extend(channel * c.kernel_size + c.kernel_taps)
            heads.append(len(offsets))
        self.offsets, self.taps, self.heads = (np.array(a, dtype=np.int64) for a in (offsets, taps, heads))
        layout["count"], layout["kernel"] = len(taps), correlations[0].kernel_size
        self.packed = (self.blocks * self.rows * (1 + len(taps)) + 1) * self.lanes

    def _tiles(self) -> None:
        """Tiles of outputs of each phase of the column, of an inner box and the last; `parts`: where each begins."""
        width, layout = self.axes[2], self.layout[0]
        box = int(layout["box_w"])
        tiles: list[tuple[int, int]] = []
        parts = [0]
        for columns in (box, width.target - (int(layout["boxes_w"]) - 1) * box):
            for phase in range(len(width.phases)):
                outputs = -(-(columns - phase) // width.stride)
                number = -(-outputs // WIDEST)
                cuts = [outputs * n // max(number, 1) for n in range(number + 1)]
                tiles.extend((a, b - a) for a, b in itertools.pairwise(cuts))
                parts.append(len(tiles))
        self.tiles, self.parts = np.array(tiles, dtype=np.int64), np.array(parts, dtype=np.int64)

    def run(self, source: Array, w: Array, b: Array | None, target: Array, relu: bool) -> None:
        """Write the correlation of `source` with w to the whole of `target`; all arrays of one axis."""
        dtype, samples = source.dtype, source.size // self.sample
        packed = call_scratch(self.packed, dtype)
        bias = np.zeros(self.groups * self.rows, dtype) if b is None else b
        share(pack_lanes, (w, bias, packed, self.layout, self.taps), self.blocks, w.size * _NS_PER_ELEMENT)
        tasks = samples * self.blocks * self.boxes
        team = team_for(tasks, samples * self.flops * _NS_PER_FLOP + (source.size + target.size) * _NS_PER_ELEMENT)
        correlate_lanes(
            source, packed, target, self.layout, self.offsets, self.heads, self.places, self.tiles, self.parts,
            scratch_rows(team.size, self.elements, dtype), self.finished_at, relu, team.address, 0, tasks,
        )  # fmt: skip


@routine
def aligned(memory: Any) -> int:
    """The first address in an array that is a multiple of the length of a vector."""
    address: int = -(-pointer(memory) // VECTOR_BYTES) * VECTOR_BYTES
    return address


@shared
def pack_lanes(w: Any, b: Any, packed: Any, layout: Any, taps: Any, who: int, begin: int, end: int) -> None:
    """To [block][row][bias, then taps][lane], on aligned addresses; lanes behind the last group repeat it."""
    q = layout[0]
    lanes = np.uintp(_LANES4 if w.itemsize == 4 else _LANES8)
    first = np.uintp((aligned(packed) - pointer(packed)) // w.itemsize)
    count, one = np.uintp(q.count), np.uintp(q.channels * q.kernel)
    for block in range(begin, end):
        for m in range(np.uintp(q.rows)):
            at = first + (np.uintp(block * q.rows) + m) * (count + np.uintp(1)) * lanes
            for lane in range(lanes):
                row = np.uintp(min(block * lanes + lane, q.groups - 1) * q.rows) + m
                packed[at + lane] = b[row]
                for k in range(count):
                    packed[at + (k + np.uintp(1)) * lanes + lane] = w[row * one + np.uintp(taps[k])]


@routine
def clear_padding(layout: Any, box: int, size: int) -> None:
    """Zeros around a whole image, which stay there from image to image; other boxes are gathered with their padding."""
    if layout[0].image:
        zero_bytes(box, layout[0].channel * size)


@routine
def gather_lanes(
    x: Any, first: int, apart: int, valid: int, to: int, layout: Any, places: Any, d0: int, h0: int, w0: int, n_d: int,
    n_h: int, n_w: int,
) -> None:  # fmt: skip
    """The source of n_d × n_h × n_w targets from (d0, h0, w0) on to address `to` as [plane][row][place][lane].

    The plane of the first lane's channel begins at x[first], those of the others `apart` elements apart. Zeros outside
    the source.
    """
    q = layout[0]
    size = x.itemsize
    if q.image:
        table, source = pointer(places) + 8 * q.image_at, pointer(x) + first * size
        to_lanes(x, to, 0, table, 0, q.image, source, apart, valid, 0, 1, q.image)
        return
    z0, planes = d0 // q.stride_d * q.step_d + q.low_d, (-(-n_d // q.stride_d) - 1) * q.step_d + q.halo_d + 1
    y0, rows = h0 // q.stride_h * q.step_h + q.low_h, (-(-n_h // q.stride_h) - 1) * q.step_h + q.halo_h + 1
    x0, extent = w0 // q.stride_w * q.step_w + q.low_w, (-(-n_w // q.stride_w) - 1) * q.step_w + q.halo_w + 1
    above = min(rows, max(0, -y0))
    inside = min(rows, max(above, q.size_h - y0)) - above
    left = min(extent, max(0, -x0))
    columns = min(extent, max(left, q.size_w - x0)) - left
    for i in range(planes):
        z, target = z0 + i, to + i * q.plane * size
        if z < 0 or z >= q.size_d or inside == 0 or columns == 0:
            zero_bytes(target, rows * q.row * size)
            continue
        zero_bytes(target, above * q.row * size)
        zero_bytes(target + (above + inside) * q.row * size, (rows - above - inside) * q.row * size)
        target += above * q.row * size
        source = pointer(x) + (first + (z * q.size_h + y0 + above) * q.size_w + x0 + left) * size
        to_lanes(x, target, q.row, pointer(places), left, extent, source, apart, valid, q.size_w, inside, columns)


@shared
def correlate_lanes(
    x: Any, packed: Any, y: Any, layout: Any, offsets: Any, heads: Any, places: Any, tiles: Any, parts: Any,
    memory: Any, finished_at: int, relu: int, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Tasks begin ≤ task < end of (sample, block of lanes, box), the last fastest."""
    q = layout[0]
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    volume, target_volume = q.size_d * q.size_h * q.size_w, q.target_d * q.target_h * q.target_w
    box = aligned(memory[who])
    finished = box + finished_at * size
    phases_h, phases_w = min(q.stride_h, q.target_h), min(q.stride_w, q.target_w)
    weights = aligned(packed)
    clear_padding(layout, box, size)
    for task in range(begin, end):
        rest, box_w = divmod(task, q.boxes_w)
        rest, box_h = divmod(rest, q.boxes_h)
        rest, box_d = divmod(rest, q.boxes_d)
        n, block = divmod(rest, q.blocks)
        d0, h0, w0 = box_d * q.box_d, box_h * q.box_h, box_w * q.box_w
        n_d, n_h, n_w = min(q.box_d, q.target_d - d0), min(q.box_h, q.target_h - h0), min(q.box_w, q.target_w - w0)
        group, valid = n * q.groups + block * lanes, min(lanes, q.groups - block * lanes)
        for c in range(q.channels):
            first, to = (group * q.channels + c) * volume, box + c * q.channel * size
            gather_lanes(x, first, q.channels * volume, valid, to, layout, places, d0, h0, w0, n_d, n_h, n_w)
        last_w = box_w == q.boxes_w - 1
        ahead = pointer(x) + (group + valid) * q.channels * volume * size
        behind = pointer(y) + group * q.rows * target_volume * size
        for m in range(q.rows):
            bias = weights + (block * q.rows + m) * (1 + q.count) * VECTOR_BYTES
            taps = bias + VECTOR_BYTES
            corner = pointer(y) + ((group * q.rows + m) * target_volume + h0 * q.target_w + w0) * size
            for d in range(n_d):
                plane, phase_d = divmod(d, q.stride_d)
                row = box + plane * q.step_d * q.plane * size
                phase_h, waiting = 0, 0  # counted: divisions took a tenth of the time of short rows
                for h in range(n_h):
                    prefetch_lines(ahead, q.asked)
                    prefetch_targets(behind, q.claimed)
                    ahead += q.asked * LINE_BYTES
                    behind += q.claimed * LINE_BYTES
                    for phase in range(phases_w):
                        part = last_w * phases_w + phase
                        number = parts[part + 1] - parts[part]
                        if number == 0:
                            continue
                        head = (phase_d * phases_h + phase_h) * phases_w + phase
                        lane_tiles(
                            x, pointer(tiles) + 16 * parts[part], number, taps + heads[head] * VECTOR_BYTES, row,
                            pointer(offsets) + 8 * heads[head], heads[head + 1] - heads[head], bias,
                            finished + (waiting * n_w + phase) * VECTOR_BYTES, q.stride_w * lanes, relu,
                        )  # fmt: skip
                    phase_h += 1
                    if phase_h == q.stride_h:
                        phase_h = 0
                        row += q.step_h * q.row * size
                    waiting += 1
                    if waiting == q.finished or h == n_h - 1:
                        to = corner + ((d0 + d) * q.target_h + h + 1 - waiting) * q.target_w * size
                        from_lanes(y, to, q.rows * target_volume, valid, finished, waiting * n_w)
                        waiting = 0
