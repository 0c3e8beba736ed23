"""The loops of resampling: axis after axis, each output a weighted sum of neighbouring rows.

A task is a block: some planes, or a run of outputs along the first axis of one plane; what it reads is a run as well.
The axes are resampled one after the other, those that shrink the block most first; what lies between two axes is
scratch in the second-level cache. Along every axis but the last an output is a row: a weighted sum of rows of the
source, vector by vector, sums in registers. Along the last axis as many rows as a vector has lanes are turned in
registers, a piece at a time that stays in the first-level cache, so that an output is again a vector, and turned back.
Where that axis is doubled or halved nothing is turned: doubled, neighbouring inputs make a vector of outputs with even
and one with odd numbers, whose lanes are mixed; halved, the inputs are parted into even and odd ones before the sum.
Rows of large results are stored past the caches.
Cost: a load and a multiply-add for each tap of a vector, along the last axis three shuffles for each one read or
written besides (doubled: two for each one written; halved: one for each tap and one). Floor: input and output once
through memory.
"""

from __future__ import annotations

from typing import Any

from fastconv.backends.cpu.gather import copy_bytes, zero_bytes
from fastconv.backends.cpu.host import VECTOR_BYTES, pointer, routine
from fastconv.backends.cpu.plane_lanes import lanes_to_planes, planes_to_lanes
from fastconv.backends.cpu.resample_simd import weighted_halves, weighted_pairs, weighted_sum
from fastconv.backends.cpu.simd import fence, transpose
from fastconv.backends.cpu.team import shared

FIRST, TAPS, WEIGHTS = range(3)
"""Columns of a table: the first tap of an output, how many it has, where their weights begin."""

_VECTORS = 4  # of a row at once


@shared
def resample(
    x: Any, y: Any, table: Any, weights: Any, passes: Any, block: Any, streamed: bool, memory: Any, who: int,
    begin: int, end: int,
) -> None:  # fmt: skip
    """Blocks [begin, end) of y, rows stored past the caches if `streamed`; the others are those of resampling.Plan.

    `memory`: for each thread the scratch between the axes, then that for columns that are turned.
    """
    scratch, turned = memory[who], memory[who, block[7] :]
    for task in range(begin, end):
        _resample_block(x, y, table, weights, passes, block, streamed, scratch, turned, task)
    if streamed:
        fence()


@shared
def resample_in_lanes(
    x: Any, y: Any, table: Any, weights: Any, passes: Any, sizes: Any, places: Any, memory: Any, who: int, begin: int,
    end: int,
) -> None:  # fmt: skip
    """Groups [begin, end) of planes of y, as many as a vector has lanes, each position of them a row of the passes.

    `sizes`: inputs and outputs of a plane, vectors of the largest array between two passes; `places`: see plane_lanes.
    """
    inputs, outputs, most = sizes
    lanes, own = VECTOR_BYTES // x.itemsize, memory[who]
    for group in range(begin, end):
        source, other = pointer(own), pointer(own, most * lanes)
        valid = planes_to_lanes(x, group, inputs, places, source)
        for p in range(len(passes)):
            at, before, after, inner, images = passes[p]
            _along(
                x, source, before, 0, other, after, images, inner * lanes, table[at : at + after], weights, 0
            )  # fmt: skip
            source, other = other, source
        lanes_to_planes(source, y, group, outputs, valid)


