"""The matrices of Winograd's minimal filtering F(4, r): r taps, 4 outputs and r + 3 multiplications for them.

y = Aᵀ [ (G g) ⊙ (Bᵀ d) ]: a polynomial product by its values at r + 2 points and at infinity (Toom and Cook; Winograd
1980, Lavin & Gray 2016). The points are 0 and pairs ±a: the values of a pair share half of their work. Which pairs,
decides how rounding grows; these were found by a search over small fractions (relative L2 error of one axis, 64
channels of unit variance: 0.4, 0.7 and 1.8 · 10⁻⁶ for 3, 5 and 7 taps; direct sums have 0.3 to 0.4 · 10⁻⁶).
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import prod
from typing import NamedTuple

OUTPUTS = 4

Matrix = tuple[tuple[float, ...], ...]

_PAIRS = {3: ("2/3", "3/2"), 5: ("1/2", "1", "2"), 7: ("2/5", "3/4", "4/3", "5/2")}

MAX_CHANNELS: dict[tuple[int, ...], int] = {(3, 3): 4096, (5, 5): 512, (3,): 4096, (5,): 4096, (7,): 1024}
"""The forms of tiles, by the taps of the axes that have several, and the channels up to which their error, which grows
with the root of the channels, stays below the 1e-5 of the default precision."""


class Matrices(NamedTuple):
    """Rows of a pair of points follow each other; those of 0 come first, those of infinity last."""

    output: Matrix
    """Aᵀ (4, r + 3)."""
    filter: Matrix
    """G (r + 3, r)."""
    input: Matrix
    """Bᵀ (r + 3, r + 3)."""


@lru_cache
def matrices(taps: int) -> Matrices:
    """Of F(4, taps); an axis with one tap is not transformed."""
    if taps == 1:
        one = ((1.0,),)
        return Matrices(one, one, one)
    points = [Fraction(0)] + [sign * Fraction(pair) for pair in _PAIRS[taps] for sign in (1, -1)]
    others = [[point - other for other in points if other != point] for point in points]
    output = [[point**i for point in points] + [Fraction(i == OUTPUTS - 1)] for i in range(OUTPUTS)]
    filters = [[point**k / prod(apart) for k in range(taps)] for point, apart in zip(points, others)]
    filters.append([Fraction(k == taps - 1) for k in range(taps)])
    inputs = [[*_with_roots([other for other in points if other != point]), Fraction(0)] for point in points]
    inputs.append(_with_roots(points))
    return Matrices(*(tuple(tuple(map(float, row)) for row in matrix) for matrix in (output, filters, inputs)))


def _with_roots(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients, constant first, of the polynomial with these roots."""
    coefficients = [Fraction(1)]
    for root in roots:
        above = [Fraction(0), *coefficients]
        coefficients = [a - root * c for a, c in zip(above, [*coefficients, Fraction(0)])]
    return coefficients


def patch(taps: int) -> int:
    """Positions of the input that a tile reads along an axis: as many as it has frequencies."""
    return taps + OUTPUTS - 1 if taps > 1 else 1


def outputs(taps: int) -> int:
    """Outputs of a tile along an axis."""
    return OUTPUTS if taps > 1 else 1
