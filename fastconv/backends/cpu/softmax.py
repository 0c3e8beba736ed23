"""Softmax and log-softmax of the CPU backend, and their gradients. See contract.py.

The array is (outer, length, inner), the sums run over `length`. Along the last axis (inner = 1) a row is one task: its
maximum, its exponentials, their sum, each a loop that vectorises along the row. Otherwise a task is up to 256
neighbouring columns of one outer index, and the loops vectorise across the columns. Sums are float64, in an order that
depends on the length alone. Cost: one exponential an element, three passes over a row that stays in cache.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu import sums
from fastconv.backends.cpu.elementary import exp, like, maximum
from fastconv.backends.cpu.host import kernel
from fastconv.backends.cpu.memory import empty
from fastconv.backends.threads import RangeCall, parallel_for

Array = npt.NDArray[Any]

_COLUMNS = 256
_NS_PER_BYTE = 0.3


def softmax(x: Array, axis: int, log: bool) -> Array:
    """See contract.Backend.softmax."""
    y = empty(x.shape, x.dtype)
    length, inner = _length_and_inner(x.shape, axis)
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    if inner == 1:
        _run(lambda start, stop: _rows(flat_x, flat_y, length, log, start, stop), x, length, inner)
    else:
        _run(lambda start, stop: _columns(flat_x, flat_y, length, inner, log, start, stop), x, length, inner)
    return y


def softmax_backward(gy: Array, y: Array, axis: int, log: bool) -> Array:
    """See contract.Backend.softmax_backward."""
    gx = empty(gy.shape, gy.dtype)
    length, inner = _length_and_inner(gy.shape, axis)
    flats = gy.reshape(-1), y.reshape(-1), gx.reshape(-1)
    if inner == 1:
        _run(lambda start, stop: _rows_grad(*flats, length, log, start, stop), gy, length, inner)
    else:
        _run(lambda start, stop: _columns_grad(*flats, length, inner, log, start, stop), gy, length, inner)
    return gx


def _length_and_inner(shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    axis %= len(shape)
    return shape[axis], math.prod(shape[axis + 1 :])


def _run(call: RangeCall, x: Array, length: int, inner: int) -> None:
    if x.size:
        parallel_for(call, x.size // (length * inner) * -(-inner // _COLUMNS), _NS_PER_BYTE * x.nbytes)


@kernel
def _rows(x: Any, y: Any, length: int, log: bool, start: int, stop: int) -> None:
    for row in range(start, stop):
        source, target = x[row * length : (row + 1) * length], y[row * length : (row + 1) * length]
        largest = source[0]
        for i in range(source.size):
            largest = maximum(largest, source[i])
        for i in range(source.size):
            target[i] = exp(source[i] - largest)
        total = sums.total(target)
        if log:
            shift = like(largest, math.log(total))
            for i in range(source.size):
                target[i] = source[i] - largest - shift
        else:
            factor = like(largest, 1.0 / total)
            for i in range(target.size):
                target[i] *= factor


@kernel
def _columns(x: Any, y: Any, length: int, inner: int, log: bool, start: int, stop: int) -> None:
    blocks = (inner + _COLUMNS - 1) // _COLUMNS
    largest, shift, total = np.empty(_COLUMNS, x.dtype), np.empty(_COLUMNS, x.dtype), np.empty(_COLUMNS)
    for task in range(start, stop):
        first = task % blocks * _COLUMNS
        columns = min(_COLUMNS, inner - first)
        first += task // blocks * length * inner
        for i in range(columns):
            largest[i] = x[first + i]
            total[i] = 0.0
        for begin in range(first, first + length * inner, inner):
            source = x[begin : begin + columns]
            for i in range(source.size):
                largest[i] = maximum(largest[i], source[i])
        for begin in range(first, first + length * inner, inner):
            source, target = x[begin : begin + columns], y[begin : begin + columns]
            for i in range(source.size):
                target[i] = exp(source[i] - largest[i])
                total[i] += target[i]
        for i in range(columns):
            shift[i] = math.log(total[i]) if log else 1.0 / total[i]
        for begin in range(first, first + length * inner, inner):
            source, target = x[begin : begin + columns], y[begin : begin + columns]
            for i in range(source.size):
                target[i] = source[i] - largest[i] - shift[i] if log else target[i] * shift[i]


@kernel
def _rows_grad(gy: Any, y: Any, gx: Any, length: int, log: bool, start: int, stop: int) -> None:
    for row in range(start, stop):
        begin, end = row * length, (row + 1) * length
        cotangent, result, target = gy[begin:end], y[begin:end], gx[begin:end]
        if log:
            total = like(result[0], sums.total(cotangent))
            for i in range(result.size):
                target[i] = cotangent[i] - exp(result[i]) * total
        else:
            total = like(result[0], sums.dot(cotangent, result))
            for i in range(result.size):
                target[i] = result[i] * (cotangent[i] - total)


@kernel
def _columns_grad(gy: Any, y: Any, gx: Any, length: int, inner: int, log: bool, start: int, stop: int) -> None:
    blocks = (inner + _COLUMNS - 1) // _COLUMNS
    total = np.empty(_COLUMNS)
    for task in range(start, stop):
        first = task % blocks * _COLUMNS
        columns = min(_COLUMNS, inner - first)
        first += task // blocks * length * inner
        for i in range(columns):
            total[i] = 0.0
        for begin in range(first, first + length * inner, inner):
            cotangent, result = gy[begin : begin + columns], y[begin : begin + columns]
            for i in range(result.size):
                total[i] += np.float64(cotangent[i]) * (1.0 if log else np.float64(result[i]))
        for begin in range(first, first + length * inner, inner):
            cotangent, result = gy[begin : begin + columns], y[begin : begin + columns]
            target = gx[begin : begin + columns]
            for i in range(result.size):
                mean = like(result[i], total[i])
                target[i] = cotangent[i] - exp(result[i]) * mean if log else result[i] * (cotangent[i] - mean)
