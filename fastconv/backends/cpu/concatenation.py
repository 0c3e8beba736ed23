"""Arrays side by side in one, on the CPU backend: NumPy's copies, a sample of an array each, shared among threads."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.memory import empty
from fastconv.backends.threads import parallel_for

Array = npt.NDArray[Any]

_NS_PER_BYTE = 0.1


def concatenate(arrays: Sequence[Array], axis: int) -> Array:
    """See contract.Backend.concatenate."""
    first = arrays[0].shape
    axis %= len(first)
    stops = list(itertools.accumulate(array.shape[axis] for array in arrays))
    y = empty((*first[:axis], stops[-1], *first[axis + 1 :]), np.result_type(*arrays))
    before = (slice(None),) * axis
    parts = [y[(*before, slice(start, stop))] for start, stop in zip([0, *stops], stops)]
    pairs = zip(parts, arrays)
    copies = list(pairs) if axis == 0 else [pair for part, array in pairs for pair in zip(part, array)]

    def copy(start: int, stop: int) -> None:
        for target, source in copies[start:stop]:
            target[...] = source

    parallel_for(copy, len(copies), _NS_PER_BYTE * y.nbytes)
    return y
