"""Dense layers as operations."""

from __future__ import annotations

import math
from typing import Any

from fastconv import backends
from fastconv.autograd import needs_grad, record
from fastconv.ops._arguments import floating, ready

Array = Any


def linear(input: Any, weight: Any, bias: Any = None) -> Any:
    """input @ weight.T + bias, as `torch.nn.functional.linear`.

    input (..., I), weight (O, I), bias (O,) → (..., O). Each output is one sum in a fixed order, so that a row has the
    same bits whatever the batch.

    Raises ValueError for shapes that do not fit, TypeError for kinds and dtypes, DeviceError for mixed devices.
    """
    plain = ready(input, weight) if bias is None else ready(input, weight, bias)
    x, w, b = (input, weight, bias) if plain else floating("linear", input=input, weight=weight, bias=bias)
    _check_shapes(x.shape, w.shape, None if b is None else b.shape)
    backend = backends.of(x)
    rows = math.prod(x.shape[:-1])
    flat_x = x.reshape(rows, x.shape[-1])
    y = backend.linear(flat_x, w, b).reshape(*x.shape[:-1], len(w))
    if plain:  # nothing to record
        return y
    wanted = needs_grad(input), needs_grad(weight), needs_grad(bias)
    if not any(wanted):
        return record(y, (input, weight, bias), None)

    def backward(gy: Array) -> tuple[Array | None, ...]:
        flat_gy = gy.reshape(rows, len(w))
        gx = backend.matmul(flat_gy, w).reshape(x.shape) if wanted[0] else None
        gw = backend.matmul(flat_gy.T, flat_x) if wanted[1] else None
        gb = backend.channel_sum(flat_gy) if wanted[2] else None
        return gx, gw, gb

    return record(y, (input, weight, bias), backward)


def _check_shapes(x: tuple[int, ...], w: tuple[int, ...], b: tuple[int, ...] | None) -> None:
    if len(x) < 1 or len(w) != 2:
        raise ValueError(
            "linear: input must have at least 1 axis and weight 2 (out_features, in_features), "
            f"got input shape {x} and weight shape {w}"
        )
    if x[-1] != w[-1]:
        remedy = "; flatten the input first, e.g. x.reshape(len(x), -1)" if math.prod(x[1:]) == w[-1] else ""
        raise ValueError(
            f"linear: weight expects {w[-1]} input features (weight shape {w}) but input has {x[-1]} "
            f"(input shape {x}){remedy}"
        )
    if b is not None and b != w[:1]:
        raise ValueError(f"linear: bias must have shape {w[:1]}, one number per output feature, but has shape {b}")
