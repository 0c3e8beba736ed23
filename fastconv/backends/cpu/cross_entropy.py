"""Cross-entropy of logits and class numbers, CPU backend: log-softmax and the loss in one. See contract.py.

The logits are (N, C, inner). Nothing of their size is stored: forward keeps the maximum and the logarithm of the sum of
exponentials of each position, backward computes the probabilities from them again. With inner = 1 a position is a row
and a task; otherwise a task is up to 256 neighbouring positions of one sample, and the loops vectorise across them.
Sums are float64, in an order that depends on C alone. Cost: one exponential an element and direction.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu import sums
from fastconv.backends.cpu.elementary import exp, like, maximum
from fastconv.backends.cpu.host import flat, kernel
from fastconv.backends.threads import RangeCall, parallel_for

Array = npt.NDArray[Any]

_COLUMNS = 256
_NS_PER_BYTE = 0.3


def cross_entropy(x: Array, classes: Array, weight: Array | None, smoothing: float) -> tuple[Array, Array]:
    """See contract.Backend.cross_entropy."""
    samples, _, inner = x.shape
    losses, normalisers = np.empty((samples, inner), x.dtype), np.empty((2, samples * inner), x.dtype)
    arrays = (x.reshape(-1), classes.reshape(-1), _weights(x, weight), losses.reshape(-1), normalisers)
    smoothing = float(smoothing)
    if inner == 1:
        _run(lambda start, stop: _rows(*arrays, smoothing, start, stop), x)
    else:
        _run(lambda start, stop: _columns(*arrays, smoothing, inner, start, stop), x)
    return losses, normalisers


def cross_entropy_backward(
    g: Array, x: Array, normalisers: Array, classes: Array, weight: Array | None, smoothing: float
) -> Array:
    """See contract.Backend.cross_entropy_backward."""
    inner = x.shape[2]
    gx = np.empty(x.shape, x.dtype)
    arrays = (flat(g), x.reshape(-1), normalisers, classes.reshape(-1), _weights(x, weight), gx.reshape(-1))
    smoothing = float(smoothing)
    if inner == 1:
        _run(lambda start, stop: _rows_grad(*arrays, smoothing, start, stop), x)
    else:
        _run(lambda start, stop: _columns_grad(*arrays, smoothing, inner, start, stop), x)
    return gx


def _weights(x: Array, weight: Array | None) -> Array:
    return np.ones(x.shape[1], x.dtype) if weight is None else weight


def _run(call: RangeCall, x: Array) -> None:
    parallel_for(call, x.shape[0] * -(-x.shape[2] // _COLUMNS), _NS_PER_BYTE * x.nbytes)


@kernel
def _rows(
    x: Any, classes: Any, weight: Any, losses: Any, normalisers: Any, smoothing: float, start: int, stop: int
) -> None:
    count = weight.size
    powers, weights = np.empty(count, x.dtype), sums.total(weight)
    for row in range(start, stop):
        source, target = x[row * count : (row + 1) * count], classes[row]
        largest = source[0]
        for i in range(source.size):
            largest = maximum(largest, source[i])
        for i in range(source.size):
            powers[i] = exp(source[i] - largest)
        shift = like(largest, math.log(sums.total(powers)))
        normalisers[0, row], normalisers[1, row] = largest, shift
        if target < 0:
            losses[row] = 0.0
            continue
        loss = np.float64(weight[target]) * -(source[target] - largest - shift)
        if smoothing != 0.0:
            even = weights * (np.float64(largest) + shift) - sums.dot(weight, source)
            loss = (1.0 - smoothing) * loss + smoothing / count * even
        losses[row] = loss


@kernel
def _rows_grad(
    g: Any, x: Any, normalisers: Any, classes: Any, weight: Any, gx: Any, smoothing: float, start: int, stop: int
) -> None:
    count = weight.size
    weights = sums.total(weight)
    for row in range(start, stop):
        source, result, target = x[row * count : (row + 1) * count], gx[row * count : (row + 1) * count], classes[row]
        if target < 0:
            result[:] = 0.0
            continue
        largest, shift = normalisers[0, row], normalisers[1, row]
        own, even = g[row] * (1.0 - smoothing) * weight[target], g[row] * smoothing / count
        factor = like(largest, own + even * weights)
        for i in range(source.size):
            result[i] = exp(source[i] - largest - shift) * factor
        if smoothing != 0.0:
            share = like(largest, even)
            for i in range(source.size):
                result[i] -= share * weight[i]
        result[target] -= like(largest, own)


@kernel
def _columns(
    x: Any, classes: Any, weight: Any, losses: Any, normalisers: Any, smoothing: float, inner: int, start: int,
    stop: int,
) -> None:  # fmt: skip
    count, blocks = weight.size, (inner + _COLUMNS - 1) // _COLUMNS
    weights = sums.total(weight)
    power, total, even = np.empty(_COLUMNS, x.dtype), np.empty(_COLUMNS), np.empty(_COLUMNS)
    for task in range(start, stop):
        sample, column = task // blocks, task % blocks * _COLUMNS
        columns = min(_COLUMNS, inner - column)
        at, first = sample * inner + column, sample * count * inner + column
        largest, shift = normalisers[0, at : at + columns], normalisers[1, at : at + columns]
        powers, totals, evens = power[:columns], total[:columns], even[:columns]
        for i in range(columns):
            largest[i], totals[i], evens[i] = x[first + i], 0.0, 0.0
        for begin in range(first, first + count * inner, inner):
            source = x[begin : begin + columns]
            for i in range(source.size):
                largest[i] = maximum(largest[i], source[i])
        for c in range(count):
            source = x[first + c * inner : first + c * inner + columns]
            for i in range(source.size):
                powers[i] = exp(source[i] - largest[i])
            for i in range(source.size):
                totals[i] += powers[i]
            if smoothing != 0.0:
                for i in range(source.size):
                    evens[i] += np.float64(weight[c]) * source[i]
        for i in range(columns):
            shift[i] = math.log(totals[i])
            target = classes[at + i]
            loss = 0.0
            if target >= 0:
                loss = np.float64(weight[target]) * -(x[first + target * inner + i] - largest[i] - shift[i])
                if smoothing != 0.0:
                    rest = weights * (np.float64(largest[i]) + shift[i]) - evens[i]
                    loss = (1.0 - smoothing) * loss + smoothing / count * rest
            losses[at + i] = loss


@kernel
def _columns_grad(
    g: Any, x: Any, normalisers: Any, classes: Any, weight: Any, gx: Any, smoothing: float, inner: int, start: int,
    stop: int,
) -> None:  # fmt: skip
    count, blocks = weight.size, (inner + _COLUMNS - 1) // _COLUMNS
    weights = sums.total(weight)
    own, even, factor = np.empty(_COLUMNS, x.dtype), np.empty(_COLUMNS, x.dtype), np.empty(_COLUMNS, x.dtype)
    for task in range(start, stop):
        sample, column = task // blocks, task % blocks * _COLUMNS
        columns = min(_COLUMNS, inner - column)
        at, first = sample * inner + column, sample * count * inner + column
        largest, shift = normalisers[0, at : at + columns], normalisers[1, at : at + columns]
        for i in range(columns):
            target = classes[at + i]
            cotangent = g[at + i] if target >= 0 else 0.0
            own[i] = cotangent * (1.0 - smoothing) * weight[max(target, 0)]
            even[i] = cotangent * smoothing / count
            factor[i] = own[i] + even[i] * weights
        for c in range(count):
            begin = first + c * inner
            source, result = x[begin : begin + columns], gx[begin : begin + columns]
            for i in range(source.size):
                result[i] = exp(source[i] - largest[i] - shift[i]) * factor[i]
            if smoothing != 0.0:
                for i in range(source.size):
                    result[i] -= even[i] * weight[c]
        for i in range(columns):
            target = classes[at + i]
            if target >= 0:
                gx[first + target * inner + i] -= own[i]
            else:
                for place in range(first + i, first + i + count * inner, inner):
                    gx[place] = 0.0
