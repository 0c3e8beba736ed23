"""Depthwise convolution of images in place: forward and input gradient, square kernels of side 3, 5 and 7.

Idea: with one channel an input row is what outputs share, and the side of the kernel is known to the compiler: each
shift of a row is loaded once, from where it lies, and serves all rows of outputs that it reaches (`sweep_strip` in
depthwise_strips_simd.py). Nothing is gathered, transposed or padded, which on small images costs as much as the
products. Any padding, steps of 1 and 2, any dilation at step 1; in volumes the planes of a kernel follow one another
and continue what the target holds.

Loop order: block (planes and rows of an image, a channel of a sample; or small images that fit the first-level cache
together) → plane of outputs → strip of columns, a vector or half of one wide → plane of the kernel → row. All that an
image is swept by stands in a table. Registers hold the taps and the sums under way, the first-level cache a strip's
rows, the second the block. Of all but small images the next block is asked for, and its target's lines: strips touch
lines in an order that no prefetcher sees, and from memory took twice as long.

Floor: the FMA rate, of lanes that are filled: half a vector has code of its own, because rows of 7 fill no more. What
the last strip of a longer row repeats is lost. Where that is too much, depthwise_lanes.py is faster
(depthwise_estimates.py).

Each output is one chain of FMAs, as in the shift-GEMM: results agree bit by bit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.depthwise_strips_simd import LAYOUT, PIECE, sweep_strip
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.host import LANES, LINE_BYTES, pointer
from fastconv.backends.cpu.plan import Correlation, even_part
from fastconv.backends.cpu.team import shared
from fastconv.backends.threads import team_for

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

SIDES, STEPS = (3, 5, 7), (1, 2)
"""Sides of the kernel and steps that there is code for."""

BLOCK_BYTES, SMALL_BLOCK_BYTES, BLOCK_SIDES = 64 * 1024, 24 * 1024, 8
"""Source of a block of rows, which strips pass one after the other, at least so many sides of the kernel high: where a
block begins some rows are read that no output is stored for.

