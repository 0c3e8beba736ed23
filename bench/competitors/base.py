"""What a competitor is: a library that turns cases into calls."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.case import Call

if TYPE_CHECKING:
    from bench.convolution import Convolution, Operands
    from bench.layers import Layer, Optimizer
    from bench.networks import Data, Network


class NotOffered(Exception):
    """Raised by a competitor that cannot do a case, or cannot use a device; the message says why."""


class Competitor:
    """A library on `threads` threads of the host and on a device, "cpu" or "cuda".

    The methods for cases give one call without arguments that does a case's work.
    The operands are first brought into the library's own memory and layout, which is not timed. A call returns its
    results, so that they can be compared before anything is timed.
    """

    packages: tuple[str, ...] = ()
    """What must be installed for it."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    """Where it takes part."""

    def __init__(self, threads: int, device: str = "cpu") -> None:
        self.threads, self.device = threads, device

    def precision(self, level: str) -> AbstractContextManager[Any]:
        """Within it float32 is computed as `fastconv.precision(level)` says; calls are made and repeated within it."""
        return nullcontext()

    def wait(self, output: Any) -> None:
        """On a GPU: until what a call returned is there, if the call did not work on the default stream."""

    def release(self) -> None:
        """Give memory of the device that is kept for later back to all."""

    def to_host(self, array: Any) -> np.ndarray:
        """An array among the results of a call, in NumPy's memory, a copy."""
        return np.asarray(array).copy()

    def convolution(self, case: Convolution, direction: str, operands: Operands) -> Call:
        """Forward: the result. Backward: the gradients in input, weight and bias."""
        raise NotOffered("not measured on convolutions")

    def layer(
        self, case: Layer, direction: str, operands: Sequence[np.ndarray | None], grad_output: np.ndarray
    ) -> Call:
        """Forward: the result. Backward: the gradients in all floating operands, without the forward pass."""
        raise NotOffered(f"not measured on {case.function}")

    def optimizer(self, case: Optimizer, parameters: list[np.ndarray], gradients: list[np.ndarray]) -> Call:
        """One step; the results are the changed parameters."""
        raise NotOffered("not measured on optimisers")

    def network(self, case: Network, direction: str, data: Data) -> Call:
        """Inference: the scores. Training: loss and gradients of one step, which also changes the weights."""
        raise NotOffered("not measured on whole networks")
