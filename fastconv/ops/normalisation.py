"""Batch normalisation with its gradient and its running statistics."""

from __future__ import annotations

import math
from typing import Any

from fastconv import backends
from fastconv.autograd import needs_grad, raw, record
from fastconv.ops._arguments import floating, on_its_device

Array = Any


@on_its_device
def batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """(x − mean) / sqrt(var + eps) · weight + bias for each channel, as `torch.nn.functional.batch_norm`.

    input (N, C, *S) with any number of spatial axes, the others (C,) or None. In training, mean and variance are those
    of the batch, over N and *S, summed in float64; `running_mean` and `running_var`, if given, are changed in place:
    running ← (1 − momentum) · running + momentum · batch, with the unbiased variance. Otherwise the running ones are
    used, and a sample has the same bits whatever the batch. An empty batch changes nothing. Ioffe and Szegedy 2015.

    Raises ValueError for shapes that do not fit, for evaluation without running statistics and for training on a single
    value per channel, TypeError for kinds and dtypes, DeviceError for mixed devices.
    """
    x, old_mean, old_var, w, b = floating(
        "batch_norm",
        optional=("running_mean", "running_var", "weight", "bias"),
        input=input,
        running_mean=running_mean,
        running_var=running_var,
        weight=weight,
        bias=bias,
    )
    _check_shapes(x.shape, {"running_mean": old_mean, "running_var": old_var, "weight": w, "bias": b})
    backend = backends.of(x)
    xp = backend.xp
    mean, variance = _statistics(x, old_mean, old_var, training)
    inverse_std = 1.0 / xp.sqrt(variance + eps)
    scale = inverse_std if w is None else inverse_std * w
    shift = -mean * scale if b is None else b - mean * scale
    y = backend.batch_norm_apply(x, scale, shift)
    if training and len(x):
        count = len(x) * math.prod(x.shape[2:])
        _update(running_mean, mean, momentum)
        _update(running_var, variance * (count / (count - 1)), momentum)
    wanted_w, wanted_b = needs_grad(weight), needs_grad(bias)

    def backward(gy: Array) -> tuple[Array | None, ...]:
        if not training and not wanted_w and not wanted_b:
            return backend.batch_norm_apply(gy, scale, xp.zeros_like(scale)), None, None
        gx, gw, gb = backend.batch_norm_backward(gy, x, mean, inverse_std, scale, training)
        return gx, gw if wanted_w else None, gb if wanted_b else None

    return record(y, (input, weight, bias), backward)


def _statistics(x: Array, old_mean: Array | None, old_var: Array | None, training: bool) -> tuple[Array, Array]:
    """float64 mean and biased variance to normalise by."""
    if not training:
        if old_mean is None or old_var is None:
            raise ValueError(
                "batch_norm: evaluation needs running_mean and running_var; training=True normalises by the batch"
            )
        return old_mean.astype("float64"), old_var.astype("float64")
    backend = backends.of(x)
    if not len(x):
        return backend.xp.zeros(x.shape[1]), backend.xp.ones(x.shape[1])
    if len(x) * math.prod(x.shape[2:]) == 1:
        raise ValueError(
            f"batch_norm: training needs more than one value per channel, got input shape {x.shape}; "
            "use a larger batch, or training=False"
        )
    mean, variance = backend.batch_norm_statistics(x)
    return mean, variance


def _update(running: Any, batch: Array, momentum: float) -> None:
    if running is not None:
        target = raw(running)
        target[...] = (1.0 - momentum) * target + momentum * batch


def _check_shapes(shape: tuple[int, ...], per_channel: dict[str, Array | None]) -> None:
    if len(shape) < 2 or 0 in shape[1:]:
        raise ValueError(
            f"batch_norm: input must be (N, C, *spatial) with sizes of at least 1, or 0 for the batch, "
            f"got input shape {shape}"
        )
    for name, array in per_channel.items():
        if array is not None and array.shape != shape[1:2]:
            raise ValueError(
                f"batch_norm: {name} must have shape {shape[1:2]}, one number per channel of the input "
                f"(input shape {shape}), but has shape {array.shape}"
            )