Of the lines that two strips share the second finds those of a small block in the first level. With kernels of side 3
and vectors of 512 bits that is worth more (1.0 to 1.2) than the rows that more blocks read again, else not."""

MOST_PIECES = 8192
"""Of an image: larger ones take long to plan."""

ASKED_BYTES, ASKED_STRIPS = 4096, 2
"""Of an image, above which the next one is asked for: smaller ones are read as one stream, which a processor sees."""

TOGETHER_BYTES = 16 * 1024
"""Source and target of images that are swept together, piece after piece: half of the first-level cache."""

_NS_PER_FLOP = 0.015
_NS_PER_ELEMENT = 0.1

_NUMBERS, _OF_PIECE, _NARROW = len(LAYOUT), len(PIECE), PIECE.index("narrow")
_GROUPS, _CHANNELS, _TOGETHER, _ASKING, _VOLUME, _TARGET_VOLUME, _KERNEL, _BLOCKS = map(
    LAYOUT.index, "groups channels together asking volume target_volume kernel blocks".split()
)


class Strips:
    """The pieces of an image that are swept one after the other."""

    def __init__(self, correlation: Correlation) -> None:
        c = self.correlation = correlation
        depth, height, width = c.axes
        self.side, self.step = len(width.offsets), width.step
        self.fits = (
            LANES >= 8  # others have no instruction for some lanes of a vector
            and c.channels == 1
            and self.side in SIDES
            and len(height.offsets) == self.side
            and len(c.kernel_taps) == c.kernel_size
            and height.step == self.step in STEPS
            and all(axis.stride == 1 and axis.outputs == axis.target for axis in c.axes)
        )
        if not self.fits:
            return
        self.row_apart, self.column_apart = (axis.offsets[1] - axis.offsets[0] for axis in (height, width))
        self.volume = math.prod(axis.size for axis in c.axes)
        self.strips = strips(width.outputs, lanes_of(c.itemsize))
        sweeps = depth.outputs * len(depth.offsets) * len(self.strips) * abs(self.row_apart)
        self.fits = sweeps <= MOST_PIECES and (self.step == 1 or self.row_apart == self.column_apart == 1)
        if not self.fits:
            return
        self.blocks = list(self._blocks())
        pieces = [list(self._pieces(*block)) for block in self.blocks]
        self.pieces = self._with_lines(np.array([piece for block in pieces for piece in block], dtype=np.int64))
        parts = np.cumsum([0, *map(len, pieces)])
        self.numbers = np.concatenate([self._layout(), parts, self.pieces.reshape(-1)], dtype=np.int64)
        self.kernel = kernel_of(self.side, self.step)
        self.no_bias = np.zeros(c.groups * c.rows, f"f{c.itemsize}")
        self.cost = c.flops / c.groups * _NS_PER_FLOP + (self.volume + c.rows * c.outputs) * _NS_PER_ELEMENT

    def _with_lines(self, pieces: Ints) -> Ints:
        """The last numbers of PIECE added to the others: where the lines begin that each piece asks for."""
        c, blocks = self.correlation, len(self.blocks)
        more, outputs = (pieces[:, PIECE.index(name)] for name in ("more", "outputs"))
        line = LINE_BYTES // c.itemsize
        asked = np.where(more, 0, outputs + (self.side - 1) // self.step) * line
        leads = self.volume // blocks, c.outputs // blocks if blocks > 1 else c.outputs * c.rows
        done = np.cumsum(asked) - asked
        return np.column_stack([pieces, leads[0] + done * self.step**2, leads[1] + done])

    def _layout(self) -> list[int]:
        """The numbers of LAYOUT."""
        c, blocks = self.correlation, len(self.blocks)
        _, height, width = c.axes
        together = TOGETHER_BYTES // c.itemsize // (self.volume + c.rows * c.outputs) if blocks == 1 else 1
        asking = len(self.strips) > ASKED_STRIPS or self.volume * c.itemsize > ASKED_BYTES
        return [
            c.groups, c.rows, max(1, together), asking, height.size, width.size, self.row_apart, self.column_apart,
            self.volume, c.outputs, c.kernel_size, self.row_apart * width.outputs, blocks,
        ]  # fmt: skip

    def _blocks(self) -> Iterator[tuple[range, range]]:
        """Planes and rows of outputs of each block."""
        depth, height, width = self.correlation.axes
        row = width.size * self.correlation.itemsize * height.step
        most = SMALL_BLOCK_BYTES if self.side == 3 and LANES == 16 else BLOCK_BYTES
        rows = even_part(height.outputs, max(BLOCK_SIDES * self.side * abs(self.row_apart), most // row))
        planes = even_part(depth.outputs, max(1, most // (row * rows * depth.step)))
        for d, h in itertools.product(range(0, depth.outputs, planes), range(0, height.outputs, rows)):
            yield range(d, min(d + planes, depth.outputs)), range(h, min(h + rows, height.outputs))

    def _pieces(self, planes: range, rows: range) -> Iterator[tuple[int, ...]]:
        """The numbers of PIECE for each plane of outputs, strip, plane of the kernel, and row modulo a dilation.

        Rows of outputs are swept in the order in which their taps reach the source, upwards for an input gradient.
        """
        depth, height, width = self.correlation.axes
        dilation, upwards = abs(self.row_apart), self.row_apart < 0
        for d, (column, columns, lanes) in itertools.product(planes, self.strips):
            narrow = lanes < lanes_of(self.correlation.itemsize)
            # A whole vector may reach into the next row of outputs, which is stored after it, no further.
            overlaps = dilation == 1 and not upwards and 2 * columns >= lanes
            reached = [(i, d * depth.step + offset) for i, offset in enumerate(depth.offsets)]
            reached = [(i, z) for i, z in reached if 0 <= z < depth.size]
            inside = height.size if reached else 0  # else all lies in the padding, and the bias is left
            for number, (i, z) in enumerate(reached or [(0, 0)]):
                source, more, last = z * height.size * width.size, number > 0, number >= len(reached) - 1
                for residue in range(min(dilation, len(rows))):
                    swept = rows[residue::dilation]
                    plain = len(swept) if columns == lanes else (len(swept) - 1) * overlaps
                    first = swept[-1 if upwards else 0]
                    target = (d * height.outputs + first) * width.outputs + column
                    row, left = first * height.step + height.offsets[0], column * width.step + width.offsets[0]
                    reads = narrow, source, inside, row, left, i * self.side**2
                    yield *reads, more, target, len(swept), columns, plain, last

    def run(self, source: Array, w: Array, b: Array | None, target: Array, relu: bool) -> None:
        """Write the correlation of `source` with w to the whole of `target`; all arrays of one axis."""
        images = source.size // self.volume
        tasks = images * len(self.blocks)
        team = team_for(tasks, images * self.cost)
        bias = self.no_bias if b is None else b
        self.kernel(source, w, bias, target, self.numbers, relu, team.address, 0, tasks)


def strips(columns: int, lanes: int) -> list[tuple[int, int, int]]:
    """(first column, columns, lanes) of strips that cover a row, the last, maybe half a vector wide, overlapping."""
    halves = -(-columns // (lanes // 2))
    widths = [lanes] * (halves // 2) + [lanes // 2] * (halves % 2)
    begins = itertools.accumulate(widths[:-1], initial=0)
    return [(max(0, min(at, columns - n)), min(n, columns), n) for at, n in zip(begins, widths)]


@cache
def kernel_of(side: int, step: int) -> Any:
    """The kernel for a side and a step, compiled when it is first called."""

    def correlate_strips(
        x: Any, w: Any, b: Any, y: Any, numbers: Any, relu: int, who: int, begin: int, end: int
    ) -> None:
        """Tasks begin ≤ task < end of (sample, group, block), the last fastest.

        `numbers`: those of LAYOUT, the first piece of each block and their end, those of PIECE for each piece. In one
        array: each further one would cost a tiny call a hundredth of its time, a structured one a thirtieth.
        """
        size, blocks, parts, layout = x.itemsize, numbers[_BLOCKS], numbers[_NUMBERS:], pointer(numbers)
        groups, channels, asking = numbers[_GROUPS], numbers[_CHANNELS], numbers[_ASKING]
        volume, target_volume, kernel = numbers[_VOLUME], numbers[_TARGET_VOLUME], numbers[_KERNEL]
        pieces = numbers[_NUMBERS + blocks + 1 :]
        task = begin
        while task < end:
            image, block = divmod(task, blocks)
            group = image % groups
            images = min(numbers[_TOGETHER], end - task, groups - group)
            source = pointer(x) + image * volume * size
            for m in range(channels):
                channel = group * channels + m
                taps, bias = pointer(w) + channel * kernel * size, pointer(b) + channel * size
                target = pointer(y) + (image * channels + m) * target_volume * size
                for n in range(parts[block] * _OF_PIECE, parts[block + 1] * _OF_PIECE, _OF_PIECE):
                    piece = pointer(pieces, n)
                    if pieces[n + _NARROW]:
                        if asking:
                            sweep_strip(x, side, step, 2, 1, layout, piece, source, taps, bias, target, images, relu)
                        else:
                            sweep_strip(x, side, step, 2, 0, layout, piece, source, taps, bias, target, images, relu)
                    elif asking:
                        sweep_strip(x, side, step, 1, 1, layout, piece, source, taps, bias, target, images, relu)
                    else:
                        sweep_strip(x, side, step, 1, 0, layout, piece, source, taps, bias, target, images, relu)
            task += images

    # Numba tells kernels of the same name apart only within a process, and the cache keeps them longer.
    correlate_strips.__qualname__ += f"_{side}_{step}"
    return shared(correlate_strips)