@routine
def _resample_block(
    x: Any, y: Any, table: Any, weights: Any, passes: Any, block: Any, streamed: bool, scratch: Any, turned: Any,
    task: int,
) -> None:  # fmt: skip
    """One block, one axis after the other."""
    planes, rows, cuts, lead_inputs, lead_outputs, behind_inputs, behind_outputs, _, _, span = block
    lanes = VECTOR_BYTES // x.itemsize
    plane, o0 = task // cuts * planes, task % cuts * rows
    o1, count = min(o0 + rows, lead_outputs), min(planes, y.size // (lead_outputs * behind_outputs) - plane)
    s0, s1 = 0, lead_inputs
    if cuts > 1:
        s0, s1 = table[o0, FIRST], table[o1 - 1, FIRST] + table[o1 - 1, TAPS]
    source = pointer(x, (plane * lead_inputs + s0) * behind_inputs)
    for p in range(len(passes)):
        begin, inputs, outputs, inner, between, lead_is_done, place, chunk, together, first, groups = passes[p]
        here, shift, images = table[o0:o1], s0, count
        if begin == 0:  # of the outputs from o0 on
            skipped = max(0, (o0 - first + together - 1) // together)
            groups = min(groups, (o1 - first) // together) - skipped
            first += together * skipped - o0
        if begin > 0:
            length = o1 - o0 if lead_is_done else s1 - s0
            here, shift, images = table[begin : begin + outputs], 0, count * length * between
        target, past = pointer(scratch, place), 0
        if place < 0:
            target = pointer(y, (plane * lead_outputs + o0) * behind_outputs)
            past = streamed and inner % lanes == 0 and pointer(y) % VECTOR_BYTES == 0
        joined = images if together * groups == outputs and (3 - together) * groups == inputs else 1
        if inner == 1 and groups * joined >= lanes:
            _in_groups(x, source, inputs, shift, target, outputs, images, here, weights, together, first, groups)
        elif chunk > 0 and images >= lanes:
            _across(x, source, inputs, shift, target, outputs, images, here, weights, turned, chunk, span)
        else:
            _along(x, source, inputs, shift, target, outputs, images, inner, here, weights, past)
        source = target


@routine
def _along(
    x: Any, source: int, inputs: int, shift: int, target: int, outputs: int, images: int, inner: int, table: Any,
    weights: Any, streamed: int,
) -> None:  # fmt: skip
    """The rows of `table`, of `inner` elements, in images of `outputs` rows from those of `inputs` rows.

    `source` is input `shift`; where there are several images it is 0.
    """
    size = x.itemsize
    lanes = VECTOR_BYTES // size
    row = inner * size
    for image in range(images):
        o = 0
        while o < len(table):
            to, empty = target + (image * outputs + o) * row, o
            while o < len(table) and table[o, TAPS] == 0:
                o += 1
            if o > empty:
                zero_bytes(to, (o - empty) * row)
                continue
            place = source + (image * inputs + table[o, FIRST] - shift) * row
            taps, factors = table[o, TAPS], pointer(weights, table[o, WEIGHTS])
            o += 1
            if inner == 1:  # where the tests of the loops below cost more than the sum
                weighted_sum(x, 1, 1, to, place, 1, factors, taps, 0)
                continue
            j = 0
            while j + _VECTORS * lanes <= inner:
                weighted_sum(x, 0, _VECTORS, to + j * size, place + j * size, inner, factors, taps, streamed)
                j += _VECTORS * lanes
            while j + lanes <= inner:
                weighted_sum(x, 0, 1, to + j * size, place + j * size, inner, factors, taps, streamed)
                j += lanes
            if j < inner and inner >= lanes:
                j = inner - lanes
                weighted_sum(x, 0, 1, to + j * size, place + j * size, inner, factors, taps, streamed)
            elif j < inner:
                for i in range(inner):
                    weighted_sum(x, 1, 1, to + i * size, place + i * size, inner, factors, taps, 0)


@routine
def _in_groups(
    x: Any, source: int, inputs: int, shift: int, target: int, outputs: int, rows: int, table: Any, weights: Any,
    together: int, first: int, groups: int,
) -> None:  # fmt: skip
    """The same for rows of single elements in which `groups` groups of outputs weigh alike, from `first` of `table` on.

    In each are `together` outputs, 2 or 1, and the next one begins 1 or 2 inputs further.
    """
    size = x.itemsize
    end, taps, begin = first + together * groups, table[first, TAPS], table[first, FIRST]
    apart, factors = table[first + together - 1, FIRST] - begin, pointer(weights, table[first, WEIGHTS])
    if together * groups == outputs and (3 - together) * groups == inputs:  # from row to row, too
        groups, rows = groups * rows, 1
    for row in range(rows):
        place, to = source + (row * inputs - shift) * size, target + row * outputs * size
        behind, place_of_first = to + first * size, place + begin * size
        if together == 2 and taps == 1:
            weighted_pairs(x, 1, behind, place_of_first, apart, factors, groups)
        elif together == 2 and taps == 2:
            weighted_pairs(x, 2, behind, place_of_first, apart, factors, groups)
        elif together == 2:
            weighted_pairs(x, 4, behind, place_of_first, apart, factors, groups)
        elif taps == 2:
            weighted_halves(x, 2, behind, place_of_first, factors, groups)
        elif taps == 4:
            weighted_halves(x, 4, behind, place_of_first, factors, groups)
        else:
            weighted_halves(x, 8, behind, place_of_first, factors, groups)
        for o in range(first):
            _single(x, place, to, o, table, weights)
        for o in range(end, len(table)):
            _single(x, place, to, o, table, weights)


@routine
def _single(x: Any, source: int, target: int, o: int, table: Any, weights: Any) -> None:
    """Output o of a row, whose first input and output are `source` and `target`."""
    size, taps = x.itemsize, table[o, TAPS]
    if taps > 0:
        factors = pointer(weights, table[o, WEIGHTS])
        weighted_sum(x, 1, 1, target + o * size, source + table[o, FIRST] * size, 1, factors, taps, 0)
    else:
        zero_bytes(target + o * size, size)


@routine
def _across(
    x: Any, source: int, inputs: int, shift: int, target: int, outputs: int, rows: int, table: Any, weights: Any,
    turned: Any, chunk: int, span: int,
) -> None:  # fmt: skip
    """The same for rows of single elements, of which there are enough for a vector."""
    size = x.itemsize
    lanes = VECTOR_BYTES // size
    sums = pointer(turned, span * lanes)
    for group in range(0, rows, lanes):
        r = min(group, rows - lanes)  # the last rows overlap those before
        for o in range(0, len(table), chunk):
            here = table[o : o + chunk]
            begin, end = here[0, FIRST], here[-1, FIRST] + here[-1, TAPS]
            _turn(x, source + (r * inputs + begin - shift) * size, inputs, end - begin, turned)
            for i in range(len(here)):
                place, taps = pointer(turned, (here[i, FIRST] - begin) * lanes), here[i, TAPS]
                if taps > 0:
                    weighted_sum(
                        x, 0, 1, sums + i * VECTOR_BYTES, place, lanes, pointer(weights, here[i, WEIGHTS]), taps, 0
                    )
                else:
                    zero_bytes(sums + i * VECTOR_BYTES, VECTOR_BYTES)
            _turn_back(x, turned, span * lanes, target + (r * outputs + o) * size, outputs, len(here))


@routine
def _turn(x: Any, source: int, pitch: int, columns: int, turned: Any) -> None:
    """turned[k · lanes + m] = source[m · pitch + k] for m < lanes and k < columns."""
    size = x.itemsize
    lanes = VECTOR_BYTES // size
    if columns >= lanes:
        transpose(x, source, pitch, columns // lanes, pointer(turned), lanes)
        last = columns - lanes
        transpose(x, source + last * size, pitch, 1, pointer(turned, last * lanes), lanes)
    else:
        for m in range(lanes):
            for k in range(columns):
                copy_bytes(pointer(turned, k * lanes + m), source + (m * pitch + k) * size, size)


@routine
def _turn_back(x: Any, turned: Any, at: int, target: int, pitch: int, columns: int) -> None:
    """target[m · pitch + k] = turned[at + k · lanes + m] for m < lanes and k < columns."""
    size = x.itemsize
    lanes = VECTOR_BYTES // size
    if columns >= lanes:
        for k in range(0, columns, lanes):
            first = min(k, columns - lanes)
            transpose(x, pointer(turned, at + first * lanes), lanes, 1, target + first * size, pitch)
    else:
        for m in range(lanes):
            for k in range(columns):
                copy_bytes(target + (m * pitch + k) * size, pointer(turned, at + k * lanes + m), size)
