"""Weight gradient by Winograd's tiles: the adjoint of their products, as few multiplications (winograd_kernels.py).

dg = Gᵀ [ Σ over tiles of (A gy Aᵀ) ⊙ (Bᵀ d B) ] G: for each frequency the product of two matrices whose common side are
the tiles, by `simd.outer` with the channels in the lanes. Loop order: unit of boxes → lanes of channels (gather,
transpose, transform) and blocks of rows of gy (the same) → tile of channels → block of rows → frequency → tile. In the
second level lie the transformed channels of a tile of channels; the transformed gy streams past, and so do the sums,
[block][tile of channels][frequency][row][channel]: a unit has tiles enough to pay for both. At the end the sums of
all slices, added in order, become gradients of filters; at once, in the first level, where one unit is all there is.
Cost: frequencies · tiles FMAs for each row and channel, 36/144 of the direct ones for 3×3. Floor: the FMA rate.

Memory: `_SCRATCH_BYTES` for each thread and for each slice of the sums, at most; larger layers take direct sums.
Rounding: that of the forward pass for units of `_UNIT_TILES`, growing with the root of the number of units. What is not
finite spreads over the taps of its tile: then the gradient is computed again by direct sums.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.gather import gather_box, place_of_box
from fastconv.backends.cpu.host import flat, inlined, pointer, routine
from fastconv.backends.cpu.plan import PLAN, Correlation, even_part, forward_plan
from fastconv.backends.cpu.scratch import call_scratch, scratch_rows
from fastconv.backends.cpu.simd import NARROW, ROWS, WIDE, interleave, outer_strided, transpose
from fastconv.backends.cpu.team import shared
from fastconv.backends.cpu.weight_grad import slice_count
from fastconv.backends.cpu.winograd import suits
from fastconv.backends.cpu.winograd_boxes import tiled
from fastconv.backends.cpu.winograd_filters_simd import filter_gradient
from fastconv.backends.cpu.winograd_forms import form_of, frequencies_of, outputs_of, patch_of
from fastconv.backends.cpu.winograd_kernels import FILTER_PADDING, LANES, STAGGER, tile_frequencies
from fastconv.backends.cpu.winograd_simd import gradient_transform, input_transform
from fastconv.backends.threads import get_num_threads, share, team_for
from fastconv.geometry import ConvGeometry

Array = npt.NDArray[Any]

_WIDE, _NARROW = WIDE[ROWS], NARROW[ROWS]
_BOX_TILES = 96
_UNIT_TILES = 160  # at most: with them a transformed tile of channels fills most of the second level
_SCRATCH_BYTES = 64 << 20  # of a thread, for what is transformed, and of a call, for the sums of a slice
_UNITS_PER_SLICE = 4  # at least, so that adding the slices costs little
_NS_PER_FLOP = 0.01
_SLACK = 4 * LANES  # that the last vectors of a transposition read and write too much, in each piece of the scratch


class Tiles:
    """The tiles of a convolution of one geometry: boxes of its source, and the boxes of its output's gradient."""

    def __init__(self, geometry: ConvGeometry) -> None:
        whole = forward_plan(geometry, 4)
        depth, height, width = whole.axes
        taps = len(height.offsets), len(width.offsets)
        self.form = form_of(taps)
        self.frequencies = frequencies_of(self.form)
        (h,), (w,) = tiled(height), tiled(width)
        kernel = 1, *patch_of(self.form)
        channels, rows, groups = whole.channels, whole.rows, whole.groups
        self.source = Correlation(
            [replace(depth, taps=(0,)), h, w], LANES, rows, groups, kernel, 4, flat=_BOX_TILES, most=_BOX_TILES
        )
        self.channels, self.rows, self.groups, self.taps = channels, rows, groups, taps[0] * taps[1]
        self.offsets = self.source.box_offsets[: self.frequencies] * LANES
        p = self.source.plan[0]
        steps = outputs_of(self.form)
        self.gradient, self.gradient_tables = _boxes_of_gradient(p, steps, (height.outputs, width.outputs))
        images = np.arange(steps[0] * steps[1], dtype=np.int64)
        self.gradient_offsets = images * (self.gradient[0]["plane"] * ROWS)
        self.box_tiles = int(p["box_h"] * p["box_w"])
        elements = self.frequencies * max(_UNIT_TILES * (channels + rows), groups * channels * rows)
        self.fits = 4 * elements <= _SCRATCH_BYTES


