"""The end of a residual block on the CPU backend: max(a + b, 0). See contract.py.

One loop over flat arrays, without a branch, so that LLVM vectorises it: two loads, an addition, a comparison and a
store for each output, where an addition and a ReLU apart would write the sum to memory and read it again. Cost: one
pass, three streams of memory instead of five.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from fastconv.backends.cpu.elementary import like
from fastconv.backends.cpu.host import flat
from fastconv.backends.cpu.memory import empty
from fastconv.backends.cpu.team import shared
from fastconv.backends.threads import share

Array = npt.NDArray[Any]

_NS_PER_BYTE = 0.15


def add_relu(a: Array, b: Array) -> Array:
    """See contract.Backend.add_relu."""
    y = empty(a.shape, a.dtype)
    share(_add_relu, (flat(a), flat(b), y.reshape(-1)), y.size, _NS_PER_BYTE * y.nbytes)
    return y


@shared
def _add_relu(a: Any, b: Any, y: Any, who: int, begin: int, end: int) -> None:
    a, b, y = a[begin:end], b[begin:end], y[begin:end]  # from 0 on LLVM sees that no index is negative
    for i in range(y.size):
        total = a[i] + b[i]
        y[i] = like(total, 0.0) if total < like(total, 0.0) else total  # a NaN is not smaller, and stays
