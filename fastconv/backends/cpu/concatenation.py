"""Arrays side by side in one, on the CPU backend: one read and one write of everything, shared among threads.

A contiguous array lies in the result in runs, one for each index of the axes in front of the joined one; threads share
its bytes, wherever runs begin. What has gaps or another dtype, or runs too short for a call of memcpy each, is left to
NumPy, and so is little work.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.gather import copy_bytes
from fastconv.backends.cpu.host import flat, pointer
from fastconv.backends.cpu.memory import empty
from fastconv.backends.cpu.team import shared
from fastconv.backends.threads import is_little, share

Array = npt.NDArray[Any]

_NS_PER_BYTE = 0.1
_LEAST_RUN = 64  # bytes


def concatenate(arrays: Sequence[Array], axis: int) -> Array:
    """See contract.Backend.concatenate."""
    first = arrays[0].shape
    axis %= len(first)
    stops = list(itertools.accumulate(array.shape[axis] for array in arrays))
    y = empty((*first[:axis], stops[-1], *first[axis + 1 :]), np.result_type(*arrays))
    if is_little(_NS_PER_BYTE * y.nbytes):
        return np.concatenate(arrays, axis, out=y, casting="unsafe")
    inner = math.prod(first[axis + 1 :]) * y.itemsize
    for array, start, stop in zip(arrays, [0, *stops], stops):
        run, alike = (stop - start) * inner, array.dtype == y.dtype and not y.dtype.hasobject
        if run >= _LEAST_RUN and alike and array.flags.c_contiguous:
            operands = _bytes(array), _bytes(y), run, start * inner, stops[-1] * inner
            share(_copy_runs, operands, array.nbytes, _NS_PER_BYTE * array.nbytes)
        else:
            y[(slice(None),) * axis + (slice(start, stop),)] = array
    return y


def _bytes(array: Array) -> Array:
    return flat(array).view(np.uint8)


@shared
def _copy_runs(x: Any, y: Any, run: int, first: int, pitch: int, who: int, begin: int, end: int) -> None:
    """Bytes begin ≤ i < end of x, which lie in y in runs of so many, `pitch` apart from y[first] on."""
    while begin < end:
        row, column = divmod(begin, run)
        count = min(run - column, end - begin)
        copy_bytes(pointer(y, first + row * pitch + column), pointer(x, begin), count)
        begin += count
