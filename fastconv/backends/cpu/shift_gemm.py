"""A correlation by the shift-GEMM of correlate.py: what its kernels are told, once for each geometry, and their calls.

A call costs as much Python as it has steps, and a small convolution takes the kernels less than a microsecond: all that
the arrays do not decide is therefore worked out here in advance, and little work is one single kernel call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu import columns, correlate, packed_weights, row_lanes
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.estimates import lanes_time, takes_columns, time_without_lanes
from fastconv.backends.cpu.host import LINE_BYTES, flat
from fastconv.backends.cpu.plan import PANEL_STEP, TILE_VECTORS, Correlation
from fastconv.backends.cpu.scratch import ALIGNED, call_scratch, scratch_rows
from fastconv.backends.cpu.simd import ROWS
from fastconv.backends.threads import get_num_threads, is_little, team_for

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

_NS_PER_FLOP = 0.01
_NS_PER_ELEMENT = 0.3
_PACKED_BYTES = 1 << 20  # a share of the last cache, enough for the rows that make the gathering of columns pay
_MIN_TASKS = 32  # fewer pieces than this leave threads idle
_TASK_NS = 10_000  # at least: pieces of output rows share a source, which each thread gathers anew
_GATHERED_BYTES = 16 << 20  # of panels that threads gather together, at most
_SLICE_CHANNELS = 16  # of a task that gathers, at least
_FEW_PANELS = 4  # for each thread
_SHARING = 2  # so many threads that share a panel may each gather it
_TASKS_OF_EACH = 2  # for a thread that gathers what it needs: each may gather a panel anew
_FEW_COLUMNS = 512  # of all samples: for so many it costs more to pack weights than to read them apart for each tile
_TRANSPOSED_BYTES = 1 << 15  # of the first level, for a block of transposed weights
_NOTHING = {np.dtype(d): np.empty(0, d) for d in ("float32", "float64")}


class ShiftGemm:
    """The calls of one correlation with weights whose rows and channels lie `steps` apart; `name`: by which kernel."""

    def __init__(self, correlation: Correlation, steps: tuple[int, int]) -> None:
        c = self.correlation = correlation
        self.parts, self.blocks, self.block_rows, boxes, plan = [c], c.blocks, ROWS, c.boxes, c.plan
        packed = c.groups * c.packed_rows * (c.count + 1)
        if lanes := row_lanes.row_lanes(c):
            self.name, self.kernel, plan = "lanes", row_lanes.correlate_row_lanes, lanes.plan
            self.blocks, self.block_rows, boxes = lanes.blocks, lanes.block_rows, lanes.boxes
            packed = lanes.packed_elements
            rest, elements = [lanes.tables], lanes.elements
        elif takes_columns(c):
            self.name, self.kernel, self.parts = "columns", columns.correlate_columns, c.parts
            rest, elements = _of_columns(c)
        else:
            self.name, self.kernel = "in place" if plan[0]["direct"] else "boxes", correlate.correlate_boxes
            rest, elements = [c.tables, c.source_offsets], correlate.TILE_ELEMENTS + c.box_elements
        readable = c.rows % ROWS == 0 and self.name != "lanes" and _readable(c, steps, self.name)
        self.most_in_place = _FEW_COLUMNS // c.outputs if readable else 0
        """Samples for which the kernel reads the weights where they lie."""
        self.no_bias = np.zeros(c.groups * c.rows, f"f{c.itemsize}")
        self.numbers = np.concatenate([[*steps, c.kernel_size], plan.view(np.int64), c.kernel_taps, *rest])
        self.packed_elements = -(-packed // ALIGNED) * ALIGNED
        self.elements = max(elements + correlate.SLACK, packed_weights.line_elements(c.kernel_size))
        self.all_elements = self.packed_elements + self.elements
        self.groups, self.packings = c.groups, c.groups * self.blocks
        self.sample_boxes = c.groups * boxes
        self.weights = c.groups * c.rows * c.channels * c.kernel_size
        self.images = c.groups * (c.channels * _volume(c, "size") + c.rows * _volume(c, "target"))
        self.packing_cost = self.weights * _NS_PER_ELEMENT
        self.cost = sum(part.flops for part in self.parts) * _NS_PER_FLOP + self.images * _NS_PER_ELEMENT

    def _pieces(self, samples: int, threads: int) -> int:
        """Boxes of all samples, or panels of columns across them."""
        if self.name != "columns":
            return samples * self.sample_boxes
        return self.groups * sum(panels for panels, _ in self._panels(samples, threads))

    def _panels(self, samples: int, threads: int) -> list[tuple[int, int]]:
        """Of each part and one group: panels of columns, and the elements of one."""
        tile, found = TILE_VECTORS * lanes_of(self.correlation.itemsize), []
        for part in self.parts:
            tiles = -(-samples * part.outputs // tile)
            panels = columns.panels(tiles, part.panel_columns // tile, threads)
            found.append((panels, part.count * -(-tiles // panels) * tile))
        return found

    def run(self, source: Array, w: Array, b: Array | None, target: Array, relu: bool) -> None:
        """As `Algorithm.run`."""
        dtype, samples = source.dtype, len(source)
        in_place = samples <= self.most_in_place
        empty, no_bias = _NOTHING[dtype], self.no_bias if in_place else _NOTHING[dtype]
        arrays = flat(source), flat(w), no_bias if b is None else flat(b), target.ravel(), self.numbers
        threads = get_num_threads()  # asked once: another thread may set it meanwhile
        pieces, cost = self._pieces(samples, threads), samples * self.cost + (0 if in_place else self.packing_cost)
        if is_little(cost):
            memory = scratch_rows(1, self.all_elements, dtype)
            gathered = (threads, empty, False) if self.name == "columns" else ()
            self.kernel(*arrays, empty, memory, 1, relu, 0 if in_place else pieces, *gathered, 0, 0, pieces)
        else:
            self._in_parallel(arrays, samples, pieces, threads, cost, in_place, relu)

    def _in_parallel(
        self,
        arrays: tuple[Array, ...],
        samples: int,
        pieces: int,
        threads: int,
        cost: float,
        in_place: bool,
        relu: bool,
    ) -> None:
        dtype = arrays[0].dtype
        chunks, room, slices = self._division(samples, pieces, threads)
        if in_place:
            tasks, together, own = pieces * chunks, 0, 0
            gathered, packed = call_scratch(room, dtype), _NOTHING[dtype]
        elif pieces > self.groups:
            parts, own = max(1, min(self.packings, _MIN_TASKS, int(self.packing_cost / _TASK_NS))), 0
            tasks, together = parts + pieces * chunks, -parts
            shared = call_scratch(room + self.packed_elements + ALIGNED, dtype)
            gathered, packed = shared[:room], shared[room:]
            packed[-ALIGNED:] = 0  # counts the parts that are packed
        else:  # each block of rows is needed once, so it is packed just before, and read from a cache
            of_block = self.block_rows * (self.correlation.count + 1)
            packed_bytes = self.packings * of_block * dtype.itemsize
            chunks = max(chunks, min(self.blocks, packed_bytes // (pieces * _PACKED_BYTES)))
            tasks = pieces * chunks
            together = max(1, _PACKED_BYTES * tasks // packed_bytes)
            own = min(self.packings, together * -(-self.blocks // chunks)) * of_block + ALIGNED
            gathered, packed = call_scratch(room, dtype), _NOTHING[dtype]
        if slices:  # a call of its own: who gathers needs memory, and nobody may wait for who gets none
            team = team_for(pieces * slices, room * _NS_PER_ELEMENT)
            memory = scratch_rows(team.size, ALIGNED, dtype)
            what = threads, gathered, True
            self.kernel(*arrays, packed, memory, slices, relu, 1, *what, team.address, 0, pieces * slices)
        team = team_for(tasks, cost, max(0, -together))
        memory = scratch_rows(team.size, own + self.elements, dtype)
        more = (threads, gathered, False) if self.name == "columns" else ()
        self.kernel(*arrays, packed, memory, chunks, relu, together, *more, team.address, 0, tasks)

    def _division(self, samples: int, pieces: int, threads: int) -> tuple[int, int, int]:
        """Chunks of blocks that each piece is cut into; elements and slices of channels of panels gathered together.

        These are 0 if each thread gathers what it needs. Threads gather few panels together that take no more memory
        than what is given and computed. Two of them rather gather a panel twice than read what another core has
        written, unless it takes several steps of the sum: these are for few rows at a time.
        """
        room, slices, chunks = 0, 0, _MIN_TASKS // pieces
        if self.name == "columns" and threads > 1:
            room = self.groups * sum(panels * elements for panels, elements in self._panels(samples, threads))
            most = min(samples * self.images + self.weights, _GATHERED_BYTES // self.correlation.itemsize)
            several = self.correlation.count > PANEL_STEP
            enough = pieces >= _FEW_PANELS * threads if several else threads <= _SHARING * pieces
            if room <= most and not enough:
                slices = max(1, min(_FEW_PANELS * threads, self.correlation.channels // _SLICE_CHANNELS))
            elif not several:
                chunks = -(-_TASKS_OF_EACH * threads // pieces)
        chunks = max(1, min(self.blocks, chunks, int(samples * self.cost / _TASK_NS) // pieces))
        return (chunks, room, slices) if slices and chunks > 1 else (chunks, 0, 0)


def _readable(c: Correlation, steps: tuple[int, int], name: str) -> bool:
    """Whether the products of a sum lie equally far apart in weights whose rows and channels lie `steps` apart.

    Of transposed weights, those of an input gradient, each product has a line of the cache to itself.
    """
    row_step, channel_step = steps
    if row_step == c.count and channel_step == c.kernel_size == len(c.kernel_taps):
        return name != "columns" or len(c.parts) == 1
    return c.kernel_size == row_step == 1 and c.count * LINE_BYTES <= _TRANSPOSED_BYTES


def direct_time(c: Correlation) -> float:
    """That of the way which `ShiftGemm` takes, see estimates.py."""
    lanes = row_lanes.row_lanes(c)
    return lanes_time(lanes) if lanes else time_without_lanes(c)


def _of_columns(whole: Correlation) -> tuple[list[Ints], int]:
    """What `correlate_columns` reads of the parts of a correlation, and the elements of its scratch."""
    several = len(whole.parts) > 1
    numbers, elements = [np.array([several], dtype=np.int64)], 0
    for part in whole.parts:
        steps = part.tap_steps(whole.kernel_taps) if several else part.channel_steps()
        sizes = np.array([len(part.kernel_taps), len(steps)], dtype=np.int64)
        numbers += [sizes, part.plan.view(np.int64), part.positions.reshape(-1), steps.reshape(-1)]
        results = part.panel_columns * ROWS + correlate.TILE_ELEMENTS
        elements = max(elements, part.panel_elements + results * (part.blocks if len(steps) > 1 else 1))
    return numbers, elements


def _volume(correlation: Correlation, size: str) -> int:
    volume = 1
    for axis in correlation.axes:
        volume *= getattr(axis, size)
    return volume
