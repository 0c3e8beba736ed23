"""Optimiser steps, each one pass over a parameter and its state. See contract.py.

A step is bound by memory: every array is read once and what changes is written where it was read, so nothing is fetched
only to be overwritten. The numbers of the step are the same for all elements; what they switch off (no decay, the first
step) is selected, not multiplied by zero, so that infinities cannot turn into NaN. Cost: the traffic, 12 bytes an
element for plain SGD in float32, 20 with momentum, 28 for Adam.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.elementary import fma, like
from fastconv.backends.cpu.host import flat, kernel
from fastconv.backends.steps import adam_numbers
from fastconv.backends.threads import parallel_for

Array = npt.NDArray[Any]

_NS_PER_BYTE = 0.1


def sgd_step(
    x: Array,
    gradient: Array,
    velocity: Array | None,
    *,
    starts: bool,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """See contract.Backend.sgd_step."""
    lr, decay = float(lr), float(weight_decay)
    if velocity is None:
        _update(_sgd, 3, (lr, decay), gradient, x)
    else:
        numbers = (lr, float(momentum), 1.0 - dampening, decay, bool(nesterov), bool(starts))
        _update(_sgd_momentum, 5, numbers, gradient, x, velocity)


def adam_step(
    x: Array,
    gradient: Array,
    mean: Array,
    square: Array,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """See contract.Backend.adam_step."""
    numbers = adam_numbers(step, lr, betas, eps, weight_decay, decoupled)
    _update(_adam, 7, numbers, gradient, x, mean, square)


def _update(loop: Callable[..., None], streams: int, numbers: Any, gradient: Array, *changed: Array) -> None:
    """Run a step over the elements of all arrays; `streams` is how many times one of them is read or written.

    What is not contiguous, or of a dtype that no kernel takes, is changed through a copy.
    """
    dtype = np.dtype(np.float64 if changed[0].dtype.itemsize > 4 else np.float32)
    lines, copies = [flat(np.asarray(gradient, dtype, "C"))], []
    for array in changed:
        if array.dtype == dtype and array.flags.c_contiguous:
            lines.append(array.reshape(-1))
        else:
            lines.append(np.array(array, dtype, order="C").reshape(-1))
            copies.append((array, lines[-1]))
    size = lines[0].size
    cost = streams * dtype.itemsize * size * _NS_PER_BYTE
    parallel_for(lambda start, stop: loop(*lines, numbers, start, stop), size, cost)
    for array, line in copies:
        array[...] = line.reshape(array.shape)


@kernel
def _sgd(gradient: Any, x: Any, numbers: Any, start: int, stop: int) -> None:
    lr, decay = numbers
    gradient, x = gradient[start:stop], x[start:stop]
    for i in range(x.size):
        g = fma(like(x[i], decay), x[i], gradient[i]) if decay != 0.0 else gradient[i]
        x[i] = fma(like(x[i], -lr), g, x[i])


@kernel
def _sgd_momentum(gradient: Any, x: Any, velocity: Any, numbers: Any, start: int, stop: int) -> None:
    lr, momentum, share, decay, nesterov, starts = numbers
    gradient, x, velocity = gradient[start:stop], x[start:stop], velocity[start:stop]
    for i in range(x.size):
        g = fma(like(x[i], decay), x[i], gradient[i]) if decay != 0.0 else gradient[i]
        v = g if starts else fma(like(g, momentum), velocity[i], like(g, share) * g)
        velocity[i] = v
        x[i] = fma(like(g, -lr), fma(like(g, momentum), v, g) if nesterov else v, x[i])


@kernel
def _adam(gradient: Any, x: Any, mean: Any, square: Any, numbers: Any, start: int, stop: int) -> None:
    rate, first, second, root, eps, decay, shrink = numbers
    gradient, x = gradient[start:stop], x[start:stop]
    mean, square = mean[start:stop], square[start:stop]
    for i in range(x.size):
        g = fma(like(x[i], decay), x[i], gradient[i]) if decay != 0.0 else gradient[i]
        m = fma(like(g, 1.0 - first), g - mean[i], mean[i])
        s = fma(like(g, second), square[i], like(g, 1.0 - second) * (g * g))
        mean[i], square[i] = m, s
        denominator = fma(np.sqrt(s), like(g, root), like(g, eps))
        x[i] = fma(like(g, -rate), m / denominator, x[i] * like(g, shrink))
