"""Whether all of a result is finite, by all threads: Winograd's tiles answer it with direct sums where it is not.

Idea: the exponent bits are all ones in infinities and NaNs alone, so the largest exponent tells; as a maximum of
integers it needs no order and fills vectors. Floor: one read of the result, which the caches hold; NumPy's `isfinite`
writes an array of truth values as well, and was an eighth of a weight gradient of 512 × 512 filters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.team import shared
from fastconv.backends.threads import share

_CHUNK = 1 << 15  # elements of a task
_NS_PER_ELEMENT = 0.05


def all_finite(array: npt.NDArray[Any]) -> bool:
    """Whether a contiguous float32 or float64 array has no infinity and no NaN."""
    exponent = np.int32(0x7F800000) if array.itemsize == 4 else np.int64(0x7FF << 52)
    bits, found = array.reshape(-1).view(exponent.dtype), np.zeros(1, np.bool_)
    share(_find_not_finite, (bits, exponent, found), -(-array.size // _CHUNK), array.size * _NS_PER_ELEMENT)
    return not found[0]


@shared
def _find_not_finite(bits: Any, exponent: Any, found: Any, who: int, begin: int, end: int) -> None:
    """found[0] becomes True if an element of chunks begin ≤ task < end has all bits of the `exponent`."""
    most = exponent - exponent
    for i in range(np.uintp(begin * _CHUNK), np.uintp(min(end * _CHUNK, bits.size))):
        most = max(most, bits[i] & exponent)
    if most == exponent:
        found[0] = True
