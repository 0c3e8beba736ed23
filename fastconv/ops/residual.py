"""What ends a residual block: addition and ReLU as one operation."""

from __future__ import annotations

from typing import Any

from fastconv import backends
from fastconv.autograd import needs_grad, record
from fastconv.ops._arguments import floating

Array = Any


def add_relu(input: Any, other: Any) -> Any:
    """max(input + other, 0) in one pass over memory, the same bits as `relu(input + other)`.

    Both are arrays or Tensors of one shape, float32 or float64. He, Zhang, Ren & Sun 2015.

    Raises ValueError for shapes that differ, TypeError for kinds and dtypes, DeviceError for mixed devices.
    """
    a, b = floating("add_relu", input=input, other=other)
    if a.shape != b.shape:
        raise ValueError(
            f"add_relu: input and other must have one shape, got {a.shape} and {b.shape}; "
            "relu(input + other) broadcasts"
        )
    backend = backends.of(a)
    y = backend.add_relu(a, b)
    wanted = needs_grad(input), needs_grad(other)

    def backward(gy: Array) -> tuple[Array | None, ...]:
        gradient = backend.activation_backward(gy, y, y, "relu", 0.0)
        return tuple(gradient if needed else None for needed in wanted)

    return record(y, (input, other), backward)
