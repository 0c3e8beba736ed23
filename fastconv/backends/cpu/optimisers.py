"""Optimiser steps, each one pass over all parameters and their states. See contract.py.

A step is bound by memory: every array is read once and what changes is written where it was read, so nothing is fetched
only to be overwritten. Parameters that share their numbers are one range of elements, cut into chunks wherever that
comes out even: a network has many small ones, and to hand each to the threads by itself would take as long as its step.
The numbers of the step are the same for all elements; what they switch off (no decay, the first step) is selected, not
multiplied by zero, so that infinities cannot turn into NaN. Cost: the traffic, 12 bytes an element for plain SGD in
float32, 20 with momentum, 28 for Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.elementary import fma, like
from fastconv.backends.cpu.host import array_at, flat, kernel, pointer, routine
from fastconv.backends.cpu.team import shared
from fastconv.backends.steps import adam_numbers
from fastconv.backends.threads import share

Array = npt.NDArray[Any]

_NS_PER_BYTE = 0.1
_DTYPES = np.dtype(np.float32), np.dtype(np.float64)

_BEGIN, _GRADIENT, _X, _FIRST, _SECOND = range(5)
"""Columns of a table of parameters: the elements before each one's, and the addresses of its arrays."""


def sgd_step(
    x: Sequence[Array],
    gradient: Sequence[Array],
    velocity: Sequence[Array] | None,
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
        _update(_sgd, (lr, decay), gradient, x)
    else:
        numbers = (lr, float(momentum), 1.0 - dampening, decay, bool(nesterov), bool(starts))
        _update(_sgd_momentum, numbers, gradient, x, velocity)


def adam_step(
    x: Sequence[Array],
    gradient: Sequence[Array],
    mean: Sequence[Array],
    square: Sequence[Array],
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
    _update(_adam, numbers, gradient, x, mean, square)


def _update(loop: Callable[..., None], numbers: Any, gradients: Sequence[Array], *changed: Sequence[Array]) -> None:
    """Run a step over the elements of all arrays.

    What is not contiguous, or of a dtype that no kernel takes, is changed through a copy.
    """
    lines: dict[np.dtype[Any], list[list[Array]]] = {dtype: [] for dtype in _DTYPES}
    copies = []
    for gradient, *arrays in zip(gradients, *changed):
        dtype = _DTYPES[arrays[0].dtype.itemsize > 4]
        row = [flat(np.asarray(gradient, dtype, "C"))]
        for array in arrays:
            if array.dtype == dtype and array.flags.c_contiguous:
                row.append(array.reshape(-1))
            else:
                row.append(np.array(array, dtype, order="C").reshape(-1))
                copies.append((array, row[-1]))
        lines[dtype].append(row)
    for dtype, rows in lines.items():
        if rows:
            _run(loop, numbers, rows, dtype)
    for array, line in copies:
        array[...] = line.reshape(array.shape)


def _run(loop: Callable[..., None], numbers: Any, rows: list[list[Array]], dtype: np.dtype[Any]) -> None:
    """The step for parameters of one dtype: of each its gradient, itself and its state, as lines."""
    table, size = np.empty((len(rows), 1 + len(rows[0])), np.int64), 0
    for number, row in enumerate(rows):
        size = _enter(table, number, size, *row)
    streams = 2 * len(rows[0]) - 1  # the gradient is only read
    cost = streams * dtype.itemsize * size * _NS_PER_BYTE
    share(loop, (rows[0][0], table, size, numbers), size, cost)


@kernel
def _enter(table: Any, number: int, begin: int, *lines: Any) -> int:
    """Row `number` of a table of parameters, for one that begins at element `begin`; returns where it ends."""
    table[number, _BEGIN] = begin
    for column in range(len(lines)):
        table[number, 1 + column] = pointer(lines[column])
    end: int = begin + lines[0].size
    return end


@routine
def _part(table: Any, size: int, row: int, begin: int, end: int) -> tuple[int, int]:
    """The first and the number of those elements of a parameter that are among [begin, end) of all `size`."""
    own, next_one = table[row, _BEGIN], table[row + 1, _BEGIN] if row + 1 < len(table) else size
    first = max(begin, own)
    return first - own, max(0, min(end, next_one) - first)


@shared
def _sgd(like_x: Any, table: Any, size: int, numbers: Any, who: int, begin: int, end: int) -> None:
    lr, decay = numbers
    for row in range(len(table)):
        first, count = _part(table, size, row, begin, end)
        gradient = array_at(like_x, table[row, _GRADIENT], first, count)
        x = array_at(like_x, table[row, _X], first, count)
        for i in range(count):
            g = fma(like(x[i], decay), x[i], gradient[i]) if decay != 0.0 else gradient[i]
            x[i] = fma(like(x[i], -lr), g, x[i])


@shared
def _sgd_momentum(like_x: Any, table: Any, size: int, numbers: Any, who: int, begin: int, end: int) -> None:
    lr, momentum, share, decay, nesterov, starts = numbers
    for row in range(len(table)):
        first, count = _part(table, size, row, begin, end)
        gradient = array_at(like_x, table[row, _GRADIENT], first, count)
        x = array_at(like_x, table[row, _X], first, count)
        velocity = array_at(like_x, table[row, _FIRST], first, count)
        for i in range(count):
            g = fma(like(x[i], decay), x[i], gradient[i]) if decay != 0.0 else gradient[i]
            v = g if starts else fma(like(g, momentum), velocity[i], like(g, share) * g)
            velocity[i] = v
            x[i] = fma(like(g, -lr), fma(like(g, momentum), v, g) if nesterov else v, x[i])


@shared
def _adam(like_x: Any, table: Any, size: int, numbers: Any, who: int, begin: int, end: int) -> None:
    rate, one, two, root, eps, decay, shrink = numbers
    for row in range(len(table)):
        first, count = _part(table, size, row, begin, end)
        gradient = array_at(like_x, table[row, _GRADIENT], first, count)
        x = array_at(like_x, table[row, _X], first, count)
        mean = array_at(like_x, table[row, _FIRST], first, count)
        square = array_at(like_x, table[row, _SECOND], first, count)
        for i in range(count):
            g = fma(like(x[i], decay), x[i], gradient[i]) if decay != 0.0 else gradient[i]
            m = fma(like(g, 1.0 - one), g - mean[i], mean[i])
            s = fma(like(g, two), square[i], like(g, 1.0 - two) * (g * g))
            mean[i], square[i] = m, s
            denominator = fma(np.sqrt(s), like(g, root), like(g, eps))
            x[i] = fma(like(g, -rate), m / denominator, x[i] * like(g, shrink))