def _boxes_of_gradient(p: Any, steps: tuple[int, int], sizes: tuple[int, int]) -> tuple[Any, npt.NDArray[np.int64]]:
    """Plan and tables of `gather_box` for ROWS rows of gy in the boxes of `p`: tiles without a halo, phases apart."""
    plan = np.array([p], dtype=PLAN)
    g = plan[0]
    g["channels"], g["planes"], g["low_h"], g["low_w"], g["shared"] = ROWS, 1, 0, 0, 0
    g["depth"], g["step_d"] = p["outputs_d"], 1
    for name, size, step, axis in zip("hw", sizes, steps, ("height", "width")):
        g[axis], g[f"step_{name}"], g[f"phases_{name}"] = size, step, step
    g["box_rows"], g["pitch"] = p["box_h"], p["box_w"]
    g["plane"] = p["box_h"] * p["box_w"]
    g["channel"] = g["plane"] * steps[0] * steps[1]
    return plan, np.array([0, *range(steps[0]), *range(steps[1])], dtype=np.int64)


def tiles_of(geometry: ConvGeometry) -> Tiles | None:
    """The tiles of a geometry whose weight gradient in float32 they can compute; else None."""
    correlation = forward_plan(geometry, 4)
    few = correlation.channels < LANES or correlation.rows < ROWS
    if correlation.empty or few or not suits(correlation) or any(axis.step > 1 for axis in correlation.axes[1:]):
        return None
    if len(correlation.kernel_taps) < correlation.kernel_size:  # some meet only padding: they get zeros
        return None
    depth, height, width = correlation.axes
    if len(depth.offsets) > 1 or len(tiled(height)) * len(tiled(width)) > 1:
        return None
    tiles = Tiles(geometry)
    return tiles if tiles.fits else None


