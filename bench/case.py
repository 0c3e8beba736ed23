"""What every case of the benchmark offers, whatever it computes: names, least cost, and the calls to be timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from bench.competitors import Competitor

Call = Callable[[], Any]
Prepare = Callable[["Competitor"], Call]


@dataclass(frozen=True)
class Case:
    """One piece of work that every competitor does on the same operands, in one or more directions."""

    name: str
    subset: str
    """The `--set` it belongs to."""
    directions: tuple[str, ...]

    dtype = "float32"
    """Of the numbers that it works on."""
    precision = "default"
    """That of `fastconv.precision`; the peers are set to the same."""
    depthwise = False
    """Whether each channel is convolved by itself."""
    rotates = True
    """Whether calls on a GPU meet other operands in turn."""

    @property
    def family(self) -> str:
        """The lines of a set have a table for each direction; both sets of `cases.csv` have one together."""
        return "convolution" if self.subset in ("first", "extended") else self.subset

    def table(self, direction: str) -> str:
        """The title of the table in which its line stands."""
        return f"{self.family} {direction}"

    def flops(self, direction: str) -> int:
        """Floating-point operations of the direct method, two for each multiply-add; 0 where memory alone counts."""
        raise NotImplementedError

    def traffic(self, direction: str) -> int:
        """Bytes that must move between memory and processor, caches apart."""
        raise NotImplementedError

    def prepare(self, direction: str) -> Prepare:
        """Makes the operands; the function that it returns gives a competitor's call, or raises its `NotOffered`."""
        raise NotImplementedError

    def algorithm(self, direction: str, device: str) -> str | None:
        """What fastconv says it will do, where it has a choice."""
        return None

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return dtype_named(self.dtype).itemsize

    def tolerance(self, direction: str) -> float:
        """Relative L2 difference between two competitors: far above their rounding, far below any mistake."""
        return 1e-4


def dtype_named(name: str) -> np.dtype:
    """NumPy's dtype; bfloat16 is that of ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def results(competitor: Competitor, output: Any) -> list[np.ndarray]:
    """What a call of the competitor returned, as NumPy arrays of their own memory; numbers of 16 bits as float32."""
    outputs = output if isinstance(output, (tuple, list)) else (output,)
    arrays = [competitor.to_host(array) for array in outputs]
    return [array.astype("float32") if array.itemsize == 2 else array for array in arrays]


def relative_error(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Largest relative L2 difference between the results of two competitors; infinite where shapes differ."""
    if [array.shape for array in outputs] != [array.shape for array in expected]:
        return float("inf")
    pairs = zip(outputs, expected)
    return max(float(np.linalg.norm((a - b).ravel()) / np.linalg.norm(b.ravel())) for a, b in pairs)
