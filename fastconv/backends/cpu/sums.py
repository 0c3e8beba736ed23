"""Sums of contiguous runs in float64, vectorised, in an order that depends on nothing but the length.

"reassoc" lets LLVM keep one partial sum a lane; how many is settled when the kernel is compiled. A float32 run is
summed without any rounding worth the name: 29 spare bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu.host import routine


@routine(fastmath={"reassoc"})  # type: ignore[untyped-decorator]
def total(x: Any) -> float:
    """Σ x."""
    result = 0.0
    for i in range(x.size):
        result += x[i]
    return result


@routine(fastmath={"reassoc"})  # type: ignore[untyped-decorator]
def dot(a: Any, b: Any) -> float:
    """Σ a · b."""
    result = 0.0
    for i in range(a.size):
        result += np.float64(a[i]) * np.float64(b[i])
    return result


@routine(fastmath={"reassoc"})  # type: ignore[untyped-decorator]
def squares_about(x: Any, centre: float) -> float:
    """Σ (x - centre)²."""
    result = 0.0
    for i in range(x.size):
        result += (x[i] - centre) * (x[i] - centre)
    return result


@routine(fastmath={"reassoc"})  # type: ignore[untyped-decorator]
def dot_about(a: Any, x: Any, centre: float) -> float:
    """Σ a · (x - centre)."""
    result = 0.0
    for i in range(a.size):
        result += np.float64(a[i]) * (x[i] - centre)
    return result