@routine
def _transformed_channels(
    form: Any, x: Any, image: int, plan: Any, tables: Any, off: int, memory: Any, d: int, h0: int, w0: int, channels:
    int, tiles: int, first: int, box_at: int,
) -> int:  # fmt: skip
    """All channels of a box of x to memory[:], tiles from number `first` on; returns the number behind the last.

    The layout is that of `weight_grad_tiles`, with `tiles` of a unit.
    """
    p = plan[0]
    size = x.itemsize
    frequencies, volume = tile_frequencies(form), p.depth * p.height * p.width
    lines = box_at + LANES * p.channel + _SLACK
    rows, columns = min(p.box_h, p.outputs_h - h0), min(p.box_w, p.outputs_w - w0)
    c = at = 0
    while c < channels:
        width = _width_of_tile(c, channels)
        stride = tiles * width + STAGGER
        for v in range(0, width, LANES):
            start = (image * channels + min(c + v, channels - LANES)) * volume
            gather_box(x, start, memory, box_at, plan, tables, d, h0, w0)
            transpose(x, pointer(memory, box_at), p.channel, -(-p.channel // LANES), pointer(memory, lines), LANES)
            to = pointer(memory, at + first * width + v)
            for r in range(rows):
                for column in range(columns):
                    position = pointer(memory, lines + (r * p.pitch + column) * LANES)
                    input_transform(x, form, 0, position, off, to, stride)
                    to += width * size
        at += frequencies * stride
        c += width
    behind: int = first + rows * columns
    return behind


@routine
def _transformed_rows(
    form: Any, gy: Any, start: int, plan: Any, tables: Any, off: int, memory: Any, d: int, h0: int, w0: int, to: int,
    stride: int, box_at: int,
) -> None:  # fmt: skip
    """ROWS rows of a box of gy, from gy[start:], to `stride` · frequency + ROWS · tile."""
    p = plan[0]
    size = gy.itemsize
    lines = box_at + ROWS * p.channel + _SLACK
    gather_box(gy, start, memory, box_at, plan, tables, d, h0, w0)
    interleave(gy, ROWS, pointer(memory, box_at), p.channel, -(-p.channel // LANES), pointer(memory, lines))
    for r in range(min(p.box_h, p.outputs_h - h0)):
        for column in range(min(p.box_w, p.outputs_w - w0)):
            position = pointer(memory, lines + (r * p.pitch + column) * ROWS)
            gradient_transform(gy, form, position, off, to, stride)
            to += ROWS * size


def width_of_tile(c: int, channels: int) -> int:
    """Channels of the tile that begins with channel c: whole vectors, of which the last may overlap those before."""
    return (_WIDE if channels - c > (_WIDE - _NARROW) * LANES else _NARROW) * LANES


_width_of_tile = inlined(width_of_tile)


@routine
def _filters_of_tile(
    form: Any, gw: Any, source: int, g: int, block: int, rows: int, c: int, width: int, channels: int
) -> None:
    """gw[group][row][channel][tap] from the sums [frequency][row][channel] of a block and a tile of channels."""
    taps, size = len(form[0][0]) * len(form[1][0]), gw.itemsize
    first = min(block * ROWS, rows - ROWS)
    for m in range(block * ROWS - first, ROWS):  # rows before belong to the block before as well
        for v in range(0, width, LANES):
            target = pointer(gw, ((g * rows + first + m) * channels + min(c + v, channels - LANES)) * taps)
            filter_gradient(gw, form, source + (m * width + v) * size, ROWS * width, target)


@shared(allocates=True)  # type: ignore[untyped-decorator]
def weight_grad_tiles(
    form: Any, gy: Any, x: Any, sums: Any, gw: Any, plan: Any, tables: Any, off: Any, gy_plan: Any, gy_tables: Any,
    gy_off: Any, memory: Any, channels: int, padded: int, unit_boxes: int, tiles: int, slices: int, chunks: int,
    who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Tasks begin ≤ task < end of (slice of units, group, chunk of row blocks).

    sums is [slice][group][block][frequencies · ROWS · `padded` channels]; if there is but one unit, it is not used, and
    gw is filled. Scratch: transformed channels [tile of channels][frequency][tile][channel], transformed rows
    [block][frequency][tile][row], the sums of a tile, a box and its lines.
    """
    p, size = plan[0], x.itemsize
    blocks, frequencies = p.blocks, tile_frequencies(form)
    volume, area = p.depth * p.height * p.width, p.outputs_d * gy_plan[0].height * gy_plan[0].width
    boxes = x.size // (p.groups * channels * volume) * p.outputs_d * p.boxes_h * p.boxes_w
    units = -(-boxes // unit_boxes)
    rows_at = frequencies * (tiles * padded + -(-channels // LANES) * STAGGER)
    of_block = frequencies * (tiles * ROWS + FILTER_PADDING)
    sums_at = rows_at + blocks * of_block
    box_at = sums_at + frequencies * ROWS * _WIDE * LANES
    zeros, scratch = np.zeros(ROWS, x.dtype), memory[who]
    for task in range(begin, end):
        rest, chunk = divmod(task, chunks)
        s, g = divmod(rest, p.groups)
        b0, b1 = blocks * chunk // chunks, blocks * (chunk + 1) // chunks
        for unit in range(units * s // slices, units * (s + 1) // slices):
            add, count = unit > units * s // slices, 0
            for box in range(unit * unit_boxes, min(boxes, (unit + 1) * unit_boxes)):
                n, d, h0, w0 = place_of_box(p, box)
                image = n * p.groups + g
                for block in range(b0, b1):
                    start = (image * p.rows + min(block * ROWS, p.rows - ROWS)) * area
                    to = pointer(scratch, rows_at + block * of_block + count * ROWS)
                    _transformed_rows(
                        form, gy, start, gy_plan, gy_tables, pointer(gy_off), scratch, d, h0, w0, to,
                        tiles * ROWS + FILTER_PADDING, box_at,
                    )  # fmt: skip
                count = _transformed_channels(
                    form, x, image, plan, tables, pointer(off), scratch, d, h0, w0, channels, tiles, count, box_at
                )
            c = at = 0
            while c < channels:
                width = _width_of_tile(c, channels)
                stride = tiles * width + STAGGER
                for block in range(b0, b1):
                    place = (((s * p.groups + g) * blocks + block) * padded + c) * frequencies * ROWS
                    target = pointer(scratch, sums_at) if units == 1 else pointer(sums) + place * size
                    for f in range(frequencies):
                        a = pointer(scratch, rows_at + block * of_block + f * (tiles * ROWS + FILTER_PADDING))
                        b, to = pointer(scratch, at + f * stride), target + f * ROWS * width * size
                        if width == _WIDE * LANES:
                            outer_strided(
                                x, ROWS, _WIDE, a, 1, ROWS, b, width, count, pointer(zeros), to, width, 0, add
                            )
                        else:
                            outer_strided(
                                x, ROWS, _NARROW, a, 1, ROWS, b, width, count, pointer(zeros), to, width, 0, add
                            )
                    if units == 1:
                        _filters_of_tile(form, gw, target, g, block, p.rows, c, width, channels)
                at += frequencies * stride
                c += width


@shared
def _filter_gradients(form: Any, sums: Any, gw: Any, rows: int, channels: int, who: int, begin: int, end: int) -> None:
    """gw from the sums of all slices, added in order; tasks are (group, block of rows)."""
    slices, groups, blocks, one = sums.shape
    frequencies = tile_frequencies(form)
    line, apart = sums.reshape(sums.size), np.uintp(groups * blocks * one)
    for task in range(begin, end):
        g, block = divmod(task, blocks)
        c = 0
        while c < channels:
            width = _width_of_tile(c, channels)
            at, count = np.uintp(task * one + c * frequencies * ROWS), np.uintp(frequencies * ROWS * width)
            for s in range(np.uintp(1), np.uintp(slices)):  # outermost, so that whole vectors are added
                for i in range(count):
                    line[at + i] += line[at + s * apart + i]
            _filters_of_tile(form, gw, pointer(line, at), g, block, rows, c, width, channels)
            c += width


def weight_gradient(tiles: Tiles, gy: Array, x: Array, geometry: ConvGeometry) -> Array:
    """The whole weight gradient of a geometry with tiles; see contract.Backend.conv_weight_grad."""
    source, p = tiles.source, tiles.source.plan[0]
    blocks = -(-tiles.rows // ROWS)
    vectors, padded = -(-tiles.channels // LANES), 0
    while padded < tiles.channels:
        padded += width_of_tile(padded, tiles.channels)
    boxes = len(x) * source.boxes
    unit_boxes = even_part(boxes, max(1, _UNIT_TILES // tiles.box_tiles))
    units, most = -(-boxes // unit_boxes), unit_boxes * tiles.box_tiles
    one = tiles.groups * blocks * tiles.frequencies * ROWS * padded
    slices = slice_count(-(-units // _UNITS_PER_SLICE), one * x.itemsize)
    sums = call_scratch(slices * one if units > 1 else 0, x.dtype)
    # Each chunk of rows transforms x anew: no more of them than keep the threads busy. They change no sum.
    chunks = max(1, min(blocks, -(-get_num_threads() // (slices * tiles.groups))))
    gradient = tiles.gradient[0]
    box = (
        tiles.frequencies * ROWS * _WIDE * LANES
        + max(2 * LANES * int(p["channel"]), 2 * ROWS * int(gradient["channel"]))
        + 2 * LANES * LANES
        + 2 * _SLACK
    )
    elements = tiles.frequencies * (most * (padded + blocks * ROWS) + vectors * STAGGER + blocks * FILTER_PADDING) + box
    gw = np.empty(geometry.weight_shape, x.dtype)
    flops = 2 * len(x) * tiles.frequencies * source.outputs * tiles.channels * tiles.rows * tiles.groups
    tasks = slices * tiles.groups * chunks
    team = team_for(tasks, flops * _NS_PER_FLOP)
    weight_grad_tiles(
        tiles.form, flat(gy), flat(x), sums, gw.reshape(-1), source.plan, source.tables, tiles.offsets, tiles.gradient,
        tiles.gradient_tables, tiles.gradient_offsets, scratch_rows(team.size, elements, x.dtype), tiles.channels,
        padded, unit_boxes, most, slices, chunks, team.address, 0, tasks,
    )  # fmt: skip
    if units > 1:
        parts = sums.reshape(slices, tiles.groups, blocks, -1)
        arguments = tiles.form, parts, gw.reshape(-1), tiles.rows, tiles.channels
        share(_filter_gradients, arguments, tiles.groups * blocks, sums.size)
    return gw
