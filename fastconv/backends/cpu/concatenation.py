"""Arrays side by side in one, on the CPU backend.

What all threads share is the bytes of the result, wherever the cuts between arrays fall: to threads a few large arrays
are as good as many small ones. An array is copied run by run, a run being what lies in one piece in the array and in
the result alike: of a contiguous array all that the result takes at once. Arrays of another dtype, or without runs that
are worth a call of memcpy, are left to NumPy. Cost: one read and one write of everything.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.gather import copy_bytes
from fastconv.backends.cpu.memory import empty
from fastconv.backends.cpu.team import shared
from fastconv.backends.threads import share

Array = npt.NDArray[Any]

_NS_PER_BYTE = 0.1
_LEAST_RUN = 64
"""Bytes of a run for which an array with gaps is not left to NumPy."""

_SOURCE, _BEGIN, _END, _RUN, _AXES, _SIZES = range(6)
"""Columns of a table of arrays: the address of each one, its first byte and its end in a row of the result, bytes of a
run, how many axes count the runs; their sizes and then their strides follow."""


def concatenate(arrays: Sequence[Array], axis: int) -> Array:
    """See contract.Backend.concatenate."""
    first = arrays[0].shape
    axis %= len(first)
    stops = list(itertools.accumulate(array.shape[axis] for array in arrays))
    y = empty((*first[:axis], stops[-1], *first[axis + 1 :]), np.result_type(*arrays))
    inner, before, rows = math.prod(first[axis + 1 :]) * y.itemsize, (slice(None),) * axis, []
    for array, start, stop in zip(arrays, [0, *stops], stops):
        run, axes = _runs(array)
        if array.dtype == y.dtype and not y.dtype.hasobject and run >= min(_LEAST_RUN, array.nbytes):
            counted = [0] * (2 * len(first))
            counted[: 2 * axes] = *array.shape[:axes], *array.strides[:axes]
            rows.append((_address(array), start * inner, stop * inner, run, axes, *counted))
        else:
            y[(*before, slice(start, stop))] = array
    if rows:
        share(_copy, (np.array(rows, np.int64), _address(y), stops[-1] * inner), y.nbytes, _NS_PER_BYTE * y.nbytes)
    return y


def _runs(array: Array) -> tuple[int, int]:
    """Bytes that lie in one piece, and the number of axes before those that make it up."""
    if array.flags.c_contiguous:
        return array.nbytes, 0
    run, axes = array.itemsize, array.ndim
    while axes and (array.strides[axes - 1] == run or array.shape[axes - 1] == 1):
        axes -= 1
        run *= array.shape[axes]
    return run, axes


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


@shared
def _copy(table: Any, y: int, row_bytes: int, who: int, begin: int, end: int) -> None:
    """Bytes [begin, end) of y, an address of rows that take a piece of each array of `table`."""
    for row in range(begin // row_bytes, -(-end // row_bytes)):
        for part in table:
            size, behind = part[_END] - part[_BEGIN], row * row_bytes + part[_BEGIN]
            at, last = max(begin - behind, 0) + row * size, min(end - behind, size) + row * size
            while at < last:  # bytes of the array, counted without its gaps
                number = at // part[_RUN]
                count, source = min(last, (number + 1) * part[_RUN]) - at, part[_SOURCE] + at - number * part[_RUN]
                for axis in range(part[_AXES] - 1, -1, -1):
                    length = part[_SIZES + axis]
                    source += number % length * part[_SIZES + part[_AXES] + axis]
                    number //= length
                target = y + behind + at - row * size
                if count == 4:  # a call of memcpy would take longer than one number
                    copy_bytes(target, source, 4)
                elif count == 8:
                    copy_bytes(target, source, 8)
                else:
                    copy_bytes(target, source, count)
                at += count
