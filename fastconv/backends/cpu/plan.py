"""From a geometry to what the kernels walk over: a correlation on three axes (see axes.py), cut into boxes or columns.

Nothing here depends on the number of samples or threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import from_dtype, types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from fastconv.backends.axes import Axis, forward_axes, input_grad_axes, lifted, parts
from fastconv.backends.cpu import simd
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.host import REGISTERS, SECOND_LEVEL_BYTES
from fastconv.geometry import ConvGeometry

Ints = npt.NDArray[np.int64]

BOX_BYTES = SECOND_LEVEL_BYTES * 3 // 8
"""Scratch for the gathered source of one box: a third of the second-level cache, the weights need the rest."""

IN_PLACE_BOX_BYTES = 48 * 1024
"""Of a source that is read in place: nothing is gathered, so many boxes cost little, and threads share them evenly."""

_WAYS = 8
"""Lines that a set of the second-level cache holds."""

_FEW_BLOCKS = 2
"""Blocks of rows that do not pay for copying a source that could be read in place."""

WEIGHT_GRAD_BOX_BYTES = 1536 * 1024
"""The same for the weight gradient, source and output gradient together: long runs pay for its horizontal sums."""

TILE_VECTORS = simd.WIDE[simd.ROWS]
"""Vectors of a full block's tile: boxes and panels are cut into whole ones."""

PANEL_BYTES, PANEL_TILES = SECOND_LEVEL_BYTES // 4, 16
"""A panel of exact columns serves all blocks of rows: as many tiles as fit, so that the weights stream past seldom and
rows of outputs are written in long runs."""

PANEL_STEP = 512
"""Products of an output from one panel; longer sums take several panels one after the other."""

GATHER_COST = 0.02
"""Time to gather a vector of the source over the time to compute a vector of outputs, for a few dozen channels."""

_NARROW_COST = 4 / 3 if REGISTERS == 16 else 9 / 8
_ROWWISE_GAIN = 1.02

FAR_ROWS = 64 if REGISTERS == 16 else 128
"""Rows of a source in place from which they are better copied into a panel: more than the ways of a few sets."""

_SHARED_BOXES, LEAST_PRODUCTS, _SPARE = 4, 1_000_000, 1.03
"""Boxes that an image is cut into for threads to share, if each has so many products; and what they may cost more."""

_SHARED_COLUMNS = 96
"""Of a box of tiles of a signal that is cut so, at least: whole tiles of columns."""

MIN_ROW = 240
"""Rows of outputs are cut only above this length, and into no shorter pieces."""

MANY_ROWS = 4 * simd.ROWS
"""Rows of weights from which a source gathered for each tap apart is shared by enough of them."""

SMALL_OUTPUTS = 256
"""Up to this many outputs in a channel a weight gradient takes exact columns, across samples, instead of boxes."""

_FIELDS = (
    "channels rows depth height width outputs_d outputs_h outputs_w step_d step_h step_w "
    "first_d first_h first_w stride_d stride_h stride_w target_d target_h target_w groups "
    "taps count blocks tail packed planes phases_h phases_w low_h low_w box_h box_w boxes_h boxes_w "
    "box_rows pitch shared plane channel rowwise linear direct compact panel"
).split()

PLAN = np.dtype([(name, np.int64) for name in _FIELDS])
"""What the kernels read of a correlation; see `Correlation.plan` for the meaning of each field."""

PLAN_NUMBERS = len(_FIELDS)


@intrinsic  # type: ignore[untyped-decorator]
def plan_at(typing: Any, numbers: Any, index: Any) -> Any:
    """The array of one PLAN whose numbers begin at numbers[index]; `numbers.view(PLAN)` compiles for half a second."""
    plans = types.Array(from_dtype(PLAN), 1, "C")

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(numbers)(context, builder, values[0]).data
        view = context.make_array(plans)(context, builder)
        size, one = (context.get_constant(types.intp, number) for number in (PLAN.itemsize, 1))
        place = builder.bitcast(builder.gep(data, [values[1]]), view.data.type)
        populate_array(view, place, [one], [size], size, None)
        return view._getvalue()

    return plans(numbers, types.intp), codegen


