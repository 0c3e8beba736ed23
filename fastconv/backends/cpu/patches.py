"""Kernels no larger than their stride: patches that do not overlap, one channel for each position in a patch.

Idea: with kernel = stride and no padding every input position belongs to one output. So the input gradient (that is, a
transposed convolution) is a 1×1 convolution to a channel for each position in a patch, whose rows of results are put
together to lines while they are in the first-level cache. Loop order: panel of columns, gathered once → unit of rows
of weights → tile → line of outputs. Floor: the FMA rate, one read of the source and one write of the target.

Between patches smaller than the stride lie gaps: there, as with every 1×1 kernel that has a stride, the rows of results
are the input gradient of a 1×1 convolution of stride 1, spread over the target a plane at a time.

The weight gradient is that of the 1×1 convolution; for it the input is taken apart to (N, C · taps, *O) in one pass.
Loop order: image, output row, position in the patch; a row of the source stays in the first-level cache while its
columns are taken apart. Floor: one read and one write of the input.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.axes import lifted
from fastconv.backends.cpu.column_gather import gather_columns
from fastconv.backends.cpu.correlate import tile_width, tiles_strided
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.gather import copy_strided
from fastconv.backends.cpu.host import VECTOR_BYTES, flat, inlined, past_caches, pointer, routine
from fastconv.backends.cpu.memory import empty
from fastconv.backends.cpu.packed_weights import pack
from fastconv.backends.cpu.plan import PANEL_BYTES, TILE_VECTORS, input_grad_plans
from fastconv.backends.cpu.scratch import call_scratch, scratch_rows
from fastconv.backends.cpu.simd import ROWS, WIDE, fence, interleave, stream_pairs
from fastconv.backends.cpu.team import shared
from fastconv.backends.threads import share, team_for
from fastconv.geometry import ConvGeometry

Array = npt.NDArray[Any]

_LANES4, _LANES8 = lanes_of(4), lanes_of(8)

OVERRUN = max(WIDE.values()) * _LANES4
"""Columns that a tile may write behind those asked for."""

_LEAST_TILES = 2  # of a panel, however many channels there are
_PANEL_ROW_BYTES = 768  # the longer a panel, the longer the runs of tiles and the lines that are put together
_MIN_TASKS = 32  # fewer pieces than this leave threads idle
_NS_PER_ELEMENT = 0.5
_NS_PER_FLOP = 0.01


def suits(geometry: ConvGeometry) -> bool:
    """Patches that do not overlap, and more than one channel in a group: depthwise kernels do without."""
    apart = all(kernel <= stride for kernel, stride in zip(geometry.kernel, geometry.stride))
    plain = all(d == 1 for d in geometry.dilation) and not any(map(any, geometry.padding))
    return apart and math.prod(geometry.stride) > 1 and plain and geometry.in_channels > geometry.groups


def gaps(geometry: ConvGeometry) -> bool:
    """Whether the patches of a geometry that `suits` leave something between them."""
    return geometry.kernel != geometry.stride


def pointwise_geometry(geometry: ConvGeometry) -> ConvGeometry:
    """The 1×1 convolution of the patches: a channel for each position in a patch."""
    rank = geometry.rank
    ones = (1,) * rank
    channels = geometry.in_channels * geometry.taps
    nothing = ((0, 0),) * rank
    return ConvGeometry(
        channels, geometry.out_channels, geometry.groups, geometry.out_spatial, ones, ones, ones, nothing
    )


@shared
def _take_apart(x: Any, patches: Any, sizes: Any, who: int, begin: int, end: int) -> None:
    """patches[image][i, j, k][d, h, w] = x[image][d · sd + i, h · sh + j, w · sw + k]; tasks are (image, d)."""
    depth, height, width, kd, kh, kw, od, oh, ow, sd, sh, sw = sizes
    for task in range(begin, end):
        image, d = divmod(task, od)
        for i in range(kd):
            for h in range(oh):
                for j in range(kh):
                    source = ((image * depth + d * sd + i) * height + h * sh + j) * width
                    for k in range(kw):
                        channel = ((image * kd + i) * kh + j) * kw + k
                        copy_strided(patches, ((channel * od + d) * oh + h) * ow, x, source + k, sw, ow)


def take_apart(x: Array, geometry: ConvGeometry) -> Array:
    """The patches of x (N, C, *S) as channels: (N, C · taps, *O)."""
    patches = empty((len(x), geometry.in_channels * geometry.taps, *geometry.out_spatial), x.dtype)
    sizes = _sizes(geometry)
    tasks = len(x) * geometry.in_channels * sizes[6]
    share(_take_apart, (flat(x), patches.reshape(-1), sizes), tasks, patches.size * _NS_PER_ELEMENT)
    return patches


@shared
def _spread(patches: Any, b: Any, x: Any, sizes: Any, who: int, begin: int, end: int) -> None:
    """As `_take_apart` the other way round, and b[channel], or 0 without b, where there is no patch; tasks: images."""
    depth, height, width, kd, kh, kw, od, oh, ow, sd, sh, sw = sizes
    for task in range(begin, end):
        value = b[task % len(b)] if len(b) else x.dtype.type(0)
        for z in range(depth):
            d, i = divmod(z, sd)
            for y in range(height):
                (h, j), row = divmod(y, sh), ((task * depth + z) * height + y) * width
                for w in range(np.uintp(width)):
                    x[np.uintp(row) + w] = value
                if d >= od or i >= kd or h >= oh or j >= kh:
                    continue
                for k in range(kw):
                    channel = ((task * kd + i) * kh + j) * kw + k
                    source = np.uintp(((channel * od + d) * oh + h) * ow)
                    for w in range(np.uintp(ow)):
                        x[np.uintp(row + k) + w * np.uintp(sw)] = patches[source + w]


def spread(patches: Array, b: Array | None, x: Array, geometry: ConvGeometry) -> None:
    """The patches (N, C · taps, *O) to their places in x (N, C, *S), and b (C) to what lies between them."""
    arrays = patches.reshape(-1), np.empty(0, x.dtype) if b is None else flat(b), x.reshape(-1)
    tasks = len(x) * geometry.in_channels
    share(_spread, (*arrays, _sizes(geometry)), tasks, x.size * _NS_PER_ELEMENT)


def _sizes(geometry: ConvGeometry) -> tuple[int, ...]:
    triples = (geometry.spatial, geometry.kernel, geometry.out_spatial, geometry.stride)
    return tuple(size for values in triples for size in lifted(values, 1))


@routine(allocates=True)  # type: ignore[untyped-decorator]
def _stretches(first: int, count: int, group: int, groups: int, channels: int, sizes: Any) -> Any:
    """Columns first ≤ column < first + count cut where an output row ends: (where in x, first column, length)."""
    depth, height, width, kd, kh, kw, od, oh, ow = sizes[:9]
    stretches = np.empty((count // ow + 2, 3), np.int64)
    number, column = 0, first
    while column < first + count:
        rest, w = divmod(column, ow)
        rest, h = divmod(rest, oh)
        sample, d = divmod(rest, od)
        row = (((sample * groups + group) * channels * depth) + d * kd) * height + h * kh
        length = min(ow - w, first + count - column)
        stretches[number, 0], stretches[number, 1], stretches[number, 2] = row * width + w * kw, column - first, length
        number += 1
        column += length
    return stretches[:number]


@inlined
def put_together(rows: Any, source: int, pitch: int, kw: int, x: Any, to: int, count: int) -> None:
    """x[to + w · kw + k] = rows[source + k · pitch + w] for k < kw, w < count."""
    lanes = _LANES4 if x.itemsize == 4 else _LANES8
    if kw in (2, 3, 4) and count >= lanes:
        _put_vectors(rows, source, pitch, kw, x, to, count // lanes)
        if count % lanes:
            last = count - lanes  # these overlap those before
            _put_vectors(rows, source + last, pitch, kw, x, to + last * kw, 1)
    else:
        for k in range(kw):
            line = np.uintp(source + k * pitch)
            for w in range(np.uintp(count)):
                x[np.uintp(to + k) + w * np.uintp(kw)] = rows[line + w]


@routine
def _put_vectors(rows: Any, source: int, pitch: int, kw: int, x: Any, to: int, vectors: int) -> None:
    origin, target = pointer(rows, source), pointer(x, to)
    if kw == 2:
        interleave(x, 2, origin, pitch, vectors, target)
    elif kw == 3:
        interleave(x, 3, origin, pitch, vectors, target)
    else:
        interleave(x, 4, origin, pitch, vectors, target)


@routine
def _put_lines(
    rows: Any, pitch: int, x: Any, sizes: Any, first: int, last: int, stretches: Any, streamed: bool
) -> None:
    """Lines first ≤ line < last of (channel, row of a patch), each of kw rows, to where their stretches lie in x.

    Past the caches if `streamed`: all stretches are then whole vectors of pairs.
    """
    depth, height, width, kd, kh, kw = sizes[:6]
    half = (_LANES4 if x.itemsize == 4 else _LANES8) // 2
    for line in range(first, last):
        rest, j = divmod(line, kh)
        channel, i = divmod(rest, kd)
        to = ((channel * depth + i) * height + j) * width
        source = (line - first) * kw * pitch
        for n in range(len(stretches)):
            place, column, count = stretches[n]
            if streamed:
                stream_pairs(x, pointer(rows, source + column), pitch, count // half, pointer(x, to + place))
            else:
                put_together(rows, source + column, pitch, kw, x, to + place, count)


@routine
def _multiply_unit(
    like: Any, packed: int, start: int, packed_rows: int, k: int, first: int, last: int, panel: int, step: int, count:
    int, rows: int, pitch: int,
) -> None:  # fmt: skip
    """Blocks first ≤ block < last of rows times the `count` columns of a panel, to rows at address `rows`."""
    size, zero = like.itemsize, like.dtype.type(0)
    lanes = _LANES4 if size == 4 else _LANES8
    span = TILE_VECTORS * lanes
    for block in range(first, last):
        r0 = block * ROWS
        mr = min(ROWS, packed_rows - r0)
        a, s, c = packed + r0 * k * size, start + r0 * size, rows + (r0 - first * ROWS) * pitch * size
        at = 0
        while at < count:
            width, wide = tile_width(mr, lanes, count - at)
            q, n, number = 0, min(span, count - at), (count - at) // span
            if width == span and number > 0:
                b, target = panel + at // span * step * size, c + at * size
                tiles_strided(zero, mr, wide, a, b, span, k, s, target, pitch, 0, 0, number, step * size, span * size)
                at += number * span
                continue
            while q < n:
                width, wide = tile_width(mr, lanes, n - q)
                if q + width > span:
                    width, wide = tile_width(mr, lanes, 0)
                b = panel + (at // span * step + q) * size
                tiles_strided(zero, mr, wide, a, b, span, k, s, c + (at + q) * size, pitch, 0, 0, 1, 0, 0)
                q += width
            at += span


@shared(allocates=True)  # type: ignore[untyped-decorator]
def _multiply(
    x: Any, packed: Any, y: Any, plan: Any, positions: Any, sizes: Any, unit: int, memory: Any, chunks: int,
    streamed: bool, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Tasks begin ≤ task < end of (group, panel of columns over all samples, chunk of units), the last fastest.

    A unit is as many blocks of rows of weights as make whole lines of outputs. Scratch holds its rows, then the panel.
    """
    p = plan[0]
    lanes = _LANES4 if x.itemsize == 4 else _LANES8
    span, total = TILE_VECTORS * lanes, x.size // (p.groups * p.channels)
    panels, units = -(-total // p.panel), -(-p.blocks // unit)
    pitch, step = p.panel + OVERRUN, p.count * span
    panel_at, kw = unit * ROWS * pitch, sizes[5]
    stretches = np.empty((0, 3), np.int64)
    gathered, scratch = -1, memory[who]
    for task in range(begin, end):
        piece, chunk = divmod(task, chunks)
        g, number = divmod(piece, panels)
        first = number * p.panel
        count = min(p.panel, total - first)
        if piece != gathered:
            gathered = piece
            gather_columns(
                x, g, scratch, panel_at, span, step, plan, positions, first, count, 0, 1, 0, p.channels, 1, 1
            )
            stretches = _stretches(first, count, g, p.groups, p.rows // (sizes[3] * sizes[4] * kw), sizes)
        a, start = (
            pointer(packed, g * p.packed * p.count),
            pointer(packed, p.groups * p.packed * p.count + g * p.packed),
        )
        for u in range(units * chunk // chunks, units * (chunk + 1) // chunks):
            block, behind = u * unit, min(p.blocks, (u + 1) * unit)
            _multiply_unit(
                x, a, start, p.packed, p.count, block, behind, pointer(scratch, panel_at), step, count,
                pointer(scratch), pitch,
            )  # fmt: skip
            lines = block * ROWS // kw, min(behind * ROWS, p.rows) // kw
            _put_lines(scratch, pitch, y, sizes, lines[0], lines[1], stretches, streamed)
    if streamed:
        fence()


class InputGrad:
    """The input gradient of patches: a product whose rows are put together while they are in the cache."""

    def __init__(self, geometry: ConvGeometry, itemsize: int) -> None:
        ((c,), _) = input_grad_plans(pointwise_geometry(geometry), itemsize)
        self.correlation, self.taps, self.sizes = c, geometry.taps, _sizes(geometry)
        tile = TILE_VECTORS * VECTOR_BYTES
        tiles = max(_LEAST_TILES, min(_PANEL_ROW_BYTES, PANEL_BYTES // c.count) // tile)
        self.panel = tiles * tile // itemsize
        self.plan = c.plan.copy()
        self.plan["panel"] = self.panel
        self.no_taps, self.positions = np.zeros(1, np.int64), np.zeros((1, 3), np.int64)
        kw = geometry.kernel[-1]
        self.unit = kw // math.gcd(ROWS, kw)
        self.packed_elements = c.groups * c.packed_rows * (c.count + 1)
        self.elements = (self.unit * ROWS + c.count) * (self.panel + OVERRUN)

    def run(self, gy: Array, w: Array, b: Array | None, gx: Array, relu: bool) -> None:
        """As `Algorithm.run`; no activation follows an input gradient."""
        c, dtype = self.correlation, gy.dtype
        source, weights, target = flat(gy), flat(w), gx.reshape(-1)
        bias = np.empty(0, dtype) if b is None else np.repeat(b, self.taps)
        packed = call_scratch(self.packed_elements, dtype)
        start = packed[c.groups * c.packed_rows * c.count :]
        pieces = c.groups * -(-len(gy) * c.outputs // self.panel)
        chunks = max(1, min(-(-c.blocks // self.unit), _MIN_TASKS // pieces))

        arrays = weights, bias, packed, start, c.plan, self.no_taps
        share(pack, (*arrays, 1, c.rows, 1, False), c.groups * c.blocks, weights.size * _NS_PER_ELEMENT)
        tasks, cost = pieces * chunks, len(gy) * c.flops * _NS_PER_FLOP + target.size * _NS_PER_ELEMENT
        team = team_for(tasks, cost)
        memory = scratch_rows(team.size, self.elements, dtype)
        _multiply(
            source, packed, target, self.plan, self.positions, self.sizes, self.unit, memory, chunks,
            self._streamed(target, source.nbytes), team.address, 0, tasks,
        )  # fmt: skip

    def _streamed(self, target: Array, read: int) -> bool:
        """Whether lines are stored past the caches: pairs, in rows of whole vectors.

        What is left of another row would be stored over a line on its way to memory, which then has to be read back.
        """
        whole = self.sizes[2] % lanes_of(target.itemsize) == 0 and target.ctypes.data % VECTOR_BYTES == 0
        return self.sizes[5] == 2 and whole and past_caches(target.nbytes, read)
