"""How far a sum of products may be from the exact one: from its length and the epsilon of its dtype, nothing else.

A sum of n rounded products a_i·b_i, in any order, errs by at most n·u·Σ|a_i·b_i| with the unit roundoff u = ε/2.
Rounding errors behave like independent random numbers: with probability 1 − p no more than λ·√n·u·Σ|a_i·b_i| is
reached, where λ = √(2·ln(2n/p)) (Higham and Mary, "A new approach to probabilistic rounding error analysis", SIAM J.
Sci. Comput. 41, 2019). The smaller of the two bounds holds.
"""

from __future__ import annotations

from math import log, sqrt

import numpy as np

FAILURE = 2.0**-60
"""p: a whole test run compares about a million numbers."""


def relative(terms: int, dtype) -> float:
    """The bound as a multiple of Σ|a_i·b_i|; each product and the conversion of the result round once more."""
    n = max(terms, 1) + 1
    return min(n, sqrt(2 * log(2 * n / FAILURE) * n)) * float(np.finfo(dtype).eps) / 2


def assert_close(actual, expected, terms: int, magnitude) -> None:
    """`actual` is `expected` but for the rounding of sums of `terms` products in its dtype.

    `magnitude` is the sum of the absolute values of these products; it and `expected` are float64.
    """
    assert actual.shape == expected.shape
    allowed = relative(terms, actual.dtype) * magnitude
    error = np.abs(actual - expected)
    if not np.all(error <= allowed):  # the comparison is False for NaN too
        worst = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error - allowed)), error.shape)
        raise AssertionError(
            f"{np.count_nonzero(~(error <= allowed))} of {error.size} values differ; at {tuple(map(int, worst))} "
            f"{actual[worst]} instead of {expected[worst]}, error {error[worst]:.3g}, allowed {allowed[worst]:.3g}"
        )