class Correlation:
    """One correlation of the source (N, G·channels, *axes) with packed weights into the target (N, G·rows, *axes)."""

    def __init__(
        self,
        axes: list[Axis],
        channels: int,
        rows: int,
        groups: int,
        kernel: tuple[int, ...],
        itemsize: int,
        *,
        weight_grad: bool = False,
        flat: int = 0,
        most: int = 0,
        parts: int = 1,
    ):
        depth, height, width = axes
        self.axes = axes
        self.groups, self.channels, self.rows = groups, channels, rows
        self.kernel, self.kernel_size, self.itemsize = kernel, math.prod(kernel), itemsize
        self.empty = any(not axis.offsets for axis in axes)
        self.outputs = math.prod(axis.outputs for axis in axes)
        strides = lifted(kernel, 1)
        self.kernel_taps = np.array(
            [
                (d * strides[1] + h) * strides[2] + w
                for d, h, w in itertools.product(depth.taps, height.taps, width.taps)
            ],
            dtype=np.int64,
        )
        if self.empty:
            return
        self.plan = np.zeros(1, PLAN)
        self._sizes()
        self._layout(rows if weight_grad else 0, flat, most, parts)
        plan = self.plan[0]
        self.count, self.packed_rows, self.blocks = int(plan["count"]), int(plan["packed"]), int(plan["blocks"])
        self.small = self.outputs <= SMALL_OUTPUTS
        self.flops = 2 * groups * rows * self.count * self.outputs
        tile = TILE_VECTORS * lanes_of(itemsize)
        step = min(self.count, PANEL_STEP)
        tiles = min(PANEL_TILES, max(1, PANEL_BYTES // (step * tile * itemsize)))
        plan["panel"] = self.panel_columns = tiles * tile
        self.panel_elements = step * self.panel_columns
        self.boxes = int(plan["outputs_d"] * plan["boxes_h"] * plan["boxes_w"])
        self.box_elements = channels * int(plan["channel"])
        self.positions = np.array(list(itertools.product(*(axis.offsets for axis in axes))), dtype=np.int64)
        self.tables = np.array([*depth.offsets, *height.phases, *width.phases], dtype=np.int64)
        self.box_offsets = self._box_offsets()
        k = np.arange(self.count, dtype=np.int64)
        # Into the gathered box, then into the source in place, where a 1×1 convolution can read it there.
        in_place = k * self.outputs if plan["direct"] else k[:0]
        self.source_offsets = np.concatenate([self.box_offsets, in_place])

    def _sizes(self) -> None:
        """What follows from the axes, channels and rows alone."""
        plan, axes = self.plan[0], self.axes
        depth, height, _ = axes
        plan["channels"], plan["rows"], plan["groups"] = self.channels, self.rows, self.groups
        for name, axis in zip("dhw", axes, strict=True):
            plan[f"outputs_{name}"], plan[f"step_{name}"] = axis.outputs, axis.step
            plan[f"first_{name}"], plan[f"stride_{name}"] = axis.first, axis.stride
            plan[f"target_{name}"] = axis.target
        plan["depth"], plan["height"], plan["width"] = (axis.size for axis in axes)
        plan["taps"] = len(self.kernel_taps)
        plan["count"] = self.channels * len(self.kernel_taps)
        full, rest = divmod(self.rows, simd.ROWS)
        plan["tail"] = next(r for r in simd.TAIL_ROWS if r >= rest) if rest else 0
        plan["blocks"] = full + (rest > 0)
        plan["packed"] = full * simd.ROWS + plan["tail"]
        one_row = depth.size == height.size == 1
        plan["compact"] = all(axis.stride == 1 and axis.outputs == axis.target for axis in axes)
        plan["direct"] = one_row and all(axis.identity for axis in axes) and not self._crowded()

    def _crowded(self) -> bool:
        """Whether channels in place would drive each other out of the second-level cache before all rows have met them.

        Planes whose bytes are a multiple of a large power of two lie on the same few sets.
        """
        apart = math.gcd(self.outputs * self.itemsize, SECOND_LEVEL_BYTES // _WAYS)
        return self.rows > _FEW_BLOCKS * simd.ROWS and self.channels * apart >= SECOND_LEVEL_BYTES

    def _layout(self, rows: int, flat: int, most: int, parts: int) -> None:
        """Size of a box of outputs and the layout [channel][tap plane][phase h][phase w][row][pitch] of its source.

        `rows` of output gradient, if any, share the scratch with it; `flat` outputs are taken even if they do not fit,
        and with `most` about that many at most, even if more would fit. A plane or a signal is cut into at least
        `parts`, as far as there are rows of outputs, or with `flat` vectors of them.
        """
        plan, itemsize = self.plan[0], self.itemsize
        depth, height, width = self.axes
        contiguous = width.stride == 1 and width.outputs == width.target
        plan["planes"] = len(depth.offsets)
        plan["phases_h"], plan["phases_w"] = len(height.phases), len(width.phases)
        plan["low_h"], plan["low_w"] = height.low, width.low
        images = int(plan["channels"]) * len(depth.offsets) * len(height.phases) * len(width.phases)
        held = WEIGHT_GRAD_BOX_BYTES if rows else IN_PLACE_BOX_BYTES if plan["direct"] else BOX_BYTES
        available = held // (itemsize * (images + rows))
        available = most * (1 + height.halo) if most else available
        row_limit = available // (1 + height.halo)
        lanes = lanes_of(itemsize)
        box_w = width.outputs
        if box_w + width.halo > row_limit and box_w > MIN_ROW:
            box_w = even_part(width.outputs, max(MIN_ROW, 2 * width.halo, row_limit - width.halo))
            box_w = min(width.outputs, -(-box_w // TILE_VECTORS // lanes) * TILE_VECTORS * lanes)
        elif flat and height.outputs == 1 and (box_w > _SHARED_COLUMNS or parts > 1):
            most_w = -(-box_w // parts) if parts > 1 else max(_SHARED_COLUMNS, -(-box_w // _SHARED_BOXES))
            box_w = -(-even_part(box_w, most_w) // TILE_VECTORS // lanes) * TILE_VECTORS * lanes
        shared = 0
        if box_w == width.outputs and width.step == 1:
            left, right = max(0, -width.low), max(0, width.outputs - 1 + max(width.offsets) - (width.size - 1))
            shared = min(left, right, width.halo)
        pitch = box_w + width.halo - shared
        rows_fit = available // pitch - height.halo
        most_rows = max(1, height.halo, rows_fit, -(-flat // pitch))
        box_h = _box_rows(height, most_rows, pitch, box_w, lanes, int(plan["packed"] * plan["count"]))
        if parts > 1:
            box_h = min(box_h, -(-height.outputs // parts))
        plan["box_h"], plan["box_w"] = box_h, box_w
        plan["boxes_h"], plan["boxes_w"] = -(-height.outputs // box_h), -(-width.outputs // box_w)
        plan["box_rows"], plan["pitch"], plan["shared"] = box_h + height.halo, pitch, shared
        plan["plane"] = (box_h + height.halo) * pitch + shared
        plan["channel"] = plan["plane"] * len(depth.offsets) * len(height.phases) * len(width.phases)
        plan["linear"] = contiguous and pitch == box_w == width.outputs and height.stride == 1
        # Row by row where a row is a whole number of vectors and its last tile costs no more than the waste between
        # rows: every tile is stored directly.
        by_rows = _row_cost(box_w // lanes) <= _ROWWISE_GAIN * pitch / lanes
        plan["rowwise"] = not plan["linear"] and contiguous and box_w % lanes == 0 and by_rows

    @cached_property
    def parts(self) -> list[Correlation]:
        """The same correlation in parts whose columns read less padding; itself alone where that saves too little."""
        if self.rows < MANY_ROWS or len(triples := parts(self.axes)) == 1:
            return [self]
        arguments = self.channels, self.rows, self.groups, self.kernel, self.itemsize
        return [Correlation(triple, *arguments) for triple in triples]

    def tap_steps(self, taps: Ints) -> Ints:
        """Steps of the sum of at most PANEL_STEP products, some taps or some channels of one, as in `channel_steps`.

        Each is a run of the weights packed for `taps` as [tap][channel]; its own taps are numbered as here.
        """
        channels, steps = self.channels, []
        numbers = np.searchsorted(taps, self.kernel_taps).tolist()
        together = max(1, PANEL_STEP // channels)
        part = even_part(channels, PANEL_STEP)
        first = 0
        while first < len(numbers):
            last = first + 1
            while last < len(numbers) and last - first < together and numbers[last] == numbers[last - 1] + 1:
                last += 1
            for c in range(0, channels, part):
                end = min(channels, c + part)
                steps.append((numbers[first] * channels + c, first, last, c, end, end - c, 1))
            first = last
        return np.array(steps, dtype=np.int64)

    def channel_steps(self) -> Ints:
        """Steps of the sum of at most PANEL_STEP products, some channels or some taps of one.

        Each is a run of the weights as they lie, [channel][tap]: (first product, first tap, last tap, first channel,
        last channel, products from tap to tap, from channel to channel).
        """
        taps, steps = len(self.kernel_taps), []
        part, channels = even_part(taps, PANEL_STEP), even_part(self.channels, max(1, PANEL_STEP // taps))
        for c in range(0, self.channels, channels):
            for t in range(0, taps, part):
                end = min(taps, t + part)
                steps.append((c * taps + t, t, end, c, min(self.channels, c + channels), 1, end - t))
        return np.array(steps, dtype=np.int64)

    def box_vectors(self) -> int:
        """Vectors computed for a plane of outputs, the waste between the rows of its boxes included."""
        plan = self.plan[0]
        box_h, pitch, box_w, boxes_w = (int(plan[name]) for name in ("box_h", "pitch", "box_w", "boxes_w"))
        return boxes_w * _box_vectors(self.axes[1].outputs, box_h, pitch, box_w, lanes_of(self.itemsize))

    def _box_offsets(self) -> Ints:
        """Where in the gathered box tap k = (channel, d, h, w) finds the source of output 0."""
        plan = self.plan[0]
        depth, height, width = self.axes
        images_w = int(plan["plane"])
        images_h = images_w * len(width.phases)
        planes = images_h * len(height.phases)
        offset_h = [self._in_phase(height, o, images_h, int(plan["pitch"])) for o in height.offsets]
        offset_w = [self._in_phase(width, o, images_w, 1) for o in width.offsets]
        taps = [d * planes + h + w for d, h, w in itertools.product(range(len(depth.offsets)), offset_h, offset_w)]
        channels = np.arange(int(plan["channels"]), dtype=np.int64) * int(plan["channel"])
        return (channels[:, None] + np.array(taps, dtype=np.int64)).reshape(-1)

    @staticmethod
    def _in_phase(axis: Axis, offset: int, image: int, pitch: int) -> int:
        position, phase = divmod(offset - axis.low, axis.step)
        return axis.phases.index(phase) * image + position * pitch


def _row_cost(vectors: int) -> float:
    """Time of a row of tiles, in vectors of a wide one: a narrow tile waits for its few chains of additions."""
    return vectors + vectors % TILE_VECTORS * (_NARROW_COST - 1)


def even_part(total: int, limit: int) -> int:
    """The length of parts of `total`, at most `limit`, all about equally long."""
    return -(-total // -(-total // min(limit, total)))


def _box_vectors(outputs: int, rows: int, pitch: int, columns: int, lanes: int) -> int:
    """Vectors computed for `outputs` rows of outputs in boxes of `rows`, the waste between the rows included."""
    return sum(-(-length // lanes) for length in _box_lengths(outputs, rows, pitch, columns))


def _box_lengths(outputs: int, rows: int, pitch: int, columns: int) -> list[int]:
    """Columns computed in each of the boxes."""
    full, rest = divmod(outputs, rows)
    return [(rows - 1) * pitch + columns] * full + ([(rest - 1) * pitch + columns] if rest else [])


def _box_rows(height: Axis, limit: int, pitch: int, columns: int, lanes: int, products: int) -> int:
    """Output rows of a box, at most `limit`: those that cost least in vectors computed and rows gathered again.

    All boxes are about as large: threads that have one each are done at the same time.
    """

    def cost(rows: int) -> float:
        full, rest = divmod(height.outputs, rows)
        lengths = _box_lengths(height.outputs, rows, pitch, columns)
        gathered = (full * (rows + height.halo) + (rest + height.halo if rest else 0)) * pitch / lanes
        return sum(_row_cost(-(-length // lanes)) for length in lengths) + GATHER_COST * gathered

    limit = min(limit, height.outputs)
    parts = list(dict.fromkeys(even_part(height.outputs, rows) for rows in range(limit, max(0, limit // 4 - 1), -1)))
    best = min(parts, key=cost)
    return rows_to_share(height.outputs, best, cost, LEAST_PRODUCTS // (products * columns))


def rows_to_share(outputs: int, best: int, cost: Callable[[int], float], least: int) -> int:
    """Output rows of a box, so that an image has a few boxes for threads to share, if that costs next to nothing.

    At least `least` rows; else `best`, with which `cost` is least.
    """
    small, limit = max(1, -(-outputs // _SHARED_BOXES), least), _SPARE * cost(best)
    parts = dict.fromkeys(even_part(outputs, rows) for rows in range(small, best))
    return next((rows for rows in parts if small <= rows < best and cost(rows) <= limit), best)


@lru_cache(maxsize=4096)
def forward_plan(geometry: ConvGeometry, itemsize: int) -> Correlation:
    """The correlation of a forward convolution."""
    channels, rows = geometry.in_channels // geometry.groups, geometry.out_channels // geometry.groups
    return Correlation(forward_axes(geometry), channels, rows, geometry.groups, geometry.kernel, itemsize)


@lru_cache(maxsize=4096)
def input_grad_plans(geometry: ConvGeometry, itemsize: int) -> tuple[list[Correlation], bool]:
    """The correlations of an input gradient, one for each phase of the strides, and whether they write all of it."""
    channels, rows = geometry.out_channels // geometry.groups, geometry.in_channels // geometry.groups
    triples = input_grad_axes(geometry)
    plans = [Correlation(axes, channels, rows, geometry.groups, geometry.kernel, itemsize) for axes in triples]
    phases = math.prod(min(stride, size) for stride, size in zip(geometry.stride, geometry.spatial))
    return plans, len(plans) == phases


@lru_cache(maxsize=4096)
def weight_grad_plan(geometry: ConvGeometry, itemsize: int) -> Correlation:
    """The forward correlation with boxes for the weight gradient."""
    channels, rows = geometry.in_channels // geometry.groups, geometry.out_channels // geometry.groups
    return Correlation(
        forward_axes(geometry), channels, rows, geometry.groups, geometry.kernel, itemsize, weight_grad=True
    )
