"""The end of a residual block on the CPU backend: max(a + b, 0). See contract.py.

One loop over flat arrays, without a branch, so that LLVM vectorises it: two loads, an addition, a comparison and a
store for each output, where an addition and a ReLU apart would write the sum to memory and read it again. Cost: one
pass, three streams of memory instead of five.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from fastconv.backends.cpu.elementary import like
from fastconv.backends.cpu.host import flat, kernel
from fastconv.backends.cpu.memory import empty
from fastconv.backends.threads import parallel_for

Array = npt.NDArray[Any]

_NS_PER_BYTE = 0.15


def add_relu(a: Array, b: Array) -> Array:
    """See contract.Backend.add_relu."""
    y = empty(a.shape, a.dtype)
    flat_a, flat_b, flat_y = flat(a), flat(b), y.reshape(-1)
    parallel_for(
        lambda start, stop: _add_relu(flat_a, flat_b, flat_y, start, stop), flat_y.size, _NS_PER_BYTE * y.nbytes
    )
    return y


@kernel
def _add_relu(a: Any, b: Any, y: Any, start: int, stop: int) -> None:
    a, b, y = a[start:stop], b[start:stop], y[start:stop]  # from 0 on LLVM sees that no index is negative
    for i in range(y.size):
        total = a[i] + b[i]
        y[i] = like(total, 0.0) if total < like(total, 0.0) else total  # a NaN is not smaller, and stays
