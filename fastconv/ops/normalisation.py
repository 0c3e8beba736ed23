"""Batch, instance, group and layer normalisation, with their gradients and running statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastconv import backends
from fastconv.autograd import needs_grad, raw, record
from fastconv.geometry import arguments
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
    x, old_mean, old_var, w, b = _per_channel("batch_norm", input, running_mean, running_var, weight, bias)
    inputs = input, weight, bias
    if not training:
        mean, variance = _running("batch_norm", old_mean, old_var, "training=True normalises by the batch")
        return _by_channels(x, mean, variance, w, b, eps, False, inputs)
    mean, variance = _of_batch(x)
    y = _by_channels(x, mean, variance, w, b, eps, True, inputs)
    if len(x):
        _update(running_mean, mean, momentum)
        _update(running_var, variance * _unbiased(len(x) * math.prod(x.shape[2:])), momentum)
    return y


@on_its_device
def instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """(x − mean) / sqrt(var + eps) · weight + bias for each channel of each sample.

    As `torch.nn.functional.instance_norm`: input (N, C, *S) with one or more spatial axes, the others (C,) or None.
    Mean and variance are taken over *S, summed in float64. `running_mean` and `running_var`, if given, are changed in
    place: running ← (1 − momentum) · running + momentum · (average over the batch), with unbiased variances; an empty
    batch changes nothing. With `use_input_stats=False` the running ones are used instead. A sample has the same bits
    whatever the batch. Ulyanov, Vedaldi and Lempitsky 2016.

    Raises ValueError for shapes that do not fit, for a single value per channel, and for `use_input_stats=False`
    without running statistics, TypeError for kinds and dtypes, DeviceError for mixed devices.
    """
    x, old_mean, old_var, w, b = _per_channel("instance_norm", input, running_mean, running_var, weight, bias)
    inputs = input, weight, bias
    if not use_input_stats:
        mean, variance = _running("instance_norm", old_mean, old_var, "use_input_stats=True normalises by the input")
        return _by_channels(x, mean, variance, w, b, eps, False, inputs)
    (samples, channels), plane = x.shape[:2], math.prod(x.shape[2:])
    if plane == 1:
        raise ValueError(
            f"instance_norm: needs more than one value per channel of a sample, got input shape {x.shape}; "
            "use_input_stats=False normalises by running statistics"
        )
    y, mean, variance = _by_rows(x, (samples * channels, plane), channels, w, b, eps, inputs)
    if samples:
        _update(running_mean, mean.reshape(samples, channels).mean(0), momentum)
        _update(running_var, variance.reshape(samples, channels).mean(0) * _unbiased(plane), momentum)
    return y


@on_its_device
def group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """(x − mean) / sqrt(var + eps) · weight + bias for each group of channels of each sample.

    As `torch.nn.functional.group_norm`: input (N, C, *S) with any number of spatial axes, weight and bias (C,) or
    None. Mean and variance are taken over C / num_groups neighbouring channels and *S, summed in float64. A sample has
    the same bits whatever the batch. Wu and He 2018.

    Raises ValueError for shapes that do not fit and if num_groups does not divide C, TypeError for kinds and dtypes,
    DeviceError for mixed devices.
    """
    x, _, _, w, b = _per_channel("group_norm", input, None, None, weight, bias)
    groups = arguments.integer("group_norm", "num_groups", num_groups, 1)
    (samples, channels), plane = x.shape[:2], math.prod(x.shape[2:])
    if channels % groups:
        fitting = min((n for n in range(1, channels + 1) if channels % n == 0), key=lambda n: abs(n - groups))
        raise ValueError(
            f"group_norm: num_groups={groups} does not divide the {channels} channels of the input "
            f"(input shape {x.shape}); num_groups={fitting} would fit"
        )
    rows = samples * groups, channels // groups * plane
    return _by_rows(x, rows, groups, w, b, eps, (input, weight, bias))[0]


@on_its_device
def layer_norm(
    input: Any, normalized_shape: int | Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """(x − mean) / sqrt(var + eps) · weight + bias over the last axes, as `torch.nn.functional.layer_norm`.

    input (*, *normalized_shape), weight and bias of shape normalized_shape (an int stands for one axis) or None. Mean
    and variance are taken over these axes, summed in float64, for each index of the axes before them. A sample has the
    same bits whatever the batch. Ba, Kiros and Hinton 2016.

    Raises ValueError for shapes that do not fit, TypeError for kinds and dtypes, DeviceError for mixed devices.
    """
    x, w, b = floating("layer_norm", optional=("weight", "bias"), input=input, weight=weight, bias=bias)
    shape = arguments.sizes("layer_norm", "normalized_shape", normalized_shape)
    last = x.shape[-len(shape) :]
    if last != shape:
        fitting = f"; normalized_shape={last} would fit" if len(last) == len(shape) and 0 not in last else ""
        raise ValueError(
            f"layer_norm: normalized_shape {shape} must be the last axes of the input, "
            f"which has shape {x.shape}{fitting}"
        )
    for name, array in (("weight", w), ("bias", b)):
        if array is not None and array.shape != shape:
            raise ValueError(
                f"layer_norm: {name} must have shape {shape}, that of normalized_shape, but has shape {array.shape}"
            )
    rows = math.prod(x.shape[: -len(shape)]), math.prod(shape)
    return _by_rows(x, rows, 1, w, b, eps, (input, weight, bias))[0]


def _per_channel(
    op: str, input: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any
) -> tuple[Array, Array | None, Array | None, Array | None, Array | None]:
    """The operands as arrays: input (N, C, *S), and what has a number for each channel."""
    others = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    x, *arrays = floating(op, optional=tuple(others), input=input, **others)
    if len(x.shape) < 2 or 0 in x.shape[1:]:
        raise ValueError(
            f"{op}: input must be (N, C, *spatial) with sizes of at least 1, or 0 for the batch, "
            f"got input shape {x.shape}"
        )
    for name, array in zip(others, arrays):
        if array is not None and array.shape != x.shape[1:2]:
            raise ValueError(
                f"{op}: {name} must have shape {x.shape[1:2]}, one number per channel of the input "
                f"(input shape {x.shape}), but has shape {array.shape}"
            )
    return x, *arrays


def _running(op: str, mean: Array | None, variance: Array | None, remedy: str) -> tuple[Array, Array]:
    """Running statistics to normalise by, in float64."""
    if mean is None or variance is None:
        raise ValueError(f"{op}: evaluation needs running_mean and running_var; {remedy}")
    return mean.astype("float64"), variance.astype("float64")


def _of_batch(x: Array) -> tuple[Array, Array]:
    """float64 mean and biased variance of each channel."""
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


def _by_channels(
    x: Array,
    mean: Array,
    variance: Array,
    w: Array | None,
    b: Array | None,
    eps: float,
    of_batch: bool,
    inputs: tuple[Any, Any, Any],
) -> Any:
    """x (N, C, *S) by statistics (C,), which are those `of_batch` or constants; `inputs` as the user gave them."""
    backend = backends.of(x)
    xp = backend.xp
    inverse_std = 1.0 / xp.sqrt(variance + eps)
    scale = inverse_std if w is None else inverse_std * w
    shift = -mean * scale if b is None else b - mean * scale
    y = backend.batch_norm_apply(x, scale, shift)
    wanted_w, wanted_b = needs_grad(inputs[1]), needs_grad(inputs[2])

    def backward(gy: Array) -> tuple[Array | None, ...]:
        if not of_batch and not wanted_w and not wanted_b:
            return backend.batch_norm_apply(gy, scale, xp.zeros_like(scale)), None, None
        gx, gw, gb = backend.batch_norm_backward(gy, x, mean, inverse_std, scale, of_batch)
        return gx, gw if wanted_w else None, gb if wanted_b else None

    return record(y, inputs, backward)


def _by_rows(
    x: Array,
    rows: tuple[int, int],
    groups: int,
    w: Array | None,
    b: Array | None,
    eps: float,
    inputs: tuple[Any, Any, Any],
) -> tuple[Any, Array, Array]:
    """x, seen as rows of this shape, each by its own statistics, which are the other results; `inputs` as given.

    `groups` rows share the numbers of w and b between them.
    """
    backend = backends.of(x)
    given = w if b is None else b
    table = (1, 1) if given is None else (groups, given.size // groups)
    weight = backend.xp.ones(table, x.dtype) if w is None else w.reshape(table)
    bias = backend.xp.zeros(table, x.dtype) if b is None else b.reshape(table)
    y, mean, variance = backend.row_norm(x.reshape(rows), weight, bias, eps)
    wanted_w, wanted_b = needs_grad(inputs[1]), needs_grad(inputs[2])
    arrays = x.reshape(rows), weight, mean, variance

    def backward(gy: Array) -> tuple[Array | None, ...]:
        gx, gw, gb = backend.row_norm_backward(gy.reshape(rows), *arrays, eps, wanted_w or wanted_b)
        shape = given.shape if given is not None else ()
        return gx.reshape(x.shape), gw.reshape(shape) if wanted_w else None, gb.reshape(shape) if wanted_b else None

    return record(y.reshape(x.shape), inputs, backward), mean, variance


def _unbiased(count: int) -> float:
    """What makes the biased variance of so many values an unbiased one."""
    return count / (count - 1)


def _update(running: Any, batch: Array, momentum: float) -> None:
    if running is not None:
        target = raw(running)
        target[...] = (1.0 - momentum) * target + momentum * batch
