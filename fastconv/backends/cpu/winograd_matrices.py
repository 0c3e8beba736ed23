"""The matrices of Winograd's minimal filtering F(m, r): r taps, m outputs and r + m - 1 multiplications for them.

y = Aᵀ [ (G g) ⊙ (Bᵀ d) ]: a polynomial product by its values at r + m - 2 points and at infinity (Toom and Cook;
Winograd 1980, Lavin & Gray 2016). The points are pairs ±a, and 0 where their number is odd: the values of a pair share
half of their work. Which pairs, decides how rounding grows; these were found by a search over small fractions (relative
L2 error of one axis, 64 channels of unit variance: 0.4, 0.7 and 1.8 · 10⁻⁶ for 4 outputs of 3, 5 and 7 taps, 0.3 · 10⁻⁶
for 3 of 3; direct sums have 0.3 to 0.4 · 10⁻⁶).
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import prod
from typing import NamedTuple

OUTPUTS = 4
"""Of a tile along an axis, where images are large."""

Matrix = tuple[tuple[float, ...], ...]

_PAIRS = {
    3: ("2/3",),
    4: ("1",),
    5: ("1/3", "5/4"),
    6: ("2/3", "3/2"),
    7: ("1/4", "4/5", "2"),
    8: ("1/2", "1", "2"),
    10: ("2/5", "3/4", "4/3", "5/2"),
}
"""By the number of multiplications."""

MAX_CHANNELS: dict[tuple[int, ...], int] = {
    (2, 2): 4096,
    (3, 3): 4096,
    (4, 4): 1024,
    (5, 5): 512,
    (2,): 4096,
    (3,): 4096,
    (4,): 4096,
    (5,): 4096,
    (7,): 1024,
}
"""The taps of the axes that have several, at a step those of a phase; and the channels, of all phases together, up to
which the error of their tiles, which grows with the root of the channels, stays below 1e-5, the default precision."""


class Matrices(NamedTuple):
    """Rows of a pair of points follow each other; those of 0 come first, if they are there, those of infinity last."""

    output: Matrix
    """Aᵀ (m, r + m - 1)."""
    filter: Matrix
    """G (r + m - 1, r)."""
    input: Matrix
    """Bᵀ (r + m - 1, r + m - 1)."""


@lru_cache
def matrices(taps: int, outputs: int) -> Matrices:
    """Of F(outputs, taps); an axis with one tap is not transformed."""
    if taps == 1:
        one = ((1.0,),)
        return Matrices(one, one, one)
    frequencies = taps + outputs - 1
    points = [sign * Fraction(pair) for pair in _PAIRS[frequencies] for sign in (1, -1)]
    if has_zero(frequencies):
        points.insert(0, Fraction(0))
    others = [[point - other for other in points if other != point] for point in points]
    output = [[point**i for point in points] + [Fraction(i == outputs - 1)] for i in range(outputs)]
    # Without the point 0, G and Bᵀ of -a change their signs: they then differ from those of a in their odd columns.
    signs = [-1 if point < 0 and not has_zero(frequencies) else 1 for point in points]
    filters = [
        [sign * point**k / prod(apart) for k in range(taps)] for sign, point, apart in zip(signs, points, others)
    ]
    filters.append([Fraction(k == taps - 1) for k in range(taps)])
    inputs = [
        [sign * factor for factor in (*_with_roots([other for other in points if other != point]), Fraction(0))]
        for sign, point in zip(signs, points)
    ]
    inputs.append(_with_roots(points))
    return Matrices(*(tuple(tuple(map(float, row)) for row in matrix) for matrix in (output, filters, inputs)))


def _with_roots(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients, constant first, of the polynomial with these roots."""
    coefficients = [Fraction(1)]
    for root in roots:
        above = [Fraction(0), *coefficients]
        coefficients = [a - root * c for a, c in zip(above, [*coefficients, Fraction(0)])]
    return coefficients


def has_zero(frequencies: int) -> bool:
    """Whether 0 is among the points; the others are pairs and infinity."""
    return frequencies % 2 == 0
