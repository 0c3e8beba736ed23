"""Softmax and log-softmax of the CPU backend, and their gradients. See contract.py.

The array is (outer, length, inner), the sums run over `length`. Along the last axis (inner = 1) a row is one task: its
maximum, its exponentials, their sum, each a loop that vectorises along the row; short rows are turned into columns, a
block of them a task (row_blocks.py). Otherwise a task is up to 256 neighbouring columns of one outer index, and the
loops vectorise across the columns. Sums are float64, in an order that depends on the length alone. Cost: one
exponential an element, three passes over a row that stays in cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu import sums
from fastconv.backends.cpu.elementary import exp_negative, like, maximum
from fastconv.backends.cpu.host import routine
from fastconv.backends.cpu.memory import empty
from fastconv.backends.cpu.row_blocks import LONGEST, ROWS, block_elements, places, to_columns, to_rows
from fastconv.backends.cpu.team import shared
from fastconv.backends.threads import share

Array = npt.NDArray[Any]

_COLUMNS = 256
_NS_PER_BYTE = 0.3


def softmax(x: Array, axis: int, log: bool) -> Array:
    """See contract.Backend.softmax."""
    y = empty(x.shape, x.dtype)
    length, inner = _length_and_inner(x.shape, axis)
    rows = _short_rows if length <= LONGEST else _rows
    _run(rows if inner == 1 else _columns, (x.reshape(-1), y.reshape(-1)), length, inner, log)
    return y


def softmax_backward(gy: Array, y: Array, axis: int, log: bool) -> Array:
    """See contract.Backend.softmax_backward."""
    gx = empty(gy.shape, gy.dtype)
    length, inner = _length_and_inner(gy.shape, axis)
    flats = gy.reshape(-1), y.reshape(-1), gx.reshape(-1)
    _run(_rows_grad if inner == 1 else _columns_grad, flats, length, inner, log)
    return gx


def _length_and_inner(shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    axis %= len(shape)
    return shape[axis], math.prod(shape[axis + 1 :])


def _run(loop: Callable[..., None], flats: tuple[Array, ...], length: int, inner: int, log: bool) -> None:
    x = flats[0]
    if x.size:
        tasks = x.size // (length * inner) * -(-inner // _COLUMNS)
        if loop is _short_rows:
            tasks = -(-tasks // ROWS)
        share(loop, (*flats, length, inner, log), tasks, _NS_PER_BYTE * x.nbytes)


@shared
def _rows(x: Any, y: Any, length: int, inner: int, log: bool, who: int, begin: int, end: int) -> None:
    for row in range(begin, end):
        source, target = x[row * length : (row + 1) * length], y[row * length : (row + 1) * length]
        largest = source[0]
        for i in range(source.size):
            largest = maximum(largest, source[i])
        for i in range(source.size):
            target[i] = exp_negative(source[i] - largest)
        total = sums.total(target)
        if log:
            shift = like(largest, math.log(total))
            for i in range(source.size):
                target[i] = source[i] - largest - shift
        else:
            factor = like(largest, 1.0 / total)
            for i in range(target.size):
                target[i] *= factor


@shared(allocates=True)  # type: ignore[untyped-decorator]
def _short_rows(x: Any, y: Any, length: int, inner: int, log: bool, who: int, begin: int, end: int) -> None:
    """Blocks [begin, end) of rows."""
    given, found = np.empty(block_elements(length), x.dtype), np.empty(block_elements(length), x.dtype)
    largest, shift, total = np.empty(_COLUMNS, x.dtype), np.empty(_COLUMNS, x.dtype), np.empty(_COLUMNS)
    to = places(length)
    for task in range(begin, end):
        row = task * ROWS
        rows = min(ROWS, x.size // length - row)
        to_columns(x, row, rows, length, to, given)
        _columns_of_task(given, found, length, ROWS, log, largest, shift, total, 0)
        to_rows(found, y, row, rows, length)


@shared(allocates=True)  # type: ignore[untyped-decorator]
def _columns(x: Any, y: Any, length: int, inner: int, log: bool, who: int, begin: int, end: int) -> None:
    largest, shift, total = np.empty(_COLUMNS, x.dtype), np.empty(_COLUMNS, x.dtype), np.empty(_COLUMNS)
    for task in range(begin, end):
        _columns_of_task(x, y, length, inner, log, largest, shift, total, task)


@routine
def _columns_of_task(
    x: Any, y: Any, length: int, inner: int, log: bool, largest: Any, shift: Any, total: Any, task: int
) -> None:
    first, columns = _place(task, length, inner)
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
            target[i] = exp_negative(source[i] - largest[i])
        for i in range(source.size):  # a loop of its own: with float64 in it, vectors hold half as much
            total[i] += target[i]
    for i in range(columns):
        shift[i] = math.log(total[i]) if log else 1.0 / total[i]
    for begin in range(first, first + length * inner, inner):
        source, target = x[begin : begin + columns], y[begin : begin + columns]
        for i in range(source.size):
            target[i] = source[i] - largest[i] - shift[i] if log else target[i] * shift[i]


@routine
def _place(task: int, length: int, inner: int) -> tuple[int, int]:
    """The first element of a task's columns, and their number."""
    blocks = (inner + _COLUMNS - 1) // _COLUMNS
    column = task % blocks * _COLUMNS
    return task // blocks * length * inner + column, min(_COLUMNS, inner - column)


@shared
def _rows_grad(gy: Any, y: Any, gx: Any, length: int, inner: int, log: bool, who: int, begin: int, end: int) -> None:
    for row in range(begin, end):
        first, last = row * length, (row + 1) * length
        cotangent, result, target = gy[first:last], y[first:last], gx[first:last]
        if log:
            total = like(result[0], sums.total(cotangent))
            for i in range(result.size):
                target[i] = cotangent[i] - exp_negative(result[i]) * total
        else:
            total = like(result[0], sums.dot(cotangent, result))
            for i in range(result.size):
                target[i] = result[i] * (cotangent[i] - total)


@shared(allocates=True)  # type: ignore[untyped-decorator]
def _columns_grad(gy: Any, y: Any, gx: Any, length: int, inner: int, log: bool, who: int, begin: int, end: int) -> None:
    total = np.empty(_COLUMNS)
    for task in range(begin, end):
        _columns_grad_of_task(gy, y, gx, length, inner, log, total, task)


@routine
def _columns_grad_of_task(gy: Any, y: Any, gx: Any, length: int, inner: int, log: bool, total: Any, task: int) -> None:
    first, columns = _place(task, length, inner)
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
            target[i] = cotangent[i] - exp_negative(result[i]) * mean if log else result[i] * (cotangent[i] - mean)
