"""What the things on the bills of estimates.py cost, in nanoseconds of one core; only their ratios matter.

Fitted by `python -m bench.estimates`, separately for processors with 16 and with 32 vector registers, whose tiles
differ, and of the latter for those with two units for 512-bit vectors: what is no product weighs twice as much there,
and differs between Intel's and AMD's.
"""

from __future__ import annotations

from fastconv.backends.cpu import prices_xeon, prices_zen3, prices_zen4, prices_zen5
from fastconv.backends.cpu.host import PROCESSOR, REGISTERS, TWO_UNITS


def _prices() -> dict[str, float]:
    """Those of this processor, or of the one most like it."""
    if REGISTERS == 16:
        return prices_zen3.PRICES
    if not TWO_UNITS:
        return prices_zen4.PRICES
    return prices_zen5.PRICES if PROCESSOR.startswith("znver") else prices_xeon.PRICES


PRICES = _prices()
"""Nanoseconds of each thing on a bill; what is not named costs nothing."""
