"""Addition on the CPU backend, alone and with the ReLU that ends a residual block. See contract.py.

One loop over flat arrays, without a branch, so that LLVM vectorises it: two loads, an addition, a comparison and a
store for each output, where an addition and a ReLU apart would write the sum to memory and read it again. Cost: one
pass, three streams of memory instead of five. An addition alone is NumPy's, but for large arrays: those are shared
among threads, and their sum lies in memory that was used before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.elementary import like
from fastconv.backends.cpu.host import flat
from fastconv.backends.cpu.memory import LEAST_BYTES, empty
from fastconv.backends.cpu.team import shared
from fastconv.backends.threads import share

Array = npt.NDArray[Any]

_NS_PER_BYTE = 0.15


def add(a: Any, b: Any) -> Any:
    """See contract.Backend.add."""
    if not (_is_large(a) and _is_large(b) and a.shape == b.shape and a.dtype == b.dtype):
        return a + b
    y = empty(a.shape, a.dtype)
    share(_add, (flat(a), flat(b), y.reshape(-1)), y.size, _NS_PER_BYTE * y.nbytes)
    return y


def _is_large(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.nbytes >= LEAST_BYTES and x.flags.c_contiguous and x.dtype.char in "fd"


def add_relu(a: Array, b: Array) -> Array:
    """See contract.Backend.add_relu."""
    y = empty(a.shape, a.dtype)
    share(_add_relu, (flat(a), flat(b), y.reshape(-1)), y.size, _NS_PER_BYTE * y.nbytes)
    return y


@shared
def _add(a: Any, b: Any, y: Any, who: int, begin: int, end: int) -> None:
    a, b, y = a[begin:end], b[begin:end], y[begin:end]  # from 0 on LLVM sees that no index is negative
    for i in range(y.size):
        y[i] = a[i] + b[i]


@shared
def _add_relu(a: Any, b: Any, y: Any, who: int, begin: int, end: int) -> None:
    a, b, y = a[begin:end], b[begin:end], y[begin:end]
    for i in range(y.size):
        total = a[i] + b[i]
        y[i] = like(total, 0.0) if total < like(total, 0.0) else total  # a NaN is not smaller, and stays
